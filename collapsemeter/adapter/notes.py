"""Sentences and reasons that belong beside the metrics of a layer."""

from ..stats.head import Head
from ..stats.moments import ClassMoments
from .settings import Settings


def fits(head: Head | None, moments: ClassMoments) -> bool:
    """Whether the head takes the features that the moments are about (or there is none)."""
    return head is None or head.weight.shape == moments.means.shape


def moments_notes(
    name: str, moments: ClassMoments, settings: Settings, head: Head | None
) -> list[str]:
    """Return what to warn of: rows that were left out, and metrics that could not be measured."""
    notes = []
    causes = (
        (moments.unlabelled, "their one-hot label is all zeros"),
        (moments.mixed, "their label names several classes or parts of them"),
    )
    left_out = [f"{rows} because {why}" for rows, why in causes if rows]
    if left_out:
        notes.append(f"layer {name!r}: rows were left out, {' and '.join(left_out)}")
    binary = settings.num_classes == 2 and settings.ignore_index == -1
    if binary and moments.ignored and not moments.counts[0]:
        notes.append(
            f"layer {name!r} has no row of class 0, and {moments.ignored} of label -1, which is "
            "ignore_index: labels of -1 and 1 are passed as (labels + 1) // 2"
        )
    if moments.kind == "sketch" and settings.scatter == "auto":
        notes.append(
            f"layer {name!r} is too wide for a scatter ({moments.width} features): a sketch of it was kept, so "
            "nc1_pinv and nc1_fuzziness are estimates with a standard error, and nc1_vci and "
            "features_effective_rank have no value; a narrower reduction such as 'mean' gives all four"
        )
    if not fits(head, moments):
        notes.append(f"layer {name!r} is not what the head reads: NC3 is not measured")
    return notes
