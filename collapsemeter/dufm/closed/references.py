"""Which closed forms apply to a problem, and why the others do not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..applies import DoesNotApply, TooNarrow, TooStrong
from ..network import class_columns, column_loss_and_gradient
from ..optimum import Optimum
from ..problem import DUFM
from ..reductions import canonical
from .blocks import blocks, srg
from .collapse import dnc, partial, zero
from .convex import convex
from .cross_entropy import linear_ce_dnc, linear_ce_pairs, linear_ce_polygon, pairs
from .linear import gof, linear
from .one_layer import seli, ufm_ce, ufm_mse

Construction = Callable[[DUFM], Optimum]

COLLAPSED: tuple[Construction, ...] = (ufm_mse, ufm_ce, linear, dnc, linear_ce_dnc)
"""The collapsed solution of each kind of problem; one of them applies at most, or two alike."""

LOW_RANK: tuple[Construction, ...] = (srg, blocks, pairs, linear_ce_pairs, linear_ce_polygon)
"""Structures that learn every class with fewer directions than collapse."""

CONSTRUCTIONS: tuple[Construction, ...] = (*COLLAPSED, *LOW_RANK, gof, seli, zero)
"""Closed forms; each refuses the problems that it does not solve."""

NO_BIAS = "without a bias, feasible with a bias of zero"


@dataclass(frozen=True, eq=False)
class Survey:
    """Every closed form of a problem, and what kept the others away.

    Parameters
    ----------
    found : tuple of Optimum
        Lowest loss first.
    refused : dict of str to DoesNotApply
        By name; `TooNarrow` and `TooStrong` say what to change.
    """

    found: tuple[Optimum, ...]
    refused: dict[str, DoesNotApply]

    @property
    def collapsed(self) -> Optimum | None:
        """The collapsed network among the closed forms; None where there is none."""
        names = {construction.__name__ for construction in COLLAPSED}
        return next((optimum for optimum in self.found if optimum.name in names), None)


def survey(problem: DUFM) -> Survey:
    """Try every closed form on a problem, then those of simpler problems.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    Survey

    References
    ----------
    Every closed form names its own in ``source``.

    Examples
    --------
    >>> narrow = survey(DUFM(10, 1, 4, 5, feature_decay=5e-4, weight_decay=5e-4))
    >>> narrow.found[0].name, str(narrow.refused["dnc"])
    ('partial(5)', 'dnc needs widths (5, 10, 10, 10), got (5, 5, 5, 5): widen the layers.')
    """
    found, refused = _try(problem, CONSTRUCTIONS)
    for learned in range(1, problem.num_classes):
        found += _try(problem, (lambda p, k=learned: partial(p, k),))[0]  # type: ignore[misc]
    if problem.depth == 1 and not _proven(found):
        found += _try(problem, (convex,))[0]
    if not _proven(found):
        lowest = min(optimum.loss for optimum in found)
        found += [lifted for lifted in _lifted(problem) if lifted.loss < lowest]
    trust = {"theorem": 0, "best known": 1, "upper bound": 2}
    found.sort(key=lambda o: (round(o.loss, 13), trust[o.status]))
    return Survey(tuple(found), refused)


def references(problem: DUFM) -> tuple[Optimum, ...]:
    """All closed-form solutions that apply to a problem, lowest loss first.

    Where none of them is proven optimal, closed forms of the same problem without a
    bias, or with equal classes, are among them if they are lower: they are feasible
    here, so their losses are upper bounds.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    tuple of Optimum
        Feasible points of this very problem: each fits its widths and survives its
        decays. Equal losses are ordered by how sure they are. The first one is optimal
        only if its status is "theorem"; `solve` looks for a lower loss.

    References
    ----------
    Every entry names its own in ``source``.

    Examples
    --------
    >>> problem = DUFM(3, 5, 2, feature_decay=0.02, weight_decay=0.02)
    >>> [reference.name for reference in references(problem)]
    ['dnc', 'partial(2)', 'partial(1)', 'zero']
    """
    return survey(problem).found


def collapsed(problem: DUFM) -> Optimum:
    """The collapsed network of balanced classes; the cheapest known one if there is a bias.

    Raises
    ------
    DoesNotApply
        `TooNarrow` or `TooStrong` where only the widths or the decays forbid it.

    Examples
    --------
    >>> collapsed(DUFM(3, 1, 2, feature_decay=0.01, weight_decay=0.01, bias=True)).name
    'dnc'
    """
    found, refused = _try(problem, COLLAPSED)
    if found:
        return min(found, key=lambda optimum: optimum.loss)
    for reason in refused.values():
        if isinstance(reason, TooNarrow | TooStrong):
            raise reason
    if problem.bias:
        return _lift(problem, collapsed(_without_bias(problem)), NO_BIAS)
    raise DoesNotApply(f"no collapsed network is known here: {refused['dnc']}")


def low_rank(found: Sequence[Optimum]) -> Optimum | None:
    """The lowest closed form that learns every class with fewer than K - 1 directions.

    Examples
    --------
    >>> low_rank(references(DUFM(10, 1, 4, feature_decay=2e-3, weight_decay=2e-3))).name
    'srg'
    """
    names = {construction.__name__ for construction in LOW_RANK}
    for optimum in found:
        least = optimum.problem.num_classes - 1
        if optimum.name in names and min(optimum.ranks[:-1], default=least) < least:
            return optimum
    return None


def _try(
    problem: DUFM, constructions: tuple[Construction, ...]
) -> tuple[list[Optimum], dict[str, DoesNotApply]]:
    found, refused = [], {}
    for construction in constructions:
        try:
            found.append(construction(problem))
        except DoesNotApply as reason:
            refused[construction.__name__] = reason
    return found, refused


def _proven(found: list[Optimum]) -> bool:
    return any(optimum.status == "theorem" for optimum in found)


def _lifted(problem: DUFM) -> list[Optimum]:
    """Closed forms of a simpler problem that are feasible here too; of partial ones the lowest."""
    if problem.bias:
        simpler, why = _without_bias(problem), NO_BIAS
    elif not problem.balanced:
        mean = problem.num_samples / problem.num_classes
        simpler = replace(problem, per_class=1, feature_decay=mean * problem.feature_decay)
        why = "with equal classes, feasible with these"
    else:
        return []
    found = [optimum for optimum in survey(simpler).found if optimum.name != "zero"]
    partial = [optimum for optimum in found if "learned" in optimum.parameters]
    kept = [optimum for optimum in found if optimum not in partial[1:]]
    return [_lift(problem, optimum, why) for optimum in kept]


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
