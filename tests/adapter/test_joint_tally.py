"""What several processes counted, merged two by two: the sample is that of one process, and even."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from collapsemeter.adapter.joint_tally import JointTally, evened
from collapsemeter.adapter.tally import Tally
from collapsemeter.stats.sampling import reservoir_slots
from collapsemeter.stats.sums import COUNTERS, Sums

CLASSES, WIDTH = 3, 4


def rows_of(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    every = generator.standard_normal((20_000, WIDTH)) + 30
    return every[numbers], numbers % CLASSES


def sampled(numbers: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Algorithm R, row by row."""
    slots = np.full(size + 1, -1)
    for number in numbers:
        slots[reservoir_slots(np.array([number]), size, seed)] = number
    return slots[:-1][slots[:-1] >= 0]


def tally(numbers: np.ndarray, size: int, seed: int = 0) -> JointTally:
    rows, labels = rows_of(numbers)
    sums = Sums(
        counts=np.bincount(labels, minlength=CLASSES),
        shift=np.zeros((CLASSES, WIDTH)),
        sums=np.array([rows[labels == c].sum(0) for c in range(CLASSES)]),
        squares=np.array([(rows[labels == c] ** 2).sum() for c in range(CLASSES)]),
        scatter=rows.T @ rows,
        **dict.fromkeys(COUNTERS, 1),
    )
    ids = sampled(numbers, size, seed)
    decided = ids, ids % 2
    return JointTally.of(Tally(sums, "float64", *rows_of(ids), ids, decided, seed), "live", size)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("rows", [90, 1200])
def test_the_sample_is_that_of_one_process(ranks, rows):
    numbers = np.arange(rows)
    parts = [tally(numbers[rank::ranks], 64) for rank in range(ranks)]
    joint = functools.reduce(JointTally.merge, parts)
    single = tally(numbers, 64)
    order = np.argsort(single.ids)
    assert sorted(joint.ids) == sorted(single.ids)
    np.testing.assert_array_equal(joint.rows[np.argsort(joint.ids)], single.rows[order])
    moments = joint.moments("live")
    decided, alone = (part.decisions(moments) for part in (joint, single))
    assert decided.rows.tolist() == alone.rows.tolist()
    assert decided.agree.tolist() == alone.agree.tolist()
    assert joint.seen(propagate=False) == rows + ranks * len(COUNTERS)
    np.testing.assert_allclose(moments.means, single.moments("live").means, rtol=1e-12)
    assert evened(joint, 64, [rows // ranks] * ranks) is joint


def test_processes_may_have_seeds_of_their_own():
    """Of the rows that processes drew for one slot the last stays, each by its own seed."""
    numbers, size = np.arange(1200), 64
    parts = [tally(numbers[rank::3], size, seed=rank) for rank in range(3)]
    slots: dict[int, int] = {}
    for part in parts:
        for number in part.ids:
            slot = int(reservoir_slots(np.array([number]), size, part.seed)[0])
            slots[slot] = max(slots.get(slot, -1), int(number))
    joint = functools.reduce(JointTally.merge, parts)
    assert sorted(joint.ids) == sorted(slots.values())
    again = functools.reduce(JointTally.merge, reversed(parts))
    assert sorted(again.ids) == sorted(slots.values())


def test_samples_of_two_sizes_do_not_merge():
    with pytest.raises(
        ValueError, match=r"row samples of 8 and of 16 rows do not merge: .*memory="
    ):
        tally(np.arange(0, 90, 2), 8).merge(tally(np.arange(1, 90, 2), 16))


@pytest.mark.parametrize("counted", [[2000, 0], [2000, 500], [300, 900, 1500]])
def test_rows_of_uneven_processes_are_equally_likely(counted):
    """Of early and late rows, and of every process, the same share stays."""
    ranks, size, seeds = len(counted), 40, 60
    numbers = np.concatenate([np.arange(n) * ranks + rank for rank, n in enumerate(counted)])
    numbers.sort()
    times = np.zeros(numbers.max() + 1)
    before = np.zeros(numbers.max() + 1)
    for seed in range(seeds):
        slots = np.full(size + 1, -1)
        slots[reservoir_slots(numbers, size, seed)] = numbers
        ids = slots[slots >= 0]
        before[ids] += 1
        rows, labels = rows_of(ids)
        whole = Tally(None, "float64", rows, labels, ids, None, seed)
        times[evened(whole, size, counted).ids] += 1
    early, late = np.array_split(numbers, 2)
    shares = [times[part].mean() / seeds for part in (early, late)]
    unevened = [before[part].mean() / seeds for part in (early, late)]
    due = size / (ranks * max(counted))  # that of the rows which are least likely in the sample
    error = np.sqrt(due / (seeds * len(late)))  # of a binomial share, by Poisson
    assert max(abs(share - due) for share in shares) < 4 * error
    assert abs(unevened[0] - unevened[1]) > 4 * error
