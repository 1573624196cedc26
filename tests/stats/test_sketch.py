"""The sketch of a wide layer: hashes, brute force, laws of merge, bias and spread over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats import sums
from collapsemeter.stats.accumulate import Accumulator
from collapsemeter.stats.moments import ClassMoments
from collapsemeter.stats.namespace import NUMPY
from collapsemeter.stats.sampling import drawn_slots, low_32_bits
from collapsemeter.stats.sketch import derived_seed, row_hashes, standard_error, turned

from ..sketches import omega, rows_and_labels, sketch_of
from .one_hot import OneHotNumpy

EPS = np.finfo(float).eps


def brute(rows, labels, C, k, seed):
    """K and Z in the notation of the module, in long double about the final class means."""
    wide = rows.astype(np.longdouble)
    for c in np.unique(labels):
        wide[labels == c] -= wide[labels == c].mean(axis=0)
    matrix = omega(len(rows), k, seed)
    return (matrix @ wide).astype(float), matrix @ np.eye(C)[labels]


def test_hashes_are_those_of_every_integer_type_and_of_numbers_modulo_2_to_the_32():
    numbers = np.array([0, 1, 77, 2**31, 2**32 - 1], np.uint32)
    for seed in (0, 1, -5, 2**62):
        buckets, negative = row_hashes(numbers, 512, seed)
        wide = row_hashes(numbers.astype(np.int64) + 2**32, 512, seed, low_32_bits)
        np.testing.assert_array_equal(buckets, wide[0])
        np.testing.assert_array_equal(negative, wide[1])


@pytest.mark.parametrize("k", [2, 7, 512])
def test_buckets_and_signs_are_uniform_and_apart_from_each_other_and_the_row_sample(k):
    N = 2**16
    numbers = np.arange(N, dtype=np.uint32)
    buckets, negative = row_hashes(numbers, k, seed=3)
    counts = np.bincount(buckets, minlength=k)
    assert len(counts) == k
    # Chi squared with k - 1 degrees of freedom: five standard deviations above its mean.
    assert ((counts - N / k) ** 2).sum() / (N / k) < k - 1 + 5 * math.sqrt(2 * k)
    # Sums of N independent signs, with whatever they are to be independent of.
    others = np.where(row_hashes(numbers, k, seed=4)[1], -1, 1)
    halves = np.where(buckets % 2 == 0, 1, -1)
    halves = halves - halves.mean()
    early = np.where(drawn_slots(numbers, 3) < numbers // 2, 1, -1)
    signs = np.where(negative, -1, 1)
    for with_ in (np.ones(N), others, halves, early, np.roll(signs, 1)):
        assert abs((signs * with_).sum()) < 5 * math.sqrt(N)


def test_a_batch_against_brute_force_with_rows_that_do_not_count():
    rows, labels = rows_and_labels()
    K, Z = brute(rows, labels, 4, 8, seed=5)
    found = sketch_of(rows, labels, seed=5)
    np.testing.assert_allclose(found.sketch, K, rtol=0, atol=60 * EPS * np.abs(rows).max())
    np.testing.assert_array_equal(found.signs, Z)
    assert (found.kind, found.seeds, found.scatter) == ("sketch", {5}, None)
    # A row without a class has no number, one that is not finite has one.
    more = np.insert(rows, [0, 20], np.nan, axis=0)
    skipped = sketch_of(more, np.insert(labels, [0, 20], -100), seed=5)
    np.testing.assert_allclose(skipped.sketch, K, rtol=0, atol=60 * EPS * np.abs(rows).max())
    # Nor does a class have numbers that is ignored by its own.
    kept = labels != 2
    few = sketch_of(rows, labels, seed=5, ignore_index=2)
    K_few, Z_few = brute(rows[kept], labels[kept], 4, 8, seed=5)
    np.testing.assert_allclose(few.sketch, K_few, rtol=0, atol=60 * EPS * np.abs(rows).max())
    np.testing.assert_array_equal(few.signs, Z_few)
    rows[7] = np.nan
    poisoned = sketch_of(rows, labels, seed=5)
    signs = Z.copy()
    signs[:, labels[7]] -= omega(60, 8, 5)[:, 7]
    np.testing.assert_array_equal(poisoned.signs, signs)


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), max_size=5).map(sorted))
def test_a_split_stream_has_the_sketch_of_the_whole(seed, cuts):
    rows, labels = rows_and_labels(seed)
    labels[::9], rows[5] = -100, np.nan
    whole = sketch_of(rows, labels, seed=seed)
    K, Z = whole.sketch, whole.signs
    updated = ClassMoments.empty(4, 5, scatter="sketch", sketch_rows=8)
    accumulator = Accumulator(4, 5, "sketch", sketch_rows=8, seed=seed)
    oracle = sums.init(4, 5, "sketch", sketch_rows=8)
    for i, part in enumerate(np.split(np.arange(60), cuts)):
        before = updated.rows + updated.nonfinite
        first = {} if updated.rows else {"seed": seed, "first_row": before}
        updated = updated.update(rows[part], labels[part], **first)
        accumulator.update(rows[part], labels[part])
        numbers = before - 1 + np.cumsum(labels[part] != -100)
        hashes = row_hashes(numbers, 8, seed, low_32_bits)
        form = OneHotNumpy() if i % 2 else NUMPY
        oracle = sums.update(oracle, rows[part], labels[part], form, hashes=hashes)
    for found in (
        updated,
        accumulator.moments(),
        ClassMoments.from_sums(oracle, "float64", "frozen-eval", seed=seed),
    ):
        assert found.seeds == {seed}
        np.testing.assert_array_equal(found.signs, Z)
        # A sum of 60 residuals about a shift within a few units of the mean.
        np.testing.assert_allclose(found.sketch, K, rtol=0, atol=60 * 16 * EPS)


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 60), min_size=2, max_size=2))
def test_merge_is_associative_commutative_and_recentres(seed, cuts):
    rows, labels = rows_and_labels(seed)
    parts = np.split(np.arange(60), sorted(cuts))
    a, b, c = (sketch_of(rows[part], labels[part], seed=i) for i, part in enumerate(parts))
    wide = rows.astype(np.longdouble)
    means = {c: wide[labels == c].mean(axis=0) for c in np.unique(labels)}
    due = np.zeros((8, 5))
    for i, part in enumerate(parts):
        residuals = [wide[j] - means[labels[j]] for j in part]
        due += (omega(len(part), 8, i) @ np.array(residuals).reshape(-1, 5)).astype(float)
    for merged in (a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(a).merge(b)):
        np.testing.assert_allclose(merged.sketch, due, rtol=0, atol=60 * 16 * EPS)
        np.testing.assert_array_equal(merged.signs, a.signs + b.signs + c.signs)
        assert merged.seeds == {i for i, part in enumerate(parts) if len(part)}
    empty = ClassMoments.empty(4, 5, scatter="sketch", sketch_rows=8)
    assert empty.seeds == frozenset()
    for same in (a.merge(empty), empty.merge(a)):
        np.testing.assert_array_equal(same.sketch, a.sketch)
        np.testing.assert_array_equal(same.signs, a.signs)
        assert same.seeds == a.seeds


def test_what_must_not_merge_says_why():
    rows, labels = rows_and_labels()
    a, b = sketch_of(rows, labels), sketch_of(rows + 1, labels)
    with pytest.raises(
        ValueError, match=r"hashed with seed=0, .* \(seed=rank\), or merge other\.re"
    ):
        a.merge(b)
    assert a.merge(b.reseeded(1)).seeds == {0, 1}
    assert a.merge(sketch_of(rows, labels, seed=1)).seeds == {0, 1}
    with pytest.raises(ValueError, match="one sketch has 8 rows and the other 16: count both with"):
        a.merge(sketch_of(rows, labels, k=16, seed=1))
    # Of a sketch and a scatter only traces are left, and those may share a seed.
    pooled = ClassMoments.from_batch(rows, labels, 4, scatter="pooled")
    for merged in (a.merge(pooled), pooled.merge(a)):
        assert (merged.kind, merged.seeds, merged.sketch) == ("trace", frozenset(), None)
        np.testing.assert_allclose(merged.traces, 2 * a.traces, rtol=1e-12)
    assert a.merge(b.coarsen("trace")).kind == "trace"
    for kind in ("class", "pooled"):
        with pytest.raises(ValueError, match=f"a 'sketch' scatter was kept: '{kind}' cannot be"):
            a.coarsen(kind)
        with pytest.raises(ValueError, match=f"a '{kind}' scatter was kept: 'sketch' cannot be"):
            ClassMoments.empty(4, 5, scatter=kind).coarsen("sketch")
    with pytest.raises(ValueError, match="a 'trace' scatter was kept: 'sketch' cannot be made"):
        a.coarsen("trace").coarsen("sketch")
    with pytest.raises(ValueError, match=r"sketch \(8, 5\), signs None, means \(4, 5\): expected"):
        ClassMoments(a.counts, a.means, None, a.traces, sketch=a.sketch)
    with pytest.raises(ValueError, match="these sums keep a sketch: pass hashes="):
        sums.update(sums.init(4, 5, "sketch"), rows, labels, NUMPY)
    with pytest.raises(ValueError, match="sketch_rows=1: a sketch has at least two rows"):
        Settings(4, sketch_rows=1)


def test_another_seed_keeps_every_estimate_and_makes_copies_of_a_stream_add_up_without_bias():
    rows, labels = rows_and_labels(N=200)
    a = sketch_of(rows, labels, k=64)
    value = cm.measure(a)["nc1_pinv"]
    copies = [cm.measure(a.reseeded(seed))["nc1_pinv"] for seed in range(3)]
    np.testing.assert_allclose(copies, value, rtol=1e-12)
    # Added as they are, the signs of a copy make twice of every row: twice the value. With signs of its
    # own it has the value of one, but for its spread.
    pairs = [cm.measure(a.merge(a.reseeded(seed)))["nc1_pinv"] for seed in range(1, 401)]
    error = np.std(pairs, ddof=1) / math.sqrt(400)
    assert abs(np.mean(pairs) - value) < 4 * error < value / 10
    matrix = turned(np.eye(6), seed=2)
    np.testing.assert_array_equal(matrix @ matrix.T, np.eye(6))
    assert not np.array_equal(matrix, turned(np.eye(6), seed=3))
    derived = {derived_seed("a", number) for number in range(20)}
    assert len(derived) == 20
    assert 2**55 < max(derived) < 2**63  # of 63 bits, as every integer type has them
    assert ClassMoments.empty(2, 3).reseeded(1).seeds == frozenset()


def test_updating_goes_on_with_numbers_that_no_merged_stream_has_used():
    rows, labels = rows_and_labels()
    a, b = sketch_of(rows[:20], labels[:20], seed=3), sketch_of(rows[20:45], labels[20:45], seed=9)
    found = a.merge(b).update(rows[45:], labels[45:])
    last = sketch_of(rows[45:], labels[45:], seed=3, first_row=45)
    assert found.seeds == {3, 9}
    np.testing.assert_array_equal(found.signs, a.signs + b.signs + last.signs)
    assert a.update(rows[20:], labels[20:], seed=4).seeds == {3, 4}
    with pytest.raises(ValueError, match="hashed with seed=3"):
        a.update(rows[20:], labels[20:], seed=3)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("std", [1e-2, 1e-4, 1e-6])
def test_near_collapse_under_an_offset_the_sketch_keeps_six_digits(std, offset):
    rows, labels = rows_and_labels(N=400, std=std, offset=offset)
    K, _ = brute(rows, labels, 4, 16, seed=0)
    whole = sketch_of(rows, labels, k=16)
    updated = ClassMoments.empty(4, 5, scatter="sketch", sketch_rows=16)
    for part in np.array_split(np.arange(400), 40):
        updated = updated.update(rows[part], labels[part])
    parts = np.array_split(np.arange(400), 40)
    merged = ClassMoments.merge_all(
        sketch_of(rows[part], labels[part], k=16, seed=i) for i, part in enumerate(parts)
    )
    exact = sum(  # about the final means, with the seed of each part
        (omega(len(part), 16, i) @ about(rows, labels)[part] for i, part in enumerate(parts)),
        np.zeros((16, 5)),
    )
    for found, due in ((whole, K), (updated, K), (merged, exact)):
        assert np.linalg.norm(found.sketch - due) <= 1e-6 * np.linalg.norm(due)


def about(rows, labels):
    wide = rows.astype(np.longdouble)
    means = np.stack([wide[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    return (wide - means[labels]).astype(float)


def test_a_file_keeps_the_sketch_bit_for_bit(tmp_path):
    m = sketch_of(*rows_and_labels(), seed=7)
    m.save(tmp_path / "a.npz")
    back = ClassMoments.load(tmp_path / "a.npz")
    assert (back.sketch.tobytes(), back.signs.tobytes()) == (m.sketch.tobytes(), m.signs.tobytes())
    assert (back.seeds, back.kind) == ({7}, "sketch")


def test_the_standard_error_of_one_direction_and_of_many():
    rng = np.random.default_rng(0)
    for r in (1, 5, 40):
        P = rng.normal(size=(512, r))
        T = (P**2).sum()
        # At most that of one direction, at least that of r alike.
        assert math.sqrt(2 / 512 / r) * T <= standard_error(P) <= math.sqrt(2 / 512) * T * 1.000001
    assert standard_error(np.zeros((4, 2))) == 0


def test_the_standard_error_is_the_spread_over_the_hashes():
    rng = np.random.default_rng(0)
    rows, size, sketches = rng.normal(size=(300, 3)) * [1.0, 0.3, 0.1], 64, 600
    squares, errors = [], []
    for _ in range(sketches):
        projected = np.zeros((size, 3))
        signs = rng.choice([-1.0, 1.0], (300, 1))
        np.add.at(projected, rng.integers(0, size, 300), signs * rows)
        squares.append((projected**2).sum())
        errors.append(standard_error(projected))
    # The standard deviation of so many values is known to 3 %.
    assert np.mean(errors) == pytest.approx(np.std(squares), rel=0.12)
