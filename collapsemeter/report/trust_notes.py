"""Why a metric has no estimate or interval, and what flags of noise mean for a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..stats.undefined import FLAGS, REASONS
from ..system.escaping import printable
from ..system.suggest import listed
from .trust_words import words_with_rows

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

_OF_ROWS = ("between_scatter_not_above_noise", "too_few_rows")  # reasons that more rows would end
_CAUTIONS = {  # flags, and how the metrics begin that they concern
    "between_scatter_not_above_noise": ("nc", "separation"),
    "resubstitution": ("nc4_", "ncc_accuracy"),
    "etf_is_generic": ("nc2_etf_error",),
}


def no_part(layer: LayerReport, metric: str, part: str) -> str:
    """Return in words why a metric has no estimate or interval."""
    codes = layer.no_estimate if part == "estimate" else layer.no_interval
    code = codes.get(metric, layer.reason(metric))
    if code is None:
        return "it was not recorded" if metric in layer else "it was not measured"
    return _sentence(layer, code)


def cautions(layers: Mapping[str, LayerReport], metrics: Iterable[str]) -> list[str]:
    """Return a sentence for every flag of noise that concerns one of some metrics, with the layers that have it."""
    names = tuple(metrics)
    sentences = []
    for flag, beginnings in _CAUTIONS.items():
        flagged = [name for name, layer in layers.items() if flag in layer.flags]
        if flagged and any(name.startswith(beginnings) for name in names):
            sentences.append(
                f"{listed(map(printable, flagged), 3)}: {_sentence(layers[flagged[-1]], flag)}"
            )
    return sentences


def _sentence(layer: LayerReport, code: str) -> str:
    words = (REASONS | FLAGS).get(code, code)
    return words_with_rows(layer, words) if code in _OF_ROWS else words
