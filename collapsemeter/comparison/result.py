"""The result of a comparison with a reference: gaps, distances, and a sentence for every layer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..report.criteria import Criteria
from ..report.report import NamedLayers
from ..system.escaping import printable
from ..version import __version__
from .comparison_table import metric_rows, overview_rows
from .layer_comparison import LayerComparison


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(NamedLayers[LayerComparison]):
    """A network beside a reference, layer by layer: ``comparison["fc"].verdict``.

    Attributes
    ----------
    layers : dict of str to LayerComparison
    reference : str
        What the network was compared with, and how sure that is an optimum.
    mapping : str
        Which measured layer stands for which layer of the reference, in words.
    unmatched : tuple of str
        Measured layers that no layer of the reference stands for.
    low_rank : str
        Name of the best low-rank structure of the problem; empty if none is known.
    criteria : Criteria
        What counted as collapsed.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> from collapsemeter import compare
    >>> best = DUFM(2, 5, 2, feature_decay=0.01, weight_decay=0.01).optimum()
    >>> print(compare(best, best).summary())
    2 (reference layer 2): collapsed to dnc: 0 % of the variance is within classes; class means are 0 % as far from dnc as random ones from a simplex ETF
    """

    layers: dict[str, LayerComparison]
    reference: str
    mapping: str
    unmatched: tuple[str, ...] = ()
    low_rank: str = ""
    criteria: Criteria = field(default_factory=Criteria)
    last_hidden: str = ""

    def __getitem__(self, layer: str) -> LayerComparison:
        try:
            return self.layers[layer]
        except KeyError:
            raise KeyError(
                f"no layer {layer!r} was compared; compared: {', '.join(self.layers)}"
            ) from None

    def __repr__(self) -> str:
        return f"<Comparison {self.summary()}>"

    def summary(self) -> str:
        """Return one sentence: the verdict of the last hidden layer, which the head reads."""
        name = self.last_hidden or list(self.layers)[-1]
        layer = self.layers[name]
        return printable(f"{name} (reference layer {layer.reference_layer}): {layer.verdict}")

    def table(self, metrics: Sequence[str] = (), width: int = 80) -> str:
        """Return the layers as text, with the verdicts; or named metrics beside the reference.

        Parameters
        ----------
        metrics : sequence of str
            Metrics to list by layer: measured, reference, gap, with ``~`` where the 95 % intervals of both
            meet, so that noise may be all of it. Without any, the overview: NC1
            (``nc1_trace_ratio``), distances of Gram matrix and spectrum, scale over that of the
            reference, effective rank measured and optimal, classes, and effective rank of the best
            low-rank structure.
        width : int
            Characters a line at most.

        Examples
        --------
        >>> from collapsemeter.dufm import DUFM
        >>> from collapsemeter import compare
        >>> best = DUFM(2, 5, 1, feature_decay=0.01, weight_decay=0.01).optimum()
        >>> print(compare(best, best).table(["nc1_pinv", "nc2_equinorm"]))
        layer  metric        measured  reference       gap
        ──────────────────────────────────────────────────
        1      nc1_pinv             0          0         0
        1      nc2_equinorm         -          -         -
        2      nc1_pinv             0          0         0
        2      nc2_equinorm         -          -         -
        """
        if metrics:
            return "\n".join(metric_rows(self, metrics, width))
        return "\n".join(overview_rows(self, self.reference, self.mapping, self.low_rank, width))

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, NaN as None, ready for JSON."""
        return {
            "format": "collapsemeter.Comparison",
            "version": 1,
            "collapsemeter": __version__,
            "reference": self.reference,
            "mapping": self.mapping,
            "unmatched": list(self.unmatched),
            "low_rank_structure": self.low_rank or None,
            "summary": self.summary(),
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
        }

    def to_json(self, indent: int | None = None) -> str:
        """Return the comparison as strict JSON (undefined values are null)."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)
