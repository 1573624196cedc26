"""Collapse over depth: the first layer that is as collapsed as the last one, and the fit of He & Su's law."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..metrics.line_fit import FEWEST, Line, fit_line
from ..stats.undefined import REASONS
from ..system.escaping import printable
from ..system.suggest import listed

if TYPE_CHECKING:
    from ..metrics.layer import LayerReport

BOUND = 0.05  # of a share: ours, as Galanti et al. leave theirs open
_FEWEST_LAYERS = 3
_FEW = "fewer than three layers were measured"
_LISTED = 3


class Reached(NamedTuple):
    """The first layer whose share is within a bound of the last one's."""

    depth: float
    """Its number, 1 for the first layer; NaN where there is none."""
    layer: str
    share: float
    last: float
    """The share at the last layer."""
    why: str
    """Why there is no such layer; empty where there is one."""
    unknown: tuple[str, ...] = ()
    """Layers before it that have no value: the first one may be among them."""
    beyond: tuple[str, ...] = ()
    """Layers after it that are beyond the bound again."""
    estimated: bool = False
    """Whether shares are of estimates, without the noise of the class means: where every layer with a value has one."""
    earliest: float = math.nan
    latest: float = math.nan
    """First layers that may be and that surely are within the bound, going by 95 % intervals; NaN where a layer has none."""


class Law(NamedTuple):
    """log ``nc1_fuzziness`` = a + slope * (number of the layer): the law of data separation."""

    line: Line
    why: str
    """Why there is no slope, or no interval for it; empty where there is one."""
    unknown: tuple[str, ...] = ()
    """Layers that have no value."""


@dataclass(frozen=True)
class DepthProfile:
    """Collapse over depth: what `CollapseReport.depth_profile` returns.

    Attributes
    ----------
    layers : tuple of str
        In the order of the report, which is that of calls.
    bound : float
        How far a share may be from the last layer's.
    collapse : Reached
        By the share of the variance that lies within classes.
    effective : Reached
        By the share of rows whose nearest class centre is not their label's.
    law : Law
    """

    layers: tuple[str, ...]
    bound: float
    collapse: Reached
    effective: Reached
    law: Law

    def scalars(self) -> dict[str, float]:
        """Return the numbers by name, NaN where there is none."""
        return {
            "collapse_depth": self.collapse.depth,
            "effective_depth": self.effective.depth,
            "law_slope": self.law.line.slope,
            "law_slope.low": self.law.line.low,
            "law_slope.high": self.law.line.high,
            "law_r": self.law.line.r,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values; NaN as it is."""
        return {
            "layers": list(self.layers),
            "bound": self.bound,
            "collapse": self.collapse._asdict(),
            "effective": self.effective._asdict(),
            "law": {**self.law.line._asdict(), "why": self.law.why, "unknown": self.law.unknown},
        }

    def sentences(self) -> list[str]:
        """Return collapse depth, effective depth and the law in words, or why there is none."""
        if len(self.layers) < _FEWEST_LAYERS:
            return []
        return [
            self._reached("collapse depth", self.collapse, "of the variance is within classes"),
            self._reached(
                "effective depth", self.effective, "of rows are nearest to another class"
            ),
            _law_words(self.law),
        ]

    def _reached(self, name: str, reached: Reached, share: str) -> str:
        if reached.why:
            return printable(f"{name}: not known: {reached.why}")
        words = (
            f"{name} {reached.depth:.0f} of {len(self.layers)}: {reached.layer} is the first layer within "
            f"{100 * self.bound:g} percentage points of the last one ({_percent(reached.share)} and "
            f"{_percent(reached.last)} {share})"
        )
        if reached.estimated:
            words += ", estimated without noise"
        if reached.earliest < reached.latest:
            words += f"; intervals allow {reached.earliest:.0f} to {reached.latest:.0f}"
        if reached.beyond:
            words += f"; beyond again: {listed(reached.beyond, _LISTED)}"
        if reached.unknown:
            words += f"; an earlier one may be it, as there is no value at {listed(reached.unknown, _LISTED)}"
        return printable(words)


def depth_profile(path: Mapping[str, LayerReport], bound: float = BOUND) -> DepthProfile:
    """Return the profile over layers that lie on one path; ValueError for a wrong bound."""
    if not 0 <= bound < 1:
        raise ValueError(
            f"bound={bound!r}: pass a share from 0 to 1, such as 0.05 for 5 percentage points"
        )
    return DepthProfile(
        tuple(path),
        bound,
        _first_within(path, bound, "nc1_trace_ratio", _within_share),
        _first_within(path, bound, "ncc_accuracy", lambda accuracy: 1 - accuracy),
        separation_fit(path),
    )


def separation_fit(path: Mapping[str, LayerReport]) -> Law:
    """Fit the law of data separation to the layers that have a positive value; three have a slope, four an interval."""
    values = [layer.get("nc1_fuzziness", math.nan) for layer in path.values()]
    known = [depth for depth, value in enumerate(values) if 0 < value < math.inf]
    unknown = tuple(name for depth, name in enumerate(path) if depth not in set(known))
    if len(known) < _FEWEST_LAYERS:
        nothing = Line(math.nan, math.nan, math.nan, math.nan, len(known))
        why = (
            _FEW
            if len(path) < _FEWEST_LAYERS
            else "fewer than three layers have a positive nc1_fuzziness"
        )
        return Law(nothing, why, unknown)
    logs = np.log([values[depth] for depth in known])
    line = fit_line(np.array(known, float), logs, correlated=True)
    few = f"an interval needs {FEWEST} layers" if len(known) < FEWEST else ""
    return Law(line, few, unknown)


def _first_within(
    path: Mapping[str, LayerReport], bound: float, metric: str, share: Callable[[float], float]
) -> Reached:
    names = list(path)
    plain = [layer.get(metric, math.nan) for layer in path.values()]
    values = [layer.estimates.get(metric, math.nan) for layer in path.values()]
    estimated = all(
        math.isfinite(estimate) or math.isnan(value)
        for estimate, value in zip(values, plain, strict=True)
    )
    shares = [share(value) for value in (values if estimated else plain)]
    last = shares[-1] if shares else math.nan
    why = _FEW if len(names) < _FEWEST_LAYERS else ""
    if not why and math.isnan(last):
        code = path[names[-1]].reason(metric)
        because = "not measured" if code is None else REASONS.get(code, code)
        why = f"the last layer, {names[-1]}, has no {metric} ({because})"
    if why:
        return Reached(math.nan, "", math.nan, last, why)
    within = [value <= last + bound for value in shares]  # False for NaN
    first = within.index(True)
    return Reached(
        first + 1,
        names[first],
        shares[first],
        last,
        "",
        tuple(
            name for name, value in zip(names[:first], shares, strict=False) if math.isnan(value)
        ),
        tuple(names[i] for i in range(first, len(names)) if shares[i] > last + bound),
        estimated,
        *(_between(path, bound, metric, share) if estimated else ()),
    )


def _between(
    path: Mapping[str, LayerReport], bound: float, metric: str, share: Callable[[float], float]
) -> tuple[float, float]:
    """Return the first layer that may be and the first that surely is within the bound: the last one is."""
    name = "ncc_accuracy_loo" if metric == "ncc_accuracy" else metric
    pairs = [layer.intervals.get(name) for layer in path.values()]
    known = [sorted(map(share, pair)) for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return math.nan, math.nan
    low, high = known[-1]
    may = [ends[0] <= high + bound for ends in known]
    surely = [ends[1] <= low + bound for ends in known[:-1]]
    return may.index(True) + 1, [*surely, True].index(True) + 1


def _within_share(ratio: float) -> float:
    """Return tr S_W / (tr S_W + tr S_B) of their ratio."""
    if ratio < 0:  # of a file
        return math.nan
    return 1.0 if ratio == math.inf else ratio / (1 + ratio)


def _law_words(law: Law) -> str:
    line = law.line
    if math.isnan(line.slope):
        return f"law of data separation: not fitted: {law.why}"
    words = f"law of data separation: log nc1_fuzziness changes by {line.slope:.3g} a layer"
    words += f" ({law.why})" if law.why else f" (95 % interval {line.low:.3g} to {line.high:.3g})"
    words += f", r = {line.r:.3f}, {line.points} layers"
    return printable(
        words + (f"; no value at {listed(law.unknown, _LISTED)}" if law.unknown else "")
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
