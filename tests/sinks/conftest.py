"""Reports of real features: a hidden layer without a head, and the final layer with one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from collapsemeter import ClassMoments, CollapseReport, Head, LayerReport, decide, measure

CLASSES, WIDTH, ROWS = 4, 6, 48


def hidden_layer(seed: int, phase: str = "frozen-eval") -> LayerReport:
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    features = rng.standard_normal((CLASSES, WIDTH))[labels] + rng.standard_normal((ROWS, WIDTH))
    return measure(ClassMoments.from_batch(features, labels, CLASSES, phase=phase))  # type: ignore[arg-type]


def final_layer(seed: int, phase: str = "frozen-eval") -> LayerReport:
    rng = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    features = rng.standard_normal((CLASSES, WIDTH))[labels] + rng.standard_normal((ROWS, WIDTH))
    head = Head(rng.standard_normal((CLASSES, WIDTH)), np.zeros(CLASSES))
    moments = ClassMoments.from_batch(features, labels, CLASSES, phase=phase)  # type: ignore[arg-type]
    return measure(moments, head=head, decisions=decide(moments, features, labels, head=head))


def undefined_layer() -> LayerReport:
    """One class only: nothing between classes to measure."""
    rows = np.random.default_rng(0).standard_normal((8, WIDTH))
    return measure(ClassMoments.from_batch(rows, np.zeros(8, int), CLASSES))


@pytest.fixture
def make_report() -> Callable[..., CollapseReport]:
    def make(
        seed: int = 0, *, hidden: str = "conv1", final: str = "fc", phase: str = "frozen-eval"
    ) -> CollapseReport:
        layers = {hidden: hidden_layer(seed, phase), final: final_layer(seed + 1, phase)}
        return CollapseReport(layers, phase=phase)

    return make


@pytest.fixture
def report(make_report: Callable[..., CollapseReport]) -> CollapseReport:
    return make_report()


@pytest.fixture
def undefined_report() -> CollapseReport:
    return CollapseReport({"conv1": undefined_layer(), "fc": final_layer(1)})


ODD_NAMES = (
    "../../etc/passwd",
    "a//b/",
    "<script>alert(1)</script>",
    "two\nlines",
    "😀",
    "",
    "a#0",
    "a_0",
    "\ud800",
)


@pytest.fixture
def odd_report() -> CollapseReport:
    return CollapseReport({name: hidden_layer(seed) for seed, name in enumerate(ODD_NAMES)})
