"""Which rows a uniform sample keeps, by hashes of their numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapsemeter.stats import groups, sampling
from collapsemeter.stats.sampling import drawn_slots, reservoir_slots, row_hashes
from collapsemeter.stats.sketch import turning_keys

NUMBERS = np.array([0, 1, 2, 1000, 2**32 - 2], np.uint32)


def test_hashes_never_change_since_files_written_before_must_merge():
    buckets, negative = row_hashes(NUMBERS, 512, 7)
    assert drawn_slots(NUMBERS, 7).tolist() == [0, 0, 2, 126, 2148792605]
    # The first 512 rows have buckets of their own; older files hashed them, and rows of other numbers merge with both.
    assert buckets.tolist() == [0, 1, 2, 123, 338]
    assert negative.tolist() == [False, True, True, False, True]
    keys = turning_keys(NUMBERS[:4], np.uint32(5))
    assert keys.tolist() == [4185440590, 2426060675, 3818625191, 3194466838]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_row_draws_each_slot_up_to_its_number_as_often(number):
    seeds = 3000
    drawn = [int(drawn_slots(np.full(1, number, np.uint32), seed)[0]) for seed in range(seeds)]
    counts = np.bincount(drawn, minlength=number + 1)
    assert len(counts) == number + 1
    expected = seeds / (number + 1)
    assert np.abs(counts - expected).max() <= 5 * math.sqrt(expected)


@pytest.mark.parametrize("first", [0, 1020, 2047, 5000])
def test_rows_on_both_sides_of_a_block_of_draws_go_where_each_draw_says(first, monkeypatch):
    numbers, size = np.arange(first, first + 12), 4
    slots = reservoir_slots(numbers, size, seed=3)
    drawn = np.where(numbers < size, numbers, drawn_slots(numbers.astype(np.uint32), 3))
    expected = np.minimum(drawn, size)
    for i, slot in enumerate(expected):  # of two rows in one slot the later stays
        if slot in expected[i + 1 :]:
            expected[i] = size
    np.testing.assert_array_equal(slots, expected)
    monkeypatch.setattr(sampling, "_AHEAD", 5)
    sampling._draws_of.cache_clear()
    np.testing.assert_array_equal(reservoir_slots(numbers, size, seed=3), expected)
    sampling._draws_of.cache_clear()


def test_rows_are_dealt_to_as_many_groups_as_moments_keep():
    assert sampling.GROUPS == groups.GROUPS
