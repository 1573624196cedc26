"""Singular values by eigenproblems and by decompositions: the same to the digits that are promised."""

from __future__ import annotations

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.metrics import spectra
from collapsemeter.metrics.spectra import (
    cholesky,
    factors,
    is_outside,
    negligible,
    singular_values,
    triangle_of,
)

EPS = float(np.finfo(float).eps)
SHAPES = [(70, 150), (150, 70), (300, 66), (66, 66), (5, 9)]


def frame_of(shape, condition, null=None):
    """A frame of known singular values, geometric from 1 to 1 / condition, and of a null vector."""
    rng = np.random.default_rng(shape[0])
    rank = min(shape) if null is None or shape[0] > shape[1] else min(shape) - 1
    rows = rng.normal(size=(shape[0], rank))
    if null is not None:
        rows -= np.outer(null, null @ rows) / (null @ null)
    left, right = np.linalg.qr(rows)[0], np.linalg.qr(rng.normal(size=(shape[1], rank)))[0]
    values = np.geomspace(1, 1 / condition, rank)
    return left * values @ right.T, values


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [1.0, 30.0, 900.0, 1e5, 1e9])
def test_singular_values_that_are_known(shape, condition):
    frame, values = frame_of(shape, condition)
    # Of an eigenproblem, kept down to squares of 1e-6 of the largest: sqrt(d) eps / 1e-6 / 2; of a
    # decomposition eps of the largest.
    bound = max(shape) * EPS * np.minimum(1 / values, 1e3)
    assert (np.abs(singular_values(frame) - values) <= np.maximum(bound, max(shape) * EPS)).all()


@pytest.mark.parametrize("condition", [3.0, 900.0, 1e5])
def test_values_that_are_round_off_need_no_decomposition(condition, monkeypatch):
    frame, expected = frame_of((70, 150), condition, np.ones(70))
    if condition < 1e3:  # of less regular frames squares have too few digits
        monkeypatch.delattr(np.linalg, "svd")
    values = singular_values(frame, 69)
    error = 150 * EPS * np.minimum(1 / expected, 1e3)
    assert (np.abs(values - expected) <= error).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [3.0, 900.0, 1e5])
def test_factors_of_a_scatter_and_of_its_pseudo_inverse(shape, condition):
    null = np.random.default_rng(1).uniform(0.1, 1, size=shape[0])
    frame, expected = frame_of(shape, condition, null)
    values, root, inverse = factors(frame, 1e-8)
    assert root.shape == inverse.shape == (len(expected), shape[1])
    assert len(values) == min(shape)
    error = max(shape) * EPS * min(condition, 1e3)
    np.testing.assert_allclose(values[: len(expected)], expected, rtol=0, atol=error)
    np.testing.assert_allclose(values[len(expected) :], 0, atol=max(shape) * EPS)
    np.testing.assert_allclose(root.T @ root, frame.T @ frame, rtol=0, atol=error)
    # With S = A^T A and S^+ = B^T B: S S^+ is the projection on the rows; squares condition twice.
    projection = np.linalg.pinv(frame, 1e-8) @ frame
    product = root.T @ (root @ inverse.T) @ inverse
    np.testing.assert_allclose(product, projection, rtol=0, atol=8 * error * condition)


@pytest.mark.parametrize("shape", [(70, 150), (150, 70)])
def test_one_large_value_takes_no_digit_of_the_others(shape):
    """Squares of the others are 1e-12 of the largest: of an eigenproblem they would keep four digits."""
    rank = min(shape[0] - 1, shape[1])
    expected = np.append(1e6, np.geomspace(2, 1, rank - 1))
    frame = frame_of(shape, 1.0, null=np.ones(shape[0]))[0]
    left, _, right = np.linalg.svd(frame, full_matrices=False)
    frame = (left[:, :rank] * expected) @ right[:rank]
    error = 1e6 * max(shape) * EPS
    found = factors(frame, 1e-12)
    np.testing.assert_allclose(found.values[:rank], expected, rtol=0, atol=error)
    np.testing.assert_allclose(singular_values(frame)[:rank], expected, rtol=0, atol=error)


@pytest.mark.parametrize(
    ("kept", "left"),
    [([1.0], [1e-3]), ([1.0, 0.02], [0.009]), ([1.0, 0.5, 0.4], [0.0099]), ([1.0], [1e-2])],
)
def test_values_up_to_the_cut_have_no_factor(kept, left):
    """The cut is a share of the largest value, and a value on it is round-off."""
    values, root, inverse = factors(np.diag([*kept, *left, 0.0]), 1e-2)
    np.testing.assert_allclose(values, [*kept, *left, 0.0], rtol=1e-15)
    for factor, diagonal in ((root, np.array(kept)), (inverse, 1 / np.array(kept))):
        np.testing.assert_allclose(
            np.abs(factor), np.eye(len(kept), len(values)) * diagonal[:, None], atol=1e-14
        )


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_a_scatter_is_factored_and_solved_by_blocks(size):
    rng = np.random.default_rng(size)
    rows = rng.normal(size=(4 * size, size))
    scatter = rows.T @ rows / len(rows)
    expected = np.linalg.cholesky(scatter)
    triangle = triangle_of(scatter)
    np.testing.assert_array_equal(triangle.lower, np.tril(triangle.lower))
    np.testing.assert_allclose(triangle.lower, expected, rtol=0, atol=1e-13)
    for right in (rng.normal(size=size), rng.normal(size=(size, 3))):
        np.testing.assert_allclose(expected @ triangle.solved(right), right, rtol=0, atol=1e-12)
    twice = triangle.solved_twice(right[:, 0])
    np.testing.assert_allclose(scatter @ twice, right[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("condition", [1e4, 1e8, 1e11])
def test_factors_and_solutions_by_blocks_have_the_residual_of_a_solver(condition):
    """The inverse of a block alone would leave as much as the block's condition magnifies."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    root = np.zeros((130, 130))
    root[:64, :64] = axes * np.geomspace(1, condition**-0.5, 64)
    root[64:] = rng.normal(size=(66, 130))
    scatter = root @ root.T
    triangle, right = triangle_of(scatter), rng.normal(size=(130, 3))
    sizes = np.sqrt(np.outer(scatter.diagonal(), scatter.diagonal()))
    assert (np.abs(triangle.lower @ triangle.lower.T - scatter) <= 64 * EPS * sizes).all()
    solved = triangle.solved(right)
    residual = np.abs(triangle.lower @ solved - right)
    assert (residual <= 64 * EPS * (np.abs(triangle.lower) @ np.abs(solved))).all()


@pytest.mark.parametrize("size", [6, 130])
@pytest.mark.parametrize("constant", [0.0, 1e-30])
def test_features_that_do_not_vary_are_left_out(size, constant):
    """A dead unit must not cost a decomposition of all, and rounding may leave it a variance."""
    rng = np.random.default_rng(size)
    rows = rng.normal(size=(4 * size, size))
    scatter = rows.T @ rows
    dead = [1, size - 1]
    scatter[dead], scatter[:, dead] = 0.0, 0.0
    scatter[dead, dead] = constant
    factored = cholesky(scatter, 3 * size)
    assert factored is not None
    assert factored.features.tolist() == [i for i in range(size) if i not in dead]
    part = scatter[np.ix_(factored.features, factored.features)]
    lower = factored.triangle.lower
    np.testing.assert_allclose(lower @ lower.T, part, rtol=1e-12, atol=1e-9)
    assert cholesky(scatter, size - 3) is None  # of more rank than rows have
    assert cholesky(np.zeros((2, 2)), 9) is None


@pytest.mark.parametrize("share", [1e-16, 0.1, 10.0, 1e3])
def test_a_scatter_is_factored_only_where_it_keeps_digits(share):
    """Its least variance is a share of round-off, along an axis across all features."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 100)))[0]
    values = np.append(np.geomspace(1, 0.1, 99), share * negligible(100))
    factored = cholesky((axes * values) @ axes.T, 10**6)
    assert (factored is not None) == (share > 100)


@pytest.mark.parametrize("rank", [1, 20, 99])
def test_vectors_outside_of_a_range_are_told_from_those_inside(rank):
    rng = np.random.default_rng(rank)
    axes = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    inside, outside = axes[:, :rank], axes[:, rank:]
    scatter = (inside * np.geomspace(1, 1e-6, rank)) @ inside.T
    frame = rng.normal(size=(3, rank)) @ inside.T
    away = rng.normal(size=(3, 100 - rank)) @ outside.T
    assert not is_outside(scatter, frame, 1e-7)
    for size, certain in ((1.0, True), (1e-4, True), (1e-8, False)):
        assert is_outside(scatter, frame + size * away, 1e-7) == certain
    assert not is_outside(np.zeros((2, 2)), np.eye(2), 1e-7)
    assert not is_outside(-scatter, frame + away, 1e-7)  # no scatter that float64 left as one


@pytest.mark.parametrize(("C", "d"), [(80, 120), (120, 80), (90, 90)])
@pytest.mark.parametrize("preset", ["papyan2020", "he_su2023_imbalanced"])
@pytest.mark.parametrize("std", [1.0, 1e-6])
def test_metrics_of_many_classes_equal_those_by_decompositions(C, d, preset, std, monkeypatch):
    """With every side taken for small, all come of singular value decompositions."""
    rng = np.random.default_rng(C)
    labels = np.concatenate([np.arange(C), np.arange(C), rng.integers(0, C, 3 * d)])
    rows = rng.normal(size=(C, d))[labels] + 0.5 + std * rng.normal(size=(len(labels), d))
    moments = cm.ClassMoments.from_batch(rows, labels, C)
    fast = cm.measure(moments, convention=preset)
    monkeypatch.setattr(spectra, "_SMALL", 10**6)
    slow = cm.measure(moments, convention=preset)
    for name in ("nc1_pinv", "nc1_vci", "means_effective_rank", "means_stable_rank"):
        # Squares keep ten digits where they are 1e-6 of the largest or more.
        np.testing.assert_allclose(fast[name], slow[name], rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(
        fast.vectors["means_singular_values"],
        slow.vectors["means_singular_values"],
        rtol=0,
        atol=1e-10 * slow.vectors["means_singular_values"][0],
    )
