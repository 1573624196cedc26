"""Where a report goes: the sinks of its stream of batches, and Keras' logs."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from collapsemeter import CollapseReport
from collapsemeter.report.tags import chosen_metrics

from .entries import STREAMS, Entry

LAST = "head"  # the last layer's other name in the logs
_PREFIX = {"train": "", "validation": "val_", "probe": "probe_"}


class Publisher:
    """Writes reports to sinks, which are open until `close`."""

    def __init__(
        self,
        log_metrics: Sequence[str] | Literal["all"],
        destinations: Sequence[Any] | Mapping[str, Sequence[Any]],
        *,
        probed: bool,
    ) -> None:
        self.log_metrics = chosen_metrics(log_metrics)
        self._destinations, self._probed = destinations, probed
        self._close: weakref.finalize[..., Any] | None = None
        self.open()

    def open(self) -> None:
        """Open the sinks; where they are open already, nothing happens."""
        if self._close is None or not self._close.alive:
            self._sinks = _opened(self._destinations, probed=self._probed)
            # Also of a meter that is dropped without `close`.
            self._close = weakref.finalize(self, _close_all, self._sinks)

    def close(self) -> None:
        """Close what was opened."""
        if self._close is not None:
            self._close()

    def publish(self, stream: str, entry: Entry, logs: dict[str, Any] | None) -> None:
        """Hand a report to the sinks of its stream, and to Keras' logs where there are any."""
        self._sinks[stream].write(entry.epoch, entry.report)
        if logs is not None:
            logs |= self._logged(stream, entry.report)

    def is_logged(self, name: str) -> bool:
        """Whether a name in Keras' logs is of the meter."""
        prefix = next((part for part in ("val_", "probe_") if name.startswith(part)), "")
        metric, slash, _ = name.removeprefix(prefix).partition("/")
        return bool(slash) and metric in self.log_metrics

    def _logged(self, stream: str, report: CollapseReport) -> dict[str, float]:
        """Return metrics by their names in the logs; Keras may call the last layer otherwise in the next run."""
        layers = dict(report)
        if layers and LAST not in layers:
            layers[LAST] = report.final
        return {
            f"{_PREFIX[stream]}{metric}/{name}": float(layer[metric])
            for name, layer in layers.items()
            for metric in self.log_metrics
            if metric in layer
        }


def _opened(destinations: Any, probed: bool) -> dict[str, Any]:
    """Open what every stream that will be written goes to, as one `collapsemeter.sinks.Fan`."""
    from collapsemeter.sinks import Fan  # file formats take their time

    streams = STREAMS if probed else STREAMS[:-1]
    if not isinstance(destinations, Mapping):
        return {name: Fan(*_of_stream(_several(destinations), name)) for name in streams}
    for name in destinations:
        if name not in STREAMS:
            raise ValueError(f"sinks has a stream {name!r}: choose of {', '.join(STREAMS)}")
    return {name: Fan(*_several(destinations.get(name, ()))) for name in streams}


def _close_all(sinks: Mapping[str, Any]) -> None:
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
