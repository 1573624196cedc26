"""Bounds of what running sums in float32 lost: they travel, merge, and are those of their means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collapsemeter import ClassMoments, measure
from collapsemeter.metrics.rounding_errors import CODE
from collapsemeter.stats.rounding import Rounding, merged_rounding

from ..displaced_sums import WIDTH, C, batches, moments, summed


def test_the_bounds_travel_with_merged_and_saved_moments(tmp_path):
    far, near = moments(batches(1e4), "pooled"), moments(batches(0, seed=1), "pooled", np.float64)
    for both in (far.merge(near), near.merge(far), far.merge(ClassMoments.empty(C, WIDTH))):
        both.save(tmp_path / "layer.npz")
        found = ClassMoments.load(tmp_path / "layer.npz")
        assert CODE in measure(found).flags
        np.testing.assert_array_equal(found.rounding.traces, far.rounding.traces)
    near.save(tmp_path / "layer.npz")
    assert ClassMoments.load(tmp_path / "layer.npz").rounding is None


@pytest.mark.parametrize(
    "change",
    [{"traces": np.zeros(9)}, {"features": np.full(WIDTH, -1.0)}, {"means": None}],
)
def test_bounds_that_are_not_those_of_the_means_are_refused(change):
    arrays = {"means": np.zeros((C, WIDTH))} | moments(batches(0), "trace").rounding.arrays()
    arrays |= {f"rounding_{name}": array for name, array in change.items()}
    with pytest.raises(ValueError, match="not those of its means"):
        Rounding.among({name: array for name, array in arrays.items() if array is not None})


def test_bounds_of_merged_moments():
    one = Rounding(np.full(2, 1.0), np.full(3, 2.0), np.full(2, 4.0))
    other = Rounding(np.full(2, 10.0), np.full(3, 20.0), np.full(2, 8.0))
    joint = merged_rounding(one, other, [3, 0], [1, 5])
    np.testing.assert_allclose(joint.traces, 11.0)
    np.testing.assert_allclose(joint.features, 22.0)
    np.testing.assert_allclose(joint.means, [5.0, 8.0])
    assert merged_rounding(None, None, [1], [1]) is None


def test_the_sums_of_observe_are_in_float64():
    assert Rounding.of(summed(batches(1e6), "class", np.float64)) is None
    assert replace(moments(batches(0), "trace"), rounding=None).rounding is None
