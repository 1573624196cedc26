"""States whose first rows lie far from the rest, merged on the device: what that has cost is still known."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

import collapsemeter_flax as cf
from collapsemeter import ClassMoments, measure
from collapsemeter.metrics.rounding_errors import CODE, FLAGGED

C, WIDTH = 4, 12
UPDATE = jax.jit(cf.update)


def stream(far: float, seed: int, count: int = 20):
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(size=(C, WIDTH))
    labels = np.arange(40) % C
    for number in range(count):
        x = means[labels] + 0.3 * rng.normal(size=(len(labels), WIDTH))
        yield (x + far * (number == 0)).astype(np.float32), labels


def counted(batches, **options):
    state = cf.init({"fc": WIDTH}, C, **options)
    for x, y in batches:
        state = UPDATE(state, {"fc": x}, y)
    return state


@pytest.mark.parametrize(("far", "kind"), [((1e3, 0.0), "sketch"), ((1e5, 1e3), "class")])
def test_a_shift_that_is_far_stays_when_states_are_merged(far, kind):
    parts = [list(stream(distance, seed)) for seed, distance in enumerate(far)]
    states = [counted(part, scatter=kind, sketch_rows=16) for part in parts]
    rows, labels = (np.concatenate(of) for of in zip(*parts[0], *parts[1], strict=True))
    due = measure(
        ClassMoments.from_batch(rows, labels, C, scatter="trace" if kind == "sketch" else kind)
    )
    for pair in (states, states[::-1]):
        apart = measure(
            cf.to_moments(pair[0])["fc"].merge(cf.to_moments(pair[1])["fc"].reseeded(1))
        )
        layer = measure(cf.to_moments(cf.merge(*pair))["fc"])
        for name in (
            "means",
            "traces",
        ):  # no smaller than where the host merges, but for what cancels
            errors = [found.provenance["float32_error"][name] for found in (layer, apart)]
            assert errors[0] > 0.5 * errors[1]
        bound = max(layer.provenance["float32_error"][name] for name in ("means", "traces"))
        assert bound > FLAGGED or CODE not in layer.flags
        for name in ("nc1_trace_ratio", "nc2_etf_error", "nc1_cdnv", "means_effective_rank"):
            if math.isnan(layer[name]):
                assert layer.reason(name) == CODE
            else:
                assert abs(layer[name] - due[name]) <= 2 * bound * abs(due[name])


def test_sums_of_two_states_about_a_far_shift_are_those_of_all_rows():
    parts = [list(stream(1e2, 0)), list(stream(0.0, 1))]
    rows, labels = (np.concatenate(of) for of in zip(*parts[0], *parts[1], strict=True))
    due = ClassMoments.from_batch(rows, labels, C, scatter="class")
    found = cf.to_moments(cf.merge(*(counted(part, scatter="class") for part in parts)))["fc"]
    np.testing.assert_array_equal(found.counts, due.counts)
    np.testing.assert_allclose(found.means, due.means, atol=1e-3)
    np.testing.assert_allclose(found.scatter, due.scatter, rtol=1e-3)
    np.testing.assert_allclose(found.traces, due.traces, rtol=1e-4)
