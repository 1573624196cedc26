"""Frames, pairs and the geometry that the metrics share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter import pairs
from collapsemeter.frames import centred_rows, simplex_etf, simplex_gram, unit_rows
from collapsemeter.geometry import ClassGeometry
from collapsemeter.undefined import REASONS, Undefined

EPS = float(np.finfo(float).eps)


@pytest.mark.parametrize(("C", "d"), [(2, 1), (2, 5), (3, 2), (10, 64), (11, 10), (200, 199)])
def test_simplex_etf(C, d):
    frame = simplex_etf(C, d)
    assert frame.shape == (C, d)
    expected = (C * np.eye(C) - 1) / (C - 1)
    np.testing.assert_allclose(frame @ frame.T, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(frame.sum(axis=0), 0, atol=1e-13)
    gram = expected / np.linalg.norm(expected)
    np.testing.assert_allclose(simplex_gram(C), gram, rtol=0, atol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(simplex_gram(C)), 1, rtol=C * EPS)  # C^2 squares


@pytest.mark.parametrize(("C", "d"), [(4, 2), (1, 5), (0, 5)])
def test_a_simplex_that_does_not_exist(C, d):
    with pytest.raises(
        ValueError, match=f"a simplex ETF of {C} classes in {d} dimensions does not exist"
    ):
        simplex_etf(C, d)


def test_unit_and_centred_rows():
    np.testing.assert_allclose(
        np.linalg.norm(unit_rows(np.diag([1e-9, 1.0]), "zero_head"), axis=1), 1
    )
    for frame in (np.diag([1.0, 0.0]), np.diag([1.0, 1e-16]), np.zeros((2, 2))):
        with pytest.raises(Undefined) as caught:
            unit_rows(frame, "zero_head")
        assert caught.value.code == "zero_head"
        assert str(caught.value) == REASONS["zero_head"]
    np.testing.assert_array_equal(centred_rows(np.full((7, 3), 0.1)), 0)
    np.testing.assert_allclose(centred_rows(np.array([[1.0], [3.0]])), [[-1], [1]])


@given(seed=st.integers(0, 10**6), gap=st.integers(-12, 0))
def test_squared_distances_near_cancellation(seed, gap):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(6, 5))
    b = a[rng.integers(0, 6, 9)] + 10.0**gap * rng.normal(size=(9, 5))
    wide = a.astype(np.longdouble)[:, None] - b.astype(np.longdouble)
    expected = (wide**2).sum(axis=2).astype(float)
    # The expanded form is kept where the distance is 1e-6 of the norms or more: d eps / 1e-6.
    np.testing.assert_allclose(pairs.squared_distances(a, b), expected, rtol=8 * 5 * EPS / 1e-6)
    np.testing.assert_allclose(
        pairs.squared_distances(a, b, a @ b.T), expected, rtol=8 * 5 * EPS / 1e-6
    )


def test_distances_of_a_point_to_itself_are_zero():
    a = np.random.default_rng(0).normal(size=(30, 8))
    np.testing.assert_array_equal(np.diag(pairs.squared_distances(a, a)), 0)


@pytest.mark.parametrize("tile", [1, 2, 5, 12, 13, 100])
def test_tiles_cover_every_pair_once(tile, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", tile)
    index = np.arange(13)
    seen = []
    for a, b in pairs.pair_tiles(13):
        first = np.broadcast_to(index[a][:, None], (len(index[a]), len(index[b])))
        second = np.broadcast_to(index[b], first.shape)
        seen += list(
            zip(pairs.upper_pairs(first, a, b), pairs.upper_pairs(second, a, b), strict=True)
        )
    assert sorted(seen) == [(a, b) for a in range(13) for b in range(a + 1, 13)]
    units = np.random.default_rng(0).normal(size=(13, 4))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    tiled = pairs.pair_statistics(units)
    monkeypatch.setattr(pairs, "TILE", 2048)
    for x, y in zip(tiled, pairs.pair_statistics(units), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


def test_worst_cosine_of_each_class(case):
    M = case.M()
    report = case.measure()
    for a in range(case.C):
        others = [
            M[a] @ M[b] / (np.linalg.norm(M[a]) * np.linalg.norm(M[b]))
            for b in range(case.C)
            if b != a
        ]
        np.testing.assert_allclose(
            report.per_class["worst_cosine"][a], max(others), rtol=1e-11, atol=1e-14
        )


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9])
def test_the_cut_the_rank_and_the_smallest_value_kept_are_recorded(smallest):
    C, d = 3, 50
    means = np.zeros((C, d))
    means[0, 0], means[1, 0], means[2, 1] = 1.0, -1.0, smallest
    labels = np.arange(30) % C
    rows = means[labels] + 1e-12 * np.random.default_rng(0).normal(size=(30, d))
    seen = cm.measure(cm.ClassMoments.from_batch(rows, labels, C)).provenance
    cut = math.sqrt(max(C, d) * EPS)
    np.testing.assert_allclose(seen["between_cut"], cut, rtol=1e-15)
    ratio = smallest * math.sqrt(2 / 3) / math.sqrt(2)
    if ratio > cut:
        assert seen["between_rank"] == 2
        np.testing.assert_allclose(seen["between_smallest_kept"], ratio, rtol=1e-4)
    else:
        assert (seen["between_rank"], seen["between_smallest_kept"]) == (1, 1.0)


def test_geometry_says_what_it_lacks():
    nothing = ClassGeometry(cm.ClassMoments.empty(3, 2, scatter="trace"))
    for attribute in ("centred", "norms", "units", "pairs"):
        with pytest.raises(Undefined, match="no labelled row"):
            getattr(nothing, attribute)
    with pytest.raises(Undefined, match="no labelled row"):
        nothing.within("sample")
    one = ClassGeometry(cm.ClassMoments.from_batch(np.eye(2), [1, 1], 3))
    with pytest.raises(Undefined, match="only one class"):
        _ = one.centred


def test_sample_mean_and_scatters(case, preset):
    convention = cm.PRESETS[preset]
    geometry = ClassGeometry(case.moments, convention.center)
    scale = np.abs(case.features).max()
    np.testing.assert_allclose(geometry.sample_mean, case.features.mean(axis=0), atol=1e-14 * scale)
    S_W = case.S_W(preset)
    # Brute force knows the means to eps |h|, so S_W to twice eps |h| std.
    error = 1e-13 * np.trace(S_W) + 8 * EPS * scale * math.sqrt(np.trace(S_W))
    np.testing.assert_allclose(geometry.within(convention.within), S_W, rtol=0, atol=error)
    np.testing.assert_allclose(
        geometry.within_trace(convention.within), np.trace(S_W), rtol=0, atol=error
    )
