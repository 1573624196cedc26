"""Sums in float32 about a shift far from their rows: bounded, flagged or refused; others are not accused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import ClassMoments, measure
from collapsemeter.metrics.rounding_errors import CODE, FLAGGED, LOST, undetermined
from collapsemeter.metrics.rounding_errors import displaced as is_displaced
from collapsemeter.stats.rounding import Rounding

from ..displaced_sums import WIDTH, C, batches, moments, summed


@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
@pytest.mark.parametrize("displaced", ["all", "row"])
@pytest.mark.parametrize("far", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
def test_every_metric_is_within_its_bound_or_refused(kind, displaced, far):
    found, due = (
        measure(moments(batches(far, displaced=displaced), kind, dtype))
        for dtype in (np.float32, np.float64)
    )
    bounds = found.provenance["float32_error"]
    # One bound for all, unless a metric has its own; S_B^+ and S_W^+ are of means and scatter, too.
    common = max(bounds["means"], bounds["traces"])
    for name in due:
        if math.isnan(due[name]):
            assert found.reason(name) == due.reason(name)
        elif math.isnan(found[name]):
            if (
                found.reason(name) == "within_scatter_rank_deficient"
            ):  # rounding may look like that, too
                assert name == "nc1_vci"
                assert bounds[name] > 1
                continue
            assert found.reason(name) == CODE
            assert max(common, bounds.get(name, 0.0), bounds.get("nc1_pinv", 0.0)) > 1
        else:
            own = bounds.get("nc1_pinv" if name == "nc1_fuzziness" else name, 0.0)
            assert abs(found[name] - due[name]) <= 2 * max(common, own) * abs(due[name]), name
    seen = max(bound for name, bound in bounds.items() if not name.startswith("nc1_vci"))
    assert (CODE in found.flags) == (seen > FLAGGED)


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
def test_what_is_lost_is_refused_and_what_is_left_is_flagged(kind):
    off = measure(moments(batches(1e6, std=1e-2), kind))
    assert CODE in off.flags
    assert FLAGGED < off.provenance["float32_error"]["means"] < 1
    assert math.isfinite(off["nc1_trace_ratio"])
    if kind in ("class", "pooled"):
        assert off.reason("nc1_vci") == CODE
    lost = measure(moments(batches(1e6), kind))
    assert {"nc1_trace_ratio", "nc2_etf_error"} <= {
        name for name, code in lost.reasons.items() if code == CODE and math.isnan(lost[name])
    }
    exact = measure(moments(batches(1e6), kind, np.float64))
    assert CODE not in (*exact.flags, *exact.reasons.values())
    assert exact.provenance["float32_error"] == {}


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
@pytest.mark.parametrize("std", [1e-4, 1e-2, 1.0])
def test_ordinary_rows_are_not_accused(kind, std):
    layer = measure(moments(batches(0, rows=4, count=400, std=std), kind))
    assert CODE not in layer.flags
    assert CODE not in layer.reasons.values()
    assert max(layer.provenance["float32_error"].values()) < 1e-3


def test_exact_collapse_and_features_that_never_vary_are_not_accused():
    rows = (1 / 3 + np.eye(C, WIDTH, dtype=np.float32))[np.arange(40) % C]
    layer = measure(moments([(rows, np.arange(40) % C)] * 20, "class"))
    assert CODE not in layer.flags
    assert layer["nc1_pinv"] < 1e-12
    half = [(rows * (np.arange(WIDTH) < 6), labels) for rows, labels in batches(0)]
    assert CODE not in measure(moments(half, "pooled")).reasons.values()


def test_a_class_that_turned_nan_does_not_hide_behind_the_bounds():
    state = summed(batches(0), "class")
    state.sums[1], state.squares[1] = np.nan, np.nan
    layer = measure(ClassMoments.from_sums(state, "float32", "live"))
    assert layer.reason("nc1_pinv") == "nonfinite_statistics"
    assert layer.provenance["float32_error"] == {}


EPS32 = 2.0**-23


def with_bounds(spread, counts=(6, 9, 12), d=5, kind="pooled", constant=0):
    """Moments whose spread is ``spread`` units of float32 at their means, and bounds of their errors."""
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(3), counts)
    means = 3 + rng.normal(size=(3, d))
    noise = spread * EPS32 * rng.normal(size=(len(labels), d))
    noise[:, :constant] = 0.0
    m = ClassMoments.from_batch(means[labels] + noise, labels, 3, scatter=kind)
    bounds = Rounding(*(spread * EPS32**2 * rng.uniform(size=size) for size in (3, d)), np.ones(3))
    return replace(m, rounding=replace(bounds, means=spread * EPS32 * rng.uniform(size=3)))


@pytest.mark.parametrize("spread", [0.3, 3.0, 1e4])
@pytest.mark.parametrize("preset", ["papyan2020", "he_su2023_imbalanced"])
@pytest.mark.parametrize(("counts", "constant"), [((6, 9, 12), 0), ((6, 9, 12), 2), ((2, 2, 2), 0)])
def test_bounds_are_shares_of_what_the_features_resolve(spread, preset, counts, constant):
    """As the docstrings define them, in loops; 2 + 2 + 2 rows leave S_W of five features singular."""
    m = with_bounds(spread, counts, constant=constant)
    layer, convention = measure(m, convention=preset), cm.PRESETS[preset]
    n, mu, r = m.counts, m.means, m.rounding
    centre = mu.mean(axis=0) if convention.center == "class" else n @ mu / n.sum()
    M = mu - centre
    w = np.full(3, 1 / 3) if convention.between == "class" else n / n.sum()
    S_B = sum(w[c] * np.outer(M[c], M[c]) for c in range(3))
    divisor = 3 if convention.divide_by_classes else 1
    unit = EPS32**2 * mu**2
    due = {
        "means": max(r.means) / math.sqrt(np.mean([M[c] @ M[c] for c in range(3)])),
        "traces": max(r.traces[c] / (m.traces[c] + n[c] * unit[c].sum()) for c in range(3)),
    }
    inverse = np.diagonal(np.linalg.pinv(S_B, rcond=1e-10, hermitian=True))
    lost, least = r.features / n.sum(), n / n.sum() @ unit
    resolved = layer["nc1_pinv"] + inverse @ least / divisor
    due["nc1_pinv"] = inverse @ lost / divisor / resolved
    S_W = m.scatter / n.sum()
    varies = np.arange(constant, 5)
    scale = np.diagonal(S_W)[varies] + least[varies]
    if n.sum() - 3 >= len(varies):
        explained = np.diagonal(np.linalg.cholesky(S_W[np.ix_(varies, varies)])) ** 2
        share = (explained / scale).min()
    else:
        values = np.linalg.eigvalsh(S_W / np.sqrt(np.outer(scale, scale)))
        share = values[-(n.sum() - 3)]
    due["nc1_vci"] = (lost[varies] / scale).mean() / share
    f = n.sum() - 3
    unit_S = S_W / np.trace(S_W)
    square, d = (unit_S**2).sum(), len(S_W)
    a = min(((1 - 2 / d) * square + 1) / ((f + 1 - 2 / d) * (square - 1 / d)), 1.0)
    due["nc1_vci_shrunk"] = min(due["nc1_vci"], lost.mean() / (a * np.trace(S_W) / d))
    found = layer.provenance["float32_error"]
    assert found.keys() == due.keys()
    for name, bound in due.items():
        np.testing.assert_allclose(found[name], bound, rtol=1e-6, err_msg=name)


def test_bounds_of_rows_that_never_vary_are_zero():
    m = replace(with_bounds(1.0), traces=np.zeros(3), scatter=np.zeros((5, 5)))
    found = measure(replace(m, rounding=Rounding(np.zeros(3), np.zeros(5), np.zeros(3))))
    assert found.provenance["float32_error"] == dict.fromkeys(
        ("means", "traces", "nc1_pinv", "nc1_vci", "nc1_vci_shrunk"), 0.0
    )


def test_a_bound_of_one_leaves_a_metric_and_more_takes_it():
    def needing(*statistics):
        return {name for name, metric in cm.METRICS.items() if set(statistics) & set(metric.needs)}

    more = math.nextafter(LOST, 2)
    assert undetermined({"means": LOST, "traces": LOST, "nc1_vci": LOST}, cm.METRICS) == set()
    for lost in (more, math.nan):
        assert undetermined({"means": lost}, cm.METRICS) == needing("means")
        assert undetermined({"traces": lost}, cm.METRICS) == needing("traces", "scatter")
        assert undetermined({"nc1_vci": lost}, cm.METRICS) == {"nc1_vci"}
        assert undetermined({"nc1_pinv": lost}, cm.METRICS) == {"nc1_pinv", "nc1_fuzziness"}
    # Of those alone that were measured.
    assert undetermined({"means": more}, ["nc1_pinv"]) == {"nc1_pinv"}


def test_a_layer_is_flagged_where_a_bound_passes_one_percent():
    more = math.nextafter(FLAGGED, 1)
    for name in ("means", "traces", "nc1_pinv"):
        assert is_displaced({name: more})
        assert is_displaced({"nc1_vci": 0.0, name: math.nan})
        assert not is_displaced({name: FLAGGED})
    assert not is_displaced({"nc1_vci": 1.0})  # which has a reason of its own
    assert not is_displaced({})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("preset", ["papyan2020", "he_su2023"])
def test_the_floor_of_a_dtype_is_a_twelfth_of_its_unit_squared(dtype, preset):
    """Of each mean the unit in the last place, by its exponent; sums over classes and features in loops."""
    eps = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7, "float8_e5m2": 2.0**-2}
    m = replace(with_bounds(1e4, kind="class"), feature_dtype=dtype, rounding=None)
    mu, convention = m.means, cm.PRESETS[preset]
    variance = np.zeros(5)
    for c in range(3):
        weight = 1 / 3 if convention.within == "class" else m.counts[c] / m.rows
        for j in range(5):
            u = eps[dtype] * 2.0 ** math.floor(math.log2(abs(mu[c, j])))
            variance[j] += weight * u**2 / 12
    centre = mu.mean(axis=0) if convention.center == "class" else m.counts @ mu / m.rows
    S_B = (mu - centre).T @ (mu - centre) / 3
    pinv = variance @ np.diagonal(np.linalg.pinv(S_B, rcond=1e-10, hermitian=True))
    due = {
        "nc1_pinv": pinv / (3 if convention.divide_by_classes else 1),
        "nc1_trace_ratio": variance.sum() / np.trace(S_B),
    }
    layer = measure(m, convention=preset)
    assert layer.provenance["dtype_floor"] == pytest.approx(due, rel=1e-9)
    # A value up to twice the floor says more of the dtype than of the network.
    below = any(layer[name] <= 2 * due[name] for name in due)
    assert ("at_dtype_floor" in layer.flags) == below
