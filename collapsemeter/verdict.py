"""One sentence for a layer beside a reference, from the figures it rests on."""

from __future__ import annotations

import math
from typing import NamedTuple

from .comparison import Status


class Evidence(NamedTuple):
    """What a verdict rests on."""

    name: str
    nc1: float
    gram: float
    rank: int
    predicted_rank: int
    predicted_nc1: float
    classes: int
    free: bool
    obstacle: str


def verdict(seen: Evidence, tolerance: float) -> tuple[Status, str]:
    """Return what a layer is beside the reference, as a code and as one sentence.

    Examples
    --------
    >>> seen = Evidence("dnc", 0.3, 0.9, 10, 10, 0.0, 10, False, "")
    >>> verdict(seen, 0.05)
    ('not collapsed', 'not collapsed: within-class scatter is 0.3 of between-class')
    """
    name, nc1 = seen.name, seen.nc1
    if seen.obstacle:
        return "infeasible", f"reference infeasible: {seen.obstacle}"
    if math.isnan(nc1) and math.isnan(seen.predicted_nc1) and seen.gram <= tolerance:
        return "collapsed", f"nothing is learned here, as at {name}"
    if math.isnan(nc1):
        return "not collapsed", "not collapsed: the class means do not differ, NC1 is undefined"
    if nc1 > tolerance:
        return "not collapsed", f"not collapsed: within-class scatter is {nc1:.2g} of between-class"
    if seen.free:
        return "free", f"NC1 is {nc1:.2g}; {name} leaves the frame of this layer free"
    if math.isnan(seen.gram):
        return "unmeasured", f"NC1 is {nc1:.2g}; no Gram matrix is kept to compare with {name}"
    away = f"NC1 is {nc1:.2g} and the Gram matrix {seen.gram:.2g} away"
    low = seen.rank < min(seen.classes - 1, _collapsed_rank(seen))
    if seen.gram <= tolerance:
        below = f", below DNC rank ({seen.rank} of {seen.classes} classes)" if low else ""
        return "collapsed", f"collapsed to {name}{below}, {away}"
    if low or seen.rank < seen.predicted_rank:
        return "below DNC rank", (
            f"below DNC rank: rank {seen.rank} of {seen.classes} classes "
            f"({name} has {seen.predicted_rank}); {away}"
        )
    return "not collapsed", f"not collapsed to {name}: {away}"


def _collapsed_rank(seen: Evidence) -> int:
    """Rank of the class means at collapse: K, or K - 1 of a simplex ETF."""
    return seen.classes if seen.predicted_rank == seen.classes else seen.classes - 1
