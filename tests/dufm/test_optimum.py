"""Optima and solutions as measured layers: `measure` finds in them what theory says."""

import math

import numpy as np
import pytest

from collapsemeter import ClassMoments, Head, measure
from collapsemeter.dufm import DUFM, dnc, linear, solve, srg

COLLAPSED = [
    dnc(DUFM(classes, 7, depth, feature_decay=decay, weight_decay=decay))
    for classes, depth, decay in ((2, 3, 0.005), (5, 2, 0.005), (10, 4, 0.002))
]


@pytest.mark.parametrize("best", COLLAPSED)
def test_every_layer_of_a_collapsed_optimum_reads_as_collapsed(best) -> None:
    problem = best.problem
    for number, moments in best.moments().items():
        assert moments.phase == "reference"
        fed = best.weights[number - 1] if number <= problem.depth else None
        layer = measure(moments, weight=fed)
        assert (layer["nc1_pinv"], layer["nc1_trace_ratio"], layer["nc1_cdnv"]) == (0, 0, 0)
        assert layer.provenance["phase"] == "reference"
        assert "at_dtype_floor" not in layer.flags
        if number > 1:
            assert layer["nc2_of_error"] < 1e-12
            assert layer["means_condition"] == pytest.approx(1.0, abs=1e-12)
            if problem.num_classes == 2:
                assert layer.reason("nc2_etf_error") == "two_classes_trivial"
            else:
                assert layer["nc2_etf_error"] < 1e-12
        if fed is not None:
            assert layer["dnc3_sine"] < 1e-12


@pytest.mark.parametrize("best", COLLAPSED)
def test_the_head_of_a_collapsed_optimum_is_dual_to_its_features(best) -> None:
    depth, decays = best.problem.depth, best.problem.decays
    head = Head(best.weights[-1])
    layer = measure(
        best.moments()[depth],
        head=head,
        incoming=best.weights[depth - 2],
        decays=(decays[depth - 2], decays[depth - 1]),
        center_head=True,
    )
    assert layer["nc3_self_duality"] < 1e-12
    assert layer["nc3_cosine"] == pytest.approx(1.0, abs=1e-12)
    assert layer["weight_balance"] < 1e-12


def test_only_linear_neighbours_balance_in_full() -> None:
    def balance(point, number):
        return measure(
            point.moments()[number],
            weight=point.weights[number - 1],
            incoming=point.weights[number - 2],
        )["weight_balance"]

    flat = DUFM(6, 1, 4, feature_decay=0.002, weight_decay=0.002, activation="linear")
    assert max(balance(linear(flat), number) for number in (2, 3, 4)) < 1e-12
    low = srg(DUFM(10, 1, 4, feature_decay=0.002, weight_decay=0.002))
    assert balance(low, 4) > 0.1


def test_a_low_rank_optimum_reads_as_low_rank() -> None:
    low = srg(DUFM(10, 50, 4, feature_decay=0.004, weight_decay=0.004)).moments()
    assert measure(low[3]).reason("means_condition") == "rank_deficient_means"
    assert measure(low[3])["means_effective_rank"] < 5
    assert math.isfinite(measure(low[4])["means_condition"])


def test_a_solution_reads_as_its_own_samples_do() -> None:
    problem = DUFM(2, 5, 2, 6, feature_decay=0.01, weight_decay=0.01)
    solution = solve(problem, method="gd", steps=200)
    labels = np.repeat(np.arange(2), 5)
    rows = solution.samples().features.T
    direct = measure(ClassMoments.from_batch(rows, labels, 2))
    layer = measure(solution.moments()[1])
    assert solution.moments()[1].phase == "reference"
    for name in ("nc1_pinv", "nc2_of_error", "means_effective_rank", "features_effective_rank"):
        assert layer[name] == pytest.approx(direct[name], rel=1e-9), name
    assert measure(solve(problem, restarts=1).moments()[2])["nc1_pinv"] == 0.0


def test_moments_before_the_activation_keep_what_the_relu_cuts() -> None:
    best = dnc(DUFM(3, 1, 2, feature_decay=0.01, weight_decay=0.01), first_layer=1.0)
    before, after = best.moments(before_activation=True)[2], best.moments()[2]
    assert before.means.min() < -0.1
    np.testing.assert_array_equal(np.maximum(before.means, 0.0), after.means)
