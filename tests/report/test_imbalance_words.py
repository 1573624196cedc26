"""What a summary says of classes that differ in size."""

from __future__ import annotations

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.report.imbalance_words import closest_pair, imbalance_words


def measured(counts) -> cm.LayerReport:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    means = rng.normal(size=(len(counts), 8))
    means[3] = means[1] + 0.2 * rng.normal(size=8)
    rows = means[labels] + 0.1 * rng.normal(size=(len(labels), 8))
    return cm.measure(cm.ClassMoments.from_batch(rows, labels, len(counts)), head=means)


def test_the_reference_that_applies_and_the_closest_classes_are_named():
    layer = measured((403, 120, 50, 20, 7))
    summary = cm.CollapseReport({"fc": layer}).summary()
    assert (
        "classes differ in size (7 to 403 rows): trained so with cross-entropy, the optimum is no simplex ETF "
        f"but SELI, {layer.provenance['seli_to_etf']:.2g} from it; class means are {layer['nc2_seli_error']:.2g} from "
        "SELI; closest class means 1 and 3, cosine "
    ) in summary
    assert "; closest rows of the head 1 and 3, cosine " in summary


def test_alike_classes_say_nothing():
    assert imbalance_words(measured((40, 42, 38, 41, 39))) == ""
    assert imbalance_words(cm.LayerReport({})) == ""


def test_a_history_without_classes_says_what_it_knows():
    words = imbalance_words(cm.LayerReport({"nc2_seli_error": 0.25}, flags=("unequal_classes",)))
    assert words.endswith("no simplex ETF but SELI; class means are 0.25 from SELI")


@pytest.mark.parametrize("suffix", ["", "_head"])
def test_the_closest_pair(suffix):
    layer = measured((403, 120, 50, 20, 7))
    first, second, cosine = closest_pair(layer, suffix)
    assert (first, second) == (1, 3)
    assert cosine == layer[f"nc2_worst_cosine{suffix}"]
    assert closest_pair(cm.LayerReport({}), suffix) is None
