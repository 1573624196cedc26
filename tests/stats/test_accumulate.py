"""The sums on the host: those of `sums.update`, and of two passes in long double."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsemeter.stats import accumulate, host_sums, sums
from collapsemeter.stats.accumulate import Accumulator
from collapsemeter.stats.moments import ClassMoments
from collapsemeter.stats.namespace import NUMPY
from collapsemeter.stats.sampling import dealt_groups, low_32_bits
from collapsemeter.stats.sketch import row_hashes

KINDS = ("class", "pooled", "sketch", "trace")


def counted(rows, labels, classes, kind, splits=(), **options) -> ClassMoments:
    accumulator = Accumulator(classes, rows.shape[1], kind, **options)
    for part, of in zip(np.split(rows, splits), np.split(labels, splits), strict=True):
        accumulator.update(part, of)
    return accumulator.moments()


def oracle_of(rows, labels, classes, kind, ignore_index=-100, propagate=False) -> ClassMoments:
    """The same by the update on the device, in one batch."""
    numbers = np.cumsum((labels >= 0) & (labels != ignore_index)) - 1
    hashes = row_hashes(numbers, 512, 0, low_32_bits)
    with np.errstate(all="ignore"):
        state = sums.update(
            sums.init(classes, rows.shape[1], kind),
            rows,
            labels,
            NUMPY,
            ignore_index=ignore_index,
            propagate=propagate,
            hashes=hashes,
        )
    return ClassMoments.from_sums(state, rows.dtype.name, "frozen-eval")


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


def assert_groups_of(found: ClassMoments, rows, labels):
    """Counts, sums and squares of each group about the class means, of rows that are all finite and have classes."""
    dealt = dealt_groups(np.arange(len(rows)), 16, low_32_bits)
    means = two_pass(rows, labels, found.num_classes)[0]
    residuals = (rows - means[labels]).astype(float)
    counts, sums = np.zeros(found.groups.counts.shape), np.zeros(found.groups.sums.shape)
    squares = np.zeros(counts.shape)
    np.add.at(counts, (labels, dealt), 1)
    np.add.at(sums, (labels, dealt), residuals)
    np.add.at(squares, (labels, dealt), np.vecdot(residuals, residuals))
    np.testing.assert_array_equal(found.groups.counts, counts)
    for values, expected in ((found.groups.sums, sums), (found.groups.squares, squares)):
        scale = np.abs(expected).max(initial=0.0)
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12 * max(scale, 1.0))


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


SIZES = (
    (host_sums, "SORTED_ENTRIES"),
    (host_sums, "BLOCK_ENTRIES"),
    (host_sums, "MOST_BLOCK_ENTRIES"),
    (host_sums, "TILE_ENTRIES"),
    (host_sums, "LEAST_RUN"),
    (host_sums, "LONG_CELL"),
    (host_sums, "MOST_INDICATORS"),
    (host_sums, "SHORT_RUN"),
    (host_sums, "WIDE_ROW"),
    (accumulate, "PENDING_ENTRIES"),
)


@given(
    streams(),
    st.sampled_from(KINDS),
    st.booleans(),
    st.tuples(*[st.sampled_from([1, 3, 40, 2**19])] * len(SIZES)),
    st.sampled_from([0, 0.5, 2**19]),
)
@settings(max_examples=100)
def test_any_stream_in_any_split_is_that_of_the_update(stream, kind, propagate, sizes, mean_shifts):
    rows, labels, classes, splits = stream
    policy = "propagate" if propagate else "skip"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_sums, "LEAST_TILE", 2)
        patch.setattr(host_sums, "MEAN_SHIFTS", {2: mean_shifts, 3: mean_shifts})
        for (module, name), size in zip(SIZES, sizes, strict=True):
            patch.setattr(module, name, size)
        streamed = counted(rows, labels, classes, kind, splits, nonfinite=policy)
        batch = ClassMoments.from_batch(rows, labels, classes, scatter=kind, nonfinite=policy)
    oracle = oracle_of(rows, labels, classes, kind, propagate=propagate)
    for found in (streamed, batch):
        assert_like_the_oracle(found, oracle)
        if np.isfinite(rows).all():
            assert_groups_of(found, rows[labels >= 0], labels[labels >= 0])


@pytest.mark.parametrize("sizes", [(1, 0, 0), (1, 48, 0), (512, 0, 0), (512, 0, 99)])
def test_runs_of_a_cell_add_up_over_batches(sizes, monkeypatch):
    """Only a run of all rows that a cell has is written in place of being added."""
    for name, size in zip(("WIDE_ROW", "MOST_INDICATORS", "SHORT_RUN"), sizes, strict=True):
        monkeypatch.setattr(host_sums, name, size)
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(300, 4)), rng.integers(0, 3, 300)
    found = Accumulator(3, 4)
    for part in (slice(0, 9), slice(9, 90), slice(90, 300)):
        found.update(rows[part], labels[part])
        found.flush()
    assert_groups_of(found.moments(), rows, labels)


@pytest.mark.parametrize("kind", ["class", "pooled"])
def test_rows_that_do_not_count_are_no_shift_of_those_behind_them(kind, monkeypatch):
    """A tile that is NaN throughout comes first: about zero, what varies by 1e-6 of its size would lose its digits."""
    monkeypatch.setattr(host_sums, "TILE_ENTRIES", 8)
    monkeypatch.setattr(host_sums, "BLOCK_ENTRIES", 8)
    monkeypatch.setattr(host_sums, "MOST_BLOCK_ENTRIES", 8)
    monkeypatch.setattr(host_sums, "MEAN_SHIFTS", {2: 0, 3: 0})
    rows = 1e3 + 1e-3 * np.random.default_rng(0).normal(size=(40, 2))
    rows[:8] = np.nan
    found = ClassMoments.from_batch(rows, np.zeros(40, int), 1, scatter=kind, groups=0)
    _, traces, _ = two_pass(rows[8:], np.zeros(32, int), 1)
    np.testing.assert_allclose(found.traces, traces.astype(float), rtol=1e-10)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(-12, -1),
    st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    st.sampled_from([0, 2**19]),
)
@settings(max_examples=60)
def test_small_scatter_under_large_offsets_against_long_double(seed, exponent, offset, mean_shifts):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(120) % 4)
    rows = offset + rng.normal(size=(4, 6))[labels] + 10.0**exponent * rng.normal(size=(120, 6))
    splits = sorted(rng.integers(0, 120, 3))
    means, traces, scatter = two_pass(rows, labels, 4)
    for kind in KINDS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host_sums, "MEAN_SHIFTS", {2: mean_shifts, 3: mean_shifts})
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
    oracle = oracle_of(rows, labels, 3, "pooled", ignore_index=ignored)
    assert_like_the_oracle(found, oracle)
    assert found.ignored == (labels == ignored).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("propagate", [False, True])
def test_a_class_whose_first_row_is_not_finite(kind, propagate):
    rows = np.array([[np.nan, 1.0], [5.0, 1.0], [2.0, 0.0], [7.0, 3.0], [2.5, 0.5]])
    labels = np.array([0, 0, 1, 0, 1])
    policy = "propagate" if propagate else "skip"
    found = counted(rows, labels, 2, kind, [1, 2], nonfinite=policy)
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
    stream = Accumulator(2, 2, "class", phase="live")
    stream.update(np.eye(2), [0, 1])
    before = stream.moments(shard="a")
    stream.update(3 * np.eye(2), [0, 1])
    assert (before.rows, before.shards, before.phase) == (2, {"a"}, "live")
    assert before.traces.sum() == 0
    assert stream.moments().traces.sum() == 4


def test_a_batch_may_be_overwritten_once_it_was_added():
    stream, rows, labels = Accumulator(2, 2, "class"), np.eye(2), np.array([0, 1])
    stream.update(rows, labels)
    rows[:], labels[:] = np.nan, 0
    np.testing.assert_array_equal(stream.moments().means, np.eye(2))
    np.testing.assert_array_equal(stream.moments().counts, [1, 1])


def test_every_form_of_labels_and_rows_that_name_no_class():
    stream = Accumulator(3, 2)
    stream.update(np.ones((3, 2)), np.array([[0, 1, 0], [0, 0, 0], [0, 1, 1]]))
    stream.update(np.ones((2, 2), np.float32), [[2.0], [-100.0]])
    moments = stream.moments()
    np.testing.assert_array_equal(moments.counts, [0, 1, 1])
    assert (moments.unlabelled, moments.mixed, moments.ignored) == (1, 1, 1)


def test_the_coarsest_dtype_of_the_rows_is_remembered_unless_it_is_told():
    stream = Accumulator(2, 1)
    assert stream.moments().feature_dtype == "float64"
    for dtype in (np.float64, np.float16, np.float32):
        stream.update(np.ones((1, 1), dtype), [0])
    assert stream.moments().feature_dtype == "float16"
    assert stream.moments(feature_dtype="bfloat16").feature_dtype == "bfloat16"
    np.testing.assert_array_equal(stream.moments().counts, [3, 0])


def test_what_is_refused_changes_nothing():
    stream = Accumulator(2, 2, nonfinite="raise")
    stream.update(np.eye(2), [0, 1])
    for rows, labels, text in (
        (np.ones((1, 3)), [0], r"features have shape \(1, 3\): expected \(N, 2\)"),
        (np.ones((1, 2)), [2], "label 2 at row 0 is outside 0..1"),
        ([[1.0, np.nan]], [1], r"row 0 of the features \(label 1\) holds NaN or Inf"),
    ):
        with pytest.raises(ValueError, match=text):
            stream.update(rows, labels)
    assert stream.moments().rows == 2
    for options, text in (
        ({"nonfinite": "drop"}, "nonfinite='drop': choose 'skip', 'raise' or 'propagate'"),
        ({"phase": "training"}, "phase='training': choose one of live"),
        ({"scatter": "full"}, "scatter='full': choose 'class'"),
    ):
        with pytest.raises(ValueError, match=text):
            Accumulator(2, 2, **options)


def test_the_shift_of_a_class_is_its_first_row_or_the_mean_of_finite_ones():
    rows = np.array([[np.nan], [1.0], [7.0], [3.0], [5.0], [np.inf], [100.0]])
    state = sums.init(3, 1, "pooled")
    host_sums.add_rows(state, rows, np.array([0, 0, 1, 0, 1, 2, 0]), first_row=0)
    np.testing.assert_allclose(state.shift.ravel(), [104 / 3, 7.0, 0.0])
    host_sums.add_rows(state, np.array([[9.0], [9.0]]), np.array([2, 0]), first_row=5)
    np.testing.assert_allclose(state.shift.ravel(), [104 / 3, 7.0, 9.0])
    found = ClassMoments.from_sums(state, "float64", "live")
    assert found.counts.tolist() == [4, 2, 1]
    np.testing.assert_allclose(found.means.ravel(), [113 / 4, 6.0, 9.0])


def test_a_residual_that_overflows_is_its_class_alone():
    rows = np.array([[1.5e308, 0.0], [1.0, 2.0], [-1.5e308, 0.0], [3.0, 2.0]])
    found = counted(rows, np.array([0, 1, 0, 1]), 2, "trace", [2])
    assert found.nonfinite == 0
    np.testing.assert_array_equal(found.counts, [2, 2])
    assert not np.isfinite(found.traces[0])
    np.testing.assert_allclose(found.means[1], [2.0, 2.0])
    assert found.traces[1] == 2.0


def test_rows_that_are_not_contiguous_are_not_copied_for_every_tile():
    rows = np.random.default_rng(0).normal(size=(40_000, 64))
    labels = np.arange(40_000) % 10
    expected = ClassMoments.from_batch(rows, labels, 10, scatter="trace")
    for strided in (np.asfortranarray(rows), np.repeat(rows, 2, axis=1)[:, ::2]):
        tracemalloc.start()
        found = ClassMoments.from_batch(strided, labels, 10, scatter="trace")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < rows.nbytes
        np.testing.assert_array_equal(found.traces, expected.traces)


@pytest.mark.parametrize("kind", ["class", "pooled"])
def test_where_shifts_become_means_the_scatter_is_summed_about_them(kind, monkeypatch):
    """Under an offset a mean is rounded, and the rest of it stays in the sums."""
    monkeypatch.setattr(host_sums, "MEAN_SHIFTS", {2: 0, 3: 0})
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 3, 1])
    rows = 1e8 + rng.normal(size=(3, 5))[labels] + 1e-3 * rng.normal(size=(44, 5))
    means, traces, scatter = two_pass(rows, labels, 3)
    state = sums.init(3, 5, kind)
    assert host_sums.add_rows(state, rows, labels, first_row=0) == 44
    rounding = (
        40 / 2 * np.spacing(1e8)
    )  # of a sum of 40 rows, a 40th of it; a first row is 1e-3 away
    assert (np.abs(state.shift - means.astype(float)) <= rounding).all()
    found = ClassMoments.from_sums(state, "float64", "live")
    exact = found.means.astype(np.longdouble) + found.means_low
    assert np.abs(exact - means).max() <= 1e-16 * 1e8 * 1e-3
    np.testing.assert_allclose(found.traces, traces.astype(float), rtol=1e-12)
    due = scatter.astype(float) if kind == "class" else scatter.astype(float).sum(axis=0)
    np.testing.assert_allclose(found.scatter, due, rtol=0, atol=1e-12 * np.abs(due).max())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("propagate", [False, True])
def test_a_class_of_one_row_that_has_no_square(value, propagate):
    rows, labels = np.array([[1.0, 2.0], [value, 1.0], [3.0, 2.0]]), np.array([0, 1, 0])
    found = counted(rows, labels, 3, "pooled", nonfinite="propagate" if propagate else "skip")
    lost = not np.isfinite(value)
    assert found.nonfinite == lost
    assert found.counts.tolist() == [2, int(not lost or propagate), 0]
    assert np.isnan(found.means[1]).all() == (lost and propagate)
    if not lost:
        assert found.means[1].tolist() == [value, 1.0]
        assert found.traces[1] == 0
    assert found.traces[0] == 2.0
