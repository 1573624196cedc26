"""Frames, against their defining Gram matrices."""

import math
import re
from itertools import combinations

import numpy as np
import pytest

from collapsemeter.dufm import orthogonal_frame, simplex_etf
from collapsemeter.dufm.frames import edges, subset_signs, triangular_incidence

ROUNDING = 1e-13


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 0])
def test_frames_have_their_gram_matrix(classes, seed):
    def rng():
        return None if seed is None else np.random.default_rng(seed)

    frame = orthogonal_frame(classes, classes + 2, rng())
    np.testing.assert_allclose(frame.T @ frame, np.eye(classes), atol=ROUNDING)
    etf = simplex_etf(classes, classes - 1, rng())
    gram = np.full((classes, classes), -1 / (classes - 1))
    np.fill_diagonal(gram, 1.0)
    np.testing.assert_allclose(etf.T @ etf, gram, atol=ROUNDING)
    np.testing.assert_allclose(etf.sum(axis=1), 0, atol=ROUNDING)


def test_a_centred_orthogonal_frame_is_a_scaled_simplex():
    frame = orthogonal_frame(5, 5)
    centred = frame - frame.mean(axis=1, keepdims=True)
    etf = simplex_etf(5, 4)
    np.testing.assert_allclose(centred.T @ centred, 4 / 5 * etf.T @ etf, atol=ROUNDING)


@pytest.mark.parametrize("order", [3, 4, 5, 8])
def test_the_triangular_graph_is_strongly_regular(order):
    incidence = triangular_incidence(order)
    adjacency = incidence.T @ incidence - 2 * np.eye(len(edges(order)))
    meets = [[len({*a} & {*b}) == 1 for a in edges(order)] for b in edges(order)]
    np.testing.assert_array_equal(adjacency, np.array(meets, dtype=float))
    values = np.linalg.svd(incidence, compute_uv=False)
    expected = [math.sqrt(2 * (order - 1))] + [math.sqrt(order - 2)] * (order - 1)
    np.testing.assert_allclose(values, expected, atol=ROUNDING)


@pytest.mark.parametrize(("order", "size"), [(4, 2), (5, 3), (6, 3)])
def test_a_relu_turns_signs_into_inclusion(order, size):
    read = subset_signs(order, size) @ triangular_incidence(order)
    for row, subset in enumerate(combinations(range(order), size)):
        for column, pair in enumerate(edges(order)):
            assert read[row, column] == len({*pair} & {*subset}) - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: orthogonal_frame(3, 2), "an orthogonal frame of 3 classes needs width 3, got 2"),
        (lambda: simplex_etf(4, 2), "a simplex ETF of 4 classes needs width 3, got 2: widen"),
        (lambda: simplex_etf(1, 2), "num_classes must be at least 2, got 1: pass more classes."),
    ],
)
def test_bad_arguments_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
