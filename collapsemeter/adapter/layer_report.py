"""From what a layer counted to its report: check that nothing was missed, then measure."""

from collections.abc import Mapping

import numpy as np

from ..metrics.layer import LayerReport
from ..metrics.measure import measure, undefined_report
from ..stats.fields import Phase
from ..stats.head import Head
from ..stats.sums import Sums
from .notes import fits, moments_notes
from .settings import Settings
from .tally import Tally

# Why a layer saw other rows than were given; every adapter has a sentence for each.
CAUSE_CODES = ("never_fired", "rows_missing", "rows_counted_twice")


def layer_report(
    name: str,
    tally: Tally | None,
    settings: Settings,
    *,
    phase: Phase,
    expected_rows: int,
    is_head: bool,
    head: Head | None,
    causes: Mapping[str, str],
) -> tuple[LayerReport, list[str]]:
    """Measure one layer, unless its numbers would not be right; return also what to warn of."""
    seen = 0 if tally is None else tally.seen(settings.propagate)
    if tally is None or seen != expected_rows:
        code = (
            "never_fired"
            if seen == 0
            else "rows_missing"
            if seen < expected_rows
            else "rows_counted_twice"
        )
        note = (
            f"layer {name!r} saw {seen} of {expected_rows} label rows, so it is not measured: "
            f"{causes[code]}"
        )
        return undefined_report(code, is_head), [note]

    sums, notes = tally.sums, []
    if sums.invalid:
        notes.append(
            f"layer {name!r} got {int(sums.invalid)} labels that are none of the classes "
            f"0..{settings.num_classes - 1} and not ignore_index={settings.ignore_index}: their rows were "
            f"left out{_of_hinge(sums, settings)}"
        )
    if 2 * int(sums.mixed) > expected_rows - int(sums.ignored) - int(sums.unlabelled):
        notes.append(
            f"layer {name!r} is not measured, because {int(sums.mixed)} of {expected_rows} labels name several classes "
            "or parts of them (multi-label, smoothed or mixed): pass the class numbers from before they were "
            "smoothed or mixed, or mixed='hardest' to count each under its largest part"
        )
        return undefined_report("mixed_labels", is_head), notes
    if sums.nonfinite and settings.nonfinite == "raise":
        raise ValueError(
            f"layer {name!r} gave {int(sums.nonfinite)} rows that hold NaN or Inf: pass "
            "nonfinite='skip' to leave such rows out"
        )
    moments = tally.moments(phase)
    # A live stream was decided on by heads that are gone: the last one must not speak for them.
    decider = None if phase == "live" or not fits(head, moments) else head
    measured = measure(
        moments,
        head=head if fits(head, moments) else None,
        decisions=tally.decisions(moments, decider),
        convention=settings.named_convention,
    )
    return measured, notes + moments_notes(name, moments, settings, head)


def _of_hinge(sums: Sums, settings: Settings) -> str:
    """Return what to do where all labels were -1 or 1, as far as the counts tell."""
    if settings.num_classes > 2 or int(np.asarray(sums.counts)[0]):
        return ""
    return "; labels of -1 and 1 are passed as (labels + 1) // 2"
