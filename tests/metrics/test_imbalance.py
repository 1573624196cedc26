"""Classes of unequal size against brute force: the references from the singular value decomposition of all labels, the slope, cosines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import collapsemeter as cm
from collapsemeter.metrics.imbalance import MOST_CLASSES, root_of_laplacian, seli_to_etf, unequal

COUNTS = {
    "five": (403, 120, 50, 20, 7),
    "groups": (30, 30, 4, 4, 4, 9),
    "balanced": (6, 6, 6, 6),
    "two": (9, 2),
    "one row": (1, 1, 40),
}


def encoded(counts) -> np.ndarray:
    """The simplex-encoded labels of Thrampoulidis et al. 2022, (C, N): one-hot less 1/C."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.eye(len(counts))[:, labels] - 1 / len(counts)


def grams(counts) -> tuple[np.ndarray, np.ndarray]:
    """V L V' and, of one row a class, U L U', as the paper defines them."""
    left, values, right = np.linalg.svd(encoded(counts), full_matrices=False)
    left, values, right = left[:, :-1], values[:-1], right[:-1]
    first = np.cumsum([0, *counts[:-1]])
    return left * values @ left.T, (right.T * values @ right)[np.ix_(first, first)]


def unit(gram) -> np.ndarray:
    return gram / np.linalg.norm(gram)


def measured(counts, width=8, noise=0.3, seed=0, **options):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = rng.normal(size=(len(counts), width)) * np.linspace(1, 3, len(counts))[:, None]
    rows = means[labels] + noise * rng.normal(size=(len(labels), width))
    moments = cm.ClassMoments.from_batch(rows, labels, len(counts))
    weight = rng.normal(size=means.shape)
    decisions = cm.decide(moments, rows, labels, head=cm.Head(weight))
    return moments, weight, cm.measure(moments, head=weight, decisions=decisions, **options)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_references_are_those_of_the_decomposition_of_all_labels(counts):
    head, means = grams(counts)
    np.testing.assert_allclose(root_of_laplacian(counts), head, atol=1e-12 * np.abs(head).max())
    atol = 1e-12 * np.abs(means).max()
    np.testing.assert_allclose(root_of_laplacian(counts, inverse=True), means, atol=atol)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_no_head_and_features_that_encode_the_labels_are_smaller(counts):
    """The paper's problem: the least |W|^2 + |H|^2 with W'H the encoded labels, at their nuclear norm."""
    head, means = grams(counts)
    least = np.trace(head) + np.array(counts) @ np.diag(means)
    np.testing.assert_allclose(least, 2 * np.linalg.svd(encoded(counts), compute_uv=False).sum())


@pytest.mark.parametrize("name", [n for n in COUNTS if n != "two"])
def test_distances_to_the_references(name):
    counts = COUNTS[name]
    moments, weight, layer = measured(counts)
    centred = moments.means - moments.means.mean(axis=0)
    head, means = grams(counts)
    expected = np.linalg.norm(unit(centred @ centred.T) - unit(means))
    np.testing.assert_allclose(layer["nc2_seli_error"], expected, rtol=1e-9)
    expected = np.linalg.norm(unit(weight @ weight.T) - unit(head))
    np.testing.assert_allclose(layer["nc2_seli_error_head"], expected, rtol=1e-9)
    if name == "balanced":
        np.testing.assert_allclose(layer["nc2_seli_error"], layer["nc2_etf_error"], rtol=1e-12)


def test_at_the_optimum_both_distances_are_zero_and_the_ETF_error_is_not():
    counts = COUNTS["five"]
    left, values, _ = np.linalg.svd(encoded(counts), full_matrices=False)
    means = (left[:, :-1] / np.sqrt(values[:-1])) @ np.eye(4, 6)
    means -= means.mean(axis=0)
    weight = (left[:, :-1] * np.sqrt(values[:-1])) @ np.eye(4, 6)
    labels = np.repeat(np.arange(5), counts)
    layer = cm.measure(cm.ClassMoments.from_batch(means[labels], labels, 5), head=weight)
    assert max(layer["nc2_seli_error"], layer["nc2_seli_error_head"]) < 1e-12
    assert layer["nc2_etf_error"] > 0.4
    ideal = (np.eye(5) - 1 / 5) / 2
    np.testing.assert_allclose(
        layer["nc2_etf_error"], np.linalg.norm(unit(means @ means.T) - ideal)
    )
    np.testing.assert_allclose(layer.provenance["seli_to_etf"], layer["nc2_etf_error"], rtol=1e-9)
    assert "unequal_classes" in layer.flags


@pytest.mark.parametrize("preset", cm.PRESETS)
def test_the_reference_is_centred_whatever_the_convention(preset):
    layer = measured(COUNTS["five"])[2]
    assert (
        measured(COUNTS["five"], convention=preset)[2]["nc2_seli_error"] == layer["nc2_seli_error"]
    )


@pytest.mark.parametrize(
    ("counts", "raised"),
    [
        ((100,) * 5, False),
        ((100, 98, 101, 103, 97), False),
        ((100, 100, 150, 200), True),
        ((3000, 3010, 3300, 2900), False),  # no random draw, and yet hardly another optimum
        ((10, 10, 15, 20), False),  # perhaps a random draw
        # chi-squared less its mean of C - 1, against four of its standard deviations: 4 sqrt(2 (C - 1)) = 9.8
        ((12, 24, 24, 36), False),  # 9
        ((13, 26, 26, 39), True),  # 10
    ],
)
def test_the_flag_is_raised_where_sizes_matter(counts, raised):
    assert ("unequal_classes" in measured(counts)[2].flags) is raised


@pytest.mark.parametrize("rows", [10, 100])
def test_sizes_of_random_draws_raise_no_flag(rows):
    rng = np.random.default_rng(0)
    draws = rng.multinomial(10 * rows, np.full(10, 0.1), size=300)
    draws = draws[(draws > 0).all(axis=1)]
    assert np.mean([unequal(counts) for counts in draws]) < 0.02
    assert np.mean([seli_to_etf(counts) > 0.05 for counts in draws]) > 0.1


@pytest.mark.parametrize(
    ("factor", "distance"), [(1.02, 0.003), (1.4, 0.05), (2, 0.10), (10, 0.3), (100, 0.56)]
)
@pytest.mark.parametrize("classes", [3, 10, 300])
def test_the_distances_that_the_documents_give(factor, distance, classes):
    counts = np.round(1e6 * np.geomspace(1, factor, classes)).astype(int)
    np.testing.assert_allclose(seli_to_etf(counts), distance, rtol=0.1)


def test_the_slope_of_norms_on_sizes():
    counts = COUNTS["five"]
    moments, _, layer = measured(counts)
    norms = np.linalg.norm(moments.means - moments.means.mean(axis=0), axis=1)
    line = stats.linregress(np.log(counts), np.log(norms))
    np.testing.assert_allclose(layer["means_norm_slope"], line.slope, rtol=1e-10)
    np.testing.assert_allclose(layer["means_norm_r"], line.rvalue, rtol=1e-10)
    low, high = layer.intervals["means_norm_slope"]
    assert low < layer.estimates["means_norm_slope"] < high


def test_the_interval_of_the_slope_covers():
    """Of the rows' population: small classes look longer than they are by the noise of their means, the estimate does not."""
    rng = np.random.default_rng(0)
    counts = np.array((4, 6, 10, 30, 100))
    means = rng.normal(size=(5, 40))
    norms = np.linalg.norm(means - means.mean(axis=0), axis=1)
    right = stats.linregress(np.log(counts), np.log(norms)).slope
    labels, covered, plain, estimates = np.repeat(np.arange(5), counts), 0, [], []
    for _ in range(200):
        features = means[labels] + rng.normal(size=(len(labels), 40))
        layer = cm.measure(cm.ClassMoments.from_batch(features, labels, 5))
        low, high = layer.intervals["means_norm_slope"]
        covered += low <= right <= high
        plain.append(layer["means_norm_slope"])
        estimates.append(layer.estimates["means_norm_slope"])
    assert covered >= 0.92 * 200 - 4 * math.sqrt(200 * 0.08 * 0.92)
    error = np.std(estimates) / math.sqrt(200)
    assert abs(np.mean(estimates) - right) <= 4 * error
    assert abs(np.mean(plain) - right) > 8 * error


def test_classes_of_one_size_have_no_slope():
    layer = measured((6, 6, 6, 6))[2]
    assert layer.reason("means_norm_slope") == layer.reason("means_norm_r") == "classes_of_one_size"
    assert "means_norm_slope" not in layer.intervals


def test_worst_cosines_and_whose_they_are():
    moments, weight, layer = measured(COUNTS["groups"])
    for name, frame in (("", moments.means - moments.means.mean(axis=0)), ("_head", weight)):
        units = frame / np.linalg.norm(frame, axis=1)[:, None]
        cosines = units @ units.T - 3 * np.eye(6)
        np.testing.assert_allclose(layer[f"nc2_worst_cosine{name}"], cosines.max(), rtol=1e-12)
        np.testing.assert_allclose(layer.per_class[f"worst_cosine{name}"], cosines.max(axis=1))
        np.testing.assert_array_equal(
            layer.per_class[f"nearest_class{name}"], cosines.argmax(axis=1)
        )


def test_absent_classes_have_no_part():
    moments, _, layer = measured((40, 0, 9, 4, 0, 30))
    assert layer.per_class["nearest_class_head"][1] == -1
    assert math.isnan(layer.per_class["worst_cosine_head"][4])
    present = moments.means[[0, 2, 3, 5]]
    centred = present - present.mean(axis=0)
    expected = np.linalg.norm(unit(centred @ centred.T) - unit(grams((40, 9, 4, 30))[1]))
    np.testing.assert_allclose(layer["nc2_seli_error"], expected, rtol=1e-9)


def test_two_classes_say_nothing():
    layer = measured(COUNTS["two"])[2]
    for name in ("nc2_worst_cosine", "means_norm_slope", "means_norm_r", "nc2_seli_error"):
        assert layer.reason(name) == "two_classes_trivial"
    assert "unequal_classes" not in layer.flags
    assert abs(layer.provenance["seli_to_etf"]) < 1e-12


def test_too_many_classes_have_no_reference():
    count = MOST_CLASSES + 1
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(count), rng.integers(1, 3, count))
    layer = cm.measure(cm.ClassMoments.from_batch(rng.normal(size=(len(labels), 4)), labels, count))
    assert layer.reason("nc2_seli_error") == "too_many_classes_for_seli"
    assert "unequal_classes" not in layer.flags


def test_accuracies_of_classes_have_intervals():
    layer = measured(COUNTS["five"], noise=3.0)[2]
    for c, rows in enumerate(COUNTS["five"]):
        right = round(layer.per_class["ncc_accuracy"][c] * rows)
        ends = stats.binomtest(right, rows).proportion_ci(method="wilson")
        measured_ends = [layer.per_class[f"ncc_accuracy_{end}"][c] for end in ("low", "high")]
        np.testing.assert_allclose(measured_ends, [ends.low, ends.high], atol=1e-12)


def test_two_classes_of_any_size_have_one_optimum():
    assert not unequal(np.array([1000, 10]))
    assert unequal(np.array([1000, 10, 10]))
