"""Reports as flat scalars: one safe tag per curve, and a gap where a value is undefined."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..metrics.catalogue import METRICS
from ..system.suggest import did_you_mean
from .trust_words import PARTS, trust

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

# Every tracker accepts ASCII word characters, dot, dash and slash. MLflow may store a metric as a file of
# that name, so no segment may be empty, "." or "..", and takes 250 characters, the metric's included.
_UNSAFE = re.compile(r"[^\w.\-/]", re.ASCII)
_LONGEST = 200
HEAD = "head"
_PLACES = {metric: place for place, metric in enumerate(METRICS)}


def safe_name(layer: str) -> str:
    """Return a layer's name as a tag may hold it."""
    segments = _UNSAFE.sub("_", layer)[:_LONGEST].split("/")
    return "/".join("_" if segment in {"", ".", ".."} else segment for segment in segments)


def chosen_metrics(metrics: Sequence[str] | Literal["all"]) -> tuple[str, ...]:
    """Return the names of metrics that are logged."""
    if metrics == "all":
        return tuple(METRICS)
    chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in chosen:
        if name not in METRICS:
            raise ValueError(
                f"log_metrics={name!r}: no metric has that name; choose of {', '.join(METRICS)}"
                f"{did_you_mean(name, METRICS)}"
            )
    return chosen


class Tags:
    """Turns reports into ``{tag: value}``; no two layers share a tag."""

    def __init__(self, metrics: Collection[str] | None = None, intervals: bool = False) -> None:
        self._metrics = metrics  # None: all that a layer has
        self._intervals = intervals  # whether a metric that has one gets .low, .high and .estimate
        self._names: dict[str, str] = {}

    def of(self, report: Mapping[str, LayerReport]) -> dict[str, float]:
        """Return the values by tag; one that is not finite is left out: some trackers choke on NaN."""
        values = {
            self.tag(metric, name): value
            for name, layer in report.items()
            for metric, value in self._of_layer(layer)
        }
        final = next(reversed([*report.values()]), None)
        if HEAD in report or final is None or "nc3_cosine" not in final:
            return values
        # What the head reads has a second tag, the same in every run: Keras numbers its layers.
        return values | {
            f"{safe_name(metric)}/{HEAD}": value for metric, value in self._of_layer(final)
        }

    def _of_layer(self, layer: LayerReport) -> Iterator[tuple[str, float]]:
        for metric in sorted(layer, key=lambda metric: _PLACES.get(metric, len(_PLACES))):
            if self._metrics is not None and metric not in self._metrics:
                continue
            if math.isfinite(layer[metric]):
                yield metric, float(layer[metric])
            if self._intervals and metric in layer.intervals:
                parts = zip(PARTS, trust(layer, metric), strict=True)
                yield from ((f"{metric}.{name}", end) for name, end in parts if math.isfinite(end))

    def tag(self, metric: str, layer: str) -> str:
        """Return the tag of one curve, metric first: TensorBoard groups by the text before the slash."""
        if layer not in self._names:
            used = {*self._names.values(), *([] if layer == HEAD else [HEAD])}
            self._names[layer] = _distinct(safe_name(layer), used)
        return f"{safe_name(metric)}/{self._names[layer]}"


def _distinct(name: str, used: set[str]) -> str:
    """Change a name that cannot stand beside those of other layers: ``a#0`` and ``a_0`` are two curves."""
    numbered = (f"{name}_{count}" for count in itertools.count(2))
    candidates = itertools.chain((name, name.replace("/", ".")), numbered)
    return next(candidate for candidate in candidates if not _collides(candidate, used))


def _collides(name: str, used: set[str]) -> bool:
    """Whether a name is used, or one of the two would be the folder of another, where metrics are files."""
    folders = {name[:i] for i, character in enumerate(name) if character == "/"}
    return bool(used & {name, *folders}) or any(path.startswith(f"{name}/") for path in used)


def beginning(prefix: str, phase: str) -> str:
    """Return what tags begin with: ``{phase}`` is that of the report, and every tracker accepts the rest."""
    *folders, last = _UNSAFE.sub("_", of_report(prefix, phase)).split("/")
    return "".join(f"{folder}/" for folder in folders if folder not in {"", ".", ".."}) + last


def of_report(prefix: str, phase: str) -> str:
    """Put a report's phase into a prefix."""
    return prefix.replace("{phase}", phase)


def of_phase(scalars: Mapping[str, float], phase: str) -> dict[str, float]:
    """Put the phase into tags that do not have it yet."""
    place = f"/{phase}/"
    return {
        tag if place in tag else tag.replace("/", place, 1): value for tag, value in scalars.items()
    }
