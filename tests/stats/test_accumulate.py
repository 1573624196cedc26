"""The sums on the host: those of `sums.update`, and of two passes in long double."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collapsemeter.stats.accumulate as module
from collapsemeter.stats import sums
from collapsemeter.stats.accumulate import Accumulator
from collapsemeter.stats.moments import ClassMoments
from collapsemeter.stats.namespace import NUMPY
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import row_hashes

KINDS = ("class", "pooled", "sketch", "trace")


def counted(rows, labels, classes, kind, splits=(), **options) -> ClassMoments:
    accumulator = Accumulator(classes, rows.shape[1], kind, **options)
    for part, of in zip(np.split(rows, splits), np.split(labels, splits), strict=True):
        accumulator.add(part, of)
    return accumulator.moments(rows.dtype.name, "frozen-eval")


def two_pass(rows, labels, classes):
    """Means, traces and the scatter of each class, in long double about the final means."""
    wide = rows.astype(np.longdouble)
    width = rows.shape[1]
    means = np.zeros((classes, width), np.longdouble)
    scatter = np.zeros((classes, width, width), np.longdouble)
    for c in np.unique(labels):
        own = wide[labels == c]
        means[c] = own.mean(axis=0)
        about = own - means[c]
        scatter[c] = about.T @ about
    return means, np.trace(scatter, axis1=1, axis2=2), scatter


def assert_like_the_oracle(found: ClassMoments, oracle: ClassMoments, rtol=1e-10, atol=0.0):
    np.testing.assert_array_equal(found.counts, oracle.counts)
    assert (found.ignored, found.nonfinite) == (oracle.ignored, oracle.nonfinite)
    for name in ("means", "traces", "scatter", "sketch", "signs"):
        a, b = getattr(found, name), getattr(oracle, name)
        if b is None:
            assert a is None
        else:
            scale = np.nanmax(np.abs(b[np.isfinite(b)]), initial=0.0)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=max(1e-12 * scale, atol), err_msg=name)


@st.composite
def streams(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, width = draw(st.integers(0, 60)), draw(st.integers(1, 5))
    classes = draw(st.integers(1, 6))
    labels = rng.integers(0, classes, n)
    if draw(st.booleans()):
        labels = np.sort(labels)
    labels[rng.random(n) < draw(st.sampled_from([0.0, 0.3]))] = -100
    rows = rng.normal(size=(classes, width))[np.maximum(labels, 0)] * 5
    rows = (rows + draw(st.sampled_from([0.01, 1.0])) * rng.normal(size=rows.shape)).astype(
        draw(st.sampled_from([np.float64, np.float32, np.float16]))
    )
    rows[rng.random(n) < draw(st.sampled_from([0.0, 0.2])), 0] = draw(
        st.sampled_from([np.nan, np.inf, -np.inf])
    )
    splits = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return rows, labels, classes, splits


SIZES = ("SORTED_ENTRIES", "TILE_ENTRIES", "SHIFT_ROWS", "LONG_RUN")


@given(
    streams(),
    st.sampled_from(KINDS),
    st.booleans(),
    st.tuples(*[st.sampled_from([1, 3, 40, 2**19])] * len(SIZES)),
)
@settings(max_examples=200)
def test_any_stream_in_any_split_is_that_of_the_update(stream, kind, propagate, sizes):
    rows, labels, classes, splits = stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_TILE", 1)
        for name, size in zip(SIZES, sizes, strict=True):
            patch.setattr(module, name, size)
        found = counted(rows, labels, classes, kind, splits, propagate=propagate)
    policy = "propagate" if propagate else "skip"
    oracle = ClassMoments.from_batch(rows, labels, classes, scatter=kind, nonfinite=policy)
    assert_like_the_oracle(found, oracle)


@given(st.integers(0, 2**32 - 1), st.integers(-12, -1), st.sampled_from([0.0, 1.0, 1e3, 1e6]))
@settings(max_examples=60)
def test_small_scatter_under_large_offsets_against_long_double(seed, exponent, offset):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(120) % 4)
    rows = offset + rng.normal(size=(4, 6))[labels] + 10.0**exponent * rng.normal(size=(120, 6))
    splits = sorted(rng.integers(0, 120, 3))
    means, traces, scatter = two_pass(rows, labels, 4)
    for kind in KINDS:
        found = counted(rows, labels, 4, kind, splits)
        np.testing.assert_allclose(found.traces, traces.astype(float), rtol=1e-6, atol=0)
        exact = found.means.astype(np.longdouble) + found.means_low
        spacing = np.finfo(float).eps * np.sqrt(np.abs(rows - means[labels].astype(float)).max())
        assert np.abs(exact - means).max() <= max(spacing**2, 1e-6 * 10.0**exponent)
        if kind == "class":
            bound = 1e-6 * np.sqrt(np.einsum("cii,cjj->cij", scatter, scatter)).astype(float)
            assert (np.abs(found.scatter - scatter.astype(float)) <= bound).all()
        elif kind == "pooled":
            total = scatter.sum(axis=0).astype(float)
            bound = 1e-6 * np.sqrt(np.outer(np.diag(total), np.diag(total)))
            assert (np.abs(found.scatter - total) <= bound).all()


@pytest.mark.parametrize("order", ["<", ">"])
def test_float64_keeps_its_digits_in_any_byte_order(order):
    rng = np.random.default_rng(0)
    rows, labels = 1 + 1e-9 * rng.normal(size=(50, 4)), rng.integers(0, 3, 50)
    found = counted(rows.astype(rows.dtype.newbyteorder(order)), labels, 3, "class")
    expected = counted(rows, labels, 3, "class")
    assert np.array_equal(found.means_low, expected.means_low)
    assert np.array_equal(found.scatter, expected.scatter)


@pytest.mark.parametrize("ignored", [-100, 0, 2, 255])
def test_any_label_can_be_the_one_to_ignore(ignored):
    rng = np.random.default_rng(1)
    rows, labels = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    labels[::7] = ignored
    found = counted(rows, labels, 3, "pooled", [11], ignore_index=ignored)
    oracle = ClassMoments.from_batch(rows, labels, 3, scatter="pooled", ignore_index=ignored)
    assert_like_the_oracle(found, oracle)
    assert found.ignored == (labels == ignored).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("propagate", [False, True])
def test_a_class_whose_first_row_is_not_finite(kind, propagate):
    rows = np.array([[np.nan, 1.0], [5.0, 1.0], [2.0, 0.0], [7.0, 3.0], [2.5, 0.5]])
    labels = np.array([0, 0, 1, 0, 1])
    found = counted(rows, labels, 2, kind, [1, 2], propagate=propagate)
    if kind == "pooled" and propagate:  # there is no scatter of the other class alone
        assert np.isnan(found.scatter).all()
    assert found.nonfinite == 1
    np.testing.assert_array_equal(found.counts, [3, 2] if propagate else [2, 2])
    np.testing.assert_allclose(found.means[1], [2.25, 0.25])
    np.testing.assert_allclose(found.traces[1], 0.25)
    if propagate:
        assert np.isnan(found.means[0]).all()
    else:
        np.testing.assert_allclose(found.means[0], [6.0, 2.0])


def test_values_whose_squares_overflow():
    rows = np.array([[1e200, 0.0], [-1e200, 0.0], [1.0, 2.0], [3.0, 2.0]])
    labels = np.array([0, 0, 1, 1])
    for splits in ([], [1], [3]):
        found = counted(rows, labels, 2, "class", splits)
        np.testing.assert_array_equal(found.counts, [2, 2])
        assert not np.isfinite(found.traces[0])
        assert found.traces[1] == 2.0
        np.testing.assert_allclose(found.means[1], [2.0, 2.0])
        np.testing.assert_allclose(found.scatter[1], [[2.0, 0.0], [0.0, 0.0]])


def test_thousands_of_classes_of_which_few_are_present():
    rng = np.random.default_rng(2)
    labels = rng.choice([3, 700, 19_999], 90)
    rows = rng.normal(size=(90, 3)) + labels[:, None]
    found = counted(rows, labels, 20_000, "pooled", [13, 50])
    means, traces, scatter = two_pass(rows, np.unique(labels, return_inverse=True)[1], 3)
    np.testing.assert_array_equal(np.flatnonzero(found.counts), [3, 700, 19_999])
    np.testing.assert_allclose(found.means[[3, 700, 19_999]], means.astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.traces.sum(), float(traces.sum()), rtol=1e-12)
    np.testing.assert_allclose(found.scatter, scatter.sum(axis=0).astype(float), rtol=1e-9)
    assert not found.means[4:700].any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_and_one_row(kind):
    nothing = counted(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), 2, kind)
    assert nothing.rows == 0
    one = counted(np.array([[1.0, 2.0, 3.0]]), np.array([1]), 2, kind, [0, 1])
    np.testing.assert_array_equal(one.counts, [0, 1])
    np.testing.assert_array_equal(one.means[1], [1.0, 2.0, 3.0])
    assert one.traces.sum() == 0


def test_rows_may_be_added_after_the_moments_were_taken():
    accumulator = Accumulator(2, 2, "class")
    accumulator.add(np.eye(2), np.array([0, 1]))
    before = accumulator.moments("float64", "live", ("a",))
    accumulator.add(3 * np.eye(2), np.array([0, 1]))
    assert before.rows == 2
    assert before.shards == {"a"}
    assert before.traces.sum() == 0
    assert accumulator.moments("float64", "live").traces.sum() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_themselves_are_those_of_the_update(kind, monkeypatch):
    monkeypatch.setattr(module, "SHIFT_ROWS", 30)  # the update takes the mean of all in a batch
    rng = np.random.default_rng(3)
    rows, labels = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    accumulator = Accumulator(3, 4, kind)
    accumulator.add(rows, labels)
    hashes = row_hashes(np.arange(30), 512, 0, low_32_bits)
    oracle = sums.update(sums.init(3, 4, kind), rows, labels, NUMPY, hashes=hashes)
    for name in ("counts", "shift", "squares"):
        np.testing.assert_allclose(
            getattr(accumulator.sums, name), getattr(oracle, name), rtol=1e-12
        )


def test_the_shift_of_a_class_is_the_mean_of_its_first_finite_rows(monkeypatch):
    monkeypatch.setattr(module, "SHIFT_ROWS", 2)
    rows = np.array([[np.nan], [1.0], [7.0], [3.0], [5.0], [np.inf], [100.0]])
    accumulator = Accumulator(3, 1, "pooled")
    accumulator.add(rows, np.array([0, 0, 1, 0, 1, 2, 0]))
    assert accumulator.sums.shift.ravel().tolist() == [2.0, 6.0, 0.0]
    accumulator.add(np.array([[9.0], [9.0]]), np.array([2, 0]))
    assert accumulator.sums.shift.ravel().tolist() == [2.0, 6.0, 9.0]
    found = accumulator.moments("float64", "live")
    assert found.counts.tolist() == [4, 2, 1]
    np.testing.assert_allclose(found.means.ravel(), [113 / 4, 6.0, 9.0])


@pytest.mark.parametrize("long_run", [1, 1000])
def test_a_residual_that_overflows_is_its_class_alone(monkeypatch, long_run):
    monkeypatch.setattr(module, "LONG_RUN", long_run)
    rows = np.array([[1.5e308, 0.0], [1.0, 2.0], [-1.5e308, 0.0], [3.0, 2.0]])
    found = counted(rows, np.array([0, 1, 0, 1]), 2, "trace", [2])
    assert found.nonfinite == 0
    np.testing.assert_array_equal(found.counts, [2, 2])
    assert not np.isfinite(found.traces[0])
    np.testing.assert_allclose(found.means[1], [2.0, 2.0])
    assert found.traces[1] == 2.0
