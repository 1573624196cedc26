"""Closed forms of a simpler problem, without a bias or with equal classes: feasible here too."""

from dataclasses import replace

from ..network import class_columns, column_loss_and_gradient
from ..optimum import Optimum
from ..problem import DUFM, DoesNotApply, TooNarrow, TooStrong, closed_form, survey
from ..reductions import canonical

NO_BIAS = "without a bias, feasible with a bias of zero"


@closed_form("last resort", place=16)
def simpler(problem: DUFM) -> list[Optimum]:
    """Closed forms of the simpler problem; of partial ones the lowest."""
    if problem.bias:
        plain, why = _without_bias(problem), NO_BIAS
    elif not problem.balanced:
        mean = problem.num_samples / problem.num_classes
        plain = replace(problem, per_class=1, feature_decay=mean * problem.feature_decay)
        why = "with equal classes, feasible with these"
    else:
        return []
    optima = [optimum for optimum in survey(plain).optima if optimum.name != "zero"]
    partial = [optimum for optimum in optima if "learned" in optimum.parameters]
    return [_lift(problem, optimum, why) for optimum in optima if optimum not in partial[1:]]


def collapsed(problem: DUFM) -> Optimum:
    """The collapsed network of balanced classes; the cheapest known one if there is a bias.

    It raises `TooNarrow` or `TooStrong` where only the widths or the decays forbid it.
    """
    known = survey(problem, "collapsed")
    if known.optima:
        return known.optima[0]
    for reason in known.refused.values():
        if isinstance(reason, TooNarrow | TooStrong):
            raise reason
    if problem.bias:
        return _lift(problem, collapsed(_without_bias(problem)), NO_BIAS)
    raise DoesNotApply(f"no collapsed network is known here: {known.refused['dnc']}")


def _without_bias(problem: DUFM) -> DUFM:
    return replace(problem, bias=False, bias_decay=0.0)


def _lift(problem: DUFM, optimum: Optimum, why: str) -> Optimum:
    """The same features and weights in a problem with a bias, or with unequal classes."""
    loss = optimum.loss
    if not problem.bias:
        small = canonical(problem)
        point = optimum.canonical_point
        loss = column_loss_and_gradient(small, point, class_columns(small))[0]
    words = f"upper bound: closed form of the problem {why}"
    return replace(optimum, problem=problem, loss=loss, status="upper bound", holds_for=words)
