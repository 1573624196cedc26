"""Training on a GPU: no batch waits for it, memory stays flat, and the weights are those of before."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from collapsemeter import ClassMoments
from collapsemeter.stats.moments import EPS
from collapsemeter.testing.oracle import tolerance
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.waiting import MOST_ROWS

CLASSES, BATCH = 10, 32


class Net(nn.Module):
    """Convolutions, dropout, and a mean whose gradient has one order of additions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.fc(self.drop(self.down(self.conv(x)).mean((2, 3))))


def images(device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 8, 8, generator=generator)
    return x.to(device), (torch.arange(BATCH) % CLASSES).to(device)


def watch(model, **options) -> CollapseMeter:
    return CollapseMeter(model, layers=["conv", "down"], strict=True, verbose=False, **options)


def wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def step(run, optimizer, x, y, meter=None, labels=None):
    if meter is None:
        loss = F.cross_entropy(run(x), y)
    else:
        with meter.batch(y if labels is None else labels):
            loss = F.cross_entropy(run(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def rows_counted(meter) -> set[int]:
    report = meter.compute()
    assert not report.warnings
    return {layer.provenance["rows"] for layer in report.values()}


@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("scatter", ["auto", "pooled", "sketch", "trace"])
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
def test_no_batch_waits_for_the_device_not_even_the_first(device, where, scatter, nonfinite):
    x, y = images(device)
    labels = y.cpu() if where == "host" else y
    net = Net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    step(net, optimizer, x, y)  # what PyTorch waits for once is not ours
    wait(device)
    meter = watch(net, scatter=scatter, nonfinite=nonfinite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                step(net, optimizer, x, y, meter, labels)
            meter.reset()
            step(net, optimizer, x, y, meter, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert rows_counted(meter) == {BATCH}


def test_memory_is_flat_and_no_graph_is_kept(device):
    x, y = images(device)
    net = Net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    meter = watch(net)
    held = []
    block = MOST_ROWS // BATCH  # batches: as many wait whenever memory is looked at
    for number in range(4 * block):
        step(net, optimizer, x, y, meter)
        if number >= block and number % block == 19:
            held.append(torch.cuda.memory_allocated() if device.type == "cuda" else 0)
    assert len(set(held)) == 1, held
    states = [state.tensors() for state in meter._recorder.live.layers.values()]
    assert not any(t.requires_grad for tensors in states for t in tensors.values())
    assert rows_counted(meter) == {4 * block * BATCH}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_and_random_state_are_bit_for_bit_those_of_an_unwatched_run(device, precision):
    x, y = images(device)
    torch.manual_seed(0)
    twins = [Net().to(device)]
    twins.append(copy.deepcopy(twins[0]))
    meters = [None, watch(twins[1])]
    ends = []
    torch.use_deterministic_algorithms(True)
    try:
        for net, meter in zip(twins, meters, strict=True):
            torch.manual_seed(1)
            optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
            for _ in range(20):
                with torch.autocast(
                    device.type, dtype=precision, enabled=precision != torch.float32
                ):
                    step(net, optimizer, x, y, meter)
            ends.append((net.state_dict(), torch.get_rng_state(), states(device)))
    finally:
        torch.use_deterministic_algorithms(False)
    (plain, *random), (watched, *also_random) = ends
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name
    for mine, other in zip(random, also_random, strict=True):
        assert torch.equal(mine, other)
    assert rows_counted(meters[1]) == {20 * BATCH}


def states(device) -> torch.Tensor:
    return torch.cuda.get_rng_state() if device.type == "cuda" else torch.get_rng_state()


# The compiler speaks of graphs that it does not record, where a step writes into memory that is kept.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_counts_every_row(device, mode):
    torch.compiler.reset()
    x, y = images(device)
    net = Net().to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    meter = watch(net)
    run = torch.compile(net, mode=mode)
    for _ in range(6):
        step(run, optimizer, x, y, meter)
    assert rows_counted(meter) == {6 * BATCH}
    meter.reset()
    step(run, optimizer, x, y, meter)
    assert rows_counted(meter) == {BATCH}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_widened_before_arithmetic(device, dtype):
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(60, 6, generator=generator) * 300 + 3000).to(
        dtype
    )  # squares overflow float16
    labels = torch.arange(60) % 3
    net = nn.Sequential(nn.Identity(), nn.Linear(6, 3)).to(device, dtype)
    meter = CollapseMeter(net, layers=["0"], strict=True, verbose=False)
    with meter.batch(labels.to(device)):
        net(rows.to(device))
    found, truth = (
        meter.moments("0"),
        ClassMoments.from_batch(rows.double().numpy(), labels.numpy(), 3),
    )
    np.testing.assert_allclose(found.traces, truth.traces, rtol=tolerance(60))
    np.testing.assert_allclose(found.means, truth.means, rtol=8 * EPS["float32"])
    assert meter.compute()["0"].provenance["feature_dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("model_on", ["device", "host"])
@pytest.mark.parametrize("labels_on", ["device", "host"])
def test_labels_may_be_elsewhere_than_the_model(device, model_on, labels_on):
    places = {"device": device, "host": torch.device("cpu")}
    x, y = images(places[model_on])
    net = Net().to(places[model_on])
    meter = watch(net)
    seen = []
    net.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().cpu()))
    y = y.clone()
    y[:3] = -100
    with meter.batch(y.to(places[labels_on])):
        net(x)
    truth = ClassMoments.from_batch(seen[0].numpy(), y.cpu().numpy(), CLASSES)
    found = meter.moments("fc")
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.traces, truth.traces, rtol=tolerance(BATCH))
    assert meter.compute().provenance["rows"] == BATCH
