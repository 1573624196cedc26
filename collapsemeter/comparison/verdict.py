"""One sentence for a layer beside a reference, from the figures it rests on."""

import math

from ..report.criteria import Judgement, worst
from .layer_comparison import Status
from .matching import EQUAL


def verdict(
    name: str,
    nc1: Judgement,
    geometry: Judgement,
    *,
    gram: float,
    rank: int,
    predicted_rank: int,
    predicted_nc1: float,
    classes: int,
    free: bool,
    obstacle: str,
) -> tuple[Status, str]:
    """Return what a layer is beside the reference of that name, as a code and as one sentence."""
    low = rank < classes - 1  # that at collapse is K, or K - 1 of a simplex ETF
    if obstacle:
        return "infeasible", f"reference infeasible: {obstacle}"
    if math.isnan(nc1.share) and math.isnan(predicted_nc1) and gram <= EQUAL:
        return "nothing learned", f"nothing is learned here, as at {name}"
    if math.isnan(nc1.share):
        return "not judged", str(nc1)
    if nc1.band == "not collapsed":
        return "not collapsed", f"not collapsed: {nc1.words}"
    if free:
        return "free", f"{nc1}; {name} leaves the frame of this layer free"
    if math.isnan(gram):
        return "unmeasured", f"{nc1}; no Gram matrix is kept to compare with {name}"
    if geometry.band == "not judged":
        return "not judged", f"{nc1}; not judged beside {name}: {geometry.words}"
    if geometry.band != "not collapsed" and nc1.band == "not judged":
        return "not judged", f"{nc1}; {geometry.words}"
    if geometry.band != "not collapsed":
        band = worst([nc1.band, geometry.band])
        below = f", below DNC rank ({rank} of {classes} classes)" if low else ""
        return band, f"{band} to {name}{below}: {nc1.words}; {geometry.words}"
    if low or rank < predicted_rank:
        return "below DNC rank", (
            f"below DNC rank: rank {rank} of {classes} classes "
            f"({name} has {predicted_rank}); {nc1}; {geometry.words}"
        )
    return "other geometry", f"{nc1}, in another geometry than {name}: {geometry.words}"
