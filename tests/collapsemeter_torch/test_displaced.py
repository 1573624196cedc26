"""Batches after a first one that lies far from them: flagged or refused live, right in a frozen pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments, LayerReport, measure
from collapsemeter.metrics.rounding_errors import CODE, FLAGGED
from collapsemeter_torch import CollapseMeter

C, WIDTH = 4, 8


def batches(far: float, rows: int, count: int = 12) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(C, WIDTH))
    made = []
    for number in range(count):
        y = rng.permutation(np.arange(rows) % C)
        x = means[y] + 0.1 * rng.normal(size=(rows, WIDTH))
        x += 0.1 * far * np.arange(1, 1 + WIDTH) * (number == 0)
        made.append((torch.tensor(x, dtype=torch.float32), torch.tensor(y)))
    return made


def network() -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Linear(WIDTH, C))


def due(data) -> LayerReport:
    rows, labels = (torch.cat(part).numpy() for part in zip(*data, strict=True))
    return measure(ClassMoments.from_batch(rows, labels, C))


def live(data, compiled: bool) -> CollapseMeter:
    net = model = network()
    if compiled:
        torch.compiler.reset()
        model = torch.compile(net, backend="aot_eager")
    meter = CollapseMeter(model, ["0"], verbose=False)
    for x, y in data:
        with meter.batch(y):
            model(x)
    return meter


# Rows of small batches wait until they make a block, outside of graphs: 2500 do not.
@pytest.mark.parametrize(("compiled", "rows"), [(False, 2500), (False, 40), (True, 40)])
@pytest.mark.parametrize("far", [1e3, 1e6])
def test_live_every_metric_is_right_or_its_layer_flagged(far, compiled, rows):
    data = batches(far, rows)
    layer, exact = live(data, compiled).compute()["0"], due(data)
    for name in (
        "nc1_pinv",
        "nc1_trace_ratio",
        "nc1_cdnv",
        "nc1_vci",
        "nc2_equinorm",
        "nc2_etf_error",
    ):
        if math.isnan(layer[name]):
            assert layer.reason(name) in (CODE, "within_scatter_rank_deficient")
            continue
        if CODE in layer.flags:
            continue
        assert abs(layer[name] - exact[name]) <= FLAGGED * exact[name], name
    if far == 1e6 and (compiled or rows > 2000):
        assert CODE in layer.flags
        assert math.isnan(layer["nc1_vci"])


def test_live_rows_near_their_first_are_not_accused():
    for compiled, rows in ((False, 2500), (True, 40)):
        layer = live(batches(0.0, rows), compiled).compute()["0"]
        assert CODE not in (*layer.flags, *layer.reasons.values())
        assert max(layer.provenance["float32_error"].values()) < 1e-3


def test_a_frozen_pass_is_right():
    data = batches(1e6, 2500)
    layer = CollapseMeter(network(), ["0"], verbose=False).observe(data, progress=False)["0"]
    exact = due(data)
    assert layer.provenance["float32_error"] == {}
    for name in ("nc1_pinv", "nc1_trace_ratio", "nc2_etf_error"):
        assert layer[name] == pytest.approx(exact[name], rel=1e-6)
