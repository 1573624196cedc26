"""Groups of rows: how rows are dealt, which layers afford them, and sums that move to another centre."""

import numpy as np
import pytest

from collapsemeter import ClassMoments, measure
from collapsemeter.stats.groups import CACHED_ENTRIES, Groups, affordable_groups, check_groups
from collapsemeter.stats.sampling import dealt_groups, dealt_range, low_32_bits, scaled

# Files and ranks of other versions merge with ours: no version may deal rows otherwise.
DEALT = [9, 0, 7, 14, 5, 12, 3, 10, 1, 8, 15, 6, 13, 4, 11, 2]
DEALT += [12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13, 0, 3, 6, 9]


def test_rows_are_dealt_as_ever():
    assert dealt_range(0, 32, 16).tolist() == DEALT
    assert dealt_groups(np.arange(32), 16, low_32_bits).tolist() == DEALT
    assert dealt_range(5, 20, 8).tolist() == [group % 8 for group in DEALT[5:25]]


def test_a_batch_begins_with_row_zero():
    rows, labels = np.arange(64.0).reshape(32, 2), np.zeros(32, int)
    moments = ClassMoments.from_batch(rows, labels, 2)
    for group in range(16):
        mine = rows[np.array(DEALT) == group] - rows.mean(axis=0)
        np.testing.assert_allclose(moments.groups.sums[0, group], mine.sum(axis=0))


@pytest.mark.parametrize(
    ("entries", "groups"), [(160, 16), (159, 8), (80, 8), (79, 4), (40, 4), (39, 0)]
)
def test_a_layer_keeps_the_groups_that_it_affords(entries, groups):
    assert affordable_groups(2, 5, entries=entries) == groups


@pytest.mark.parametrize("groups", [True, False, 1, 5, 32, -16, None, "16"])
def test_another_number_of_groups_is_refused(groups):
    with pytest.raises(ValueError, match=f"groups={groups!r}: pass 16, 8, 4, or 0"):
        check_groups(groups)


@pytest.mark.parametrize("width", [3, CACHED_ENTRIES // 8])  # many classes at once, and two
def test_sums_move_to_another_centre(width):
    rng = np.random.default_rng(0)
    counts, rows = rng.integers(0, 4, (5, 4)), rng.normal(size=(5, 4, 3, width))
    present = np.arange(3) < counts[..., None]
    offsets = rng.normal(size=(5, width))

    def about(centres):
        residuals = (rows - centres[:, None, None]) * present[..., None]
        return residuals.sum(axis=2), (residuals**2).sum(axis=(2, 3))

    moved = Groups.about(counts, *about(np.zeros_like(offsets)), offsets)
    sums, squares = about(offsets)
    np.testing.assert_allclose(moved.sums, sums, atol=1e-13)
    np.testing.assert_allclose(moved.squares, squares, rtol=1e-12)


def test_a_fraction_of_a_size_is_exact_in_32_bits():
    rng = np.random.default_rng(1)
    fractions, sizes = rng.integers(0, 2**32, (2, 1000), dtype=np.uint32)
    exact = [int(f) * int(s) >> 32 for f, s in zip(fractions, sizes, strict=True)]
    assert scaled(fractions, sizes).tolist() == exact


def test_rows_without_groups_have_none_whatever_they_are_merged_with():
    """An empty state has groups of no row; as those of the rows beside it they made an interval of half the data."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    rows = np.eye(3, 4)[labels] + 0.1 * rng.normal(size=(120, 4))
    bare = ClassMoments.from_batch(rows[:60], labels[:60], 3, groups=0)
    grouped = ClassMoments.from_batch(rows[60:], labels[60:], 3, first_row=60)
    empty = ClassMoments.empty(3, 4)
    for both in (empty.merge(bare), bare.merge(empty), empty.merge(bare).merge(grouped)):
        assert both.groups is None
        assert measure(both).no_interval["nc1_trace_ratio"] == "no_groups"
    for both in (empty.merge(grouped), grouped.merge(ClassMoments.empty(3, 4, groups=0))):
        assert both.groups is not None
        both.groups.check(both.counts, both.traces)
    assert empty.merge(ClassMoments.empty(3, 4, groups=0)).groups is not None
