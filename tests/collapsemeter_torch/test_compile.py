"""torch.compile: exact counts or a loud warning, few graphs, no graph break."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from collapsemeter import ClassMoments, measure
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.compiled import anything_compiled, graphs_may_come, mark, unmark

Y = torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.act = nn.Linear(4, 8), nn.Tanh()
        self.mid, self.fc = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.mid(self.act(self.body(x))).tanh())


def step(run: nn.Module, meter: CollapseMeter, rows: int = 12) -> torch.Tensor:
    labels = torch.arange(rows) % 3
    with meter.batch(labels):
        loss = F.cross_entropy(run(torch.randn(rows, 4)), labels)
    loss.backward()
    return loss


def counted(meter: CollapseMeter) -> dict[str, int]:
    report = meter.compute()
    assert not report.warnings
    return {name: layer.provenance["rows"] for name, layer in report.items()}


def test_hooks_before_the_first_call_are_exact():
    net = Net()
    meter = CollapseMeter(net, layers=["act", "mid"], verbose=False)
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        step(run, meter)
    assert counted(meter) == {"act": 48, "mid": 48, "fc": 48}


@pytest.mark.parametrize("given", ["inner", "compiled"])
def test_hooks_after_the_first_call_are_exact(given):
    net = Net()
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    run(torch.randn(12, 4)).sum().backward()
    meter = CollapseMeter(net if given == "inner" else run, layers=["act", "mid"], verbose=False)
    for _ in range(3):
        step(run, meter)
    assert counted(meter) == {"act": 36, "mid": 36, "fc": 36}
    meter.close()
    assert not [m for m in net.modules() if "forward" in m.__dict__]
    assert run(torch.randn(12, 4)).shape == (12, 3)


def test_a_twin_compiled_before_does_not_lend_its_graph():
    twin, net = Net(), Net()
    torch.compile(twin, backend="eager")(torch.randn(12, 4))
    meter = CollapseMeter(net, layers=["act", "mid"], verbose=False)
    run = torch.compile(net, backend="eager")
    for _ in range(3):
        step(run, meter)
    assert counted(meter) == {"act": 36, "mid": 36, "fc": 36}


def test_sequential_twins_do_not_lend_their_graphs():
    def make():
        return nn.Sequential(
            nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
        )

    torch.compile(make(), backend="eager")(torch.randn(12, 4))
    net = make()
    meter = CollapseMeter(net, verbose=False)
    run = torch.compile(net, backend="eager")
    for _ in range(3):
        step(run, meter)
    assert counted(meter) == {"1": 36, "4": 36}


# torch.compile itself looks at .grad of what a compiled block is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_regional_compile_of_identical_blocks_counts_the_one_inside():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x):
            return x + self.act(self.linear(x))

    net = nn.Sequential(*(Block() for _ in range(4)), nn.Linear(4, 3))
    for block in net[:4]:
        block.compile(backend="eager")
    net(torch.randn(12, 4))
    meter = CollapseMeter(net, layers=["2.act"], verbose=False)
    for _ in range(3):
        step(net, meter)
    assert counted(meter) == {"2.act": 36, "4": 36}


def test_compiled_first_under_no_grad_counts_training_and_observes():
    net = Net()
    run = torch.compile(net, backend="aot_eager")
    with torch.no_grad():
        run(torch.randn(12, 4))
    meter = CollapseMeter(run, layers=["mid"], verbose=False)
    for _ in range(2):
        step(run, meter)
    frozen = meter.observe([(torch.randn(12, 4), Y)], progress=False)
    assert frozen["mid"].provenance["rows"] == 12
    with torch.no_grad():
        run(torch.randn(12, 4))
    step(run, meter)
    assert counted(meter) == {"mid": 36, "fc": 36}


def test_eval_batches_of_a_compiled_model_are_counted_when_asked():
    net = Net()
    meter = CollapseMeter(net, layers=["mid"], count_eval=True, verbose=False)
    run = torch.compile(net, backend="eager")
    step(run, meter)
    net.eval()
    with torch.no_grad(), meter.batch(Y):
        run(torch.randn(12, 4))
    with torch.inference_mode(), meter.batch(Y):
        run(torch.randn(12, 4))
    net.train()
    step(run, meter)
    assert counted(meter) == {"mid": 48, "fc": 48}


def test_eval_batches_of_a_compiled_model_are_not_counted_by_default():
    net = Net()
    meter = CollapseMeter(net, layers=["mid"], verbose=False)
    run = torch.compile(net, backend="eager")
    step(run, meter)
    net.eval()
    with meter.batch(Y):
        run(torch.randn(12, 4))
    net.train()
    with torch.no_grad(), meter.batch(Y):
        run(torch.randn(12, 4))
    assert counted(meter) == {"mid": 12, "fc": 12}


def test_the_graph_without_hooks_used_again_is_noticed():
    net = Net()
    run = torch.compile(net, backend="eager")
    run(torch.randn(12, 4))
    meter = CollapseMeter(net, layers=["mid"], example=torch.randn(2, 4), verbose=False)
    unmark(meter._attachment.marked)  # as if the mark did not work
    step(run, meter)
    with pytest.warns(RuntimeWarning) as caught:
        report = meter.compute()
    assert {layer.reason("nc1_pinv") for layer in report.values()} == {"never_fired"}
    for warning in caught:
        assert "or torch.compile made a graph of it before the meter was attached" in str(
            warning.message
        )


def test_a_graph_is_foreseen_once_torch_compile_is_called():
    torch.optim.SGD(Net().parameters(), lr=0.1)  # imports the compiler, and exempts itself from it
    assert not graphs_may_come()
    torch.compile(Net(), backend="eager")
    assert graphs_may_come()


def test_rows_of_a_graph_that_was_not_foreseen_are_missed_and_the_step_goes_on(monkeypatch):
    monkeypatch.setattr("collapsemeter_torch.scope.graphs_may_come", lambda: False)
    net = Net()
    meter = CollapseMeter(net, layers=["mid"], verbose=False)
    step(torch.compile(net, backend="eager", fullgraph=True), meter)
    with pytest.warns(RuntimeWarning, match="or torch.compile made a graph of it"):
        report = meter.compute()
    assert {layer.reason("nc1_pinv") for layer in report.values()} == {"never_fired"}


def test_graphs_stay_few_and_constant():
    net = Net()
    meter = CollapseMeter(net, layers=["act", "mid"], verbose=False)
    counter = CompileCounter()
    run = torch.compile(net, backend=counter, fullgraph=True)
    frames = []
    for epoch in range(4):
        for _ in range(15):
            step(run, meter)
        meter.compute()
        meter.reset()
        run(torch.randn(12, 4))  # no labels
        frames.append(counter.frame_count)
        assert epoch == 0 or frames[-1] == frames[0]
    # With labels while the states are made, with labels after, and without.
    assert frames[0] <= 4


def test_batch_sizes_and_ragged_ends_make_few_graphs():
    net = Net()
    meter = CollapseMeter(net, layers=["act"], verbose=False)
    counter = CompileCounter()
    run = torch.compile(net, backend=counter, fullgraph=True)
    for rows in (12, 12, 7, 12, 9, 30, 11, 12, 25):
        step(run, meter, rows)
    assert counter.frame_count <= 5
    assert counted(meter) == {"act": 130, "fc": 130}


def test_no_graph_break():
    net = Net()
    meter = CollapseMeter(net, layers=["act", "mid"], verbose=False)
    run = torch.compile(net, backend="eager")
    for _ in range(3):
        step(run, meter)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("scatter", ["class", "pooled", "sketch", "trace"])
def test_compiled_sums_are_the_eager_sums(scatter):
    net = Net()
    meter = CollapseMeter(net, layers=["act", "mid"], scatter=scatter, verbose=False)
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    xs = [torch.randn(12, 4) for _ in range(5)]
    for x in xs:
        with meter.batch(Y):
            run(x).sum().backward()
    rows = net.act(net.body(torch.cat(xs))).detach().numpy()
    truth = measure(ClassMoments.from_batch(rows, Y.repeat(5).numpy(), 3, scatter=scatter))
    report = meter.compute()
    assert report["act"]["nc1_cdnv"] == pytest.approx(truth["nc1_cdnv"], rel=1e-5)
    if scatter != "trace":
        assert report["act"]["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=1e-5)
    assert report["fc"]["nc4_mismatch"] >= 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize("scatter", ["auto", pytest.param("sketch", marks=pytest.mark.nightly)])
def test_inductor_reduces_inside_its_graph(scatter):
    net = Net()
    x = torch.randn(12, 4)
    run = torch.compile(net, fullgraph=True)
    run(x).sum().backward()  # yesterday's loop, without our line
    meter = CollapseMeter(net, layers=["act"], scatter=scatter, verbose=False)
    for _ in range(3):
        with meter.batch(Y):
            loss = run(x).sum()
        loss.backward()
    rows = net.act(net.body(torch.cat([x] * 3))).detach().numpy()
    truth = measure(ClassMoments.from_batch(rows, Y.repeat(3).numpy(), 3, scatter=scatter))
    report = meter.compute()
    assert report["act"]["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=1e-5)
    assert report.provenance["rows"] == 36


def test_a_misfit_under_compile_is_a_named_error():
    net = Net()
    meter = CollapseMeter(net, layers=["act"], verbose=False)
    run = torch.compile(net, backend="eager", fullgraph=True)
    step(run, meter)
    with (
        pytest.raises(
            ValueError, match=r"layer 'act' gave features of shape \(9, 8\).*shape \(12,\)"
        ),
        meter.batch(Y),
    ):
        run(torch.randn(9, 4))
    step(run, meter)
    report = meter.compute()
    assert {layer.provenance["rows"] for layer in report.values()} == {24}


def test_a_failure_of_ours_under_compile_leaves_the_step_alone():
    net = Net()

    def broken(output):
        raise RuntimeError("a fault of ours")

    meter = CollapseMeter(net, layers=["act"], reduction={"act": broken}, verbose=False)
    run = torch.compile(net, backend="eager")
    x = torch.randn(12, 4)
    expected = net(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with meter.batch(Y):
                assert torch.equal(run(x), expected)
    assert sum("could not measure layer 'act'" in str(w.message) for w in caught) == 1
    with pytest.warns(RuntimeWarning, match="layer 'act' failed"):
        report = meter.compute()
    assert report["act"].flags == ("degraded",)
    assert report["fc"].provenance["rows"] == 36


def test_reset_state_dict_and_detach_under_compile():
    net = Net()
    meter = CollapseMeter(net, layers=["act"], verbose=False)
    run = torch.compile(net, backend="eager", fullgraph=True)
    for _ in range(2):
        step(run, meter)
    saved = meter.state_dict()
    meter.reset()
    step(run, meter)
    assert counted(meter) == {"act": 12, "fc": 12}
    meter.load_state_dict(saved)
    step(run, meter)
    assert counted(meter) == {"act": 36, "fc": 36}
    with pytest.raises(ZeroDivisionError), meter.batch(Y):
        raise ZeroDivisionError
    step(run, meter)
    assert counted(meter) == {"act": 48, "fc": 48}
    meter.close()
    run(torch.randn(12, 4))
    assert counted(meter) == {"act": 48, "fc": 48}


def test_exact_nc4_is_not_claimed_under_compile():
    net = Net()
    meter = CollapseMeter(net, layers=["act"], exact=True, sample_rows=8, verbose=False)
    run = torch.compile(net, backend="eager")
    step(run, meter)
    with pytest.warns(RuntimeWarning) as caught:
        report = meter.compute()
    assert (
        "layer 'act' has NC4 of 8 of 12 rows though exact=True: rows and decisions are not kept"
        in str(caught[0].message)
    )
    assert report["act"].provenance["nc4_sampled"]


def test_labels_keyword_of_a_compiled_model():
    class Labelled(Net):
        def forward(self, x, labels=None):
            logits = super().forward(x)
            return logits if labels is None else F.cross_entropy(logits, labels)

    run = torch.compile(Labelled(), backend="eager")
    meter = CollapseMeter(run, layers=["act"], verbose=False)
    for _ in range(3):
        run(torch.randn(12, 4), labels=Y).backward()
    assert counted(meter) == {"act": 36, "fc": 36}
    meter.close()
    inner = Labelled()
    meter = CollapseMeter(inner, layers=["act"], verbose=False)
    torch.compile(inner, backend="eager")(torch.randn(12, 4), labels=Y)
    with pytest.warns(
        RuntimeWarning, match="unless the compiled model itself is passed to CollapseMeter"
    ):
        meter.compute()


def test_marks_are_only_made_where_a_graph_exists_and_are_undone():
    net = nn.Linear(2, 2)
    assert not anything_compiled()
    assert mark([net]) == []
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.randn(1, 2))
    assert anything_compiled()
    first, second = mark([net]), mark([net])
    assert [module for module, _ in second] == [net]
    unmark(first)  # that of a meter which is gone: another one relies on its own
    assert "forward" in net.__dict__
    unmark(second)
    assert "forward" not in net.__dict__


def test_a_forward_that_someone_else_put_on_the_instance_stays():
    net = nn.Linear(2, 2)
    torch.compile(nn.Linear(2, 2), backend="eager")(torch.randn(1, 2))
    marked = mark([net])
    theirs = lambda x: x  # noqa: E731
    net.forward = theirs
    unmark(marked)
    assert net.__dict__["forward"] is theirs


def test_copies_of_a_marked_model_are_inert():
    net = Net()
    torch.compile(net, backend="eager")(torch.randn(12, 4))
    meter = CollapseMeter(net, layers=["act"], example=torch.randn(2, 4), verbose=False)
    assert "forward" in net.act.__dict__
    x = torch.randn(12, 4)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            other.fc.weight.zero_()
        assert torch.equal(other(x), other.fc.bias.expand(12, 3))
        with meter.batch(Y):
            other(x)
        assert all(not state.sums.counts.any() for state in meter._recorder.live.layers.values())
        meter.reset()
    assert net.fc.weight.any()
