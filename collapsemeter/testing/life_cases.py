"""Cases: labels as people pass them, labels that are wrong, and the life of a meter."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..stats.moments import ClassMoments
from ..stats.sums import MIXED, UNLABELLED
from .driver import Batch, Case, Make, Spec, attached, case, feed, ignoring_warnings, turned_away
from .oracle import Oracle, agrees, expect
from .streams import NEAR, OFFSET, Stream, spec_of, stream_of

CASES: list[Case] = []
_NOT_MEASURED = ("rows_missing", "rows_counted_twice", "degraded")

# Labels


@case(CASES)
def one_hot_labels(make: Make) -> None:
    """Labels as one-hot rows of float32 mean the classes they name."""
    spec = spec_of()
    agrees(make, spec, stream_of(spec), lambda labels: np.eye(4, dtype=np.float32)[labels])


@case(CASES)
def float_labels(make: Make) -> None:
    """Whole numbers are class numbers whatever their dtype: here float32."""
    spec = spec_of()
    agrees(make, spec, stream_of(spec), lambda labels: labels.astype(np.float32))


@case(CASES)
def binary_labels(make: Make) -> None:
    """Labels 0.0 and 1.0 in a column, as a binary loss takes them, are two classes."""
    spec = spec_of(num_classes=2)
    agrees(
        make,
        spec,
        stream_of(spec, counts=(56, 40)),
        lambda labels: labels.astype(np.float32)[:, None],
    )


@case(CASES)
def rows_of_zeros(make: Make) -> None:
    """A one-hot row of zeros names no class: it is left out and counted as such, and is not class 0."""
    spec = spec_of()
    stream = stream_of(spec).with_labels(slice(0, 96, 7), UNLABELLED)
    with attached(make, spec) as driver, ignoring_warnings():
        for features, labels in stream:
            one_hot = np.zeros((len(labels), 4), np.float32)
            one_hot[labels >= 0, labels[labels >= 0]] = 1
            driver.feed(features, one_hot)
        report = Oracle(spec, stream).check(driver)
        expect(
            any("label" in text for text in report.warnings),
            "rows without a class were left out, and no warning of the report speaks of labels",
        )


@case(CASES)
def column_labels(make: Make) -> None:
    """Labels of shape (B, 1) are those of shape (B,), and must not be broadcast against the rows."""
    spec = spec_of()
    agrees(make, spec, stream_of(spec), lambda labels: labels[:, None])


@case(CASES)
def narrow_labels(make: Make) -> None:
    """Labels of 8 bits, some of them -100: nothing may overflow where they are compared or
    numbered.
    """
    spec = spec_of()
    agrees(
        make,
        spec,
        stream_of(spec).with_labels(slice(0, 96, 5), -100),
        lambda labels: labels.astype(np.int8),
    )


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
    """Labels that are mixtures of classes (mixup) or several of them name no single class: refused, or
    left out with a warning, but not the class of the first or the largest part.
    """
    spec = spec_of()
    stream = stream_of(spec)
    left_out = stream.with_labels(slice(24, 48), MIXED).with_labels([5, 70], MIXED)
    first, mixed, *later = ((features, np.eye(4, dtype=np.float32)[y]) for features, y in stream)
    first[1][5], later[0][1][70 - 48] = [1, 0, 1, 0], [0.5, 0.5, 0, 0]
    mixture = 0.7 * mixed[1] + np.float32(0.3 / 4)
    _refused_or_left_out(make, spec, left_out, [first, (mixed[0], mixture), *later])


@case(CASES)
def largest_parts(make: Make) -> None:
    """The option mixed="hardest": a row of parts of several classes has the class of its largest part, and is left out
    where the largest parts are equal.
    """
    spec = spec_of(mixed="hardest")
    stream = stream_of(spec).with_labels([5, 70], MIXED)
    batches = [(features, np.eye(4, dtype=np.float32)[y]) for features, y in stream_of(spec)]
    batches[1] = batches[1][0], 0.7 * batches[1][1] + np.float32(0.3 / 4)
    batches[0][1][5], batches[2][1][70 - 48] = [0.5, 0, 0.5, 0], [0.25, 0.25, 0.25, 0.25]
    with attached(make, spec) as driver, ignoring_warnings():
        feed(driver, batches)
        report = Oracle(spec, stream).check(driver)
    said = report.provenance.get("mixed")
    expect(said == "hardest", f"the report says mixed={said!r}, labels were taken as 'hardest'")


@case(CASES)
def labels_of_another_length(make: Make) -> None:
    """More or fewer labels than rows: an error or a warning, and no part of the batch is counted as
    if it were right.
    """
    spec = spec_of()
    stream = stream_of(spec)
    first, second, *later = stream
    for cut in ((second[0][:23], second[1]), (second[0], second[1][:23])):
        with attached(make, spec, [first]) as driver, ignoring_warnings():
            refused = turned_away(driver, cut)
            feed(driver, later)
            report = driver.report()
            layer = report[list(report)[-1]]
            # A graph that was cut short may have counted a part: then there must be no number.
            if any(code in layer.flags for code in _NOT_MEASURED):
                expect(bool(report.warnings), "a layer is not measured, and no warning says why")
                continue
            expect(
                refused or bool(report.warnings),
                f"{len(cut[0])} rows came with {len(cut[1])} labels, without an error or a warning",
            )
            Oracle(spec, [first, *later]).check(driver)


def _refused_or_left_out(
    make: Make, spec: Spec, stream: Stream, fed: Iterable[Batch] | None = None
) -> None:
    """Check that a wrong label is refused with its batch, or left out with a warning."""
    with attached(make, spec) as driver, ignoring_warnings():
        right, warns = [], False
        for truth, batch in zip(stream, fed or stream, strict=True):
            wrong = ~np.isin(truth[1], [*range(spec.num_classes), spec.settings.ignore_index])
            refused = turned_away(driver, batch)
            expect(not refused or bool(wrong.any()), "a batch with right labels was refused")
            warns |= bool(wrong.any()) and not refused
            right += [] if refused else [truth]
        report = Oracle(spec, right).check(driver)
        expect(
            not warns or any("label" in text for text in report.warnings),
            "labels that name no class were taken, and no warning of the report speaks of labels",
        )


# From attach to close


@case(CASES)
def report_midway(make: Make) -> None:
    """A report changes nothing: the next one is of all rows."""
    spec = spec_of(sample_rows=20)
    batches = list(stream_of(spec))
    with attached(make, spec, batches[:2]) as driver:
        Oracle(spec, batches[:2]).check(driver)
        driver.report()
        feed(driver, batches[2:])
        Oracle(spec, batches).check(driver)


@case(CASES)
def reset(make: Make) -> None:
    """After reset only new rows count.

    What is left of shifts, counts of ignored rows, the sample or its numbering shows here.
    """
    for std, offset, sample_rows in ((NEAR, OFFSET, 4096), (2.0, 0.0, 20)):
        spec = spec_of(offset=offset, sample_rows=sample_rows)
        before = stream_of(spec, std=2.0, seed=1).with_labels([1, 2], -100)
        # Fewer rows, so that the sample is not overwritten.
        after = list(stream_of(spec, std=std, offset=offset))[:2]
        with attached(make, spec, before.with_features((3, 0), np.nan)) as driver:
            driver.reset()
            feed(driver, after)
            Oracle(spec, after).check(driver)


@case(CASES)
def merge(make: Make) -> None:
    """Two halves, of which one lacks a class, merge to the whole in either order.

    Sums about different shifts must not be added as they are.
    """
    spec = spec_of(offset=OFFSET)
    batches = list(stream_of(spec, std=NEAR, offset=OFFSET).sorted().with_labels(95, -100))
    with (
        attached(make, spec, batches[::2]) as first,
        attached(make, spec, batches[1::2]) as second,
    ):
        truth = Oracle(spec, batches)
        # Each numbers its rows from 0 on, so that they are in other groups than those of one stream.
        halves = (Oracle(spec, half).moments for half in (batches[::2], batches[1::2]))
        truth.moments = replace(truth.moments, groups=ClassMoments.merge_all(halves).groups)
        truth.check_moments(first.merge(second))
        truth.check_moments(second.merge(first))


@case(CASES)
def merge_with_nothing(make: Make) -> None:
    """A driver that was fed nothing (a rank without data) changes nothing when merged."""
    spec = spec_of()
    stream = stream_of(spec)
    with attached(make, spec, stream) as full, attached(make, spec) as empty:
        Oracle(spec, stream).check_moments(full.merge(empty))
        Oracle(spec, stream).check_moments(empty.merge(full))


@case(CASES)
def save_and_load(make: Make) -> None:
    """A run that goes on from a saved state is the run that was not interrupted: shifts, counters,
    the sample and its numbering all travel.
    """
    for std, offset in ((NEAR, OFFSET), (2.0, 0.0)):
        spec = spec_of(offset=offset, sample_rows=20)
        stream = stream_of(spec, std=std, offset=offset).with_labels([1, 50], -100)
        batches = list(stream.with_features((3, 0), np.nan))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            with attached(make, spec, batches[:2]) as driver:
                driver.save(path)
            with attached(make, spec) as resumed:
                resumed.load(path)
                feed(resumed, batches[2:])
                Oracle(spec, batches).check(resumed)


@case(CASES)
def frozen_pass(make: Make) -> None:
    """A pass with frozen weights gives the same numbers, and says 'frozen-eval' of them."""
    spec = spec_of(phase="frozen-eval")
    stream = stream_of(spec)
    with attached(make, spec, stream) as driver:
        Oracle(spec, stream).check(driver, moments=False)


@case(CASES)
def no_trace(make: Make) -> None:
    """After close the model is as it was before attach: no hook, attribute or changed weight stays;
    also where a batch was refused.
    """
    spec = spec_of()
    batches = list(stream_of(spec))
    features, labels = batches[0]
    for fed in ([], batches, [(features, labels[:-1])]):
        driver = make(spec)
        before = driver.fingerprint()
        driver.attach()
        with ignoring_warnings():
            for batch in fed:
                turned_away(driver, batch)
            driver.close()
        after = driver.fingerprint()
        expect(before == after, f"before attach the model was {before!r}, after close {after!r}")
