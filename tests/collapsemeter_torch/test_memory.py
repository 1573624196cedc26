"""What a meter holds is what it says, and stays within the memory that is allowed."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from collapsemeter_torch import CollapseMeter

MIB = 2**20
LABELS = torch.arange(12) % 3


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


class Recurrent(nn.Module):
    """One block that runs three times, and so has statistics of three calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = (
            nn.Conv2d(3, 96, 3),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.Linear(96, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x).relu()
        return self.head(x.mean((2, 3)))


def pools() -> nn.Module:
    """A pool says nothing of its channels, and is narrower than they are many."""
    return nn.Sequential(
        nn.Conv2d(3, 200, 3),
        nn.MaxPool2d(2),
        nn.Conv2d(200, 100, 2),
        nn.Flatten(),
        nn.Linear(400, 3),
    )


def held(meter: CollapseMeter) -> int:
    states = meter._recorder.live.layers.values()
    tensors = sum(part.nbytes for state in states for part in state.tensors().values())
    return tensors + sum(state.waiting.nbytes for state in states)


def watched(model: nn.Module, dtype: torch.dtype = torch.float32, **options) -> CollapseMeter:
    meter = CollapseMeter(model.to(dtype), verbose=False, **options)
    with meter.batch(LABELS):
        model(images(dtype))
    return meter


@pytest.mark.parametrize("memory", [1, 4, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model", [Recurrent, pools])
@pytest.mark.parametrize("options", [{}, {"reduction": "flatten"}, {"wide_sums": True}])
def test_a_meter_holds_what_it_says(model, dtype, memory, options):
    meter = watched(model(), dtype, memory=memory, **options)
    said = re.search(r"memory: ([\d.e+]+) MiB", meter.describe())
    states = meter._recorder.live.layers.values()
    bins = sum(state.sample_rows[0].nbytes for state in states)  # of rows that are in no sample
    # It is said in three digits, and counters are not counted.
    assert float(said[1]) * 0.98 * MIB <= held(meter) <= float(said[1]) * 1.006 * MIB + bins + 2**14
    too_much = "more than memory=" in meter.describe()
    assert memory is None or too_much or float(said[1]) <= memory


def test_a_layer_whose_width_only_its_batches_tell_keeps_its_share():
    def patches(x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :2, :2].flatten(1)

    held_with = {}
    for memory in (8, None):
        meter = watched(pools(), memory=memory, reduction={"1": patches})
        assert meter.moments("1").width == 200 * 4
        held_with[memory] = held(meter)
        assert "not of 1, whose width the first batch tells" in meter.describe()
    bins = 2**13  # slots of rows that are in no sample
    assert held_with[8] <= 8 * MIB + bins < held_with[None]


def test_rows_that_waited_where_there_was_more_memory_are_counted():
    model = pools()
    ample = watched(model, memory=None)
    state = ample.state_dict()
    assert all(layer["waiting"] for layer in state["layers"])
    tight = CollapseMeter(model, memory=0.5, example=images(), verbose=False)
    tight.load_state_dict(state)
    assert not any(layer.waiting.count for layer in tight._recorder.live.layers.values())
    reports = []
    for meter in (ample, tight):
        with meter.batch(LABELS):
            model(images() + 1)
        reports.append(meter.compute())
    for name in reports[0]:
        for metric, value in reports[0][name].items():
            assert reports[1][name][metric] == pytest.approx(value, rel=1e-4, nan_ok=True), metric


def test_states_of_before_plans_were_saved_load():
    meter = watched(pools())
    state = meter.state_dict()
    del state["network"]["waiting_rows"], state["network"]["share"]
    resumed = CollapseMeter(pools(), verbose=False)
    resumed.load_state_dict(state)
    assert resumed.moments("4").counts.sum() == 12


def test_a_compiled_graph_chooses_what_a_layer_keeps_without_a_break():
    def narrow(x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :2, :2].flatten(1)

    model = pools()
    meter = CollapseMeter(model, reduction={"1": narrow}, example=images(), verbose=False)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with meter.batch(LABELS):
        compiled(images())
    assert meter.moments("1").counts.sum() == 12
