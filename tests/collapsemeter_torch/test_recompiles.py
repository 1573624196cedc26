"""Many meters in one process share graphs: torch.compile makes eight of a code, and runs it eagerly from there on."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.compiled import wrappers
from collapsemeter_torch.scope import SCOPES

METERS = 9  # more than the graphs of one code, were each to have its own
Y = torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    assert not SCOPES.__dict__


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = nn.Conv1d(2, 8, 1), nn.Tanh()
        self.mid, self.fc = nn.Conv1d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.mid(self.act(self.body(x)))).amax(2))


def train(run: nn.Module, meter: CollapseMeter | None = None, steps: int = 3) -> None:
    for _ in range(steps):
        x = torch.randn(12, 2, 5)
        if meter is None:
            F.cross_entropy(run(x), Y).backward()
        else:
            with meter.batch(Y):
                loss = F.cross_entropy(run(x), Y)
            loss.backward()


def rows(meter: CollapseMeter) -> dict[str, int]:
    report = meter.compute()
    assert not report.warnings
    return {name: layer.provenance["rows"] for name, layer in report.items()}


def test_a_sweep_of_models_and_meters_makes_no_more_graphs_than_its_first_two():
    counter, alive, frames = CompileCounter(), [], []
    for _ in range(METERS):
        net = Net()
        meter = CollapseMeter(net, layers=["mid"], verbose=False)
        alive.append(meter)
        run = torch.compile(net, backend=counter, fullgraph=True)
        train(run, meter)
        assert rows(meter) == {"mid": 36, "fc": 36}
        train(run, steps=1)
        frames.append(counter.frame_count)
    assert frames[-1] == frames[1] <= 6  # the second model is marked: there are graphs by then
    assert not torch._dynamo.utils.counters["unimplemented"]


@pytest.mark.parametrize("lasting", [False, True], ids=["remade", "attached again"])
def test_a_meter_of_every_epoch_makes_no_more_graphs_than_the_first_two(lasting):
    counter, net, frames = CompileCounter(), Net(), []
    run = torch.compile(net, backend=counter, fullgraph=True)
    meter = CollapseMeter(net, layers=["mid"], verbose=False)
    for _ in range(METERS):
        if lasting:
            meter.reset()
            meter.attach()
        else:
            meter.close()
            meter = CollapseMeter(net, layers=["mid"], verbose=False)
        train(run, meter)
        assert rows(meter) == {"mid": 36, "fc": 36}
        meter.detach()
        frames.append(counter.frame_count)
    assert frames[-1] == frames[1] <= 4
    assert not torch._dynamo.utils.counters["unimplemented"]


def pooled(output: torch.Tensor) -> torch.Tensor:
    return output.mean(2)


def largest(output: torch.Tensor) -> torch.Tensor:
    return output.amax(2)


FEW: list[dict[str, Any]] = [
    {"reduction": {"mid": pooled}},
    {"reduction": {"mid": largest}},
    {"layers": ["body"]},
]
MANY: list[dict[str, Any]] = [
    {"layers": ["body", "mid"]},
    {"reduction": {"mid": "flatten"}},
    {"sample_rows": 8},
    {"scatter": "trace"},
    {"nonfinite": "raise"},
    {"ignore_index": 2},
    {"wide_sums": True},
]


@pytest.mark.parametrize(
    ("settings", "when"),
    [
        (FEW, "before"),
        pytest.param(FEW, "after", marks=pytest.mark.nightly),
        pytest.param(MANY, "before", marks=pytest.mark.nightly),
        pytest.param(MANY, "after", marks=pytest.mark.nightly),
    ],
)
# Each of these needs graphs of its own.
@torch._dynamo.config.patch(recompile_limit=64)
def test_a_graph_is_not_shared_by_meters_that_differ(settings, when):
    nets = [Net() for _ in settings]

    def meter(i: int) -> CollapseMeter:
        return CollapseMeter(nets[i], **({"layers": ["mid"], "verbose": False} | settings[i]))

    # Those that are there before anything is compiled leave no mark on their layers.
    meters = [meter(i) for i in range(len(nets))] if when == "before" else []
    for i, net in enumerate(nets):
        if when == "after":
            meters.append(meter(i))
        torch.manual_seed(i)
        train(torch.compile(net, backend="eager"), meters[i])
    for i, net in enumerate(nets):
        report = meters[i].compute()
        meters[i].close()
        eager = meter(i)
        torch.manual_seed(i)
        with torch.compiler.set_stance("force_eager"):
            train(net, eager)
        reference = eager.compute()
        assert not report.warnings
        assert list(report) == list(reference)
        for name, layer in reference.items():
            for metric in layer.keys() - {"nc1_vci"}:  # divides by variances of few rows
                assert report[name][metric] == pytest.approx(layer[metric], rel=1e-4, nan_ok=True)
            assert report[name].provenance["nc4_rows"] == layer.provenance["nc4_rows"]


def test_a_teacher_in_the_block_of_its_student_is_not_counted():
    nets = Net(), Net()
    student, teacher = (CollapseMeter(net, layers=["mid"], verbose=False) for net in nets)
    learns, teaches = (torch.compile(net, backend="eager", fullgraph=True) for net in nets)
    for _ in range(3):
        train(teaches, teacher)
        x = torch.randn(12, 2, 5)
        with student.batch(Y):
            teaches(x)
            learns(x).sum().backward()
        with student.batch(Y), teacher.batch(Y):
            learns(x).sum().backward()
            teaches(x)
        with teacher.batch(Y), student.batch(Y):
            teaches(x)
            learns(x).sum().backward()
    assert rows(student) == {"mid": 108, "fc": 108}
    assert rows(teacher) == {"mid": 180, "fc": 180}


def test_a_batch_that_is_open_in_another_thread_is_not_counted_here():
    nets = Net(), Net()
    meters = [CollapseMeter(net, layers=["mid"], verbose=False) for net in nets]
    runs = [torch.compile(net, backend="eager") for net in nets]
    for run, meter in zip(runs, meters, strict=True):
        train(run, meter)
    opened, done = threading.Event(), threading.Event()

    def other() -> None:
        with meters[1].batch(Y):
            opened.set()
            assert done.wait(60)
            runs[1](torch.randn(12, 2, 5))

    thread = threading.Thread(target=other)
    thread.start()
    assert opened.wait(60)
    runs[1](torch.randn(12, 2, 5))  # no batch of this thread
    with meters[0].batch(Y):
        runs[1](torch.randn(12, 2, 5))
        runs[0](torch.randn(12, 2, 5))
    done.set()
    thread.join()
    assert [rows(meter) for meter in meters] == [{"mid": 48, "fc": 48}] * 2


def test_compiled_models_around_a_model_are_looked_for_only_after_torch_compile(monkeypatch):
    net = Net()
    torch.optim.SGD(net.parameters(), lr=0.1)  # imports the compiler
    with monkeypatch.context() as patch:
        patch.setattr(gc, "get_objects", lambda: pytest.fail("looked at all objects"))
        assert wrappers(net) == []
    run, other = (torch.compile(model, backend="eager") for model in (net, Net()))
    assert wrappers(net) == [run]
    assert wrappers(other._orig_mod) == [other]
    assert wrappers(Net()) == []
