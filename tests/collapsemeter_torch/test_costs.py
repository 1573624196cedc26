"""What a counted batch costs: few calls, and the bits of training that nobody watches."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from collapsemeter_torch import CollapseMeter

from .running_networks import ResNet, VisionTransformer

Y = torch.arange(64) % 10


def net(hidden: int) -> nn.Sequential:
    layers = [part for _ in range(hidden) for part in (nn.Linear(8, 8), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(8, 10))


def calls(run: Callable[[], object]) -> tuple[int, int]:
    """How many functions of Python, and of C, are called."""
    seen = {"call": 0, "c_call": 0}

    def count(frame: Any, event: str, argument: Any) -> None:
        if event in seen:
            seen[event] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen["call"], seen["c_call"]


def added(layers: int) -> list[int]:
    """How many calls a forward has more than an unwatched one, with so many layers and the head's input."""
    plain, watched, x = net(5), net(5), torch.randn(64, 8)
    names = [str(2 * i + 1) for i in range(layers - 1)]
    meter = CollapseMeter(watched, names or (lambda *_: False), verbose=False)

    def step() -> None:
        with meter.batch(Y):
            watched(x)

    for _ in range(3):
        step()
    assert len(meter.selection.watched) == layers
    return [more - less for more, less in zip(calls(step), calls(lambda: plain(x)), strict=True)]


def test_a_counted_batch_makes_few_calls(monkeypatch):
    """Before, a first layer took 155 calls of Python and 144 of C, and each further one 50 and 49."""
    # Once a process has compiled anything, every batch prepares what a graph may need.
    monkeypatch.setattr("collapsemeter_torch.scope.graphs_may_come", lambda: False)
    by_layers = [added(layers) for layers in (1, 2, 3, 4)]
    assert by_layers[0][0] <= 54
    assert by_layers[0][1] <= 62
    for fewer, more in itertools.pairwise(by_layers):
        assert more[0] - fewer[0] <= 12
        assert more[1] - fewer[1] <= 14


class Dropped(VisionTransformer):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.2, self.training))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Dropout(0.3), nn.Linear(16, 5))


@pytest.mark.parametrize("make", [mlp, ResNet, Dropped])
def test_training_ends_in_the_bits_of_training_that_is_not_watched(make):
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = make()
        meter = CollapseMeter(model, verbose=False) if watched else None
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(6):
            x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
            if meter is None:
                loss = F.cross_entropy(model(x), y)
            else:
                with meter.batch(y):
                    loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(map(torch.equal, *ends))
    assert meter is not None
    assert meter.compute().provenance["rows"] == 36
