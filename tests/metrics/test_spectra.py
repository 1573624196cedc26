"""Singular values by eigenproblems and by decompositions: the same to the digits that are promised."""

from __future__ import annotations

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.metrics import spectra
from collapsemeter.metrics.spectra import factors, singular_values, thin_svd, without_null

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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [3.0, 900.0, 1e5])
def test_a_thin_decomposition_gives_back_the_gram_matrix(shape, condition):
    null = np.random.default_rng(1).uniform(0.1, 1, size=shape[0])
    frame, expected = frame_of(shape, condition, null)
    values, directions = thin_svd(frame, null)
    count = len(directions)
    assert len(values) == min(shape)
    assert len(expected) <= count <= min(shape)
    assert (np.diff(values) <= 0).all()
    error = max(shape) * EPS * min(condition, 1e3)
    np.testing.assert_allclose(values[: len(expected)], expected, rtol=0, atol=error)
    kept = directions[: len(expected)]
    np.testing.assert_allclose(kept @ kept.T, np.eye(len(expected)), rtol=0, atol=1e3 * error)
    gram = (directions.T * values[:count] ** 2) @ directions
    np.testing.assert_allclose(gram, frame.T @ frame, rtol=0, atol=error)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("condition", [3.0, 900.0, 1e5])
def test_factors_of_a_scatter_and_of_its_pseudo_inverse(shape, condition):
    null = np.random.default_rng(1).uniform(0.1, 1, size=shape[0])
    frame, expected = frame_of(shape, condition, null)
    values, root, inverse = factors(frame, null, 1e-8)
    assert root.shape == inverse.shape == (len(expected), shape[1])
    error = max(shape) * EPS * min(condition, 1e3)
    np.testing.assert_allclose(values[: len(expected)], expected, rtol=0, atol=error)
    np.testing.assert_allclose(root.T @ root, frame.T @ frame, rtol=0, atol=error)
    # With S = A^T A and S^+ = B^T B: S S^+ is the projection on the rows; squares condition twice.
    projection = np.linalg.pinv(frame, 1e-8) @ frame
    found = root.T @ (root @ inverse.T) @ inverse
    np.testing.assert_allclose(found, projection, rtol=0, atol=8 * error * condition)


def test_values_up_to_the_cut_have_no_factor():
    found = factors(np.diag([1.0, 1e-3, 0.0]), np.array([0.0, 0.0, 1.0]), 1e-2)
    assert len(found.root) == len(found.inverse) == 1
    assert len(found.values) == 3


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_null_combination_is_taken_out(sign):
    null = sign * np.arange(1.0, 8.0)
    frame, values = frame_of((7, 9), 5.0, null)
    rows = without_null(frame, null)
    assert rows.shape == (6, 9)
    np.testing.assert_allclose(np.linalg.svd(rows, compute_uv=False), values, rtol=0, atol=32 * EPS)
    np.testing.assert_allclose(rows.T @ rows, frame.T @ frame, rtol=0, atol=32 * EPS)


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
