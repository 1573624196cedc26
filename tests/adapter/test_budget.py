"""Which batches a budget takes, and what a clock says of steps whose length is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsemeter.adapter.budget import Budget, Clock


@given(
    every=st.integers(1, 7),
    max_rows=st.none() | st.integers(1, 50),
    sizes=st.lists(st.integers(0, 20), max_size=30),
)
def test_a_budget_takes_every_kth_batch_until_there_are_rows_enough(every, max_rows, sizes):
    budget, rows, counted = Budget(every, max_rows), 0, []
    for number, size in enumerate(sizes):
        if budget.takes(number, rows):
            counted.append(number)
            rows += size
    multiples = [number for number in range(len(sizes)) if number % every == 0]
    before = np.cumsum([0] + [sizes[number] for number in multiples])
    limit = np.inf if max_rows is None else max_rows
    assert counted == [n for n, had in zip(multiples, before, strict=False) if had < limit]


@pytest.mark.parametrize("name", ["every", "every_batch"])
@pytest.mark.parametrize("value", [0, -2, 2.0, "3", True, None])
def test_a_wrong_period_is_named(name, value):
    with pytest.raises(ValueError, match=rf"{name}={value!r}: pass a whole number from 1 up; 1 c"):
        Budget(every=value, name=name)


@pytest.mark.parametrize("value", [0, -1, 1e4, False])
def test_a_wrong_number_of_rows_is_named(value):
    with pytest.raises(ValueError, match=rf"max_rows={value!r}: pass a whole number from 1 up; or"):
        Budget(max_rows=value)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert Budget(every=np.int64(2), max_rows=np.int32(5)).limited


@pytest.fixture
def now(monkeypatch):
    """Seconds that the clock reads, in a list of one."""
    seconds = [0.0]
    monkeypatch.setattr("collapsemeter.adapter.budget.perf_counter", lambda: seconds[0])
    return seconds


def run(clock: Clock, now: list[float], steps: list[tuple[float, float]]) -> None:
    """Steps of (the meter's seconds, all other seconds), and the begin of one more."""
    for spent, rest in steps:
        clock.begin(now[0])
        started = now[0]
        now[0] += spent
        clock.spend_since(started)
        now[0] += rest
    clock.begin(now[0])


def test_the_share_is_that_of_equal_steps_whatever_pauses_are_between(now):
    clock = Clock()
    run(clock, now, [(1.0, 3.0)] * 10)
    assert clock.share() == 0.25
    clock.clear()
    run(clock, now, [(1.0, 3.0)] * 6 + [(1.0, 500.0)] * 4)
    assert clock.share() == 0.25


def test_what_one_step_of_several_does_counts_for_all(now):
    clock = Clock()
    run(clock, now, ([(1.0, 3.0)] + [(0.0, 3.0)] * 9) * 3)
    assert clock.share() == pytest.approx(0.1 / 3.1)


def test_the_last_step_is_none_before_the_next_begins_and_a_batch_that_left_is_none(now):
    clock = Clock()
    clock.begin(0.0)
    now[0] = 1.0
    clock.spend_since(0.0)
    assert clock.share() is None
    assert clock.provenance("")["overhead"] is None
    clock.leave()
    clock.begin(10.0)
    assert clock.share() is None


def test_the_time_of_a_report_is_left_out(now):
    clock = Clock()
    clock.skip_since(0.0)  # before the first batch there is no step to leave it out of
    run(clock, now, [(1.0, 3.0)] * 3)
    report_began, now[0] = now[0], now[0] + 50.0
    clock.skip_since(report_began)
    run(clock, now, [(1.0, 3.0)] * 3)
    assert clock.share() == pytest.approx(6 / 7 / (6 / 7 + 3))  # the step of the report had no more


def test_what_a_report_says_of_time(now):
    clock = Clock()
    run(clock, now, [(1.0, 3.0)] * 2)
    assert clock.provenance("why") == {"overhead": 0.25}
    assert "of the host's time" in clock.provenance("why", asynchronous=True)["overhead_note"]
    clock.unseen = True
    assert clock.provenance("why") == {"overhead": None, "overhead_note": "unknown: why"}
    clock.clear()
    assert "none has" in clock.provenance("why")["overhead_note"]


def test_what_a_report_says_of_a_budget():
    assert Budget().provenance(0, 10) == {}
    assert Budget(5, name="every_batch").provenance(8, 20) == {
        "budget": {"every_batch": 5, "max_rows": None, "batches_left_out": 8}
    }
    assert Budget(max_rows=21).provenance(0, 20)["budget"]["max_rows_reached"] is False
