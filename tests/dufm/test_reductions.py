"""The two reductions are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsemeter.dufm import (
    DUFM,
    canonical,
    cheapest_samples,
    class_loss_and_gradient,
    from_canonical,
    loss_and_gradient,
    one_per_class,
    repeat_samples,
    to_canonical,
)
from collapsemeter.dufm.seeds import gaussian_start, random_start

decays = st.floats(1e-4, 2.0)


@st.composite
def problems(draw):
    classes = draw(st.integers(2, 4))
    depth = draw(st.integers(1, 4))
    bias = draw(st.booleans())
    return DUFM(
        classes,
        draw(st.lists(st.integers(1, 5), min_size=classes, max_size=classes)),
        depth,
        draw(st.lists(st.integers(2, 6), min_size=depth, max_size=depth)),
        feature_decay=draw(decays),
        weight_decay=draw(st.lists(decays, min_size=depth, max_size=depth)),
        loss=draw(st.sampled_from(["mse", "ce"])),
        bias=bias,
        bias_decay=draw(st.sampled_from([0.0, 0.5])) if bias else 0.0,
    )


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_one_sample_per_class_keeps_the_loss(problem, seed):
    small = one_per_class(problem)
    point = random_start(problem, np.random.default_rng(seed))
    full = loss_and_gradient(problem, repeat_samples(problem, point))[0]
    reduced = loss_and_gradient(small, repeat_samples(small, point))[0]
    np.testing.assert_allclose(reduced, full, rtol=1e-12)
    if problem.balanced:
        assert set(small.counts.tolist()) == {1}


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_keeping_the_cheapest_samples_never_costs(problem, seed):
    point = gaussian_start(problem, np.random.default_rng(seed))
    before = loss_and_gradient(problem, point)[0]
    after = class_loss_and_gradient(problem, cheapest_samples(problem, point))[0]
    assert after <= before * (1 + 1e-13)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_one_decay_for_all_keeps_the_loss_both_ways(problem, seed):
    small = canonical(problem)
    assert len({small.canonical_decay, *small.decays}) <= 2  # the two differ by rounding only
    np.testing.assert_allclose(small.canonical_decay, problem.canonical_decay, rtol=1e-13)
    point = random_start(small, np.random.default_rng(seed))
    there = from_canonical(problem, point)
    np.testing.assert_allclose(
        class_loss_and_gradient(problem, there)[0],
        class_loss_and_gradient(small, point)[0],
        rtol=1e-12,
    )
    back = to_canonical(problem, there)
    np.testing.assert_allclose(back.features, point.features, rtol=1e-13)
    for first, second in zip(back.weights, point.weights, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-13)


@pytest.mark.parametrize("n", [1, 7])
def test_a_balanced_canonical_problem_has_equal_decays_everywhere(n):
    small = canonical(DUFM(3, n, 2, feature_decay=0.02, weight_decay=[0.1, 0.3]))
    expected = (n * 0.02 * 0.1 * 0.3) ** (1 / 3)
    np.testing.assert_allclose([small.feature_decay, *small.decays], expected, rtol=1e-14)


def test_a_step_on_collapsed_samples_is_a_step_on_the_means():
    problem = DUFM(3, 5, 2, 6, feature_decay=0.02, weight_decay=0.1)
    point = random_start(problem, np.random.default_rng(0))
    full = loss_and_gradient(problem, repeat_samples(problem, point))[1]
    reduced = loss_and_gradient(one_per_class(problem), point)[1]
    # A step eta on every sample moves the mean by eta / n of the reduced gradient.
    np.testing.assert_allclose(full.features[:, ::5], reduced.features / 5, atol=1e-15)
