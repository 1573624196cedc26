"""What is measured of a sketch: the formulas, the standard error, bias and spread over seeds."""

from __future__ import annotations

import math

import numpy as np

import collapsemeter as cm
from collapsemeter.stats import sums
from collapsemeter.stats.moments import ClassMoments

from ..sketches import omega, rows_and_labels, sketch_of


def textbook(rows, labels, k, seed):
    """nc1_pinv of the sketched scatter and its standard error, in the notation of METRICS."""
    C, N = labels.max() + 1, len(rows)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(C)])
    K = omega(N, k, seed) @ (rows - means[labels])
    M = means - means.mean(axis=0)
    _, s, U = np.linalg.svd(M / math.sqrt(C), full_matrices=False)
    U, s = U[: C - 1], s[: C - 1]
    P = (K @ U.T) / s / math.sqrt(N)
    T, gram = (P**2).sum(), P.T @ P
    spread = ((gram**2).sum() - T**2 / k) / (1 + 1 / k)
    return T / C, math.sqrt(2 / k * max(spread, T**2 / (C - 1))) / C


def test_metrics_of_a_sketch_against_the_formulas():
    labels = np.arange(200) % 4
    rows = rows_and_labels(N=200)[0] + 2 * np.eye(4, 5)[labels]
    exact = cm.measure(ClassMoments.from_batch(rows, labels, 4))
    found = cm.measure(sketch_of(rows, labels, k=32, seed=1))
    value, error = textbook(rows, labels, 32, 1)
    np.testing.assert_allclose(found["nc1_pinv"], value, rtol=1e-10)
    np.testing.assert_allclose(found["nc1_fuzziness"], 4 * value, rtol=1e-10)
    np.testing.assert_allclose(found.standard_errors["nc1_pinv"], error, rtol=1e-10)
    np.testing.assert_allclose(found.standard_errors["nc1_fuzziness"], 4 * error, rtol=1e-10)
    unknown = ("nc1_vci", "nc1_vci_shrunk", "features_effective_rank")
    for name in unknown:
        assert math.isnan(found[name])
        assert found.reason(name) == "only_a_sketch"
    for name in exact:  # everything else knows of traces and means alone
        if name not in ("nc1_pinv", "nc1_fuzziness", *unknown):
            np.testing.assert_allclose(found[name], exact[name], rtol=1e-12, err_msg=name)
    assert (found.provenance["scatter"], found.provenance["sketch_rows"]) == ("sketch", 32)
    assert exact.standard_errors == {}
    assert exact.provenance["sketch_rows"] is None


def test_conventions_that_weight_classes_alike_need_the_scatter_of_each_class():
    rows, labels = rows_and_labels()
    layer = cm.measure(sketch_of(rows, labels), convention="he_su2023")
    assert layer.reason("nc1_pinv") == layer.reason("nc1_fuzziness") == "needs_class_scatter"
    assert layer.standard_errors == {}


def test_the_printed_fuzziness_weights_rows_and_needs_the_sketch_alone():
    rows, labels = rows_and_labels()
    layer = cm.measure(sketch_of(rows, labels))
    by_rows = cm.measure(sketch_of(rows, labels), convention="he_su2023_imbalanced")
    assert layer["nc1_fuzziness"] == by_rows["nc1_pinv"]
    assert list(layer.standard_errors) == ["nc1_pinv", "nc1_fuzziness"]
    assert layer.standard_errors["nc1_fuzziness"] == by_rows.standard_errors["nc1_pinv"]


def test_a_report_carries_the_standard_error(tmp_path):
    rows, labels = rows_and_labels()
    report = cm.CollapseReport({"wide": cm.measure(sketch_of(rows, labels))})
    layer = report.final
    back = cm.CollapseReport.from_dict(report.to_dict())["wide"]
    assert back.standard_errors == layer.standard_errors
    assert back.reason("nc1_vci") == "only_a_sketch"
    value, error = layer["nc1_pinv"], layer.standard_errors["nc1_pinv"]
    table = " ".join(report.table(["nc1_pinv"]).split())
    assert f"±: wide: nc1_pinv {value:.3g} ± {error:.2g} (standard error of a sketch)" in table


# At the width of a convolutional map


def wide_rows(N, d=65_536, C=3):
    """Class means and noise in a few dimensions, turned into d; also as they are in those few."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % C
    narrow = 2 * np.eye(C, C + 1)[labels] + rng.normal(size=(N, C + 1))
    frame = np.linalg.qr(rng.normal(size=(d, C + 1)))[0].T
    return narrow @ frame, narrow, labels


def test_a_wide_layer_has_the_estimate_of_the_few_dimensions_that_its_means_span():
    """So that what is shown of those few, below, is shown of d = 65,536; and its state is small."""
    wide, narrow, labels = wide_rows(96)
    wide = wide + 1e-3 * np.random.default_rng(1).normal(size=65_536)  # the same for every row
    m = ClassMoments.from_batch(wide, labels, 3, seed=4, sketch_rows=64)  # for 96 rows
    few = cm.measure(sketch_of(narrow, labels, 3, 64, seed=4))
    layer = cm.measure(m)
    assert m.kind == "sketch"
    np.testing.assert_allclose(layer["nc1_pinv"], few["nc1_pinv"], rtol=1e-9)
    error = layer.standard_errors["nc1_pinv"]
    np.testing.assert_allclose(error, few.standard_errors["nc1_pinv"], rtol=1e-9)
    exact = cm.measure(ClassMoments.from_batch(narrow, labels, 3))["nc1_pinv"]
    assert abs(layer["nc1_pinv"] - exact) < 4 * error
    assert layer["nc1_trace_ratio"] > 0
    C, d, k = 3, 65_536, 512
    state = sums.init(C, d, "sketch")
    floats = state.shift, state.sums, state.squares, state.sketch, state.signs
    assert sum(part.size for part in floats) == (2 * C + k) * d + k * C + C


def test_unbiased_over_seeds_with_the_spread_that_is_stated():
    _, narrow, labels = wide_rows(2048)
    exact = cm.measure(ClassMoments.from_batch(narrow, labels, 3))["nc1_pinv"]
    layers = [cm.measure(sketch_of(narrow, labels, 3, 512, seed=seed)) for seed in range(400)]
    values = np.array([layer["nc1_pinv"] for layer in layers])
    errors = np.array([layer.standard_errors["nc1_pinv"] for layer in layers])
    for count in (50, 400):
        assert abs(values[:count].mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(count)
    # The deviation of 400 values is known to 1 / sqrt(2 * 399) = 3.5 %: 20 % is beyond five of those.
    stated = math.sqrt((errors**2).mean())
    assert 0.8 < values.std(ddof=1) / stated < 1.2
    # About sqrt(2 / (k r)) of the value, r = 2 directions of noise: 4.4 %, and each seed says so.
    assert (np.abs(errors / values - math.sqrt(2 / 512 / 2)) < 0.2 * stated / exact).all()
