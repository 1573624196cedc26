"""Frames and graphs, against their defining Gram matrices."""

import math
import re
from itertools import combinations

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import dufm
from collapsemeter.dufm import orthogonal_frame
from collapsemeter.dufm.graphs import subset_signs, triangular_incidence

ROUNDING = 1e-13


def edges(order):
    return list(combinations(range(order), 2))


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("seed", [None, 0])
def test_an_orthogonal_frame_has_the_identity_as_gram_matrix(classes, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    frame = orthogonal_frame(classes, classes + 2, rng)
    assert frame.shape == (classes, classes + 2)
    np.testing.assert_allclose(frame @ frame.T, np.eye(classes), atol=ROUNDING)


def test_a_centred_orthogonal_frame_is_a_scaled_simplex():
    frame = orthogonal_frame(5, 7)
    centred = frame - frame.mean(axis=0)
    etf = cm.simplex_etf(5, 7)
    np.testing.assert_allclose(centred @ centred.T, 4 / 5 * etf @ etf.T, atol=ROUNDING)


def test_there_is_one_simplex_etf():
    assert not hasattr(dufm, "simplex_etf")
    assert not {*cm.__all__} & {*dufm.__all__}  # nor any other name in two places


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
        (lambda: orthogonal_frame(1, 2), "num_classes must be at least 2, got 1: pass more"),
    ],
)
def test_bad_arguments_get_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
