"""Class moments: laws of merge, accuracy against long doubles, rows that do not count, texts of errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.stats import sums
from collapsemeter.stats.moments import ClassMoments
from collapsemeter.stats.namespace import NUMPY

KINDS = ("class", "pooled", "trace")


def rows_and_labels(seed, N=60, C=4, d=3, std=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, N)
    return offset + rng.normal(size=(C, d))[labels] + std * rng.normal(size=(N, d)), labels


def assert_same(a: ClassMoments, b: ClassMoments, scale: float = 1.0) -> None:
    """Equal to round-off: n eps of the squares summed, about 100 of size ``scale`` here."""
    np.testing.assert_array_equal(a.counts, b.counts)
    assert (a.kind, a.phase, a.feature_dtype, a.shards) == (
        b.kind,
        b.phase,
        b.feature_dtype,
        b.shards,
    )
    assert (a.ignored, a.nonfinite) == (b.ignored, b.nonfinite)
    np.testing.assert_allclose(a.means, b.means, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(a.traces, b.traces, rtol=1e-12, atol=1e-13 * scale)
    if a.scatter is None or b.scatter is None:
        assert a.scatter is b.scatter
    else:
        np.testing.assert_allclose(a.scatter, b.scatter, rtol=0, atol=1e-12 * scale)


def assert_identical(a: ClassMoments, b: ClassMoments) -> None:
    for name in ("counts", "means", "scatter", "traces", "means_low"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("feature_dtype", "phase", "shards", "ignored", "nonfinite"):
        assert getattr(a, name) == getattr(b, name)


split = st.lists(st.integers(0, 60), min_size=2, max_size=2).map(sorted)


@given(seed=st.integers(0, 10**6), cuts=split, kinds=st.tuples(*[st.sampled_from(KINDS)] * 3))
def test_merge_is_associative_and_commutative_for_any_split(seed, cuts, kinds):
    rows, labels = rows_and_labels(seed)
    labels[::9] = -100
    rows[5] = np.nan
    parts = [
        ClassMoments.from_batch(rows[i], labels[i], 4, scatter=kind, shard=f"s{k}")
        for k, (i, kind) in enumerate(zip(np.split(np.arange(60), cuts), kinds, strict=True))
    ]
    a, b, c = parts
    whole = ClassMoments.from_batch(rows, labels, 4, scatter=max(kinds, key=KINDS.index))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert left.shards == {"s0", "s1", "s2"}
    assert_same(left, right)
    assert_same(a.merge(b), b.merge(a))
    assert_same(ClassMoments.merge_all([c, a, b]), left)
    np.testing.assert_array_equal(left.counts, whole.counts)
    np.testing.assert_allclose(left.means, whole.means, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(left.traces, whole.traces, rtol=1e-12, atol=1e-13)
    assert (left.kind, left.ignored, left.nonfinite) == (whole.kind, whole.ignored, whole.nonfinite)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_is_the_identity_bit_for_bit(kind):
    rows, labels = rows_and_labels(1)
    m = ClassMoments.from_batch(
        rows.astype(np.float16), labels, 4, scatter=kind, phase="live", shard="a"
    )
    nothing = ClassMoments.empty(4, 3, scatter=kind)
    assert_identical(m.merge(nothing), m)
    assert_identical(nothing.merge(m), m)
    assert_identical(nothing.merge(nothing), nothing)
    assert nothing.update(rows[:0], labels[:0]).rows == 0


def test_update_one_row_at_a_time_equals_one_batch():
    rows, labels = rows_and_labels(2)
    state = ClassMoments.empty(4, 3, phase="live")
    for row, label in zip(rows, labels, strict=True):
        state = state.update(row[None], [label])
    assert_same(state, ClassMoments.from_batch(rows, labels, 4, phase="live"))


def reference(rows, labels, C):
    """Two passes in long double, per class: (C, d, d) scatter and (C,) traces."""
    wide = rows.astype(np.longdouble)
    scatter = np.zeros((C, rows.shape[1], rows.shape[1]), np.longdouble)
    for c in range(C):
        members = wide[labels == c]
        r = members - members.sum(axis=0) / len(members)
        r -= r.sum(axis=0) / len(members)  # what the first mean lost to rounding
        for row in r:
            scatter[c] += np.outer(row, row)
    return scatter, np.trace(scatter, axis1=1, axis2=2)


@pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("batches", [1, 40, 400])
def test_scatter_keeps_six_digits_at_any_collapse_and_offset(ratio, offset, batches):
    rows, labels = rows_and_labels(3, N=400, std=ratio, offset=offset)
    scatter, traces = reference(rows, labels, 4)
    m = ClassMoments.merge_all(
        ClassMoments.from_batch(rows[i], labels[i], 4, scatter="class")
        for i in np.array_split(np.arange(400), batches)
    )
    # Below an ulp of the offset all rows of a class may be one number: then S is 0, and what is
    # measured is at most the round-off of the mean, squared.
    floor = 400 * (2 * np.finfo(float).eps * (offset + 4)) ** 2 * (traces < 1e-30)
    np.testing.assert_allclose(m.traces, traces.astype(float), rtol=1e-6, atol=floor.max())
    error = np.linalg.norm(m.scatter - scatter.astype(float), axis=(1, 2))
    assert (error <= 1e-6 * traces.astype(float) + floor).all()


def test_many_merges_under_an_offset_keep_the_digits_of_the_means():
    """Means of batches differ far below an ulp of 1e6: means_low carries those digits."""
    rng = np.random.default_rng(0)
    # Exact at 1e6: a few multiples of 2^-32.
    rows = 1e6 + rng.integers(-8, 9, size=(3000, 2)) * 2.0**-32
    m = ClassMoments.merge_all(
        ClassMoments.from_batch(rows[i : i + 3], [0, 0, 0], 1) for i in range(0, 3000, 3)
    )
    _, traces = reference(rows, np.zeros(3000, int), 1)
    np.testing.assert_allclose(m.traces, traces.astype(float), rtol=1e-12)
    exact = (rows.astype(np.longdouble) - 1e6).mean(axis=0).astype(float)
    assert m.means_low is not None
    measured = (m.means[0] - 1e6) + m.means_low[0]
    np.testing.assert_allclose(measured, exact, rtol=1e-9)


def test_between_class_differences_survive_an_offset():
    """Class means 1e-9 apart at 1e6, through many merges, against long doubles."""
    rng = np.random.default_rng(1)
    labels = np.arange(900) % 3
    grid = 2.0**-32  # representable at 1e6
    rows = (
        1e6
        + (np.array([[0, 40], [25, -30], [-40, 0]])[labels] + rng.integers(-3, 4, (900, 2))) * grid
    )
    parts = [
        ClassMoments.from_batch(rows[i : i + 9], labels[i : i + 9], 3) for i in range(0, 900, 9)
    ]
    small = (rows - 1e6) / grid  # the same geometry without an offset, exactly
    # Means are equal below about thirty ulps of the offset, 4e-9: these are 1e-8 apart.
    expected = cm.measure(ClassMoments.from_batch(small, labels, 3))
    actual = cm.measure(ClassMoments.merge_all(parts))
    for name in ("nc1_pinv", "nc1_trace_ratio", "nc2_equinorm", "nc2_etf_error"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-9, err_msg=name)


def test_coarsen_keeps_the_sum_and_the_trace():
    m = ClassMoments.from_batch(*rows_and_labels(4), 4, scatter="class")
    pooled, trace = m.coarsen("pooled"), m.coarsen("trace")
    np.testing.assert_allclose(pooled.scatter, m.scatter.sum(axis=0), rtol=1e-14)
    np.testing.assert_allclose(np.trace(pooled.scatter), m.traces.sum(), rtol=1e-13)
    assert trace.scatter is None
    assert m.coarsen("class") is m
    for kind, coarse in (("pooled", trace), ("class", trace), ("class", pooled)):
        with pytest.raises(
            ValueError, match=f"a '{coarse.kind}' scatter was kept: '{kind}' cannot be"
        ):
            coarse.coarsen(kind)
    for kind in KINDS:
        direct = ClassMoments.from_batch(*rows_and_labels(4), 4, scatter=kind)
        assert_same(m.coarsen(kind), direct)


def test_what_must_not_merge_says_why():
    rows, labels = rows_and_labels(5)
    m = ClassMoments.from_batch(rows, labels, 4, shard="part-3")
    with pytest.raises(
        ValueError, match="shard 'part-3' is in both states: it would be counted twice"
    ):
        m.merge(m)
    live = ClassMoments.from_batch(rows, labels, 4, phase="live")
    with pytest.raises(ValueError, match="one state is 'frozen-eval' and the other 'live'"):
        m.merge(live)
    with pytest.raises(
        ValueError, match=r"\(classes, width\) \(4, 3\) and \(5, 3\): merge only the same"
    ):
        m.merge(ClassMoments.empty(5, 3))
    with pytest.raises(ValueError, match="merge_all got no state"):
        ClassMoments.merge_all([])


def test_merged_states_remember_the_coarsest_dtype_in_any_order():
    rows, labels = rows_and_labels(6)
    states = [
        ClassMoments.from_batch(rows.astype(t), labels, 4)
        for t in (np.float16, np.float64, np.float32)
    ]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert ClassMoments.merge_all([states[i] for i in order]).feature_dtype == "float16"
    swapped = rows.astype(np.dtype("f4").newbyteorder())
    assert ClassMoments.from_batch(swapped, labels, 4).feature_dtype == "float32"


def test_arrays_are_read_only_and_nothing_is_shared_with_the_device():
    state = sums.update(sums.init(2, 2, "class"), np.eye(2), np.array([0, 1]), NUMPY)
    m = ClassMoments.from_sums(state, "float64", "live")
    for array in (m.counts, m.means, m.scatter, m.traces, m.means_low):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        for held in (state.counts, state.shift, state.sums, state.squares, state.scatter):
            assert not np.shares_memory(array, held)
    with pytest.raises(AttributeError, match="cannot assign"):
        m.counts = m.counts


def test_what_is_counted_is_checked_before_it_is_counted():
    rows, labels = np.eye(3), [0, 1, 1]
    for call, text in (
        (lambda: ClassMoments.from_batch(rows, labels, 2, phase="train"), "phase='train': choose one"),
        (lambda: ClassMoments.empty(2, 3, phase="train"), "phase='train': choose one"),
        (lambda: ClassMoments.from_batch(rows, labels, 2, scatter="sketch", sketch_rows=0), "sketch_rows=0"),
        (lambda: ClassMoments.empty(2, 0), "width=0: pass 1 or more"),
        (lambda: cm.Accumulator(2, 3.0), r"width=3\.0 is not a whole number"),
        (lambda: cm.Accumulator("2", 3), "num_classes='2' is not a whole number"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            call()


def test_shapes_and_phase_are_checked():
    means = np.zeros((2, 3))
    with pytest.raises(ValueError, match="phase='training': choose one of live, frozen-train"):
        ClassMoments(np.zeros(2), means, None, np.zeros(2), phase="training")
    with pytest.raises(
        ValueError, match=r"counts \(3,\), means \(2, 3\), scatter None, traces \(2,\)"
    ):
        ClassMoments(np.zeros(3), means, None, np.zeros(2))
    with pytest.raises(ValueError, match=r"scatter \(2, 2\)"):
        ClassMoments(np.zeros(2), means, np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match=r"scatter \(3,\)"):
        ClassMoments(np.zeros(2), means, np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="expected"):
        ClassMoments(np.zeros(2), means, None, np.zeros(2), means_low=np.zeros((2, 2)))


def test_rows_that_do_not_fit_are_refused_in_words():
    with pytest.raises(ValueError, match="num_classes=0: there must be at least one class"):
        ClassMoments.from_batch(np.eye(2), [0, 0], 0)
    with pytest.raises(ValueError, match="nonfinite='drop': choose 'skip', 'raise' or 'propagate'"):
        ClassMoments.from_batch(np.eye(2), [0, 0], 2, nonfinite="drop")
    with pytest.raises(ValueError, match="scatter='full': choose"):
        ClassMoments.from_batch(np.eye(2), [0, 0], 2, scatter="full")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_rows_by_policy(value):
    rows, labels = rows_and_labels(7)
    clean = ClassMoments.from_batch(np.delete(rows, 8, axis=0), np.delete(labels, 8), 4)
    rows[8, 1] = value
    skipped = ClassMoments.from_batch(rows, labels, 4)
    assert skipped.nonfinite == 1
    np.testing.assert_array_equal(skipped.counts, clean.counts)
    np.testing.assert_allclose(skipped.traces, clean.traces, rtol=1e-13)
    with pytest.raises(
        ValueError, match=rf"row 8 of the features \(label {labels[8]}\) holds NaN or Inf"
    ):
        ClassMoments.from_batch(rows, labels, 4, nonfinite="raise")
    labels[8] = -100
    for policy in ("skip", "raise", "propagate"):
        ignored = ClassMoments.from_batch(rows, labels, 4, nonfinite=policy)
        assert (ignored.ignored, ignored.nonfinite) == (1, 0)
        assert np.isfinite(ignored.traces).all()


@pytest.mark.parametrize("kind", KINDS)
def test_propagate_poisons_one_class_through_merges(kind):
    rows, labels = rows_and_labels(8)
    rows[0, 0] = np.nan
    bad = labels[0]
    good = [c for c in range(4) if c != bad]
    parts = [
        ClassMoments.from_batch(rows[i], labels[i], 4, scatter=kind, nonfinite="propagate")
        for i in np.split(np.arange(60), [1, 20])  # the first batch is the NaN row alone
    ]
    assert parts[0].counts[bad] == 1  # present: a class of NaN is not an absent one
    m = ClassMoments.merge_all(parts)
    assert m.rows == 60
    assert np.isnan(m.traces[bad])
    assert np.isnan(m.means[bad]).all()
    clean = ClassMoments.from_batch(rows, labels, 4, scatter=kind)
    np.testing.assert_allclose(m.traces[good], clean.traces[good], rtol=1e-12)
    np.testing.assert_allclose(m.means[good], clean.means[good], rtol=1e-12)
    if kind == "class":
        np.testing.assert_allclose(m.scatter[good], clean.scatter[good], rtol=0, atol=1e-12)


def test_absent_and_one_sample_classes():
    m = ClassMoments.from_batch([[1.0, 2.0], [3.0, 4.0], [3.0, 6.0]], [0, 2, 2], 4)
    np.testing.assert_array_equal(m.counts, [1, 0, 2, 0])
    np.testing.assert_array_equal(m.means, [[1, 2], [0, 0], [3, 5], [0, 0]])
    np.testing.assert_array_equal(m.traces, [0, 0, 2, 0])


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int64", "uint8", "bool", "longdouble"]
)
def test_any_real_dtype_is_measured_in_float64(dtype):
    rows = np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    m = ClassMoments.from_batch(rows, [0, 0, 1], 2)
    np.testing.assert_array_equal(m.means, [[0.5, 1], [1, 0]])
    assert m.means.dtype == np.float64


def test_float16_whose_square_overflows():
    m = ClassMoments.from_batch(np.array([[60000], [-60000]], np.float16), [0, 0], 1)
    assert m.traces[0] == 2 * float(np.float16(60000)) ** 2


def test_the_host_keeps_a_scatter_per_class_for_layers_of_usual_size():
    """So that conventions that weight classes alike have a value without being asked for."""
    for C, d, kind in (
        (10, 512, "class"),
        (100, 128, "class"),
        (1000, 64, "class"),
        (100, 512, "pooled"),
    ):
        assert ClassMoments.empty(C, d).kind == kind
    assert ClassMoments.empty(2, 5000).kind == "sketch"
