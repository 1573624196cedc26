"""The solver: what it reaches, and what it claims."""

import re
import sys

import numpy as np
import pytest

from collapsemeter.dufm import (
    DUFM,
    canonical,
    collapse_threshold,
    dnc,
    forward,
    gradient_descent,
    loss_and_gradient,
    solve,
    srg,
    stationarity,
)
from collapsemeter.dufm.seeds import (
    edge_start,
    gaussian_start,
    graph_start,
    least_order,
    loop_graph,
)


def at_share_of_threshold(classes, depth, share, n=10, **more):
    decay = (share * collapse_threshold(classes, depth) / n) ** (1 / (depth + 1))
    return DUFM(classes, n, depth, feature_decay=decay, weight_decay=decay, **more)


@pytest.mark.parametrize("depth", range(1, 7))
def test_two_classes_reach_the_closed_form_and_nothing_goes_below(depth):
    problem = at_share_of_threshold(2, depth, 0.2, widths=16)
    solution = solve(problem, restarts=3, structured=1, rng=depth, steps=600)
    assert abs(solution.gap) < 1e-6
    # Rounding in a sum of some thousand squares; no start of either kind is lower.
    assert min(start.loss for start in solution.starts) >= solution.reference.loss - 1e-13
    assert min(start.loss for start in solution.starts if start.kind == "random") < (
        solution.reference.loss + 1e-6
    )
    assert solution.proven
    assert "proven optimum" in solution.verdict
    loss = loss_and_gradient(problem, solution.samples())[0]
    np.testing.assert_allclose(loss, solution.loss, rtol=1e-12)
    assert solution.residual.generalised < 1e-5
    assert solution.identities.worst < 1e-6


@pytest.mark.parametrize("depth", [1, 3])
def test_above_the_threshold_only_zero_is_left(depth):
    solution = solve(at_share_of_threshold(2, depth, 1.3, widths=16), restarts=2, rng=0)
    np.testing.assert_allclose(solution.loss, 0.5, atol=1e-9)
    assert solution.proven
    assert solution.reference.name == "zero"


def test_ten_classes_find_low_rank_below_the_published_structure():
    problem = DUFM(10, 50, 4, 14, feature_decay=0.004, weight_decay=0.004)
    solution = solve(problem, restarts=1, structured=1, rng=0, steps=300)
    assert solution.reference.name == "srg"
    assert solution.loss <= srg(problem).loss
    assert solution.ranks == (5, 5, 5, 10)
    assert solution.gap < 0
    assert not solution.proven
    assert "is not known" in solution.verdict
    assert "proven optimum" not in solution.summary()
    assert solution.lower_bound < solution.loss < dnc(problem).loss
    # The structure as published is not stationary; the polished one is, on corners of the ReLU.
    small = canonical(problem)
    assert stationarity(small, srg(small).variables).generalised > 1e-3
    assert solution.residual.plain > 1e-3
    assert solution.residual.generalised < 1e-4
    np.testing.assert_allclose(
        loss_and_gradient(problem, solution.samples())[0], solution.loss, rtol=1e-12
    )


def test_three_classes_at_depth_four_go_below_collapse():
    problem = DUFM(3, 1, 4, 7, feature_decay=0.02 / 3, weight_decay=0.02 / 3)
    solution = solve(problem, restarts=1, structured=8, rng=0, steps=400)
    # The best ratio known at this decay, printed to four digits.
    np.testing.assert_allclose(solution.loss / dnc(problem).loss, 0.9768, atol=5e-5)
    assert solution.ranks == (2, 2, 2, 3)
    # Neurons sit on corners, pushed up by the fit and held at zero by nothing but the ReLU.
    assert solution.residual.plain > 1e-3
    assert solution.residual.generalised < 1e-4
    assert solution.residual.corners > 0


@pytest.mark.parametrize(
    "problem",
    [
        DUFM(3, [6, 3, 1], 2, 7, feature_decay=0.004, weight_decay=0.004),
        DUFM(4, 2, 2, 8, feature_decay=0.004, weight_decay=0.004, loss="ce", bias=True),
        DUFM(4, 2, 3, 8, feature_decay=0.004, weight_decay=0.004, activation="linear"),
        DUFM(3, [6, 3, 1], 1, 7, feature_decay=0.004, weight_decay=0.004, loss="ce"),
        DUFM(3, 2, 2, 7, feature_decay=0.01, weight_decay=0.01, bias=True, bias_decay=0.1),
    ],
    ids=range(5),
)
def test_other_problems_end_at_or_below_their_reference(problem):
    solution = solve(problem, restarts=2, rng=0, steps=800)
    assert solution.lower_bound - 1e-9 <= solution.loss <= solution.reference.loss + 1e-8
    assert solution.residual.generalised < 1e-3
    assert solution.proven is (solution.reference.status == "theorem")


def test_results_depend_on_the_seed_alone():
    problem = DUFM(3, 2, 3, 7, feature_decay=0.004, weight_decay=0.004)
    single, two, three = (
        solve(problem, restarts=2, structured=1, rng=seed, jobs=jobs, steps=40)
        for seed, jobs in ((7, 1), (np.random.default_rng(7), 2), (8, 1))
    )
    assert single.starts == two.starts
    np.testing.assert_array_equal(single.point.features, two.point.features)
    assert single.starts != three.starts


@pytest.mark.parametrize("installed", [True, False])
def test_the_progress_bar_changes_nothing(monkeypatch, capsys, installed):
    if not installed:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    problem = DUFM(2, 2, 1, 4, feature_decay=0.01, weight_decay=0.01)
    shown = solve(problem, restarts=2, rng=0, progress=True)
    assert shown.starts == solve(problem, restarts=2, rng=0).starts
    capsys.readouterr()


def test_gradient_descent_collapses_two_classes_and_records_its_path():
    problem = DUFM(2, 5, 2, 16, feature_decay=0.01, weight_decay=0.01)
    solution = solve(problem, method="gd", restarts=1, rng=0, steps=4000)
    assert -1e-15 < solution.gap < 1e-4
    path = solution.trajectory
    assert path.step[0] == 0
    assert path.step[-1] == 4000
    assert np.all(np.diff(path.loss) <= 1e-12)
    np.testing.assert_allclose(path.loss[-1], solution.loss, rtol=0)
    assert np.all(path.fit <= path.loss)
    assert path.gradient_norm[-1] < 1e-2 * path.gradient_norm[0]
    assert path.within.shape == (path.step.size, 3)
    assert path.within[-1, 1] < 1e-2 * path.within[0, 1]
    assert path.singular_values.shape == (path.step.size, 3, 2)
    np.testing.assert_allclose(path.singular_values[-1, 2], solution.singular_values(3), rtol=1e-10)
    assert solution.by_sample
    assert solution.samples() is solution.point
    assert solution.residual.plain < 0.1


def test_sample_level_class_means_are_means_of_activations():
    problem = DUFM(3, [2, 1, 3], 2, 5, feature_decay=0.01, weight_decay=0.01)
    solution = solve(problem, method="gd", rng=0, steps=3)
    acts = np.maximum(solution.point.weights[0] @ solution.point.features, 0)
    expected = np.array([acts[:, :2].mean(1), acts[:, 2], acts[:, 3:].mean(1)])
    np.testing.assert_allclose(solution.class_means(2), expected, rtol=1e-13)


def test_one_step_of_descent_follows_the_gradient():
    problem = DUFM(2, 3, 2, 4, feature_decay=0.1, weight_decay=0.1, bias=True, bias_decay=0.2)
    start = gaussian_start(problem, np.random.default_rng(0))
    gradient = loss_and_gradient(problem, start)[1]
    end = gradient_descent(problem, start, 0.25, 1)[0]
    np.testing.assert_array_equal(end.features, start.features - 0.25 * gradient.features)
    np.testing.assert_array_equal(end.weights[1], start.weights[1] - 0.25 * gradient.weights[1])
    np.testing.assert_array_equal(end.bias, start.bias - 0.25 * gradient.bias)


def test_a_start_that_is_not_finite_leaves_an_empty_path():
    problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.1)
    start = gaussian_start(problem, np.random.default_rng(0))
    start.features[0, 0] = np.inf
    _, loss, path = gradient_descent(problem, start, 0.1, 5)
    assert loss == float("inf")
    assert path.loss.size == 0


@pytest.mark.parametrize(("classes", "order"), [(2, 2), (3, 2), (4, 3), (6, 3), (7, 4), (10, 4)])
def test_graphs_with_loops_have_room_for_every_class(classes, order):
    assert least_order(classes) == order
    columns = loop_graph(classes, order, np.random.default_rng(0))
    assert columns.shape == (order, classes)
    assert len({tuple(column) for column in columns.T}) == classes
    assert set(columns.sum(axis=0)) <= {1.0, 2.0}


def test_no_graph_start_where_there_is_no_room():
    rng = np.random.default_rng(0)
    shallow = DUFM(6, 1, 2, feature_decay=0.01, weight_decay=0.01)
    narrow = DUFM(6, 1, 4, 5, feature_decay=0.01, weight_decay=0.01)
    few = DUFM(4, 1, 4, feature_decay=0.01, weight_decay=0.01)
    for start in (graph_start, edge_start):
        assert start(shallow, rng) is None
    assert graph_start(narrow, rng) is None
    assert edge_start(narrow, rng) is None
    assert edge_start(few, rng) is None


def test_a_kind_of_start_that_does_not_exist_is_left_out():
    # A last layer as wide as the classes: random signs seldom tell them apart.
    problem = DUFM(6, 1, 3, [6, 6, 3], feature_decay=0.002, weight_decay=0.002)
    solution = solve(problem, restarts=1, structured=4, rng=0, steps=50)
    assert {start.kind for start in solution.starts} == {"random", "reference"}


@pytest.mark.parametrize("start", [graph_start, edge_start])
def test_structured_starts_are_near_a_network_that_tells_classes_apart(start):
    problem = DUFM(7, 1, 4, 11, feature_decay=0.002, weight_decay=0.002)
    outputs = forward(problem, start(problem, np.random.default_rng(0)))[1][-1]
    np.testing.assert_array_equal(outputs.argmax(axis=0), np.arange(7))
    middle = np.linalg.svd(forward(problem, start(problem, np.random.default_rng(0)))[0][1])[1]
    assert middle[5] < 0.2 * middle[0]


def test_eight_classes_at_depth_three_go_below_collapse():
    # Eight is not triangular: the start is a part of the graph of ten.
    problem = DUFM(8, 1, 3, 12, feature_decay=0.02 / 8, weight_decay=0.02 / 8)
    solution = solve(problem, restarts=1, structured=4, rng=0, steps=500)
    assert solution.loss < 0.99 * dnc(problem).loss
    assert solution.ranks == (5, 5, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "unknown method 'adam': pass 'lbfgs' or 'gd'."),
        ({"restarts": 0}, "restarts must be at least 1, got 0: pass a positive number."),
        ({"jobs": 0}, "jobs must be at least 1, got 0: pass a positive number."),
        ({"steps": -5}, "steps must be at least 1, got -5: pass a positive number."),
        (
            {"method": "gd", "learning_rate": 1e4, "steps": 200},
            "gradient descent diverged from all 1 starts with learning_rate=10000.0: pass a sm",
        ),
    ],
)
def test_bad_options_get_one_sentence(options, message):
    problem = DUFM(2, 1, 3, 4, feature_decay=0.01, weight_decay=0.01)
    with pytest.raises(ValueError, match=re.escape(message)):
        solve(problem, **options)


def test_a_finite_but_huge_loss_is_divergence_too():
    problem = DUFM(10, 10, 4, 128, feature_decay=0.006, weight_decay=0.006)
    with pytest.raises(ValueError, match="gradient descent diverged from all 1 starts"):
        solve(problem, method="gd", restarts=1, rng=0, steps=300, learning_rate=0.5)


def test_a_loss_that_rises_for_a_while_is_no_divergence():
    problem = DUFM(2, 50, 4, 64, feature_decay=5e-4, weight_decay=5e-4)
    start = gaussian_start(problem, np.random.default_rng([0, 1]))
    point = gradient_descent(problem, start, 0.5, 25)[0]
    _, loss, trajectory = gradient_descent(problem, point, 0.5, 4, records=2)
    assert trajectory.loss[0] < loss < np.inf
