"""Sums in float32 about a shift far from their rows: bounded, flagged or refused; others are not accused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from collapsemeter import ClassMoments, measure
from collapsemeter.metrics.rounding_errors import CODE, FLAGGED
from collapsemeter.stats import sums
from collapsemeter.stats.namespace import Numpy
from collapsemeter.stats.rounding import Rounding, merged_rounding
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import row_hashes

C, WIDTH = 4, 12


def batches(far, rows=40, count=60, std=1.0, displaced="all", seed=0):
    """Class means 5 apart; the first batch, or its first row of each class, ``far`` deviations away."""
    rng = np.random.default_rng(seed)
    means = 5 * rng.normal(size=(C, WIDTH)) / math.sqrt(WIDTH)
    away = far * std * rng.normal(size=WIDTH) / math.sqrt(WIDTH)
    for number in range(count):
        labels = np.arange(rows) % C
        features = means[labels] + std * rng.normal(size=(rows, WIDTH)) / math.sqrt(WIDTH)
        if number == 0 and displaced == "row":
            # A batch of its own, for the shift to stay there.
            yield (features[:C] + away).astype(np.float32), labels[:C]
            features, labels = features[C:], labels[C:]
        elif number == 0:
            features += away
        yield features.astype(np.float32), labels


def summed(stream, kind, dtype=np.float32):
    sketch = {"sketch_rows": 16} if kind == "sketch" else {}
    state, first = sums.init(C, WIDTH, kind, dtype, **sketch), 0
    for features, labels in stream:
        hashes = None
        if kind == "sketch":
            numbers = np.arange(first, first + len(labels))
            first += len(labels)
            hashes = row_hashes(numbers, 16, 0, low_32_bits)
        state = sums.update(state, features, labels, Numpy(dtype), hashes=hashes)
    return state


def moments(stream, kind, dtype=np.float32):
    return ClassMoments.from_sums(summed(stream, kind, dtype), "float32", "live")


@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
@pytest.mark.parametrize("displaced", ["all", "row"])
@pytest.mark.parametrize("far", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_every_metric_is_within_its_bound_or_refused(kind, displaced, far):
    found, due = (
        measure(moments(batches(far, displaced=displaced), kind, dtype))
        for dtype in (np.float32, np.float64)
    )
    bounds = found.provenance["float32_error"]
    # One bound for all, unless a metric has its own; S_B^+ and S_W^+ are of means and scatter, too.
    common = max(bounds["means"], bounds["traces"])
    for name in due:
        if math.isnan(due[name]):
            assert found.reason(name) == due.reason(name)
        elif math.isnan(found[name]):
            if (
                found.reason(name) == "within_scatter_rank_deficient"
            ):  # rounding may look like that, too
                assert name == "nc1_vci"
                assert bounds[name] > 1
                continue
            assert found.reason(name) == CODE
            assert max(common, bounds.get(name, 0.0), bounds.get("nc1_pinv", 0.0)) > 1
        else:
            own = bounds.get("nc1_pinv" if name == "nc1_fuzziness" else name, 0.0)
            assert abs(found[name] - due[name]) <= 2 * max(common, own) * abs(due[name]), name
            if abs(found[name] - due[name]) > FLAGGED * abs(due[name]):
                assert CODE in found.flags


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
def test_what_is_lost_is_refused_and_what_is_left_is_flagged(kind):
    off = measure(moments(batches(1e6, std=1e-2), kind))
    assert CODE in off.flags
    assert FLAGGED < off.provenance["float32_error"]["means"] < 1
    assert math.isfinite(off["nc1_trace_ratio"])
    if kind in ("class", "pooled"):
        assert off.reason("nc1_vci") == CODE
    lost = measure(moments(batches(1e6), kind))
    assert {"nc1_trace_ratio", "nc2_etf_error"} <= {
        name for name, code in lost.reasons.items() if code == CODE and math.isnan(lost[name])
    }
    exact = measure(moments(batches(1e6), kind, np.float64))
    assert CODE not in (*exact.flags, *exact.reasons.values())
    assert exact.provenance["float32_error"] == {}


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
@pytest.mark.parametrize("std", [1e-4, 1e-2, 1.0])
def test_ordinary_rows_are_not_accused(kind, std):
    layer = measure(moments(batches(0, rows=4, count=400, std=std), kind))
    assert CODE not in layer.flags
    assert CODE not in layer.reasons.values()
    assert max(layer.provenance["float32_error"].values()) < 1e-3


def test_exact_collapse_and_features_that_never_vary_are_not_accused():
    rows = (1 / 3 + np.eye(C, WIDTH, dtype=np.float32))[np.arange(40) % C]
    layer = measure(moments([(rows, np.arange(40) % C)] * 20, "class"))
    assert CODE not in layer.flags
    assert layer["nc1_pinv"] < 1e-12
    half = [(rows * (np.arange(WIDTH) < 6), labels) for rows, labels in batches(0)]
    assert CODE not in measure(moments(half, "pooled")).reasons.values()


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


def test_a_class_that_turned_nan_does_not_hide_behind_the_bounds():
    state = summed(batches(0), "class")
    state.sums[1], state.squares[1] = np.nan, np.nan
    layer = measure(ClassMoments.from_sums(state, "float32", "live"))
    assert layer.reason("nc1_pinv") == "nonfinite_statistics"
    assert layer.provenance["float32_error"] == {}


def test_the_sums_of_observe_are_in_float64():
    assert Rounding.of(summed(batches(1e6), "class", np.float64)) is None
    assert replace(moments(batches(0), "trace"), rounding=None).rounding is None
