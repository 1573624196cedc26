"""Which optima apply where, and that their matrices do what their formulas say."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsemeter.dufm import (
    DUFM,
    DoesNotApply,
    blocks,
    class_columns,
    class_loss_and_gradient,
    collapse_threshold,
    convex,
    dnc,
    gof,
    linear,
    linear_ce_dnc,
    linear_ce_pairs,
    linear_ce_polygon,
    loss_and_gradient,
    lower_bound,
    pairs,
    partial,
    seli,
    srg,
    stationarity_identities,
    ufm_ce,
    ufm_mse,
    zero,
)

LOSS_ERROR = 1e-12
GRADIENT_ERROR = 1e-10
NOT_STATIONARY = {"srg", "blocks", "seli", "pairs"}


def is_stationary(reference):
    """Whether a closed form is a stationary point of its own problem, not of a simpler one."""
    return (
        reference.name not in NOT_STATIONARY
        and "a feasible point" not in (reference.holds_for)
        and "closed form of the problem with" not in reference.holds_for
    )


def model(classes, n, depth, decay, **more):
    return DUFM(classes, n, depth, feature_decay=decay, weight_decay=decay, **more)


PARTIAL = {f"partial({k})" for k in range(1, 10)}

APPLIES = [
    (model(2, 10, 3, 0.01), {"dnc", "partial", "zero"}),
    (model(3, 5, 2, 0.02), {"dnc", "partial", "zero"}),
    (model(10, 50, 4, 0.004), {"srg", "dnc", "partial", "zero"}),
    (model(7, 2, 4, 0.002), {"blocks", "dnc", "partial", "zero"}),
    (model(5, 3, 1, 0.01), {"ufm_mse", "dnc", "partial", "zero"}),
    (model(5, 3, 1, 0.01, bias=True), {"ufm_mse", "zero"}),
    (model(5, 3, 1, 0.01, bias=True, bias_decay=0.01), {"ufm_mse", "zero"}),
    (model(5, 3, 1, 0.01, bias=True, bias_decay=3.0), {"ufm_mse", "zero"}),
    (model(4, 2, 1, 0.01, loss="ce"), {"ufm_ce", "zero"}),
    (model(4, 2, 1, 0.01, loss="ce", bias=True, bias_decay=0.1), {"ufm_ce", "zero"}),
    (model(3, [20, 5, 2], 1, 0.001, loss="ce"), {"seli", "convex", "zero"}),
    (model(3, [20, 5, 2], 1, 0.001, loss="ce", bias=True), {"convex", "zero"}),
    (model(3, [20, 5, 2], 1, 0.001, bias=True, bias_decay=0.1), {"convex", "zero"}),
    (model(3, [20, 5, 2], 1, 0.001), {"gof", "zero"}),
    (model(3, [20, 5, 2], 3, 0.001), {"gof", "zero"}),
    (model(3, [20, 5, 2], 3, 0.001, activation="linear"), {"gof", "zero"}),
    (model(3, 4, 3, 0.001, activation="linear"), {"linear", "zero"}),
    (model(3, 4, 3, 0.001, activation="linear", bias=True), {"linear", "zero"}),
    (model(3, 4, 3, 0.001, bias=True), {"dnc", "zero"}),
    (model(3, 4, 3, 0.001, bias=True, bias_decay=0.1), {"dnc", "srg", "partial", "zero"}),
    (model(3, [1, 2, 3], 3, 0.001, bias=True, bias_decay=0.1, loss="ce"), {"dnc", "zero"}),
    (model(10, [5] * 9 + [4], 4, 0.0005), {"gof", "srg", "zero"}),
    (model(4, 2, 3, 0.001, widths=[2, 4, 4]), {"dnc", "partial", "zero"}),
    (model(5, 1, 2, 0.001, widths=[3, 5], bias=True), {"dnc", "zero"}),
    (model(6, 1, 3, 0.001, widths=[3, 6, 6], loss="ce"), {"dnc", "partial", "zero"}),
    (model(6, 1, 3, 0.001, widths=2, loss="ce"), {"partial", "zero"}),
    (model(6, 1, 1, 0.001, widths=2, loss="ce"), {"partial", "zero"}),
    (model(6, 1, 3, 0.001, widths=[9, 2, 9], activation="linear"), {"partial", "zero"}),
    (model(4, [5, 1, 2, 3], 2, 1e-4, widths=2, activation="linear"), {"gof", "zero"}),
    (model(4, [5, 1, 2, 3], 2, 1e-4, widths=2), {"gof", "zero"}),
    (
        model(6, 2, 3, 0.001, activation="linear", loss="ce"),
        {"linear_ce_dnc", "linear_ce_pairs", "linear_ce_polygon", "zero"},
    ),
    (model(2, 2, 3, 0.001, activation="linear", loss="ce"), {"linear_ce_dnc", "zero"}),
    (model(16, 1, 4, 0.001, loss="ce"), {"pairs", "dnc", "zero"}),
    (model(5, 1, 4, 0.001, loss="ce", bias=True), {"dnc", "zero"}),
]
IDS = [str(index) for index in range(len(APPLIES))]


@pytest.mark.parametrize(("problem", "names"), APPLIES, ids=IDS)
def test_exactly_these_references_are_offered(problem, names):
    actual = problem.references()
    assert {reference.name.split("(")[0] for reference in actual} == names
    assert len({reference.name for reference in actual}) == len(actual)
    losses = [reference.loss for reference in actual]
    assert losses == sorted(losses) or np.allclose(losses, sorted(losses), atol=1e-13)
    assert problem.optimum().loss == losses[0]


@pytest.mark.parametrize(("problem", "names"), APPLIES, ids=IDS)
def test_the_matrices_give_the_closed_form_loss(problem, names):
    for reference in problem.references():
        loss, gradient = loss_and_gradient(problem, reference.samples())
        assert abs(loss - reference.loss) < LOSS_ERROR, reference.name
        if not is_stationary(reference):
            continue
        parts = [gradient.features, *gradient.weights]
        parts += [] if gradient.bias is None else [gradient.bias]
        worst = max(float(np.max(np.abs(part))) for part in parts)
        assert worst < GRADIENT_ERROR, reference.name


@pytest.mark.parametrize(("problem", "names"), APPLIES, ids=IDS)
def test_smooth_references_satisfy_the_identities(problem, names):
    for reference in problem.references():
        if is_stationary(reference):
            actual = stationarity_identities(problem, reference.variables, class_columns(problem))
            assert actual.worst < GRADIENT_ERROR, reference.name


@pytest.mark.parametrize(("problem", "names"), APPLIES, ids=IDS)
def test_no_reference_is_below_the_lower_bound(problem, names):
    bound = lower_bound(problem)
    for reference in problem.references():
        assert reference.loss >= bound - 1e-14
        if reference.status == "theorem":
            np.testing.assert_allclose(reference.loss, bound, rtol=1e-7)
        assert reference.holds_for.startswith(reference.status)
        assert reference.source


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 7),
    st.integers(1, 6),
    st.sampled_from([1, 7]),
    st.floats(0.0, 1.0),
    st.lists(st.floats(-3, 3), min_size=7, max_size=7),
    st.floats(0.05, 0.95),
)
def test_collapse_is_stationary_at_any_decays(classes, depth, n, tilt, logs, share):
    scale = np.exp(np.array(logs[: depth + 1]))
    product = share * collapse_threshold(classes, depth) / n
    decays = scale * (product / np.prod(scale)) ** (1 / (depth + 1))
    problem = DUFM(classes, n, depth, feature_decay=decays[0], weight_decay=list(decays[1:]))
    best = dnc(problem, first_layer=tilt if depth > 1 else 0.0)
    loss, gradient = loss_and_gradient(problem, best.samples())
    assert abs(loss - best.loss) < LOSS_ERROR
    assert max(float(np.max(np.abs(w))) for w in gradient.weights) < GRADIENT_ERROR
    assert float(np.max(np.abs(gradient.features))) < GRADIENT_ERROR
    t = best.parameters["t"]
    norms = stationarity_identities(problem, best.variables, class_columns(problem)).norms
    np.testing.assert_allclose(norms, t * (1 - t), atol=1e-12)


@pytest.mark.parametrize("tilt", [0.0, 0.4, 1.0])
def test_the_first_layer_is_free_from_frame_to_simplex(tilt):
    problem = model(4, 3, 3, 0.003)
    best = dnc(problem, first_layer=tilt)
    assert best.free_layers == (1,)
    np.testing.assert_allclose(best.loss, dnc(problem).loss, rtol=0, atol=0)
    gram = best.gram(1) / best.gram(1)[0, 0]
    expected = np.full((4, 4), -tilt / 3)
    np.fill_diagonal(expected, 1.0)
    np.testing.assert_allclose(gram, expected, atol=1e-12)
    assert best.rank(1) == (3 if tilt == 1.0 else 4)
    for layer in (2, 3, 4):
        later = best.gram(layer)
        np.testing.assert_allclose(later, later[0, 0] * np.eye(4), atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_first_layer_of_a_rectified_frame_is_free_for_unequal_classes_too(depth):
    problem = model(3, [4, 2, 1], depth, 0.004)
    best = gof(problem)
    assert best.free_layers == (1,)
    assert gof(model(3, [4, 2, 1], depth, 0.004, activation="linear")).free_layers == ()
    # Subtract a symmetric part, hidden by the ReLU, from H_2 D^(1/2): same loss, other means.
    roots = np.sqrt(problem.counts)
    second = best.class_means(2)[:, :3].T * roots
    tilt = 0.3 * float(second.diagonal().min()) * (np.ones((3, 3)) - np.eye(3)) / 2
    left, values, right = np.linalg.svd(second - tilt)
    ratio = (problem.feature_decay / problem.decays[0]) ** 0.25
    features = np.zeros_like(best.variables.features)
    features[:3] = np.sqrt(values)[:, None] * right / roots / ratio
    first = np.zeros_like(best.weights[0])
    first[:3, :3] = left * np.sqrt(values) * ratio
    moved = replace(best.variables, features=features, weights=(first, *best.weights[1:]))
    assert abs(class_loss_and_gradient(problem, moved)[0] - best.loss) < LOSS_ERROR
    assert abs(features[:, 0] @ features[:, 1]) > 1e-2 * best.gram(1)[0, 0]


def test_layers_have_the_predicted_singular_values():
    problem = DUFM(3, 5, 3, feature_decay=0.004, weight_decay=[0.01, 0.002, 0.005])
    best = dnc(problem)
    t, c = best.parameters["t"], problem.canonical_decay
    assert [weight.shape for weight in best.weights] == [(32, 32), (32, 32), (3, 32)]
    for number, decay in enumerate(problem.decays, start=1):
        values = np.linalg.svd(best.weights[number - 1], compute_uv=False)
        np.testing.assert_allclose(values[:3], np.sqrt(c / decay) * t**0.25, rtol=1e-12)
        np.testing.assert_allclose(values[3:], 0, atol=1e-15)
    np.testing.assert_allclose(
        best.singular_values(1)[:3], np.sqrt(c / (5 * 0.004)) * t**0.25, rtol=1e-12
    )
    np.testing.assert_allclose(best.class_means(4), t * np.eye(3), atol=1e-14)
    assert best.class_means(2).shape == (3, 32)
    np.testing.assert_array_equal(
        best.class_means(2), np.maximum(best.class_means(2, before_activation=True), 0)
    )


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("classes", [2, 5])
def test_the_threshold_is_sharp_to_a_millionth(classes, depth, side):
    product = collapse_threshold(classes, depth) * (1 + side * 1e-6)
    rng = np.random.default_rng(depth)
    scale = rng.uniform(0.3, 3, depth + 1)
    decays = scale * (product / 7 / np.prod(scale)) ** (1 / (depth + 1))
    problem = DUFM(classes, 7, depth, feature_decay=decays[0], weight_decay=list(decays[1:]))
    if side < 0:
        best = dnc(problem)
        # Below the threshold by one part in a million the loss is below 1/2 by as little.
        assert loss_and_gradient(problem, best.samples())[0] < 0.5
        assert best.parameters["t"] >= (depth - 1) / depth
    else:
        assert problem.optimum().name in {"zero", "srg", "blocks"}
        with pytest.raises(DoesNotApply, match="dnc does not exist at these decays"):
            dnc(problem)
        if classes == 2 or depth == 1:
            assert problem.optimum().status == "theorem"


def test_zero_is_proven_where_the_bound_says_so():
    assert zero(model(5, 1, 3, 2.0)).status == "theorem"
    assert zero(model(5, 1, 3, 1e-3)).status == "upper bound"


def test_partial_collapse_interpolates_between_zero_and_all():
    problem = model(5, 2, 3, 0.004)
    whole = dnc(problem).loss
    for learned in range(1, 5):
        expected = (5 - learned) / 10 + learned / 5 * whole
        np.testing.assert_allclose(partial(problem, learned).loss, expected, rtol=1e-14)


def test_many_classes_are_listed_without_their_matrices():
    names = [r.name for r in DUFM(400, 10, 3, feature_decay=1e-7, weight_decay=1e-5).references()]
    assert names[:2] == ["blocks", "dnc"]
    assert len(names) == 402


def test_narrow_problems_get_fewer_references():
    wide, narrow = model(10, 1, 4, 0.002), model(10, 1, 4, 0.002, widths=9)
    assert "dnc" in {reference.name for reference in wide.references()}
    assert {reference.name for reference in narrow.references()} == {"zero"} | PARTIAL


def test_optima_at_higher_width_are_the_same_optimum():
    for single, two in zip(
        model(6, 1, 4, 0.002, widths=15).references(),
        model(6, 1, 4, 0.002, widths=40).references(),
        strict=True,
    ):
        assert (single.name, single.loss) == (two.name, two.loss)
        np.testing.assert_allclose(single.gram(3), two.gram(3), atol=1e-14)


CE = {"loss": "ce"}
LINEAR = {"activation": "linear"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dnc(model(3, 1, 2, 0.01, widths=2)), "dnc needs widths (2, 3), got (2, 2): widen"),
        (lambda: dnc(model(3, [1, 2, 3], 2, 0.01)), "dnc needs balanced=True, got False: see"),
        (lambda: dnc(model(3, 1, 1, 0.01, bias=True)), "dnc needs bias=False, got True"),
        (lambda: dnc(model(3, 1, 2, 0.9, bias=True)), "dnc does not exist at these decays"),
        (
            lambda: dnc(model(3, 1, 2, 0.01, bias=True, bias_decay=0.5)),
            "dnc needs bias_decay=0.0, got 0.5: see problem.references() for what applies.",
        ),
        (lambda: dnc(model(3, 1, 2, 0.01, **LINEAR)), "dnc needs activation='relu', got 'linear'"),
        (lambda: dnc(model(3, 1, 2, 0.9)), "dnc does not exist at these decays, they are too st"),
        (
            lambda: dnc(model(3, 1, 1, 0.01, **CE)),
            "dnc with loss 'ce' needs depth 2 or more, got 1",
        ),
        (lambda: dnc(model(3, 1, 2, 0.01), 1.5), "first_layer must be between 0 (orthogonal) and"),
        (lambda: dnc(model(3, 1, 1, 0.01), 0.5), "first_layer must be 0 at depth 1, got 0.5"),
        (
            lambda: partial(model(3, 1, 2, 0.01), 3),
            "learned must be 1 to 2, got 3: use zero or dnc",
        ),
        (lambda: partial(model(3, 1, 2, 0.9), 1), "partial does not exist at these decays"),
        (
            lambda: partial(model(3, 1, 2, 0.01, widths=1), 2),
            "partial needs width 2, got (1, 1): w",
        ),
        (lambda: srg(model(7, 1, 4, 0.002)), "srg needs r (r - 1) / 2 classes, such as 6, 10"),
        (lambda: srg(model(6, 1, 2, 0.002)), "srg needs depth 3 or more, got 2: use dnc."),
        (lambda: srg(model(6, 1, 4, 0.002), 5), "subsets of 2 to r - 2, got r=4, s=5"),
        (lambda: srg(model(6, 1, 4, 0.9)), "srg does not exist at these decays"),
        (lambda: srg(model(6, 1, 4, 0.002, widths=5)), "srg needs widths (4, 4, 4, 6), got (5, 5"),
        (lambda: blocks(model(7, 1, 2, 0.002)), "blocks needs depth 3 or more, got 2: use dnc."),
        (lambda: blocks(model(3, 1, 4, 0.002)), "blocks needs two blocks, got (Block(classes=3"),
        (lambda: ufm_mse(model(3, 1, 2, 0.1)), "ufm_mse needs depth=1, got 2: see problem.ref"),
        (lambda: ufm_mse(model(3, 1, 1, 0.9)), "ufm_mse does not exist at these decays"),
        (lambda: ufm_ce(model(3, 1, 1, 0.1)), "ufm_ce needs loss='ce', got 'mse'"),
        (lambda: ufm_ce(model(3, 1, 1, 0.9, **CE)), "ufm_ce does not exist at these decays"),
        (lambda: seli(model(2, [1, 2], 1, 0.9, **CE)), "seli does not exist at these decays"),
        (lambda: seli(model(3, 1, 1, 0.01)), "seli needs loss='ce', got 'mse'"),
        (lambda: seli(model(3, 1, 1, 0.01, **CE)), "seli needs balanced=False, got True"),
        (
            lambda: convex(model(3, 1, 2, 0.01)),
            "convex needs depth 1, got 2: deeper is not convex.",
        ),
        (lambda: linear(model(3, 1, 2, 0.01)), "linear needs activation='linear', got 'relu'"),
        (lambda: linear(model(3, 1, 2, 0.9, **LINEAR)), "linear does not exist at these decays"),
        (lambda: gof(model(3, 1, 2, 0.01)), "gof needs balanced=False, got True"),
        (lambda: gof(model(2, [1, 2], 2, 0.9)), "gof does not exist at these decays"),
        (lambda: pairs(model(5, 1, 3, 0.001, **CE)), "pairs needs an even number of 4 classes or"),
        (lambda: pairs(model(4, 1, 3, 0.9, **CE)), "pairs does not exist at these decays"),
        (
            lambda: linear_ce_dnc(model(3, 1, 1, 0.01, **CE, **LINEAR)),
            "linear_ce_dnc needs depth 2 or more, got 1: ufm_ce is optimal there.",
        ),
        (
            lambda: linear_ce_pairs(model(2, 1, 2, 0.01, **CE, **LINEAR)),
            "linear_ce_pairs needs 3 classes or more, got 2: use linear_ce_dnc.",
        ),
        (
            lambda: linear_ce_polygon(model(2, 1, 2, 0.01, **CE, **LINEAR)),
            "linear_ce_polygon needs 3 classes or more, got 2: use linear_ce_dnc.",
        ),
        (
            lambda: linear_ce_polygon(model(4, 1, 2, 0.01, **CE)),
            "linear_ce_polygon needs activation='linear', got 'relu'",
        ),
        (
            lambda: dnc(model(3, 1, 2, 0.01)).class_means(4),
            "layer must be 1 to 3 (the output), got 4: layer 1 is the free features.",
        ),
    ],
)
def test_what_does_not_apply_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
