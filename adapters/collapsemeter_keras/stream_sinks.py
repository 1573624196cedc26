"""Where reports go: destinations of the user's, for each stream of batches apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

STREAMS = ("train", "validation", "probe")


def open_sinks(destinations: Any, probed: bool) -> dict[str, Any]:
    """Open what every stream that will be written goes to, as one `collapsemeter.sinks.Fan`."""
    from collapsemeter.sinks import Fan  # file formats take their time

    streams = STREAMS if probed else STREAMS[:-1]
    if not isinstance(destinations, Mapping):
        return {name: Fan(*_of_stream(_several(destinations), name)) for name in streams}
    for name in destinations:
        if name not in STREAMS:
            raise ValueError(f"sinks has a stream {name!r}: choose of {', '.join(STREAMS)}")
    return {name: Fan(*_several(destinations.get(name, ()))) for name in streams}


def close_sinks(sinks: Mapping[str, Any]) -> None:
    """Close what `open_sinks` opened."""
    for fan in sinks.values():
        fan.close()


def _several(destinations: Any) -> Iterable[Any]:
    if isinstance(destinations, str | Path) or not isinstance(destinations, Iterable):
        return [destinations]
    return destinations


def _of_stream(destinations: Iterable[Any], stream: str) -> Iterator[Any]:
    """Yield the destinations that a stream writes to; a logger's curves must not mix."""
    for destination in destinations:
        if isinstance(destination, str | Path):
            path = Path(destination)
            yield path.with_suffix(f".{stream}{path.suffix}") if path.suffix else path / stream
        elif stream == "train" or callable(destination) or hasattr(destination, "write"):
            yield destination
