"""A comparison as text: figures of every layer and the verdicts, or named metrics beside the reference."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from ..report.report_table import longest_name
from ..system.escaping import printable
from .layer_comparison import LayerComparison

COLUMNS = {  # characters of each column, spaces included
    "nc1": 9, "gram": 9, "spectrum": 10, "scale": 9, "erank": 7, "optimal": 9, "K": 5, "low": 7,
}  # fmt: skip


def metric_rows(
    layers: Mapping[str, LayerComparison], metrics: Sequence[str], width: int
) -> Iterator[str]:
    """Yield a line for each metric of each layer: measured, reference and gap."""
    longest = max(map(len, ["metric", *metrics]))
    room = min(longest_name(layers), max(len("layer"), width - longest - 35))
    head = (
        f"{'layer':<{room}}  {'metric':<{longest}}  {'measured':>8}  {'reference':>9}  {'gap':>8}"
    )
    yield from (head, "─" * len(head))
    within = False
    for name, layer in layers.items():
        for metric in metrics:
            gap = layer.metrics.get(metric)
            figures = (math.nan,) * 3 if gap is None else (*gap[:2], gap.gap)
            measured, reference, difference = map(_cell, figures)
            noise = gap is not None and gap.beyond_noise is False
            within |= noise
            yield (
                f"{_fitted(name, room):<{room}}  {metric:<{longest}}  "
                f"{measured:>8}  {reference:>9}  {difference:>8}{' ~' if noise else ''}"
            )
    if within:
        yield from textwrap.wrap("~: no gap beyond noise, as the 95 % intervals meet", width)


def overview_rows(
    layers: Mapping[str, LayerComparison], reference: str, mapping: str, low_rank: str, width: int
) -> Iterator[str]:
    """Yield what was compared with what, the figures of every layer, and the verdicts."""
    wrap = partial(textwrap.wrap, width=width, subsequent_indent="  ")
    room = min(longest_name(layers), max(len("layer"), width - 4 - sum(COLUMNS.values())))
    head = f"{'layer':<{room}} ref" + "".join(map(str.rjust, COLUMNS, COLUMNS.values()))
    yield from wrap(f"reference: {printable(reference)}")
    yield from wrap(printable(mapping))
    yield from ("", head, "─" * len(head))
    for name, layer in layers.items():
        number = _fitted(layer.reference_layer, 3)
        cells = "".join(map(str.rjust, map(_cell, _figures(layer)), COLUMNS.values()))
        yield f"{_fitted(name, room):<{room}} {number:>3}{cells}"
    yield ""
    for name, layer in layers.items():
        yield from wrap(f"{printable(name)}: {layer.verdict}")
    if low_rank:
        yield f"low: effective rank of {low_rank}, a low-rank structure"


def _figures(layer: LayerComparison) -> tuple[float, ...]:
    """Return the figures of the overview, in the order of `COLUMNS`."""
    nc1, scale, ranks = layer.metrics.get("nc1_trace_ratio"), layer.scale, layer.ranks
    ratio = scale.measured / scale.reference if scale.reference else math.nan
    distances = layer.gram_distance, layer.spectrum_distance, ratio
    measured = math.nan if nc1 is None else nc1.measured
    return (measured, *distances, ranks.measured, ranks.reference, ranks.classes, ranks.low_rank)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _fitted(name: str, room: int) -> str:
    """Shorten a name at its front: the end of a layer's path tells layers apart."""
    shown = printable(name)
    return shown if len(shown) <= room else "…" + shown[len(shown) - room + 1 :]
