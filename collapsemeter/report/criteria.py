"""The criteria of "collapsed": a share for each property, bands of shares, and the words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ..metrics.random_means import random_etf_error
from ..stats.undefined import FLAGS, REASONS
from .trust_words import trust, words_with_rows

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

Band = Literal[
    "collapsed", "nearly collapsed", "partly collapsed", "not collapsed", "not judged"
]  # from the best to the worst

PROPERTIES = {
    "NC1": "nc1_trace_ratio",
    "NC2": "nc2_etf_error",
    "NC3": "nc3_self_duality",
    "NC4": "nc4_mismatch",
}
"""The metric that each property is judged by."""

RECORDED = ("classes_present", "width")
"""The entries of a layer's provenance that the criteria read: a history keeps these beside the metrics."""

_WORDS = {
    "NC1": "{} of the variance is within classes",
    "NC2": "class means are {} as far from a simplex ETF as random ones",
    "NC3": "head and class means differ by {} of unrelated ones",
    "NC4": "{} of rows are not decided by the nearest class mean",
}
_GENERIC = 0.1  # so near a simplex ETF (0 to 2) are random class means of a wide layer
_WIDE = "the layer is so wide that random class means are nearly a simplex ETF"
_UNRECORDED = "the report does not record how many classes and features were measured"


class Judgement(NamedTuple):
    """The verdict on one property."""

    property: str  # NC1 to NC4, or geometry beside a reference
    share: float  # 0 at collapse, 1 without any structure, NaN where there is no share
    band: Band
    words: str  # what is so much of what, or why it is not judged
    figure: str = ""  # the percentage in these words

    def __str__(self) -> str:
        return f"{self.property} {self.band}: {self.words}"


@dataclass(frozen=True)
class Criteria:
    r"""When a property counts as collapsed: bands of the share of what no structure at all would give.

    ========  ==================================================================================
    property  share
    ========  ==================================================================================
    NC1       :math:`\operatorname{tr} S_W / (\operatorname{tr} S_W + \operatorname{tr} S_B)`
    NC2       ``nc2_etf_error`` over :math:`\sqrt{2 - 2\sqrt{d/(d+C)}}`, about that of random means
    NC3       ``nc3_self_duality`` / 2: it is 2 where head and class means are unrelated
    NC4       ``nc4_mismatch`` / (1 - 1/C): chance misses so many rows
    ========  ==================================================================================

    Nothing is judged where the scatter between classes is not above noise or no class has two rows, nor NC1 where its 95 % interval,
    without the noise in the class means, lies in worse bands. The bands are this package's; no paper defines them.

    Parameters
    ----------
    collapsed, nearly, partly : float
        Up to these shares, each included, a property is collapsed, nearly or partly so.

    Raises
    ------
    ValueError
        If these are not shares in ascending order.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> layer = LayerReport({"nc1_trace_ratio": 0.03, "nc3_self_duality": 0.012})
    >>> print(Criteria().judge(layer)["NC1"])
    NC1 nearly collapsed: 2.9 % of the variance is within classes
    >>> print(Criteria(collapsed=0.05).judge(layer)["NC1"])
    NC1 collapsed: 2.9 % of the variance is within classes
    """

    collapsed: float = 0.01
    nearly: float = 0.10
    partly: float = 0.50

    def __post_init__(self) -> None:
        edges = (self.collapsed, self.nearly, self.partly)
        numbers = all(isinstance(edge, Real) for edge in edges)
        if not numbers or not 0 <= self.collapsed <= self.nearly <= self.partly <= 1:
            raise ValueError(
                f"{self!r}: pass shares in ascending order from 0 to 1, such as 0.01 for 1 %"
            )

    @classmethod
    def chosen(cls, criteria: Criteria | None) -> Criteria:
        """Return the criteria that were passed, the default ones for None."""
        if criteria is None:
            return cls()
        if not isinstance(criteria, cls):
            raise ValueError(
                f"criteria={criteria!r}: pass collapsemeter.Criteria(collapsed=, nearly=, partly=)"
            )
        return criteria

    def band(self, share: float) -> Band:
        """Return the band of a share."""
        if share <= self.collapsed:
            return "collapsed"
        if share <= self.nearly:
            return "nearly collapsed"
        return "partly collapsed" if share <= self.partly else "not collapsed"

    def judge(self, layer: LayerReport) -> dict[str, Judgement]:
        """Return what is said of NC1 to NC4 of a layer, by property.

        A value that is undefined, that rounding explains, or that would be the same without any
        collapse is not judged, and its words say why.
        """
        return {name: self._judge(layer, name) for name in PROPERTIES}

    def beside(self, name: str, distance: float, layer: LayerReport) -> Judgement:
        """Return what is said of class means at some Gram distance from a reference; the unit is NC2's."""
        unit, why = _random(layer)
        if why:
            return Judgement("geometry", math.nan, "not judged", why)
        share = distance / unit
        figure = self.percent(share)
        words = f"class means are {figure} as far from {name} as random ones from a simplex ETF"
        return Judgement("geometry", share, self.band(share), words, figure)

    def percent(self, share: float) -> str:
        """Return a share in percent, with as many digits, two at least, as its band asks for."""
        for digits in range(2, 7):
            shown = float(f"{100 * share:.{digits}g}")
            if self.band(shown / 100) == self.band(share):
                break
        return f"{shown:g} %"

    def _judge(self, layer: LayerReport, name: str) -> Judgement:
        why = _no_share(layer, name)
        if why:
            return Judgement(name, math.nan, "not judged", why)
        value = layer[PROPERTIES[name]]
        share = _share(layer, name, value)
        figure = self.percent(value if name == "NC4" else share)
        words = _WORDS[name].format(figure)
        doubtful = False
        if name == "NC1" and "at_dtype_floor" in layer.flags:  # rounding explains it
            words, doubtful = f"{words}, but {FLAGS['at_dtype_floor']}", True
        elif few := _too_few_rows(layer):
            words, doubtful = f"{words}, but {few}", True
        elif name == "NC1":
            beside, doubtful = self._without_noise(layer, share)
            words += beside
        band: Band = "not judged" if doubtful else self.band(share)
        return Judgement(name, share, band, words, figure)

    def _without_noise(self, layer: LayerReport, share: float) -> tuple[str, bool]:
        """Say what NC1's share would be without the noise in class means, if not the same, and whether that is surely worse."""
        low, high, estimate = (
            part / (1 + part) if part >= 0 else math.nan for part in trust(layer, PROPERTIES["NC1"])
        )
        figure = "" if math.isnan(estimate) else self.percent(estimate)
        if math.isnan(low) or math.isnan(high) or not figure:
            shown = figure and figure != self.percent(share)
            return f" (est. {figure})" if shown else "", False
        ends = f"{self.percent(low)} to {self.percent(high)}"
        if worst([self.band(low), self.band(share)]) != self.band(share):
            return f", but {figure} ({ends}) without the noise in class means", True
        return f" (est. {figure}, {ends})" if figure != self.percent(share) else "", False


def sentences(judged: Iterable[Judgement]) -> list[str]:
    """Return judgements in words; those that are not judged for one reason share a sentence."""
    together: dict[tuple[str, str], list[str]] = {}
    for judgement in judged:
        together.setdefault((judgement.band, judgement.words), []).append(judgement.property)
    return [f"{_listed(names)} {band}: {words}" for (band, words), names in together.items()]


def worst(bands: Iterable[Band]) -> Band:
    """Return the worst of the bands that are judged; ``not judged`` without any."""
    known = [band for band in bands if band != "not judged"]
    return max(known, key=get_args(Band).index, default="not judged")


def pinv_words(layer: LayerReport) -> str:
    """Return ``nc1_pinv`` with its formula, as it is no ratio of variances; empty without a value."""
    value = layer.get("nc1_pinv", math.nan)
    if not math.isfinite(value):
        return ""
    convention = layer.provenance.get("convention")
    whole = isinstance(convention, dict) and convention.get("divide_by_classes") is False
    return f"nc1_pinv = tr(S_W S_B^+){'' if whole else '/C'} = {value:.3g}"


def missing(layer: LayerReport, metric: str) -> str:
    """Return in words why a metric of a layer has no value; empty where it has one."""
    value = layer.get(metric, math.nan)
    if not math.isnan(value):
        return "infinite" if math.isinf(value) else ""
    code = layer.reason(metric)
    if code is None:
        return "no reason is known" if metric in layer else "not measured"
    return REASONS.get(code, code)


def _share(layer: LayerReport, name: str, value: float) -> float:
    if name == "NC1":
        return value / (1 + value)
    if name == "NC2":
        return value / _random(layer)[0]
    if name == "NC3":
        return value / 2
    return value / (1 - 1 / _recorded(layer, "classes_present"))


def _no_share(layer: LayerReport, name: str) -> str:
    """Say why there is no share of a property; nothing where there is one."""
    code = "between_scatter_not_above_noise"
    if code in layer.flags:
        return words_with_rows(layer, REASONS[code])
    if name in ("NC1", "NC4") and _too_few_rows(layer):
        return _too_few_rows(layer)
    classes = _recorded(layer, "classes_present")
    if name == "NC2" and classes == 2:
        return REASONS["two_classes_trivial"]
    metric = PROPERTIES[name]
    why = missing(layer, metric)
    if why:
        return why
    if layer[metric] < 0:
        return f"{metric} is {layer[metric]:.3g}, which no share can be"
    if name == "NC2":
        if classes > _recorded(layer, "width") + 1 > 1:
            return FLAGS["etf_infeasible"]
        return _random(layer)[1]
    return _UNRECORDED if name == "NC4" and classes < 2 else ""


def _too_few_rows(layer: LayerReport) -> str:
    """Say that no class has a second row; nothing where one has."""
    few = layer.no_estimate.get("nc1_trace_ratio") == "too_few_rows"
    return words_with_rows(layer, REASONS["too_few_rows"]) if few else ""


def _random(layer: LayerReport) -> tuple[float, str]:
    """Return the distance of random class means from a simplex ETF here, and why it is no yardstick."""
    classes, width = (_recorded(layer, key) for key in RECORDED)
    if classes < 2 or width < 1:
        return math.nan, _UNRECORDED
    unit = random_etf_error(classes, width)
    return unit, _WIDE if unit < _GENERIC else ""


def _recorded(layer: LayerReport, key: str) -> int:
    """Return a count of the provenance; 0 where a file does not have it."""
    value = layer.provenance.get(key)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
