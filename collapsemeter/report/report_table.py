"""A report as a table of text: layers against metrics, and below it what must be said of the values."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..metrics.catalogue import METRICS
from ..stats.undefined import REASONS
from ..system.escaping import printable
from ..system.suggest import did_you_mean
from .trust_words import beside

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

_CELL = 8  # characters of a value: 1.23e-05
_NAME = 12  # characters of a layer's name at least
TABLE = ("nc1_pinv", "nc2_equinorm", "nc2_etf_error", "nc3_self_duality", "nc4_mismatch")
LayerReports: TypeAlias = "Mapping[str, LayerReport]"


def table_lines(
    layers: LayerReports, notes: Iterable[str], metrics: Sequence[str], width: int
) -> list[str]:
    """Return the lines of `CollapseReport.table`."""
    known = {*METRICS, *(name for layer in layers.values() for name in layer)}
    for metric in metrics:
        if metric not in known:
            raise ValueError(
                f"table(metrics=...): no metric is named {metric!r}{did_you_mean(metric, METRICS)}"
            )
    lines = []
    cells = {metric: _column(layers, metric, width) for metric in metrics}
    sizes = {metric: max(map(len, [metric, *cells[metric], " " * _CELL])) for metric in cells}
    for names, columns in _blocks(sizes, width, longest_name(layers)):
        lines += _block(layers, names, columns, cells)
    apart = [metric for metric in metrics if max(map(len, cells[metric]), default=0) <= _CELL]
    for note in [*_noise(layers, apart), *_notes(layers, metrics, notes)]:
        lines += textwrap.wrap(note, width, subsequent_indent="  ")
    return lines


def longest_name(layers: Iterable[str]) -> int:
    """Return the characters that names take in a table, its header included."""
    return max(map(len, ["layer", *map(printable, layers)]))


def _column(layers: LayerReports, metric: str, width: int) -> list[str]:
    """Return the cells of a metric: values, beside what is known of their noise where that fits the page."""
    values = [f"{layer[metric]:.3g}" if metric in layer else "-" for layer in layers.values()]
    known = [beside(layer, metric) for layer in layers.values()]
    longest = max(map(len, known), default=0)
    if _NAME + 1 + max(map(len, values), default=0) + longest > width:
        return values
    return [value + words.ljust(longest) for value, words in zip(values, known, strict=True)]


def _blocks(
    sizes: Mapping[str, int], width: int, longest: int
) -> Iterator[tuple[int, dict[str, int]]]:
    """Split columns over tables: characters of the names, and of each column with the gap before it."""
    whole = sum(sizes.values())
    gap = 1 if longest + whole + 2 * len(sizes) > width else 2
    # Names are folded before columns move to another table, but not below so many characters.
    names = max(min(longest, _NAME), min(longest, width - whole - gap * len(sizes)))
    columns: dict[str, int] = {}
    for metric, size in sizes.items():
        if columns and names + sum(columns.values()) + size + gap > width:
            yield names, columns
            columns = {}
        columns[metric] = size + gap
    yield names, columns


def _block(
    layers: LayerReports, names: int, columns: Mapping[str, int], cells: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the lines of one table."""
    sizes = columns.values()
    header = "".join(map(str.rjust, columns, sizes))
    lines = ["layer".ljust(names) + header, "─" * (names + sum(sizes))]
    for name, *values in zip(layers, *(cells[metric] for metric in columns), strict=True):
        row = "".join(map(str.rjust, values, sizes)).rstrip()
        first, *continued = textwrap.wrap(printable(name), names) or [""]
        lines += [first.ljust(names) + row, *continued]
    return lines


def _noise(layers: LayerReports, metrics: Sequence[str]) -> Iterator[str]:
    """Say what is known of the noise in the metrics whose column has no room for it."""
    for name, layer in layers.items():
        for metric in metrics:
            words = beside(layer, metric)
            if words and metric in layer:
                yield f"{printable(name)}: {metric} {layer[metric]:.3g}{words}"


def _notes(layers: LayerReports, metrics: Sequence[str], notes: Iterable[str]) -> Iterator[str]:
    """Say why values are undefined, once for each reason; how sure others are; what else was noted."""
    for name, layer in layers.items():
        by_code: dict[str, list[str]] = {}
        for metric in metrics:
            if not math.isfinite(layer.get(metric, 0.0)):
                by_code.setdefault(layer.reasons.get(metric, ""), []).append(metric)
        for code, undefined in by_code.items():
            why = REASONS.get(code, "no reason is known")
            yield f"nan: {printable(name)}: {', '.join(undefined)}: {why}"
    for name, layer in layers.items():
        for metric in (m for m in metrics if m in layer.standard_errors and m in layer):
            words = f"{metric} {layer[metric]:.3g} ± {layer.standard_errors[metric]:.2g}"
            yield f"±: {printable(name)}: {words} (standard error of a sketch)"
    for note in notes:
        yield f"! {printable(note)}"
