"""Which closed forms apply to a problem."""

from collections.abc import Callable

from collapsemeter.dufm.applies import DoesNotApply
from collapsemeter.dufm.blocks import blocks, srg
from collapsemeter.dufm.collapse import dnc, partial, zero
from collapsemeter.dufm.convex import convex
from collapsemeter.dufm.deep_ce import linear_ce_dnc, linear_ce_pairs, linear_ce_polygon, pairs
from collapsemeter.dufm.linear import gof, linear
from collapsemeter.dufm.optimum import Optimum
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.shallow import seli, ufm_ce, ufm_mse

Construction = Callable[[DUFM], Optimum]

CONSTRUCTIONS: tuple[Construction, ...] = (
    ufm_mse,
    ufm_ce,
    linear,
    gof,
    dnc,
    srg,
    blocks,
    pairs,
    linear_ce_dnc,
    linear_ce_pairs,
    linear_ce_polygon,
    seli,
    zero,
)
"""Closed forms; each refuses the problems that it does not solve."""


def _attempt(construction: Construction, problem: DUFM) -> list[Optimum]:
    try:
        return [construction(problem)]
    except DoesNotApply:
        return []


def references(problem: DUFM) -> tuple[Optimum, ...]:
    """All closed-form solutions that apply to a problem, lowest loss first.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    tuple of Optimum
        Feasible points of this very problem: each fits its widths and survives its
        decays. Equal losses are ordered by how sure they are.

    References
    ----------
    Every entry names its own in ``source``.

    Examples
    --------
    >>> problem = DUFM(3, 5, 2, feature_decay=0.02, weight_decay=0.02)
    >>> [reference.name for reference in references(problem)]
    ['dnc', 'partial(2)', 'partial(1)', 'zero']
    """
    found = [optimum for build in CONSTRUCTIONS for optimum in _attempt(build, problem)]
    for learned in range(1, problem.num_classes):
        found += _attempt(lambda p, k=learned: partial(p, k), problem)  # type: ignore[misc]
    if problem.depth == 1 and not any(optimum.status == "theorem" for optimum in found):
        found += _attempt(convex, problem)
    trust = {"theorem": 0, "best known": 1, "upper bound": 2}
    return tuple(sorted(found, key=lambda o: (round(o.loss, 13), trust[o.status])))
