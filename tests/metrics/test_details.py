"""What a report keeps beside its scalars, against brute force over classes and pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.metrics import pairs
from collapsemeter.metrics.measure import GRAM_CLASSES


def cosines(rows: np.ndarray) -> np.ndarray:
    units = [row / math.sqrt((row**2).sum()) for row in rows]
    return np.array([[float(a @ b) for b in units] for a in units])


def test_nearest_class_is_that_of_the_largest_cosine(case):
    layer = case.measure()
    cos = cosines(case.M())
    nearest = layer.per_class["nearest_class"]
    assert nearest.dtype == np.int64
    for a, b in enumerate(nearest):
        others = [cos[a, c] for c in range(case.C) if c != a]
        assert b != a
        assert math.isclose(cos[a, b], max(others), rel_tol=1e-9, abs_tol=1e-12)


def test_nearest_class_counts_absent_classes(make_case):
    case = make_case("balanced")
    moved = np.array([0, 2, 3, 5, 6])  # of seven classes, 1 and 4 have no row
    layer = cm.measure(cm.ClassMoments.from_batch(case.features, moved[case.labels], 7))
    nearest = layer.per_class["nearest_class"]
    assert nearest[[1, 4]].tolist() == [-1, -1]
    np.testing.assert_array_equal(nearest[moved], moved[case.measure().per_class["nearest_class"]])


def test_no_class_is_nearest_where_there_is_no_direction():
    rows = np.array([[0.0], [1.0], [-1.0]])  # the first mean is the centre
    layer = cm.measure(cm.ClassMoments.from_batch(rows, [0, 1, 2], 3))
    assert layer.per_class["nearest_class"].tolist() == [-1, -1, -1]
    assert "means_cosine_histogram" not in layer.vectors


def test_the_histogram_counts_every_pair_once(case):
    histogram = case.measure().vectors["means_cosine_histogram"]
    cos = cosines(case.M())
    counts = np.zeros(100)
    close = 0
    for a in range(case.C):
        for b in range(a + 1, case.C):
            place = (min(max(cos[a, b], -1.0), 1.0) + 1) * 50
            counts[min(int(place), 99)] += 1
            close += abs(place - round(place)) < 1e-9  # on an edge round-off decides
    assert histogram.dtype == np.int64
    assert histogram.sum() == case.C * (case.C - 1) // 2
    assert np.abs(np.cumsum(histogram) - np.cumsum(counts)).max() <= close


def test_tiles_change_nothing(monkeypatch, make_case):
    case = make_case("zipf_tail")
    whole = case.measure()
    monkeypatch.setattr(pairs, "TILE", 4)
    tiled = case.measure()
    for part, name in (("per_class", "nearest_class"), ("vectors", "means_cosine_histogram")):
        np.testing.assert_array_equal(getattr(tiled, part)[name], getattr(whole, part)[name])


@pytest.mark.parametrize("tile", [1, 2, 3, 2048])
def test_the_first_of_several_nearest_is_named(monkeypatch, tile):
    monkeypatch.setattr(pairs, "TILE", tile)
    units = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = pairs.pair_statistics(units, np.ones(5), 0.0)
    assert found.nearest.tolist() == [2, 3, 0, 1, 0]
    assert found.histogram[99] == 4  # three pairs of one direction, one of the other
    assert found.histogram.sum() == 10


def test_head_means_cosine_by_brute_force(case):
    found = case.measure().matrices["head_means_cosine"]
    for a in range(case.C):
        for b in range(case.C):
            w, m = case.W[a], case.M()[b]
            due = float(w @ m) / math.sqrt(float(w @ w) * float(m @ m))
            assert math.isclose(found[a, b], due, rel_tol=1e-9, abs_tol=1e-12)


def test_head_means_cosine_is_of_present_classes(make_case):
    case = make_case("balanced")
    keep = case.labels != 2
    moments = cm.ClassMoments.from_batch(case.features[keep], case.labels[keep], 5)
    layer = cm.measure(moments, head=cm.Head(case.W, case.b))
    assert layer.matrices["head_means_cosine"].shape == (4, 4)


@pytest.mark.parametrize(
    "weight", [np.full((3, 2), np.nan), np.zeros((3, 2)), [[1, 0], [0, 0], [1, 1]]]
)
def test_a_head_without_directions_has_no_cosines(weight):
    moments = cm.ClassMoments.from_batch([[0.0, 1], [1, 0], [1, 1]], [0, 1, 2], 3)
    assert "head_means_cosine" not in cm.measure(moments, head=cm.Head(weight)).matrices


def test_many_classes_have_no_matrices_but_a_histogram():
    rng = np.random.default_rng(0)
    count = GRAM_CLASSES + 1
    rows = rng.standard_normal((count, 8))
    layer = cm.measure(
        cm.ClassMoments.from_batch(rows, np.arange(count), count), head=cm.Head(rows)
    )
    assert layer.matrices == {}
    assert layer.vectors["means_cosine_histogram"].sum() == count * (count - 1) // 2
    fewer = cm.measure(cm.ClassMoments.from_batch(rows[1:], np.arange(count - 1), count))
    assert fewer.matrices["means_gram"].shape == (GRAM_CLASSES, GRAM_CLASSES)


def test_one_row_that_was_left_out_is_a_flag_and_none_is_none(make_case):
    case = make_case("balanced")
    rows, labels = case.features, np.eye(5)[case.labels]  # one-hot: a row may have no class, or two
    counters = ("nonfinite", "unlabelled", "mixed")
    generic = cm.measure(case.moments).flags
    assert generic == ("etf_is_generic",)  # the case's class means are random
    for flag in counters:
        features, targets = rows.copy(), labels.copy()
        if flag == "nonfinite":
            features[3] = np.nan
        else:
            targets[3] = 0.0 if flag == "unlabelled" else 1.0
        layer = cm.measure(cm.ClassMoments.from_batch(features, targets, 5))
        assert layer.flags == (*generic, f"{flag}_rows")
        counts = {name: layer.provenance[f"{name}_rows"] for name in counters}
        assert counts == dict.fromkeys(counters, 0) | {flag: 1}


def test_moments_given_as_arrays_left_nothing_out():
    m = cm.ClassMoments(np.array([2, 2]), np.eye(2), None, np.ones(2))
    seen = cm.measure(m).provenance
    counters = ("ignored_rows", "nonfinite_rows", "unlabelled_rows", "mixed_rows")
    assert [seen[name] for name in counters] == [0] * 4
    assert (seen["scatter"], seen["phase"], seen["feature_dtype"]) == (
        "trace",
        "frozen-eval",
        "float64",
    )


def test_every_flag_has_words(make_case):
    from collapsemeter.stats.undefined import FLAGS

    layer = cm.measure(cm.ClassMoments.from_batch(np.eye(3)[:, :1], [0, 1, 2], 4))
    assert set(layer.flags) <= FLAGS.keys()
    assert all(FLAGS.values())
