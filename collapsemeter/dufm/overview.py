"""What is known about one problem: thresholds, closed forms, and the best of them in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from collapsemeter.dufm.applies import DoesNotApply
from collapsemeter.dufm.bounds import lower_bound
from collapsemeter.dufm.collapse import dnc
from collapsemeter.dufm.deep_ce import linear_ce_dnc
from collapsemeter.dufm.linear import linear, minority_threshold
from collapsemeter.dufm.optimum import Geometry, Optimum
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.scalar import collapse_threshold
from collapsemeter.dufm.shallow import ufm_ce, ufm_mse

COLLAPSED: tuple[Callable[[DUFM], Optimum], ...] = (ufm_mse, ufm_ce, linear, dnc, linear_ce_dnc)
"""The collapsed solution of each kind of problem; one of them applies at most, or two alike."""


@dataclass(frozen=True)
class Threshold:
    """A number of the problem beside the value at which its optimum changes.

    Parameters
    ----------
    name : str
        "collapse", "minority" or "low rank".
    value, threshold : float
        The problem's own, and where the change is.
    words : str
        One sentence, with the side this problem is on.
    """

    name: str
    value: float
    threshold: float
    words: str


@dataclass(frozen=True, eq=False)
class Overview:
    """A problem with its thresholds, its closed forms and the proven lower bound."""

    problem: DUFM
    thresholds: tuple[Threshold, ...]
    references: tuple[Optimum, ...]
    lower_bound: float

    @cached_property
    def collapsed(self) -> Optimum | None:
        """The collapsed solution, if it exists at these decays."""
        return collapsed(self.problem)

    def ratio(self, loss: float) -> float:
        """A loss over that of collapse; NaN where collapse does not exist."""
        return math.nan if self.collapsed is None else loss / self.collapsed.loss

    @property
    def words(self) -> str:
        """The best known solution, how it stands to collapse, and how sure it is."""
        best = self.references[0]
        text = f"best known: {best.name}, loss {best.loss:.10g}"
        if self.collapsed is not None and best.loss < self.collapsed.loss * (1 - 1e-12):
            gain = 1 - self.ratio(best.loss)
            text += f", {100 * gain:.3g} % below collapse ({self.collapsed.name})"
        text += f"; {best.holds_for}"
        if best.status != "theorem":
            text += f". The proven lower bound is {self.lower_bound:.6g}"
        return text


def overview(problem: DUFM) -> Overview:
    """Collect what is known about a problem.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    Overview

    References
    ----------
    Every closed form names its own in ``source``.

    Examples
    --------
    >>> known = overview(DUFM(10, 50, 4, feature_decay=0.004, weight_decay=0.004))
    >>> [threshold.name for threshold in known.thresholds]
    ['collapse', 'low rank']
    >>> known.words.split(";")[0]
    'best known: srg, loss 0.1759418309, 18 % below collapse (dnc)'
    """
    references = problem.references()
    found = [_collapse(problem), _minority(problem), _low_rank(problem, references)]
    kept = tuple(threshold for threshold in found if threshold is not None)
    return Overview(problem, kept, references, lower_bound(problem))


def collapsed(problem: DUFM) -> Optimum | None:
    """The collapsed solution of a problem; None where there is none."""
    for build in COLLAPSED:
        try:
            return build(problem)
        except DoesNotApply:
            continue
    return None


def _collapse(problem: DUFM) -> Threshold | None:
    """Where collapse stops beating the zero network; balanced classes."""
    if not problem.balanced:
        return None
    classes, depth = problem.num_classes, problem.depth
    if problem.loss == "mse" and not problem.bias:
        what = "n lambda_H prod lambda_l"
        value = problem.canonical_decay ** (depth + 1)
        threshold = collapse_threshold(classes, depth)
    else:
        what = "c = (n lambda_H prod lambda_l)^(1/(L+1))"
        value, threshold = problem.canonical_decay, _critical_decay(problem)
        if math.isnan(threshold):
            return None
    if value < threshold:
        said = "below", "collapse exists and beats the zero network"
    else:
        said = "not below", "collapse does not exist or does not beat the zero network"
    words = f"{what} = {value:.6g}, {said[0]} the collapse threshold {threshold:.6g}: {said[1]}"
    return Threshold("collapse", value, threshold, words)


def _critical_decay(problem: DUFM) -> float:
    """The decay c at which collapse disappears, by bisection; NaN if it never exists."""
    own = problem.canonical_decay

    def exists(decay: float) -> bool:
        scale = decay / own
        decays = tuple(scale * d for d in problem.decays)
        feature_decay = scale * problem.feature_decay
        return (
            collapsed(replace(problem, feature_decay=feature_decay, weight_decay=decays))
            is not None
        )

    low, high = 1e-9, 10.0
    if not exists(low) or exists(high):
        return math.nan
    while high > low * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if exists(middle) else (low, middle)
    return low


def _minority(problem: DUFM) -> Threshold | None:
    """The class size below which a class is not learned; unequal classes."""
    if problem.balanced or problem.loss != "mse" or problem.bias:
        return None
    threshold = minority_threshold(problem)
    learned = int((problem.counts > threshold).sum())
    words = (
        f"classes of more than {threshold:.6g} samples are learned in the frame gof: "
        f"{learned} of {problem.num_classes}"
    )
    return Threshold("minority", float(problem.counts.min()), threshold, words)


def _low_rank(problem: DUFM, references: tuple[Optimum, ...]) -> Threshold | None:
    """Whether a low-rank structure costs less than collapse; squared loss, ReLU."""
    plain = problem.loss == "mse" and problem.balanced and not problem.bias
    if not (plain and problem.rectified and problem.depth >= 3):
        return None
    known = "strongly regular graphs do from K = 10 at L = 3 and from K = 6 at L = 4 and deeper"
    low = [reference for reference in references if reference.name in ("srg", "blocks")]
    full = collapsed(problem)
    if not low or full is None:
        words = f"no low-rank closed form applies to K = {problem.num_classes} here; {known}"
        return Threshold("low rank", math.nan, math.nan, words)
    best = min(low, key=lambda reference: reference.loss)
    side = "below" if best.loss < full.loss else "not below"
    words = f"the low-rank {best.name} has loss {best.loss:.6g}, {side} collapse at {full.loss:.6g}"
    return Threshold("low rank", best.loss, full.loss, f"{words} ({known})")


def ranks(point: Geometry) -> tuple[int, ...]:
    """Ranks of the class means of layers 2 to L + 1, before the activation."""
    if isinstance(point, Optimum) and "learned" in point.parameters:  # a thousand of these
        return (int(point.parameters["learned"]),) * point.problem.depth
    layers = range(2, point.problem.depth + 2)
    return tuple(point.rank(layer, before_activation=True) for layer in layers)


def reference_record(known: Overview, reference: Optimum) -> dict[str, Any]:
    """One closed form as plain values, ready for JSON."""
    return {
        "name": reference.name,
        "loss": reference.loss,
        "ratio_to_collapse": known.ratio(reference.loss),
        "ranks": ranks(reference),
        "status": reference.status,
        "holds_for": reference.holds_for,
        "source": reference.source,
        "parameters": dict(reference.parameters),
        "free_layers": reference.free_layers,
    }
