"""Cases: the life of a meter, from attach to close."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from .case import NEAR, OFFSET, attached, case, feed, quiet, turned_away
from .driver import Case, Make
from .oracle import Oracle, require
from .streams import spec_of, stream_of

CASES: list[Case] = []


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
        after = list(stream_of(spec, std=std, offset=offset))[
            :2
        ]  # fewer: the sample is not overwritten
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
        attached(make, spec, batches[::2]) as one,
        attached(make, spec, batches[1::2]) as other,
    ):
        Oracle(spec, batches).check_moments(one.merge(other))
        Oracle(spec, batches).check_moments(other.merge(one))


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
        with quiet():
            for batch in fed:
                turned_away(driver, batch)
            driver.close()
        after = driver.fingerprint()
        require(before == after, f"before attach the model was {before!r}, after close {after!r}")
