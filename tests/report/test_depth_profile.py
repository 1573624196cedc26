"""Collapse depth, effective depth and the law against their definitions; what has no value is said."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from collapsemeter import CollapseReport, LayerReport

RATIOS = (9.0, 3.0, 0.02, 0.5, 0.01)


def made(name: str, values: tuple[float, ...], reasons: bool = False) -> CollapseReport:
    why = {name: "no_rows"} if reasons else {}
    layers = {
        f"l{i}": LayerReport({name: value}, why if math.isnan(value) else {})
        for i, value in enumerate(values)
    }
    return CollapseReport(layers)


@pytest.mark.parametrize("bound", [0.0, 0.005, 0.05, 0.4, 0.8])
def test_collapse_depth_is_the_first_layer_within_the_bound(bound):
    ratios = np.array(RATIOS)
    shares = ratios / (1 + ratios)
    first = int(np.flatnonzero(shares <= shares[-1] + bound)[0])
    reached = made("nc1_trace_ratio", RATIOS).depth_profile(bound=bound).collapse
    assert (reached.depth, reached.layer) == (first + 1, f"l{first}")
    np.testing.assert_allclose([reached.share, reached.last], shares[[first, -1]], rtol=1e-15)
    later = [f"l{i}" for i in range(first, 5) if shares[i] > shares[-1] + bound]
    assert list(reached.beyond) == later


def test_effective_depth_is_of_nearest_centre_errors():
    profile = made("ncc_accuracy", (0.3, 0.93, 0.96, 0.98)).depth_profile()
    assert (profile.effective.depth, profile.effective.layer) == (2, "l1")
    np.testing.assert_allclose(profile.effective.share, 0.07)
    assert math.isnan(profile.collapse.depth)
    assert profile.collapse.why == "the last layer, l3, has no nc1_trace_ratio (not measured)"


@pytest.mark.parametrize("metric", ["nc1_trace_ratio", "ncc_accuracy"])
def test_depth_is_of_estimates_where_every_layer_has_one(metric):
    """Plain values say the second layer, estimates the third, and intervals the second to the last."""
    shares = {"plain": (0.5, 0.13, 0.12, 0.1), "estimate": (0.6, 0.3, 0.14, 0.1)}
    if metric == "nc1_trace_ratio":
        values = {k: [x / (1 - x) for x in v] for k, v in shares.items()}
        ends = [(0.5, 0.7), (0.14, 0.4), (0.05, 0.16), (0.09, 0.11)]
        intervals = [{metric: tuple(x / (1 - x) for x in pair)} for pair in ends]
    else:
        values = {k: [1 - x for x in v] for k, v in shares.items()}
        ends = [(0.5, 0.7), (0.14, 0.4), (0.05, 0.16), (0.09, 0.11)]
        intervals = [{"ncc_accuracy_loo": (1 - high, 1 - low)} for low, high in ends]
    layers = {
        f"l{i}": LayerReport(
            {metric: values["plain"][i]},
            estimates={metric: values["estimate"][i]},
            intervals=intervals[i],
        )
        for i in range(4)
    }
    profile = CollapseReport(layers).depth_profile()
    reached = profile.collapse if metric == "nc1_trace_ratio" else profile.effective
    assert (reached.depth, reached.estimated) == (3, True)
    np.testing.assert_allclose([reached.share, reached.last], [0.14, 0.1])
    assert (reached.earliest, reached.latest) == (2, 4)
    words = profile.sentences()[metric == "ncc_accuracy"]
    assert "estimated without noise; intervals allow 2 to 4" in words
    layers["l1"] = LayerReport({metric: values["plain"][1]})
    profile = CollapseReport(layers).depth_profile()
    reached = profile.collapse if metric == "nc1_trace_ratio" else profile.effective
    assert (reached.depth, reached.estimated) == (2, False)
    assert math.isnan(reached.earliest)


def test_layers_without_a_value_are_named():
    values = (9.0, math.nan, 0.02, math.nan, 0.01)
    profile = made("nc1_trace_ratio", values).depth_profile()
    assert profile.collapse.depth == 3
    assert profile.collapse.unknown == ("l1",)
    words = profile.sentences()[0]
    assert "collapse depth 3 of 5: l2 is the first layer within 5 percentage points" in words
    assert "an earlier one may be it, as there is no value at l1" in words
    last = made("nc1_trace_ratio", (9.0, 0.02, math.nan), reasons=True).depth_profile().collapse
    assert math.isnan(last.depth)
    assert "the last layer, l2, has no nc1_trace_ratio (no labelled row was counted)" in last.why
    infinite = made("nc1_trace_ratio", (math.inf, math.inf, 0.01)).depth_profile().collapse
    assert infinite.depth == 3


def test_a_layer_whose_interval_ends_on_the_bound_is_within_it():
    same = {"nc1_trace_ratio": (1.0, 1.0)}
    layer = LayerReport(
        {"nc1_trace_ratio": 1.0}, {}, estimates={"nc1_trace_ratio": 1.0}, intervals=same
    )
    reached = CollapseReport({"a": layer, "b": layer, "c": layer}).depth_profile(bound=0.0).collapse
    assert (reached.depth, reached.earliest, reached.latest) == (1, 1, 1)


def test_two_layers_have_no_depth():
    profile = made("nc1_trace_ratio", (9.0, 0.01)).depth_profile()
    assert all(math.isnan(value) for value in profile.scalars().values())
    assert profile.collapse.why == profile.law.why == "fewer than three layers were measured"
    assert profile.sentences() == []
    assert CollapseReport({}).depth_profile().layers == ()


def test_the_law_has_an_interval_from_four_layers_on():
    three = made("nc1_fuzziness", (8.0, 4.1, 2.0)).depth_profile().law
    assert three.why == "an interval needs 4 layers"
    np.testing.assert_allclose(three.line.slope, math.log(2.0 / 8.0) / 2)
    values = (80.0, 0.0, 21.0, math.nan, 3.0, 2.2)
    law = made("nc1_fuzziness", values).depth_profile().law
    known = [0, 2, 4, 5]
    slope = np.polyfit(known, np.log([values[i] for i in known]), 1)[0]
    np.testing.assert_allclose(law.line.slope, slope, rtol=1e-12)
    assert law.line.low < slope < law.line.high
    assert law.unknown == ("l1", "l3")
    words = made("nc1_fuzziness", values).depth_profile().sentences()[2]
    assert words.startswith(
        f"law of data separation: log nc1_fuzziness changes by {slope:.3g} a layer (95 %"
    )
    assert words.endswith("4 layers; no value at l1, l3")


def test_layers_of_one_path_are_chosen():
    report = made("nc1_trace_ratio", (9.0, 0.02, 5.0, 0.01))
    assert report.depth_profile(["l0", "l2", "l3"]).collapse.layer == "l3"
    with pytest.raises(KeyError, match="no layer is named 'l9'"):
        report.depth_profile(["l9"])
    with pytest.raises(ValueError, match="bound=5: pass a share from 0 to 1"):
        report.depth_profile(bound=5)


def test_json_has_the_profile():
    report = made("nc1_trace_ratio", (9.0, math.nan, 0.02, 0.01))
    depth = json.loads(report.to_json())["depth"]
    assert depth["collapse"]["layer"] == "l2"
    assert depth["collapse"]["unknown"] == ["l1"]
    assert depth["law"]["slope"] is None
    assert depth["law"]["why"] == "fewer than three layers have a positive nc1_fuzziness"
    assert CollapseReport.from_dict(report.to_dict()).to_dict() == report.to_dict()
