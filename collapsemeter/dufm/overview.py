"""An overview of one problem: thresholds, closed forms, and the best of them in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .closed.bounds import lower_bound
from .closed.feasible import collapsed, zero
from .closed.linear import minority_threshold
from .optimum import Optimum
from .problem import Problem, default_width
from .refusals import DoesNotApply, TooNarrow, TooStrong
from .registry import Survey, survey
from .scalar import collapse_threshold, critical_strength
from .solution import SAME, Solution

MOST_POINTS = 10_000  # of one sweep
WHOLE = ("classes", "depth")
SWEPT = ("weight_decay", "feature_decay", *WHOLE)


@dataclass(frozen=True)
class Threshold:
    """A number of the problem beside the value at which its optimum changes in wide layers."""

    name: str
    value: float
    threshold: float
    words: str


@dataclass(frozen=True, eq=False)
class Overview:
    """A problem with its thresholds, its closed forms and the proven lower bound, and in words."""

    problem: Problem
    thresholds: tuple[Threshold, ...]
    references: tuple[Optimum, ...]
    lower_bound: float
    collapsed: Optimum | None

    def ratio(self, loss: float) -> float:
        """A loss over that of collapse; NaN where collapse does not exist."""
        return math.nan if self.collapsed is None else loss / self.collapsed.loss

    @property
    def best_closed_form(self) -> Optimum:
        """The lowest of the closed forms listed, optimal only if its status is "theorem"."""
        return self.references[0]

    def best_known(self, solution: Solution | None = None) -> tuple[str, float] | None:
        """Name and loss of the lowest point; None for the zero network if nobody looked below it."""
        best = self.best_closed_form
        if solution is not None and solution.loss < best.loss * (1 - SAME):
            return "solved", solution.loss
        if (best.name, best.status, solution) == ("zero", "upper bound", None):
            return None
        return best.name, best.loss

    def words(self, solution: Solution | None = None) -> str:
        """The best known point, how it stands to collapse, and how sure it is."""
        best, known = self.best_closed_form, self.best_known(solution)
        bound = f"the proven lower bound is {self.lower_bound:.6g}"
        if known is None:
            return (
                "best known: nothing, since no closed form is below the zero network, and that "
                f"does not prove it optimal: solve looks for a lower loss; {bound}"
            )
        name, loss = known
        text = f"best known: {name}, loss {loss:.10g}"
        if self.collapsed is not None and loss < self.collapsed.loss * (1 - SAME):
            text += f", {100 * (1 - self.ratio(loss)):.3g} % below collapse ({self.collapsed.name})"
        if name == "solved":
            sure = f"found by descent, below {best.name}, the best closed form, at {best.loss:.6g}"
        else:
            sure = best.holds_for
            if solution is not None and best.status != "theorem":
                sure += ", and the solver found nothing lower"
        return f"{text}; {sure}" + ("" if best.status == "theorem" else f"; {bound}")


def overview(problem: Problem) -> Overview:
    """Collect what is known about a problem."""
    known = survey(problem)
    rules = (_collapse, _minority, _low_rank)
    thresholds = [threshold for rule in rules if (threshold := rule(problem, known)) is not None]
    return Overview(problem, tuple(thresholds), known.optima, lower_bound(problem), known.collapsed)


def _collapse(problem: Problem, known: Survey) -> Threshold | None:
    """Where collapse stops beating the zero network, and whether it exists; balanced classes."""
    critical = _critical_decay(problem) if problem.balanced else math.nan
    if math.isnan(critical):
        return None
    what, value = "c = (n lambda_H prod lambda_l)^(1/(L+1))", problem.canonical_decay
    power, threshold = problem.depth + 1, critical
    exponents = [power * abs(math.log10(decay)) for decay in (value, critical)]
    if problem.loss == "mse" and not problem.bias and max(exponents) < 300:  # floats can hold it
        what, value = "n lambda_H prod lambda_l", value**power
        threshold = collapse_threshold(problem.num_classes, problem.depth)
    said = f"below the collapse threshold {threshold:.6g}"
    if known.collapsed is not None:
        said += ": collapse exists and beats the zero network"
    elif narrow := _too_narrow(problem):
        said += f" of wide layers, but these are too narrow: collapse does not exist here; {narrow}"
    else:
        said = f"not {said}: collapse does not exist or does not beat the zero network"
    return Threshold("collapse", value, threshold, f"{what} = {value:.6g}, {said}")


def _too_narrow(problem: Problem) -> str:
    """Which widths collapse needs; empty if they are not the obstacle."""
    try:
        collapsed(problem)
    except TooNarrow as reason:
        return str(reason).split(":")[0]
    except DoesNotApply:
        pass
    return ""


def _critical_decay(problem: Problem) -> float:
    """The decay c at which collapse disappears in wide layers, by bisection; NaN if unknown."""
    if problem.loss == "mse" and not problem.bias:
        return critical_strength(problem.depth) / problem.num_classes
    wide = replace(problem, per_class=1, widths=None)
    nothing = zero(wide).loss

    def exists(decay: float) -> bool:
        try:
            return collapsed(replace(wide, feature_decay=decay, weight_decay=decay)).loss < nothing
        except TooStrong:
            return False

    low, high = 1e-12, 10.0
    try:
        if not exists(low) or exists(high):
            return math.nan
    except DoesNotApply:
        return math.nan
    while high > low * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if exists(middle) else (low, middle)
    return low


def _minority(problem: Problem, known: Survey) -> Threshold | None:
    """The class size below which a class is not learned; unequal classes."""
    if problem.balanced or problem.loss != "mse" or problem.bias:
        return None
    threshold = minority_threshold(problem)
    frame = next((optimum for optimum in known.optima if optimum.name == "gof"), None)
    learned = 0 if frame is None else sum(t > 0 for t in frame.parameters.values())
    words = (
        f"classes of more than {threshold:.6g} samples are learned in the frame gof: "
        f"{learned} of {problem.num_classes}"
    )
    room = min(problem.layer_widths)
    if learned == room < int((problem.counts > threshold).sum()):
        words += f", the largest, since the narrowest layer has {room} neurons"
    return Threshold("minority", float(problem.counts.min()), threshold, words)


def _low_rank(problem: Problem, known: Survey) -> Threshold | None:
    """Whether a low-rank structure costs less than collapse; squared loss, ReLU."""
    best, full = known.low_rank, known.collapsed
    if best is not None:
        threshold, beside = math.nan, "; collapse does not exist here"
        if full is not None:
            side = "below" if best.loss < full.loss else "not below"
            threshold, beside = full.loss, f", {side} collapse at {full.loss:.6g}"
        words = f"the low-rank {best.name} has loss {best.loss:.6g}{beside}"
        return Threshold("low rank", best.loss, threshold, words)
    plain = problem.loss == "mse" and problem.balanced and not problem.bias
    if not (plain and problem.rectified and problem.depth >= 3):
        return None
    words = (
        "no closed form of low rank learns every class here; in wide layers strongly regular "
        "graphs do, below collapse from K = 10 at L = 3 and from K = 6 at L = 4 and deeper"
    )
    return Threshold("low rank", math.nan, math.nan, words)


@dataclass(frozen=True)
class Sweep:
    """The parameter that is swept, and its values."""

    name: str
    values: tuple[float, ...]

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return self.name in WHOLE


@dataclass(frozen=True)
class SweptPoint:
    """A swept value, what is known there, and what was found if it was solved."""

    value: float
    known: Overview
    solution: Solution | None


def parse_sweep(text: str) -> Sweep:
    """Read ``name=LOW:HIGH:COUNT``: decays evenly in their logarithm, the others rounded."""
    name, _, range_text = text.partition("=")
    if name not in SWEPT:
        raise ValueError(f"--sweep {text}: sweep one of {', '.join(SWEPT)}")
    try:
        start, end, points = range_text.split(":")
        low, high, count = float(start), float(end), int(points)
    except ValueError:
        count = 0
    if not 2 <= count <= MOST_POINTS or not 0 < low < high < math.inf:
        raise ValueError(
            f"--sweep {text}: write {name}=LOW:HIGH:COUNT with 0 < LOW < HIGH "
            f"and COUNT from 2 to {MOST_POINTS}"
        )
    values = np.geomspace(low, high, count)
    if name in WHOLE:
        values = np.unique(np.round(np.linspace(low, high, count)))
    return Sweep(name, tuple(float(value) for value in values))


def problem_at(problem: Problem, name: str, value: float) -> Problem:
    """The problem with one number replaced; default widths follow the number of classes."""
    changes: dict[str, Any] = {name: value}
    if name not in WHOLE:
        return replace(problem, **changes)
    if not problem.balanced or len(set(problem.decays)) > 1:
        raise ValueError(
            f"a sweep of {name} needs one --per-class and one --weight-decay for all: pass one each"
        )
    widths = problem.layer_widths
    if name == "depth" and len(set(widths)) > 1:
        raise ValueError(f"a sweep of depth needs one --width for all, got {widths}: pass one")
    default = set(widths) == {default_width(problem.num_classes)}
    changes = {"num_classes" if name == "classes" else "depth": int(value)}
    return replace(
        problem,
        **changes,
        per_class=int(problem.counts[0]),
        weight_decay=problem.decays[0],
        widths=None if default else widths if name == "classes" else widths[0],
    )


def run_sweep(
    problem: Problem, sweep: Sweep, solver: Callable[[Problem], Solution] | None = None
) -> list[SweptPoint]:
    """Collect what is known at every value, and solve there if asked."""
    points = []
    for value in sweep.values:
        here = problem_at(problem, sweep.name, value)
        points.append(SweptPoint(value, overview(here), None if solver is None else solver(here)))
    return points
