"""TF32 and bfloat16 products, where the user allows them, do not reach the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import update
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.device_sums import DeviceSums
from collapsemeter_torch.namespace import TorchNamespace, products_are_reduced

WAYS = ("backend", "everything", "allow_tf32", "high", "medium")
SHAPES = [(10, 16, 16), (30, 4, 6), (120, 48, 2), (40, 300, 4)]  # classes, width, rows of a class


def network(data, device) -> nn.Sequential:
    """The head on features that pass through."""
    net = nn.Sequential(nn.Identity(), nn.Linear(data.rows.shape[1], data.classes))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor(data.head.weight))
        net[1].bias.copy_(torch.tensor(data.head.bias))
    return net.to(device)


def watch(net, kind) -> CollapseMeter:
    return CollapseMeter(net, layers=lambda *_: False, scatter=kind, strict=True, verbose=False)


def feed(meter, run, data, device) -> None:
    """Three batches of unequal size, each with most classes."""
    rows, labels = torch.tensor(data.rows).to(device), torch.tensor(data.labels).to(device)
    cuts = (len(rows) // 2, len(rows) // 3, len(rows) - len(rows) // 2 - len(rows) // 3)
    for x, y in zip(rows.split(cuts), labels.split(cuts), strict=True):
        with meter.batch(y):
            run(x)


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_every_metric_is_that_of_float64(collapsed, reduced, device, way, shape, kind):
    data = collapsed(*shape)
    net = network(data, device)
    meter = watch(net, kind)
    with reduced(way):
        assert products_are_reduced(device.type)
        feed(meter, net, data, device)
    data.check(meter.compute().final, kind)
    assert not products_are_reduced(device.type)


@pytest.mark.parametrize("kind", ["class", "pooled"])
@pytest.mark.parametrize("allowed", [False, True])
def test_autocast_does_not_reach_them(collapsed, reduced, device, kind, allowed):
    data = collapsed(10, 16, 16)
    net = network(data, device)
    meter = watch(net, kind)
    with reduced("high" if allowed else "off"), torch.autocast(device.type, dtype=torch.bfloat16):
        feed(meter, net, data, device)
    data.check(meter.compute().final, kind)


@pytest.mark.parametrize("kind", ["class", "pooled"])
def test_nor_in_a_compiled_step(collapsed, reduced, device, kind):
    data = collapsed(10, 16, 16)
    net = network(data, device)
    meter = watch(net, kind)
    torch.compiler.reset()
    with reduced("backend"), torch.autocast(device.type, dtype=torch.bfloat16):
        feed(meter, torch.compile(net), data, device)
    data.check(meter.compute().final, kind)


def scatter(data, device, widen) -> np.ndarray:
    """Return what the update makes of all rows at once."""
    rows, labels = torch.tensor(data.rows).to(device), torch.tensor(data.labels).to(device)
    state = DeviceSums(rows, Settings(data.classes), "pooled", 16)
    update(state.sums, rows, labels, TorchNamespace(torch.float32, widen))
    found = ClassMoments.from_sums(state.host_sums(), "float32", "live").scatter
    assert found is not None
    return found


@pytest.mark.parametrize("way", WAYS)
def test_without_the_guard_they_would(collapsed, reduced, device, way):
    data = collapsed(100, 48, 2)  # classes enough that their sums take no product
    truth = data.moments("pooled").scatter
    with reduced(way):
        guarded, bare = (scatter(data, device, widen) for widen in (True, False))
    off = [np.abs(np.diag(found) / np.diag(truth) - 1) for found in (guarded, bare)]
    assert off[0].max() < data.tolerance
    assert np.median(off[1]) > 5e-4 > 5 * data.tolerance


def test_full_products_are_not_widened(collapsed, device):
    assert not products_are_reduced(device.type)
    data = collapsed(120, 48, 2)
    truth = data.moments("pooled").scatter
    assert np.abs(np.diag(scatter(data, device, False)) / np.diag(truth) - 1).max() < data.tolerance


def test_a_product_in_blocks_is_that_of_float64(device, monkeypatch):
    monkeypatch.setattr("collapsemeter_torch.namespace.LARGE_PRODUCT", 1)
    rows = torch.randn(64, 600, generator=torch.Generator().manual_seed(0)).to(device)
    found = TorchNamespace(torch.float32).add_product(torch.zeros(600, 600, device=device), rows)
    wide = rows.double()
    size = float((wide.abs().T @ wide.abs()).max())
    assert float((found - wide.T @ wide).tril().abs().max()) <= 64 * 2.0**-23 * size
    assert not found[:128, 600 - 150 :].any()  # above the diagonal blocks nothing is computed
