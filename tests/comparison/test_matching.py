"""The distance of Gram matrices does not depend on how classes are numbered."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from collapsemeter.comparison.matching import _exchange_gain, match_classes
from collapsemeter.dufm.chain import paired_signs
from collapsemeter.dufm.graphs import triangular_incidence


def polygon(classes):
    angles = 2 * np.pi * np.arange(classes) / classes
    return np.cos(angles[:, None] - angles)


def two_graphs():
    gram = np.zeros((20, 20))
    for start in (0, 10):
        rows = slice(start, start + 10)
        gram[rows, rows] = triangular_incidence(5).T @ triangular_incidence(5)
    return gram


STRUCTURES = {
    "graph of 10": triangular_incidence(5).T @ triangular_incidence(5),
    "graph of 28": triangular_incidence(8).T @ triangular_incidence(8),
    "graph of 45": triangular_incidence(10).T @ triangular_incidence(10),
    "two graphs": two_graphs(),
    "pairs of 30": paired_signs(30) @ paired_signs(30).T,
    "polygon of 31": polygon(31),
    "loops": np.eye(12) + np.diag(np.ones(11), 1) + np.diag(np.ones(11), -1),
    "frame of 50": np.eye(50),
    "simplex of 50": np.eye(50) - 1 / 50,
    "zero of 9": np.zeros((9, 9)),
    "graph of 6": triangular_incidence(4).T @ triangular_incidence(4),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_permuted_and_rescaled_copy_is_no_distance_away(name):
    gram = STRUCTURES[name]
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(gram))
        match = match_classes(3.0 * gram[np.ix_(order, order)], gram)
        assert match.distance < 1e-12
        moved = gram[np.ix_(match.order, match.order)]
        np.testing.assert_allclose(moved, gram[np.ix_(order, order)], atol=1e-12)


@pytest.mark.parametrize("name", ["graph of 10", "graph of 28", "two graphs"])
def test_noise_does_not_hide_the_order(name):
    gram = STRUCTURES[name]
    rng = np.random.default_rng(5)
    order = rng.permutation(len(gram))
    noise = 0.02 * rng.standard_normal(gram.shape)
    noisy = gram + noise + noise.T
    planted = np.linalg.norm(noisy / np.linalg.norm(noisy) - gram / np.linalg.norm(gram))
    assert match_classes(noisy[np.ix_(order, order)], gram).distance <= planted + 1e-12


def test_few_classes_are_solved_exactly():
    rng = np.random.default_rng(0)
    a, b = (x @ x.T for x in rng.standard_normal((2, 5, 3)))
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    brute = min(
        np.linalg.norm(unit_a - unit_b[np.ix_(order, order)]) for order in permutations(range(5))
    )
    assert match_classes(a, b).distance == pytest.approx(brute, rel=1e-12)


def test_the_search_comes_close_to_the_exact_answer(monkeypatch):
    rng = np.random.default_rng(1)
    for _ in range(10):
        a, b = (x @ x.T for x in rng.standard_normal((2, 6, 3)))
        exact = match_classes(a, b).distance
        with monkeypatch.context() as patch:
            patch.setattr("collapsemeter.comparison.matching.EXACT_CLASSES", 0)
            searched = match_classes(a, b).distance
        assert exact <= searched + 1e-12
        assert searched < 1.05 * exact


def test_the_gain_of_an_exchange_is_the_difference_of_the_products():
    rng = np.random.default_rng(2)
    a, b = (x + x.T for x in rng.standard_normal((2, 6, 6)))
    gain = _exchange_gain(a, b)
    for p, q in ((0, 1), (2, 5), (4, 4)):
        order = np.arange(6)
        order[[p, q]] = order[[q, p]]
        expected = (a * b[np.ix_(order, order)]).sum() - (a * b).sum()
        np.testing.assert_allclose(gain[p, q], expected, atol=1e-12)


def test_a_zero_matrix_is_at_distance_one_of_any_other():
    assert match_classes(np.zeros((3, 3)), np.eye(3)).distance == pytest.approx(1.0)


def test_matrices_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(3, 3\): pass two \(C, C\)"):
        match_classes(np.eye(2), np.eye(3))
