"""The device update: any batch split, both forms, float32 within a derived tolerance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.stats import sums
from collapsemeter.stats.namespace import NUMPY, Numpy
from collapsemeter.stats.sums import EPS, scatter_kind, scatter_shape

from .one_hot import OneHotNumpy

U32 = float(np.finfo(np.float32).eps) / 2
NAMESPACES = {"one_hot": OneHotNumpy, "native": Numpy}
METRICS = ("nc1_pinv", "nc1_trace_ratio", "nc1_cdnv", "nc1_vci", "nc2_etf_error", "nc2_equinorm")


def stream(rows, labels, C, xp, dtype, cuts=(), kind="class", **options):
    state = sums.init(C, rows.shape[1], kind, dtype)
    for part in np.split(np.arange(len(rows)), cuts):
        state = sums.update(state, rows[part], labels[part], xp, **options)
    return cm.ClassMoments.from_sums(state, np.dtype(dtype).name, "frozen-eval")


def data(seed=0, N=400, C=5, d=7, std=1e-3, offset=1e3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, N)
    rows = offset + rng.normal(size=(C, d))[labels] + std * rng.normal(size=(N, d))
    return rows, labels


def float32_tolerance(rows, labels, C, cuts) -> float:
    """Bound the relative error of a scatter that was summed in float32.

    Residuals about the shift k_c of float32 rows are float32 differences of nearby numbers (exact by
    Sterbenz where they are within a factor of two, else u each). A sum of K = (rows of the largest
    batch + batches) terms errs by sqrt(K) u of its terms in the mean-square sense, taken four times.
    G holds |k_c - mu_c|^2 n_c more than S, which the finalisation subtracts: the amplification.
    """
    batches = np.split(np.arange(len(rows)), cuts)
    terms = max(len(b) for b in batches) + len(batches)
    extra = total = 0.0
    for c in range(C):
        mine = rows[labels == c].astype(np.float64)
        first = next(b for b in batches if (labels[b] == c).any())
        members = rows[first][labels[first] == c].astype(np.float64)
        # The first mean is itself a float32 sum of that batch, off by sqrt(K) u of the offset.
        off = 4 * np.sqrt(len(members)) * U32 * np.abs(members).max()
        shift = np.abs(members.mean(axis=0) - mine.mean(axis=0)) + off
        extra += len(mine) * (shift**2).sum()
        total += ((mine - mine.mean(axis=0)) ** 2).sum()
    return 4 * np.sqrt(terms) * U32 * (1 + extra / total)


@pytest.mark.parametrize("form", list(NAMESPACES))
@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
@pytest.mark.parametrize(("offset", "std"), [(0.0, 1e-1), (0.0, 1e-3), (1e3, 1e-2), (1e3, 1e-3)])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 4, 4, 40, 399), tuple(range(8, 400, 8))])
def test_float32_sums_equal_float64_moments(form, kind, offset, std, cuts):
    rows, labels = data(std=std, offset=offset)
    rows = rows.astype(np.float32)  # both sides measure these rows: their own rounding is no error
    exact = cm.ClassMoments.from_batch(rows, labels, 5, scatter=kind)
    device = stream(rows, labels, 5, NAMESPACES[form](np.float32), np.float32, cuts, kind)
    tolerance = float32_tolerance(rows, labels, 5, cuts)
    assert tolerance < 1e-3
    np.testing.assert_array_equal(device.counts, exact.counts)
    relative = device.traces.sum() / exact.traces.sum() - 1
    assert abs(relative) <= tolerance
    np.testing.assert_allclose(device.means - exact.means, 0, atol=tolerance * std)
    if kind != "trace":
        error = np.linalg.norm(device.scatter - exact.scatter) / np.linalg.norm(exact.scatter)
        assert error <= tolerance
    a, b = cm.measure(device), cm.measure(exact)
    for name in METRICS:
        if name in a and np.isfinite(b[name]):
            np.testing.assert_allclose(a[name], b[name], rtol=4 * tolerance, err_msg=name)


@pytest.mark.parametrize("form", list(NAMESPACES))
def test_one_large_first_batch_under_an_offset_keeps_its_digits(form):
    """The mean of 20,000 rows at 1e3 is a long float32 sum; the shift must not inherit its error."""
    rows, labels = data(N=40_000, C=2, d=3)
    rows = rows.astype(np.float32)
    exact = cm.ClassMoments.from_batch(rows, labels, 2)
    device = stream(rows, labels, 2, NAMESPACES[form](np.float32), np.float32)
    # sqrt(K) u of a sum of K = 40,000 squares, four times; no amplification by the shift.
    tolerance = 4 * np.sqrt(40_000) * U32
    np.testing.assert_allclose(device.traces, exact.traces, rtol=tolerance)


@given(
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    kind=st.sampled_from(["class", "pooled", "trace"]),
    form=st.sampled_from(list(NAMESPACES)),
)
def test_any_split_gives_the_same_moments_in_float64(seed, cuts, kind, form):
    rows, labels = data(seed, N=60, C=4, d=3, std=0.1, offset=10.0)
    whole = cm.ClassMoments.from_batch(rows, labels, 4, scatter=kind)
    split = stream(rows, labels, 4, NAMESPACES[form](), np.float64, sorted(cuts), kind)
    np.testing.assert_array_equal(split.counts, whole.counts)
    np.testing.assert_allclose(split.means, whole.means, rtol=1e-14)
    # n eps |residual|^2 about a shift that may be a row, not the mean.
    np.testing.assert_allclose(split.traces, whole.traces, rtol=1e-12, atol=1e-14)
    if kind != "trace":
        np.testing.assert_allclose(split.scatter, whole.scatter, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
def test_native_sums_equal_the_generic_form(dtype, kind):
    rows, labels = data(N=90, offset=1.0)
    labels[::7], rows[3] = -100, np.nan
    labels[5] = 99
    forms = []
    for form in NAMESPACES.values():
        state = sums.init(5, 7, kind, dtype)
        for part in np.split(np.arange(90), [10, 50]):
            state = sums.update(state, rows[part].astype(dtype), labels[part], form(dtype))
        forms.append(state)
    generic, native = forms
    for name in ("counts", "ignored", "nonfinite", "invalid"):
        np.testing.assert_array_equal(getattr(native, name), getattr(generic, name))
    assert (int(native.ignored), int(native.nonfinite), int(native.invalid)) == (13, 1, 1)
    scale = 90 * np.finfo(dtype).eps
    for name in ("shift", "sums", "squares", "scatter"):
        a, b = getattr(native, name), getattr(generic, name)
        if a is not None:
            assert a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=scale * max(1.0, np.abs(b).max()))


def test_the_shift_is_fixed_by_the_first_batch_that_shows_a_class():
    state = sums.update(sums.init(2, 1, "trace"), np.array([[2.0], [4.0]]), np.array([0, 0]), NUMPY)
    state = sums.update(state, np.array([[100.0], [7.0]]), np.array([0, 1]), NUMPY)
    np.testing.assert_array_equal(state.shift, [[3.0], [7.0]])
    np.testing.assert_array_equal(state.counts, [3, 1])


@pytest.mark.parametrize("form", list(NAMESPACES))
def test_ignored_rows_may_hold_nan_and_may_share_a_number_with_a_class(form):
    xp = NAMESPACES[form]()
    rows = np.array([[np.nan], [1.0], [2.0], [np.inf]])
    state = sums.update(sums.init(3, 1, "pooled"), rows, np.array([-100, 1, 2, -100]), xp)
    assert (int(state.ignored), int(state.nonfinite), int(state.invalid)) == (2, 0, 0)
    # A padding token's label is often 0.
    state = sums.update(sums.init(3, 1, "pooled"), rows, np.array([0, 1, 2, 0]), xp, ignore_index=0)
    np.testing.assert_array_equal(state.counts, [0, 1, 1])
    assert (int(state.ignored), int(state.nonfinite)) == (2, 0)


@pytest.mark.parametrize("form", list(NAMESPACES))
@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
def test_batches_of_no_rows_and_of_one(form, kind):
    xp, state = NAMESPACES[form](), sums.init(3, 2, kind)
    state = sums.update(state, np.zeros((0, 2)), np.zeros(0, int), xp)
    assert state.counts.sum() == 0
    state = sums.update(state, np.array([[1.0, 2.0]]), np.array([1]), xp)
    np.testing.assert_array_equal(state.counts, [0, 1, 0])
    np.testing.assert_array_equal(state.squares, 0)


@pytest.mark.parametrize("form", list(NAMESPACES))
def test_float16_rows_whose_squares_overflow_stay_finite(form):
    rows = np.array([[60000.0], [-60000.0], [1.0]], np.float16)
    m = stream(rows, np.array([0, 0, 1]), 2, NAMESPACES[form](np.float32), np.float32)
    np.testing.assert_allclose(m.traces, [2 * float(rows[0, 0]) ** 2, 0.0], rtol=1e-6)


@pytest.mark.parametrize("form", list(NAMESPACES))
@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
def test_propagate_counts_the_row_and_poisons_its_class_alone(form, kind):
    rows, labels = data(N=30, C=3, d=2)
    labels[4], labels[20] = 1, 1
    clean = stream(rows, labels, 3, NAMESPACES[form](), np.float64, kind=kind)
    rows[20, 1] = np.inf
    m = stream(rows, labels, 3, NAMESPACES[form](), np.float64, (10,), kind, propagate=True)
    np.testing.assert_array_equal(m.counts, clean.counts)
    assert m.nonfinite == 1
    np.testing.assert_array_equal(np.isnan(m.traces), [False, True, False])
    np.testing.assert_allclose(m.traces[[0, 2]], clean.traces[[0, 2]], rtol=1e-9)
    np.testing.assert_allclose(m.means[[0, 2]], clean.means[[0, 2]], rtol=1e-14)
    if kind == "class":
        assert np.isfinite(m.scatter[[0, 2]]).all()
        assert np.isnan(m.scatter[1]).all()
    elif kind == "pooled":
        assert np.isnan(m.scatter).all()


def test_counts_stay_exact_beyond_float32_and_int32():
    state = sums.init(2, 1, "trace", np.float32)
    state.counts = np.array([2**24, 2**31], np.int64)
    state = sums.update(state, np.ones((1, 1), np.float32), np.array([0]), Numpy(np.float32))
    state = sums.update(state, np.ones((1, 1), np.float32), np.array([1]), Numpy(np.float32))
    np.testing.assert_array_equal(state.counts, [2**24 + 1, 2**31 + 1])
    m = cm.ClassMoments.from_sums(state, "float32", "live")
    assert m.merge(m).counts.tolist() == [2**25 + 2, 2**32 + 2]


def test_scatter_kinds_by_size_and_an_unknown_one():
    assert scatter_kind(10, 64) == "class"
    assert scatter_kind(1000, 2048) == "pooled"
    assert scatter_kind(2, 4097) == "sketch"
    assert scatter_shape("class", 3, 2) == (3, 2, 2)
    with pytest.raises(ValueError, match="scatter='full': choose 'class', 'pooled', 'sketch' or"):
        scatter_shape("full", 3, 2)


@pytest.mark.parametrize("form", list(NAMESPACES))
@pytest.mark.parametrize("kind", ["class", "trace"])
@pytest.mark.parametrize("std", [1.0, 1e-2])
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-22, 1e-14, 1e-9, 1.0, 1e9, 1e15, 1e25, 1e35])
def test_squares_that_float32_sums_cannot_hold_are_no_collapse(form, kind, std, scale):
    """At 1e-25 every square is zero in float32, and NC1 would be 0.0."""
    rows, labels = data(std=std, offset=0.0)
    rows = (scale * rows).astype(np.float32)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # of the update, which an adapter makes elsewhere
        found = cm.measure(
            stream(rows, labels, 5, NAMESPACES[form](np.float32), np.float32, (90,), kind)
        )
    due = cm.measure(cm.ClassMoments.from_batch(rows, labels, 5))
    for name in ("nc1_trace_ratio", "nc1_cdnv"):
        if 1e-14 <= scale <= 1e15:
            np.testing.assert_allclose(found[name], due[name], rtol=1e-4)
        else:
            assert np.isnan(found[name])
            assert found.reason(name) == "out_of_range"


def test_rows_of_zeros_and_a_dead_class_are_in_range():
    xp = NAMESPACES["native"](np.float32)
    labels = np.arange(40) % 2
    nothing = cm.measure(stream(np.zeros((40, 3), np.float32), labels, 2, xp, np.float32))
    assert nothing.reason("nc1_trace_ratio") == "no_between_class_scatter"
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    rows[labels == 1] *= np.float32(1e-25)
    assert cm.measure(stream(rows, labels, 2, xp, np.float32))["nc1_trace_ratio"] > 0
    ones = cm.measure(stream(1e-30 * rows[:2], labels[:2], 2, xp, np.float32, kind="trace"))
    assert ones["nc1_trace_ratio"] == 0  # of one row a class, as at any scale


def test_squares_that_float32_cannot_hold_leave_no_spread_of_two_rows_and_none_of_one():
    rows = np.array([[1e-25, 2e-25], [1.5e-25, 2e-25], [3e-25, 0.0]])
    state = sums.init(3, 2, "trace", np.float32)
    state = sums.update(state, rows, np.array([0, 0, 1]), Numpy(np.float32))
    found = cm.ClassMoments.from_sums(state, "float32", "live")
    np.testing.assert_array_equal(found.traces, [np.nan, 0.0, 0.0])


def test_the_rounding_of_a_dtype_is_that_of_its_mantissa():
    """After 1 comes 1 + 2^-m, of m stored bits; float8 has them in its name."""
    bits = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
    bits |= {"float8_e4m3fn": 3, "float8_e5m2": 2}
    assert {name: -math.log2(eps) for name, eps in EPS.items()} == bits
