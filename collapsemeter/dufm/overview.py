"""What is known about one problem: thresholds, closed forms, and the best of them in words."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .closed.bounds import lower_bound
from .closed.linear import minority_threshold
from .closed.simpler import collapsed
from .closed.zero import zero
from .optimum import Optimum
from .problem import DUFM, DoesNotApply, Survey, TooNarrow, TooStrong, default_width, survey
from .scalar import collapse_threshold, critical_strength
from .solution import SAME, Solution

MOST_POINTS = 10_000
"""Values of one sweep."""

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
    """A problem with its thresholds, its closed forms and the proven lower bound.

    Whatever it says in words is read off `references`.
    """

    problem: DUFM
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

    @property
    def closed_form_words(self) -> str:
        """The lowest closed form and how sure it is."""
        best = self.best_closed_form
        return f"best closed form: {best.name}, loss {best.loss:.10g}; {best.holds_for}"

    def beaten_by(self, solution: Solution | None) -> bool:
        """Whether the solver went below every closed form."""
        return solution is not None and solution.loss < self.best_closed_form.loss * (1 - SAME)

    def best_known(self, solution: Solution | None = None) -> tuple[str, float] | None:
        """Name and loss of the lowest point known; "solved" if it is the solver's.

        None where nothing below the zero network is known and nothing proves that there is
        nothing: a loss that nobody looked below is not best known.
        """
        best = self.best_closed_form
        if solution is not None and self.beaten_by(solution):
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


def overview(problem: DUFM) -> Overview:
    """Collect what is known about a problem."""
    known = survey(problem)
    rules = (_collapse, _minority, _low_rank)
    thresholds = [threshold for rule in rules if (threshold := rule(problem, known)) is not None]
    return Overview(problem, tuple(thresholds), known.optima, lower_bound(problem), known.collapsed)


def _collapse(problem: DUFM, known: Survey) -> Threshold | None:
    """Where collapse stops beating the zero network, and whether it exists; balanced classes."""
    if not problem.balanced:
        return None
    critical = _critical_decay(problem)
    if math.isnan(critical):
        return None
    what, value, threshold = _product(problem, critical)
    said = "below the collapse threshold {}: collapse exists and beats the zero network"
    if known.collapsed is None:
        narrow = _too_narrow(problem)
        said = "not below the collapse threshold {}: " + (
            "collapse does not exist or does not beat the zero network"
        )
        if narrow is not None:
            said = "below the collapse threshold {} of wide layers, but these are too narrow: "
            said += f"collapse does not exist here; {str(narrow).split(':')[0]}"
    words = f"{what} = {value:.6g}, " + said.format(f"{threshold:.6g}")
    return Threshold("collapse", value, threshold, words)


def _product(problem: DUFM, critical: float) -> tuple[str, float, float]:
    """What is compared with a threshold: the product of all decays where floats can hold it."""
    power, own = problem.depth + 1, problem.canonical_decay
    exponents = [power * math.log10(decay) for decay in (own, critical)]
    if problem.loss == "mse" and not problem.bias and max(map(abs, exponents)) < 300:
        threshold = collapse_threshold(problem.num_classes, problem.depth)
        return "n lambda_H prod lambda_l", own**power, threshold
    return "c = (n lambda_H prod lambda_l)^(1/(L+1))", own, critical


def _too_narrow(problem: DUFM) -> TooNarrow | None:
    """Why collapse does not fit the widths; None if that is not the obstacle."""
    try:
        collapsed(problem)
    except TooNarrow as reason:
        return reason
    except DoesNotApply:
        pass
    return None


def _critical_decay(problem: DUFM) -> float:
    """The decay c at which collapse disappears in wide layers; NaN if none is known."""
    if problem.loss == "mse" and not problem.bias:
        return critical_strength(problem.depth) / problem.num_classes
    wide = replace(problem, per_class=1, widths=None)
    nothing = zero(wide).loss

    def exists(decay: float) -> bool:
        here = replace(wide, feature_decay=decay, weight_decay=decay)
        try:
            return collapsed(here).loss < nothing
        except TooStrong:
            return False

    try:
        return _last(exists, 1e-12, 10.0)
    except DoesNotApply:
        return math.nan


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number at which something holds, by bisection; NaN if it holds nowhere."""
    if not holds(low) or holds(high):
        return math.nan
    while high > low * (1 + 1e-9):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _minority(problem: DUFM, known: Survey) -> Threshold | None:
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


def _low_rank(problem: DUFM, known: Survey) -> Threshold | None:
    """Whether a low-rank structure costs less than collapse; squared loss, ReLU."""
    best, full = known.low_rank, known.collapsed
    if best is not None:
        text = f"the low-rank {best.name} has loss {best.loss:.6g}"
        if full is None:
            words = f"{text}; collapse does not exist here"
            return Threshold("low rank", best.loss, math.nan, words)
        side = "below" if best.loss < full.loss else "not below"
        words = f"{text}, {side} collapse at {full.loss:.6g}"
        return Threshold("low rank", best.loss, full.loss, words)
    plain = problem.loss == "mse" and problem.balanced and not problem.bias
    if not (plain and problem.rectified and problem.depth >= 3):
        return None
    words = (
        "no closed form of low rank learns every class here; in wide layers strongly regular "
        "graphs do, below collapse from K = 10 at L = 3 and from K = 6 at L = 4 and deeper"
    )
    return Threshold("low rank", math.nan, math.nan, words)


def reference_record(known: Overview, reference: Optimum) -> dict[str, Any]:
    """One closed form as plain values, ready for JSON."""
    return {
        "name": reference.name,
        "loss": reference.loss,
        "ratio_to_collapse": known.ratio(reference.loss),
        "ranks": reference.ranks,
        "status": reference.status,
        "holds_for": reference.holds_for,
        "source": reference.source,
        "parameters": dict(reference.parameters),
        "free_layers": reference.free_layers,
    }


@dataclass(frozen=True)
class Sweep:
    """What is swept, and over which values."""

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
    """Read ``name=LOW:HIGH:COUNT``, e.g. ``weight_decay=1e-4:1e-2:9``.

    Decays are spaced evenly in their logarithm, classes and depth in themselves,
    rounded to whole numbers.
    """
    name, _, rest = text.partition("=")
    if name not in SWEPT:
        raise ValueError(f"--sweep {text}: sweep one of {', '.join(SWEPT)}")
    parts = rest.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        count = int(parts[2]) if len(parts) == 3 else 0
    except (ValueError, IndexError):
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


def problem_at(problem: DUFM, name: str, value: float) -> DUFM:
    """The problem with one number replaced.

    Sweeping the weight decay gives every layer the same; sweeping the classes or the
    depth keeps what belongs to one class or one layer, so those must be alike. Default
    widths follow the number of classes.
    """
    if name == "feature_decay":
        return replace(problem, feature_decay=value)
    if name == "weight_decay":
        return replace(problem, weight_decay=value)
    same = {len(set(problem.counts.tolist())), len(set(problem.decays))}
    if same != {1}:
        raise ValueError(
            f"a sweep of {name} needs one --per-class and one --weight-decay for all: pass one each"
        )
    widths = problem.layer_widths
    if name == "depth" and len(set(widths)) > 1:
        raise ValueError(f"a sweep of depth needs one --width for all, got {widths}: pass one")
    default = set(widths) == {default_width(problem.num_classes)}
    return replace(
        problem,
        num_classes=int(value) if name == "classes" else problem.num_classes,
        depth=int(value) if name == "depth" else problem.depth,
        per_class=int(problem.counts[0]),
        weight_decay=problem.decays[0],
        widths=None if default else widths if name == "classes" else widths[0],
    )


def run_sweep(
    problem: DUFM, sweep: Sweep, solver: Callable[[DUFM], Solution] | None = None
) -> list[SweptPoint]:
    """Collect what is known at every value, and solve there if asked."""
    points = []
    for value in sweep.values:
        here = problem_at(problem, sweep.name, value)
        points.append(SweptPoint(value, overview(here), None if solver is None else solver(here)))
    return points
