"""Groups of rows, from which intervals come: the same in any split, and kept through all that a meter goes through."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments, LayerReport, measure
from collapsemeter.stats.sampling import dealt_groups, low_32_bits
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.blocks import dealt

ROWS, CLASSES = 230, 3
ENDS = ("nc1_trace_ratio", "separation", "nc1_cdnv")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()
    return nn.Sequential(*body, nn.Linear(6, CLASSES)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(ROWS) * 7 % 11 % CLASSES
    return torch.eye(CLASSES, 4, dtype=torch.float64)[y] * 3 + noise, y


def meter_of(net: nn.Module, **options: Any) -> CollapseMeter:
    return CollapseMeter(net, layers=["1"], verbose=False, **options)


def counted(split: int, x: torch.Tensor, y: torch.Tensor, **options: Any) -> LayerReport:
    net = mlp()
    meter = meter_of(net, **options)
    for rows, labels in zip(x.split(split), y.split(split), strict=True):
        with meter.batch(labels):
            net(rows)
    return meter.compute()["4"]


def of_numpy(x: torch.Tensor, y: torch.Tensor, **options: Any) -> LayerReport:
    rows = mlp()[:4](x).detach().numpy()
    return measure(ClassMoments.from_batch(rows, y.numpy(), CLASSES, **options))


def assert_same_intervals(layer: LayerReport, reference: LayerReport) -> None:
    assert set(ENDS) <= reference.intervals.keys()
    for name in reference.intervals:
        np.testing.assert_allclose(layer.intervals[name], reference.intervals[name], rtol=1e-9)
        np.testing.assert_allclose(layer.estimates[name], reference.estimates[name], rtol=1e-9)


@pytest.mark.parametrize("groups", [16, 8, 4])
@pytest.mark.parametrize("split", [1, 7, 64, ROWS])
def test_in_any_split_intervals_are_those_of_numpy(split, groups):
    x, y = data()
    layer = counted(split, x, y, groups=groups)
    assert_same_intervals(layer, of_numpy(x, y, groups=groups))


@pytest.mark.parametrize("split", [7, ROWS])
def test_rows_that_are_left_out_are_in_no_group(split):
    x, y = data()
    x[5], x[100, 2] = torch.nan, torch.nan
    y[[2, 3, 50]] = -100
    layer = counted(split, x, y)
    assert layer.provenance["nonfinite_rows"] == 2
    assert_same_intervals(layer, of_numpy(x, y))


def test_a_frozen_pass_has_the_intervals_too():
    x, y = data()
    batches = list(zip(x.split(50), y.split(50), strict=True))
    report = meter_of(mlp()).observe(batches, progress=False)
    assert_same_intervals(report["4"], of_numpy(x, y))


def test_batches_that_are_not_counted_take_no_numbers():
    x, y = data()
    net = mlp()
    meter = meter_of(net, every=2)
    for rows, labels in zip(x.split(23), y.split(23), strict=True):
        for _ in range(2):
            with meter.batch(labels):
                net(rows)
    assert_same_intervals(meter.compute()["4"], of_numpy(x, y))


def test_without_groups_there_are_no_intervals_and_a_reason():
    layer = counted(50, *data(), groups=0)
    assert not set(ENDS) & layer.intervals.keys()
    assert {layer.no_interval[name] for name in ENDS} == {"no_groups"}
    with pytest.raises(ValueError, match="groups=5: pass 16, 8, 4, or 0"):
        meter_of(mlp(), groups=5)


def half_counted(**options: Any) -> dict[str, Any]:
    x, y = data()
    net = mlp()
    meter = meter_of(net, **options)
    for start in (0, 60):
        with meter.batch(y[start : start + 60]):
            net(x[start : start + 60])
    saved = io.BytesIO()
    torch.save(meter.state_dict(), saved)
    saved.seek(0)
    return torch.load(saved, weights_only=True)


def count_the_rest(meter: CollapseMeter, net: nn.Module) -> LayerReport:
    x, y = data()
    with meter.batch(y[120:]):
        net(x[120:])
    return meter.compute()["4"]


@pytest.mark.parametrize("knows", [False, True], ids=["new", "has run"])
def test_a_loaded_meter_goes_on_with_its_groups(knows):
    net = mlp()
    meter = meter_of(net, example=data()[0] if knows else None)
    meter.load_state_dict(copy.deepcopy(half_counted()))
    assert_same_intervals(count_the_rest(meter, net), of_numpy(*data()))


@pytest.mark.parametrize("knows", [False, True], ids=["new", "has run"])
def test_a_state_without_groups_is_loaded_and_says_so_until_reset(knows):
    state = half_counted(groups=0)
    for kept in state["network"]["holdings"].values():
        del kept[3:]  # as older versions wrote them
    net = mlp()
    meter = meter_of(net, example=data()[0] if knows else None)
    with pytest.warns(RuntimeWarning, match=r"saved without groups.*no intervals for 1, 4"):
        meter.load_state_dict(state)
    layer = count_the_rest(meter, net)
    assert layer.provenance["rows"] == ROWS
    assert layer.no_interval["separation"] == "no_groups"
    meter.reset()
    x, y = data()
    with meter.batch(y):
        net(x)
    assert_same_intervals(meter.compute()["4"], of_numpy(x, y))


def test_a_reset_meter_counts_as_a_new_one():
    x, y = data()
    net = mlp()
    meter = meter_of(net)
    for _ in range(2):
        meter.reset()
        with meter.batch(y):
            net(x)
        assert_same_intervals(meter.compute()["4"], of_numpy(x, y))


def test_a_compiled_model_has_the_same_groups():
    torch.compiler.reset()
    x, y = data()
    net = mlp()
    run = torch.compile(net, backend="eager")
    meter = CollapseMeter(run, layers=["1"], verbose=False, groups=8)
    for rows, labels in zip(x.split(46), y.split(46), strict=True):
        with meter.batch(labels):
            run(rows)
    assert_same_intervals(meter.compute()["4"], of_numpy(x, y, groups=8))
    torch.compiler.reset()


@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(1000, 1100),
        np.where(np.arange(100) % 3, np.arange(100) + 10**6, -1),
        np.arange(100) * 3 + 2,
        np.arange(100) * 512 + 7,
        np.full(5, -1),
        np.arange(0),
    ],
)
def test_rows_are_dealt_by_their_numbers(numbers):
    groups = dealt(numbers.astype(np.int64))
    usable = numbers >= 0
    expected = dealt_groups(numbers[usable], 16, low_32_bits)
    assert groups[usable].tolist() == expected.tolist()
    assert len(groups) == len(numbers)
    assert (groups < 16).all()
