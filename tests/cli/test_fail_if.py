"""A threshold is a bound of its own side: what lies on it passes `<` and `>`, and fails `<=` and `>=`."""

from __future__ import annotations

import math

import pytest

import collapsemeter as cm
from collapsemeter.cli.fail_if import FailureCondition

# sign: does the audit fail for a value below, on and above the limit?
FAILS = {
    "<": (True, False, False),
    "<=": (True, True, False),
    ">": (False, False, True),
    ">=": (False, True, True),
}


@pytest.mark.parametrize("sign", FAILS)
@pytest.mark.parametrize("space", ["", " "])
def test_the_limit_itself(sign, space):
    threshold = FailureCondition.parse(f"fc:nc1_pinv{space}{sign}{space}0.25")
    assert (threshold.sign, threshold.limit) == (sign, 0.25)
    values = (math.nextafter(0.25, 0), 0.25, math.nextafter(0.25, 1))
    reports = [cm.CollapseReport({"fc": cm.LayerReport({"nc1_pinv": value})}) for value in values]
    assert tuple(bool(threshold.failures(report)) for report in reports) == FAILS[sign]


@pytest.mark.parametrize("sign", FAILS)
def test_no_value_is_a_failure(sign):
    layer = cm.LayerReport({"nc1_pinv": math.nan}, {"nc1_pinv": "one_class"})
    (words,) = FailureCondition.parse(f"nc1_pinv{sign}0").failures(cm.CollapseReport({"fc": layer}))
    assert words.startswith("layer 'fc' has no nc1_pinv to compare (only one class is present)")


def test_a_misspelt_layer_is_suggested():
    with pytest.raises(
        ValueError, match=r"no layer is named 'cnov'; there are conv, fc; did you mean 'conv'\?"
    ):
        FailureCondition.parse("cnov:nc1_pinv>1").chosen(["conv", "fc"])
