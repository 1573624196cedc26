"""Cosines in float32, of very many rows: the statistics are those in float64 to what is promised."""

from __future__ import annotations

import numpy as np
import pytest

from collapsemeter.metrics import pairs

COUNT, WIDTH = 4200, 48


def frames() -> dict[str, np.ndarray]:
    """Frames as of networks: at random, in clusters tight and wide, with twins, off centre, of all norms."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(COUNT, WIDTH))
    clusters = rng.normal(size=(40, WIDTH))[rng.integers(0, 40, COUNT)]
    axes = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)])[rng.integers(0, 2 * WIDTH, COUNT)]
    twins = rows.copy()
    for i, distance in enumerate(10.0 ** rng.uniform(-9, -1, 60)):
        twins[-1 - i] = rows[i] + distance * rng.normal(size=WIDTH)
    found = {"random": rows, "near twins": twins, "axes": axes + 0.05 * rng.normal(size=rows.shape)}
    for spread in (1.0, 0.3, 0.2, 0.1, 0.03, 1e-3):
        found[f"clusters of {spread}"] = clusters + spread * rng.normal(size=rows.shape)
    found |= {f"offset {offset}": rows + offset for offset in (0.3, 0.9, 30.0)}
    found["few directions"] = rows * np.geomspace(1, 1e-3, WIDTH)
    found["norms"] = rows * np.geomspace(1, 1e-4, COUNT)[:, None]
    return found


def statistics_of(frame, many, monkeypatch):
    monkeypatch.setattr(pairs, "MANY", many)
    variances = np.random.default_rng(1).uniform(0.5, 2, COUNT)
    return pairs.pair_statistics(frame, variances, 0.0, 1e-13)


@pytest.mark.parametrize("name", frames())
def test_single_precision_gives_the_statistics_of_double(name, monkeypatch):
    frame = frames()[name]
    double = statistics_of(frame, 10**9, monkeypatch)
    single = statistics_of(frame, COUNT, monkeypatch)
    for field in ("cos_std", "cos_deviation", "log_mean", "log_variance", "variance_ratio"):
        found, due = getattr(single, field), getattr(double, field)
        np.testing.assert_allclose(found, due, rtol=1e-7, err_msg=field)
    np.testing.assert_allclose(single.worst_cosine, double.worst_cosine, rtol=0, atol=1e-14)
    np.testing.assert_array_equal(single.nearest, double.nearest)
    # A cosine counts in the bin beside its own only where it is on the edge but for rounding.
    units = frame / np.linalg.norm(frame, axis=1, keepdims=True)
    at_edge = on_edges(units)
    moved = np.abs(np.cumsum(single.histogram) - np.cumsum(double.histogram))
    assert single.histogram.sum() == double.histogram.sum() == COUNT * (COUNT - 1) // 2
    assert (moved <= at_edge).all()


def on_edges(units):
    """How many cosines are within float32's rounding of the upper edge of each bin."""
    rounding = 50 * (WIDTH + 8) * float(np.finfo(np.float32).eps)
    counts = np.zeros(101, np.int64)
    for tile in pairs.tiles(units):
        places = 50 * (tile.cosines + 1)
        edges = np.rint(places)
        near = np.abs(places - edges) <= rounding
        counts += np.bincount(edges[near].astype(np.intp), minlength=101)[:101]
    return counts[1:]


def test_equal_rows_coincide_in_single_precision_too(monkeypatch):
    frame = np.random.default_rng(0).normal(size=(COUNT, WIDTH))
    frame[[7, 4000]] = frame[[2100, 8]]
    found = statistics_of(frame, COUNT, monkeypatch)
    assert np.isinf([found.log_mean, found.log_variance, found.variance_ratio]).all()
    assert found.nearest[[7, 2100, 8, 4000]].tolist() == [2100, 7, 4000, 8]
    np.testing.assert_allclose(found.worst_cosine[[7, 2100, 8, 4000]], 1, rtol=0, atol=1e-15)


def test_among_ties_the_nearest_is_the_first(monkeypatch):
    """In float32 the two at the same angle are told apart by rounding only."""
    frame = np.random.default_rng(0).normal(size=(COUNT, WIDTH))
    frame[10], frame[20], frame[30] = 0.0, 0.0, 0.0
    frame[10, 0], frame[20, :2], frame[30, :2] = 3.0, (4.0, 3.0), (4.0, -3.0)
    found = statistics_of(frame, COUNT, monkeypatch)
    assert found.nearest[10] == 20
    np.testing.assert_allclose(found.worst_cosine[10], 0.8, rtol=0, atol=1e-15)


@pytest.mark.parametrize("gap", [1e-10, 1e-8, 1e-7])
def test_rows_that_float32_cannot_tell_apart_are_compared_again(gap, monkeypatch):
    """Of 300 rows two others are at cosines of 0.8 and 0.8 +- gap: in float32 half of them swap or tie."""
    rng = np.random.default_rng(0)
    frame = rng.normal(size=(COUNT, WIDTH))
    for g in range(300):
        axes = np.linalg.qr(rng.normal(size=(WIDTH, 3)))[0].T
        other = 0.8 + gap * rng.choice([-1, 1])
        frame[3 * g] = axes[0]
        frame[3 * g + 1] = 0.8 * axes[0] + 0.6 * axes[1]
        frame[3 * g + 2] = other * axes[0] + np.sqrt(1 - other**2) * axes[2]
    units = frame / np.linalg.norm(frame, axis=1, keepdims=True)
    cosines = units[0:900:3].astype(np.longdouble) @ units.T.astype(np.longdouble)
    cosines[np.arange(300), np.arange(0, 900, 3)] = -1
    due = cosines.argmax(axis=1)
    single = units[0:900:3].astype(np.float32) @ units.T.astype(np.float32)
    single[np.arange(300), np.arange(0, 900, 3)] = -1
    assert (single.argmax(axis=1) != due).sum() > 10  # or there would be nothing to do again
    found = statistics_of(frame, COUNT, monkeypatch)
    np.testing.assert_array_equal(found.nearest[0:900:3], due)


def test_single_precision_is_for_many_rows_that_spread():
    rng = np.random.default_rng(0)
    many = pairs.MANY
    for frame, due in (
        (rng.normal(size=(many, 9)), True),
        (rng.normal(size=(many - 1, 9)), False),
        (rng.normal(size=(many, many // 2)), False),
        (rng.normal(size=(many, 9)) + 3.0, False),
    ):
        units = frame / np.linalg.norm(frame, axis=1, keepdims=True)
        assert pairs.in_single(units) == due
