"""every=, max_rows= and the measured overhead: counts are those of the chosen batches, and of no other."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from collapsemeter import CollapseReport
from collapsemeter_torch import CollapseMeter

Y = torch.arange(12) % 3


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def mlp(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*parts)


def inputs(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(12, 4, generator=generator) for _ in range(count)]


def watch(net: nn.Module, **options) -> CollapseMeter:
    return CollapseMeter(net, **{"layers": ["1"], "verbose": False, "sample_rows": 16, **options})


def feed(meter: CollapseMeter, run: nn.Module, xs: list[torch.Tensor]) -> CollapseMeter:
    for x in xs:
        with meter.batch(Y):
            loss = nn.functional.cross_entropy(run(x), Y)
        loss.backward()
    return meter


def same(a: CollapseMeter, b: CollapseMeter) -> None:
    """Bit for bit: every tensor that was counted, and how many rows are due."""

    def counted(meter: CollapseMeter) -> dict:
        state = meter.state_dict()
        return {key: value for key, value in state.items() if key != "steps"}

    assert equal(counted(a), counted(b))


def equal(a: object, b: object) -> bool:
    """Whether two states are the same to the last bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        bits = [x.contiguous().view(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("options", [{}, {"exact": True}])
@pytest.mark.parametrize("every", [2, 3, 7])
def test_every_kth_batch_is_counted_and_no_other(every, options):
    meter = feed(watch(net := mlp(), every=every, **options), net, inputs(8))
    only = feed(watch(net := mlp(), **options), net, inputs(8)[::every])
    same(meter, only)
    report, expected = meter.compute(), only.compute()
    assert not report.warnings
    assert dict(report["4"]) == dict(expected["4"])
    assert report.provenance["rows"] == 12 * len(inputs(8)[::every])
    assert report.provenance["last_step"] == 7
    assert report.provenance["budget"] == {
        "every": every,
        "max_rows": None,
        "batches_left_out": 8 - len(inputs(8)[::every]),
    }
    assert "budget" not in expected.provenance


def test_rows_are_counted_up_to_a_limit_and_after_a_reset_again():
    meter = watch(net := mlp(), max_rows=30, every=2)
    for _ in range(2):
        feed(meter, net, inputs(9))  # 12 rows each: 30 are reached with the third counted
        same(meter, feed(watch(other := mlp()), other, inputs(9)[:5:2]))
        report = meter.compute()
        assert not report.warnings
        assert [layer.provenance["rows"] for layer in report.values()] == [36, 36]
        assert report.provenance["budget"]["batches_left_out"] == 6
        assert report.provenance["budget"]["max_rows_reached"] is True
        meter.reset()
    feed(meter, net, inputs(1))
    assert meter.compute().provenance["budget"]["max_rows_reached"] is False


def test_a_batch_left_out_is_not_looked_at():
    def refused(output):
        raise AssertionError("the output of a batch that is left out was reduced")

    net = mlp()
    meter = watch(net, every=3, reduction={"1": "flatten"}, strict=True)
    feed(meter, net, inputs(1))
    for handle_owner in net.modules():
        for hook in handle_owner._forward_hooks.values():
            if hasattr(hook, "reduction"):
                hook.reduction = refused
                hook.axes.clear()  # what it remembers of the first batch
    scopes = []
    net[0].register_forward_hook(lambda *_: scopes.append(meter._recorder.live.next_row))
    with meter.batch(object()):  # its labels neither
        net(inputs(1)[0])
    with meter.batch(Y):
        net(inputs(1)[0])
    assert scopes == [12, 12]
    with pytest.raises(AssertionError, match="was reduced"), meter.batch(Y):
        net(inputs(1)[0])


def test_batches_that_do_not_train_are_no_part_of_the_count():
    meter = watch(net := mlp(), every=2)
    for x in inputs(6):
        feed(meter, net, [x])
        net.eval()
        feed(meter, net, [torch.ones(12, 4)])
        net.train()
        with torch.no_grad(), meter.batch(Y):
            net(torch.ones(12, 4))
        with pytest.raises(ZeroDivisionError), meter.batch(Y):
            raise ZeroDivisionError
    same(meter, feed(watch(other := mlp()), other, inputs(6)[::2]))


def test_a_model_set_to_train_inside_the_block_goes_on():
    meter = watch(net := mlp(), every=2)
    for x in inputs(5):
        net.eval()
        with meter.batch(Y):
            net.train()
            net(x)
    same(meter, feed(watch(other := mlp()), other, inputs(5)[::2]))


def test_observe_takes_every_batch():
    meter = watch(net := mlp(), every=5, max_rows=12)
    feed(meter, net, inputs(2))
    report = meter.observe([(x, Y) for x in inputs(4)], progress=False)
    assert report.provenance["rows"] == 48
    assert not report.provenance.keys() & {"budget", "overhead"}


def test_labels_that_come_with_the_loss():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = watch(net, every=3, criterion=loss)
    kept = []
    for x in inputs(7):  # accumulated: no step of an optimiser between
        output = net(x)
        kept.append(len(meter._recorder.pending.forwards[-1].outputs))
        loss(output, Y).backward()
        loss(torch.zeros(12, 3), Y)  # of another model
    assert kept == [3, 0, 0, 3, 0, 0, 3]  # copies of what waits for its labels: two layers, scores
    net(torch.ones(12, 4))  # without a loss
    same(meter, feed(watch(other := mlp()), other, inputs(7)[::3]))
    assert not meter.compute().warnings


def test_a_block_and_a_criterion_are_one_batch():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = watch(net, every=2, criterion=loss)
    for x in inputs(5):
        with meter.batch(Y):
            output = net(x)
        loss(output, Y)
    same(meter, feed(watch(other := mlp()), other, inputs(5)[::2]))


def test_a_loss_whose_turn_has_passed_is_no_batch():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = watch(net, every=2, criterion=loss, example=inputs(1)[0])
    waiting = net[:4](inputs(1)[0])
    assert meter._recorder.pending.forwards
    feed(meter, net, inputs(1))  # its forward has cleared what waited
    loss(net[4](waiting), Y)  # no forward of the network
    loss(torch.zeros(12, 3), Y)
    assert meter.compute().provenance["rows"] == 12
    assert meter._recorder.next_step == 1


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x, labels=None):
        return nn.functional.cross_entropy(self.body(x), labels)


def test_labels_given_to_the_model():
    net = Labelled()
    meter = CollapseMeter(net, layers=["body.1"], sample_rows=16, every=3, verbose=False)
    only = CollapseMeter(Labelled(), layers=["body.1"], sample_rows=16, verbose=False)
    for number, x in enumerate(inputs(7)):
        net(x, labels=Y).backward()
        if number % 3 == 0:
            only._model(x, labels=Y)
    same(meter, only)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_batches_are_those_of_a_compiled_model_that_is_fed_no_others():
    net = mlp()
    meter = watch(net, every=3)
    feed(meter, torch.compile(net, backend="aot_eager", fullgraph=True), inputs(8))
    torch.compiler.reset()
    other = mlp()
    only = watch(other)
    feed(only, torch.compile(other, backend="aot_eager", fullgraph=True), inputs(8)[::3])
    same(meter, only)
    report = meter.compute()
    assert not report.warnings
    assert report.provenance["overhead"] is None
    assert "inside graphs of torch.compile" in report.provenance["overhead_note"]


@pytest.mark.usefixtures("_fresh_compiler")
def test_alternation_costs_one_graph():
    def graphs(**options) -> int:
        torch.compiler.reset()
        counter = CompileCounter()
        net = mlp()
        run = torch.compile(net, backend=counter, fullgraph=True)
        meter, seen = watch(net, **options), []
        for _ in range(3):
            feed(meter, run, inputs(8))
            meter.reset()
            seen.append(counter.frame_count)
        assert seen[1:] == seen[:-1]
        return counter.frame_count

    assert graphs(every=3, max_rows=20) == graphs() + 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_saved_meter_continues_in_its_phase():
    whole, first = watch(net := mlp(), every=3, max_rows=40), watch(net, every=3, max_rows=40)
    for x in inputs(12)[:5]:
        with whole.batch(Y), first.batch(Y):
            net(x)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    resumed = watch(net, every=3, max_rows=40)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for x in inputs(12)[5:]:
        with whole.batch(Y), resumed.batch(Y):
            net(x)
    same(whole, resumed)
    ours, theirs = whole.compute().provenance, resumed.compute().provenance
    assert ours["rows"] == theirs["rows"] == 48
    assert ours["budget"] == theirs["budget"]


def test_the_first_batch_after_a_reset_is_counted():
    meter = watch(net := mlp(), every=3)
    for _ in range(3):
        feed(meter, net, inputs(2))
        report = meter.compute()
        assert (report.provenance["batches"], report.provenance["rows"]) == (1, 12)
        meter.reset()
    feed(meter, net, inputs(2))
    provenance = meter.compute().provenance
    assert (provenance["first_step"], provenance["last_step"]) == (6, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0: pass a whole number from 1 up"),
        ({"every": 2.0}, "every=2.0: pass a whole number"),
        ({"max_rows": -1}, "max_rows=-1: pass a whole number from 1 up; or None"),
    ],
)
def test_a_wrong_budget_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        watch(mlp(), **options)


# Overhead


def overhead(net: nn.Module, steps: int, **options) -> float:
    meter = feed(watch(net, scatter="pooled", **options), net, inputs(steps))
    return meter.compute().provenance["overhead"]


@pytest.fixture
def _no_batch_waits(monkeypatch):
    monkeypatch.setattr("collapsemeter_torch.waiting.MOST_ROWS", 1)


@pytest.mark.usefixtures("_no_batch_waits")
def test_the_overhead_is_a_share_and_smaller_where_batches_are_left_out():
    # Wide enough that a product of 12 x 700 x 700, five million of them, dwarfs a step of 700 x 10.
    # The least of three: a machine that is busy elsewhere stretches now the step, now the meter.
    shares = [min(overhead(mlp(700), 201, every=every) for _ in range(3)) for every in (1, 10)]
    assert 0 < shares[1] < shares[0] < 1
    assert shares[0] > 0.3


@pytest.mark.usefixtures("_no_batch_waits")
def test_the_overhead_of_labels_that_come_with_the_loss():
    net, loss = mlp(700), nn.CrossEntropyLoss()
    meter = watch(net, scatter="pooled", criterion=loss)
    for x in inputs(9):
        loss(net(x), Y).backward()
    assert 0.3 < meter.compute().provenance["overhead"] < 1


def test_the_overhead_is_not_known_before_a_step_has_ended_and_begins_anew():
    meter = watch(net := mlp())
    feed(meter, net, inputs(1))
    assert meter.compute().provenance["overhead"] is None
    feed(meter, net, inputs(1))
    assert 0 < meter.compute().provenance["overhead"] < 1
    saved = meter.state_dict()
    meter.reset()
    feed(meter, net, inputs(1))
    assert meter.compute().provenance["overhead"] is None
    meter.load_state_dict(saved)
    assert "none has" in meter.compute().provenance["overhead_note"]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_one_compiled_block_among_others_hides_the_overhead():
    net = mlp()
    net[1].compile(backend="eager")
    meter = feed(watch(net, layers=["1", "3"]), net, inputs(3))
    report = meter.compute()
    assert report.provenance["overhead"] is None
    assert [layer.provenance["rows"] for layer in report.values()] == [36, 36, 36]


def test_the_budget_and_the_overhead_survive_a_file(tmp_path):
    meter = feed(watch(net := mlp(), every=2), net, inputs(4))
    report = meter.compute()
    (tmp_path / "report.json").write_text(report.to_json())
    assert CollapseReport.load(tmp_path / "report.json").provenance == report.provenance


def test_a_batch_left_out_inside_another_is_refused_like_any():
    meter = watch(net := mlp(), every=2)
    feed(meter, net, inputs(1))
    with (
        pytest.raises(ValueError, match="labels left out by the budget arrive while labels left o"),
        meter.batch(Y),
        meter.batch(Y),
    ):
        pass
