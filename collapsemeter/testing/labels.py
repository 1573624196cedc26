"""Cases: labels as people pass them, and labels that are wrong."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .case import attached, case, feed, quiet, turned_away
from .driver import Batch, Case, Make, Spec
from .oracle import Oracle, require
from .streams import Stream, spec_of, stream_of

CASES: list[Case] = []
_NOT_MEASURED = ("rows_missing", "rows_counted_twice", "degraded")


@case(CASES)
def one_hot_labels(make: Make) -> None:
    """Labels as one-hot rows of float32 mean the classes they name."""
    spec = spec_of()
    stream = stream_of(spec)
    with attached(make, spec) as driver:
        for features, labels in stream:
            driver.feed(features, np.eye(4, dtype=np.float32)[labels])
        Oracle(spec, stream).check(driver)


@case(CASES)
def column_labels(make: Make) -> None:
    """Labels of shape (B, 1) are those of shape (B,), and must not be broadcast against the rows."""
    spec = spec_of()
    stream = stream_of(spec)
    with attached(make, spec) as driver:
        for features, labels in stream:
            driver.feed(features, labels[:, None])
        Oracle(spec, stream).check(driver)


@case(CASES)
def narrow_labels(make: Make) -> None:
    """Labels of 8 bits, some of them -100: nothing may overflow where they are compared or
    numbered.
    """
    spec = spec_of()
    stream = stream_of(spec).with_labels(slice(0, 96, 5), -100)
    with attached(make, spec) as driver:
        for features, labels in stream:
            driver.feed(features, labels.astype(np.int8))
        Oracle(spec, stream).check(driver)


@case(CASES)
def labels_out_of_range(make: Make) -> None:
    """A label that is no class and not ignore_index, below or above: the batch is refused, or the
    row is left out and the report warns of labels. It must not wrap around or be dropped in
    silence.
    """
    spec = spec_of()
    for wrong in (4, -1, 1000):
        _refused_or_left_out(make, spec, stream_of(spec).with_labels([5, 40], wrong))


@case(CASES)
def soft_labels(make: Make) -> None:
    """Labels that are mixtures of classes (mixup) name no class: refused, or left out with a
    warning, but not the largest part's class.
    """
    spec = spec_of()
    stream = stream_of(spec)
    unlabelled = stream.with_labels(slice(32, 64), -1)
    first, mixed, *rest = stream
    mixture = 0.7 * np.eye(4, dtype=np.float32)[mixed[1]] + np.float32(0.3 / 4)
    given = [first, (mixed[0], mixture), *rest]
    _refused_or_left_out(make, spec, unlabelled, given)


@case(CASES)
def labels_of_another_length(make: Make) -> None:
    """More or fewer labels than rows: an error or a warning, and no part of the batch is counted as
    if it were right.
    """
    spec = spec_of()
    stream = stream_of(spec)
    first, second, *rest = stream
    for cut in ((second[0][:31], second[1]), (second[0], second[1][:31])):
        with attached(make, spec, [first]) as driver, quiet():
            refused = turned_away(driver, cut)
            feed(driver, rest)
            report = driver.report()
            layer = report[list(report)[-1]]
            # A graph that was cut short may have counted a part: then there must be no number.
            if any(code in layer.flags for code in _NOT_MEASURED):
                require(bool(report.warnings), "a layer is not measured, and no warning says why")
                continue
            require(
                refused or bool(report.warnings),
                f"{len(cut[0])} rows came with {len(cut[1])} labels, without an error or a warning",
            )
            Oracle(spec, [first, *rest]).check(driver)


def _refused_or_left_out(
    make: Make, spec: Spec, stream: Stream, given: Iterable[Batch] | None = None
) -> None:
    """Check that a wrong label is refused with its batch, or left out with a warning."""
    with attached(make, spec) as driver, quiet():
        right, warns = [], False
        for due, batch in zip(stream, given or stream, strict=True):
            wrong = ~np.isin(due[1], [*range(spec.num_classes), spec.settings.ignore_index])
            refused = turned_away(driver, batch)
            require(not refused or bool(wrong.any()), "a batch with right labels was refused")
            warns |= bool(wrong.any()) and not refused
            right += [] if refused else [due]
        report = Oracle(spec, right).check(driver)
        require(
            not warns or any("label" in text for text in report.warnings),
            "labels that name no class were taken, and no warning of the report speaks of labels",
        )
