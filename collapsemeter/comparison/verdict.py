"""One sentence for a layer beside a reference, from the figures it rests on."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..report.criteria import Judgement, worst
from .matching import FOUND
from .result import Status


class Evidence(NamedTuple):
    """What a verdict rests on: NC1 and the geometry as `Criteria` judges them, and the ranks."""

    name: str
    nc1: Judgement
    geometry: Judgement
    gram: float
    rank: int
    predicted_rank: int
    predicted_nc1: float
    classes: int
    free: bool
    obstacle: str


def verdict(seen: Evidence) -> tuple[Status, str]:
    """Return what a layer is beside the reference, as a code and as one sentence."""
    name, nc1, geometry = seen.name, seen.nc1, seen.geometry
    if seen.obstacle:
        return "infeasible", f"reference infeasible: {seen.obstacle}"
    if math.isnan(nc1.share) and math.isnan(seen.predicted_nc1) and seen.gram <= FOUND:
        return "nothing learned", f"nothing is learned here, as at {name}"
    if math.isnan(nc1.share):
        return "not judged", str(nc1)
    if nc1.band == "not collapsed":
        return "not collapsed", f"not collapsed: {nc1.words}"
    if seen.free:
        return "free", f"{nc1}; {name} leaves the frame of this layer free"
    if math.isnan(seen.gram):
        return "unmeasured", f"{nc1}; no Gram matrix is kept to compare with {name}"
    if not geometry.judged:
        return "not judged", f"{nc1}; not judged beside {name}: {geometry.words}"
    if geometry.band != "not collapsed":
        return _alike(seen)
    if _low(seen) or seen.rank < seen.predicted_rank:
        return "below DNC rank", (
            f"below DNC rank: rank {seen.rank} of {seen.classes} classes "
            f"({name} has {seen.predicted_rank}); {nc1}; {geometry.words}"
        )
    return "other geometry", f"{nc1}, in another geometry than {name}: {geometry.words}"


def _alike(seen: Evidence) -> tuple[Status, str]:
    """Return the worse of two bands, of NC1 and of the geometry."""
    if not seen.nc1.judged:
        return "not judged", f"{seen.nc1}; {seen.geometry.words}"
    band = worst([seen.nc1.band, seen.geometry.band])
    below = f", below DNC rank ({seen.rank} of {seen.classes} classes)" if _low(seen) else ""
    return band, f"{band} to {seen.name}{below}: {seen.nc1.words}; {seen.geometry.words}"


def _low(seen: Evidence) -> bool:
    """Whether the rank is below that at collapse: K, or K - 1 of a simplex ETF."""
    return seen.rank < seen.classes - 1
