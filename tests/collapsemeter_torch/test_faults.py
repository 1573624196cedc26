"""What goes wrong in real training loops, and what must happen; each test is named after that."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import threading
import tracemalloc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from collapsemeter import ClassMoments, measure
from collapsemeter.stats.sampling import _draws_of
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.inert import Hook

Y = torch.arange(12) % 3


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def hooks_left(*modules: nn.Module) -> list[object]:
    """Everything of ours that is still on any module."""
    left: list[object] = []
    for root in modules:
        for module in root.modules():
            for table in (
                "_forward_hooks",
                "_forward_pre_hooks",
                "_backward_hooks",
                "_backward_pre_hooks",
                "_state_dict_hooks",
            ):
                left += [hook for hook in getattr(module, table).values() if isinstance(hook, Hook)]
            for table in (
                "_forward_hooks_with_kwargs",
                "_forward_hooks_always_called",
                "_forward_pre_hooks_with_kwargs",
            ):
                left += list(getattr(module, table))
            left += ["forward"] if "forward" in module.__dict__ else []
    return left


def broken(output: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("a fault of ours")


# 1


def test_a_failure_of_ours_leaves_the_step_alone_and_warns_once():
    net = mlp()
    x = torch.randn(12, 4)
    expected = net(x)
    meter = CollapseMeter(net, reduction={"1": broken}, verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with meter.batch(Y):
                assert torch.equal(net(x), expected)
    assert [str(warning.message) for warning in caught] == [
        "collapsemeter could not measure layer '1' and leaves it out from here on; training goes on "
        "(RuntimeError: a fault of ours)"
    ]
    with pytest.warns(RuntimeWarning, match="layer '1' failed: RuntimeError: a fault of ours"):
        report = meter.compute()
    assert report["1"].flags == ("degraded",)
    assert report["1"].reason("nc1_pinv") == "degraded"
    assert math.isnan(report["1"]["nc1_pinv"])
    assert report["4"]["nc1_pinv"] > 0
    assert report["4"].provenance["rows"] == 36


@pytest.mark.parametrize(
    "inside", ["device_sums.DeviceSums.update", "waiting.WaitingDecisions.put"]
)
def test_a_failure_deep_inside_leaves_the_step_alone(monkeypatch, inside):
    def fail(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(f"collapsemeter_torch.{inside}", fail)
    net = mlp()
    x = torch.randn(12, 4)
    expected = net(x)
    meter = CollapseMeter(net, verbose=False)
    with pytest.warns(RuntimeWarning, match="MemoryError: no room"), meter.batch(Y):
        assert torch.equal(net(x), expected)
    with pytest.warns(RuntimeWarning, match="failed"):
        report = meter.compute()
    if inside == "device_sums.DeviceSums.update":
        assert report["4"].flags == ("degraded",)
    else:
        assert report["4"].reason("nc4_mismatch") == "no_logits"
        assert report["4"]["nc1_pinv"] > 0
    assert any("failed" in warning for warning in report.warnings)


def test_warnings_made_errors_do_not_stop_training(capsys):
    net = mlp()
    meter = CollapseMeter(net, reduction={"1": broken}, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with meter.batch(Y):
            net(torch.randn(12, 4))
        meter.compute()
    assert "RuntimeWarning: collapsemeter could not measure layer '1'" in capsys.readouterr().err


def test_strict_raises_our_failure():
    net = mlp()
    meter = CollapseMeter(net, reduction={"1": broken}, strict=True, verbose=False)
    with pytest.raises(RuntimeError, match="a fault of ours"), meter.batch(Y):
        net(torch.randn(12, 4))
    assert not hooks_left(net)


def test_a_reset_gives_a_degraded_layer_another_chance():
    net = mlp()
    fails = [True]

    def sometimes(output):
        return broken(output) if fails.pop() else output

    meter = CollapseMeter(net, reduction={"1": sometimes}, verbose=False)
    with pytest.warns(RuntimeWarning, match="leaves it out"), meter.batch(Y):
        net(torch.randn(12, 4))
    meter.reset()
    fails.append(False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    assert meter.compute()["1"]["nc1_pinv"] > 0


# 2


def test_no_hook_can_return_a_value():
    net = mlp()
    example = torch.randn(12, 4)
    meter = CollapseMeter(net, example=example, criterion=nn.CrossEntropyLoss(), verbose=False)
    hooks = [
        hook
        for module in net.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks)
        for hook in table.values()
    ]
    assert len(hooks) == 5
    for hook in hooks:
        assert isinstance(hook, Hook)
        wants_kwargs = type(hook).__name__ in ("HeadInputHook", "KeywordLabelsPreHook")
        is_pre = "Pre" in type(hook).__name__ or wants_kwargs
        output = torch.zeros(12, 3 if type(hook).__name__ == "ScoresHook" else 8)
        extra = ({},) if wants_kwargs else () if is_pre else (output,)
        with meter.batch(Y):
            assert hook(net, (torch.zeros(12, 6),), *extra) is None


# 3


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool, all_of_it: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.fc = nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        return self.fc(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_activation_checkpointing_counts_each_sample_once(reentrant, backward_inside):
    net = Checkpointed(reentrant)
    meter = CollapseMeter(net, layers="block**", verbose=False)
    for _ in range(3):
        with meter.batch(Y):
            loss = net(torch.randn(12, 4, requires_grad=True)).sum()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
    report = meter.compute()
    assert not report.warnings
    assert {layer.provenance["rows"] for layer in report.values()} == {36}


class Nested(Checkpointed):
    def forward(self, x):
        def inner(x):
            return checkpoint(self.block, x, use_reentrant=self.reentrant)

        return self.fc(checkpoint(inner, x, use_reentrant=self.reentrant))


class Forces(Checkpointed):
    """Differentiates inside its forward, as models of molecules do: the block runs again before it ends."""

    def forward(self, x):
        energy = super().forward(x)
        energy.sum().backward(inputs=None if self.reentrant else [x])
        return energy.detach().requires_grad_()


def in_one(net, x):
    return net(x)


def in_parts(net, x):
    """Without the model's own forward nothing says where it ends."""
    return net.fc(checkpoint(net.block, x, use_reentrant=net.reentrant))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(
    ("kind", "call"), [(Nested, in_one), (Forces, in_one), (Checkpointed, in_parts)]
)
def test_a_block_that_runs_again_inside_the_block_of_labels_counts_once(
    kind, call, reentrant, autocast
):
    net = kind(reentrant)
    meter = CollapseMeter(net, layers="block**", example=torch.randn(2, 4), verbose=False)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), meter.batch(Y):
            call(net, torch.randn(12, 4, requires_grad=True)).sum().backward()
    report = meter.compute()
    assert not report.warnings
    assert list(report) == ["block.0", "block.1", "block.2", "block.3", "block", "fc"]
    assert {layer.provenance["rows"] for layer in report.values()} == {36}


def test_a_whole_model_that_is_checkpointed_is_not_said_to_have_run_twice():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with meter.batch(Y):
            checkpoint(net, torch.randn(12, 4), use_reentrant=False).sum().backward()
    assert not caught
    assert {layer.provenance["rows"] for layer in meter.compute().values()} == {12}


# 4


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.mid, self.fc = (
            nn.Linear(4, 8),
            nn.ReLU(),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.fc(self.act(self.mid(self.act(self.stem(x)))))


def test_a_module_called_twice_is_two_layers():
    net = Shared()
    meter = CollapseMeter(net, layers=["act"], verbose=False)
    x = torch.randn(12, 4)
    for _ in range(2):
        with meter.batch(Y):
            net(x)
    report = meter.compute()
    assert list(report) == ["act#0", "act#1", "fc"]
    first = net.stem(x).relu().detach()
    for name, rows in (("act#0", first), ("act#1", net.mid(first).relu().detach())):
        truth = measure(ClassMoments.from_batch(rows.numpy(), Y.numpy(), 3))
        assert report[name]["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=1e-5)
    meter.reset()


def test_one_activation_at_two_widths_is_two_layers():
    net = nn.Sequential(nn.Linear(4, 8), act := nn.ReLU(), nn.Linear(8, 6), act, nn.Linear(6, 3))
    meter = CollapseMeter(net, layers=["1"], verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    assert [layer.provenance["width"] for layer in meter.compute().values()] == [8, 6, 6]


# 5


@pytest.mark.parametrize("with_criterion", [False, True])
def test_an_in_place_operation_after_the_layer_does_not_change_its_statistics(with_criterion):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    x, loss = torch.randn(12, 4), nn.CrossEntropyLoss()
    meter = CollapseMeter(
        net, layers=["0"], criterion=loss if with_criterion else None, verbose=False
    )
    if with_criterion:
        loss(net(x), Y).backward()
    else:
        with meter.batch(Y):
            net(x)
    truth = measure(ClassMoments.from_batch(net[0](x).detach().numpy(), Y.numpy(), 3))
    assert meter.compute()["0"]["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=1e-5)


# 9


def test_copies_of_a_watched_model_are_inert():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    averaged = AveragedModel(net)
    copies = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(buffer, weights_only=False),
        averaged.module,
    ]
    assert list(net.state_dict()) == list(mlp().state_dict())
    x = torch.randn(12, 4)
    for other in copies:
        assert not [
            hook
            for m in other.modules()
            for hook in m._forward_hooks.values()
            if isinstance(hook, Hook)
        ]
        with meter.batch(Y):
            assert torch.equal(other(x), net(x))
        assert meter.compute().provenance["rows"] == 12
        meter.reset()
    other = CollapseMeter(copies[0], verbose=False)
    with other.batch(Y):
        copies[0](x)
    assert other.compute().provenance["rows"] == 12


# 10


def test_attaching_twice_is_attaching_once():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    before = len(hooks_left(net))
    meter.attach()
    meter.attach()
    assert len(hooks_left(net)) == before
    meter.detach()
    assert not hooks_left(net)
    meter.detach()
    with meter.batch(Y):
        net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 12


def test_a_notebook_cell_run_again_leaves_one_set_of_hooks():
    net = mlp()
    meter = CollapseMeter(net, example=torch.randn(2, 4), verbose=False)
    count = len(hooks_left(net))
    meter = CollapseMeter(net, example=torch.randn(2, 4), verbose=False)
    assert len(hooks_left(net)) == count
    with meter.batch(Y):
        net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 12
    del meter
    assert not hooks_left(net)


def test_two_meters_on_one_model_do_not_meet():
    net = mlp()
    one, two = CollapseMeter(net, verbose=False), CollapseMeter(net, layers="0", verbose=False)
    with one.batch(Y), two.batch(Y):
        net(torch.randn(12, 4))
    with one.batch(Y):
        net(torch.randn(12, 4))
    assert (one.compute().provenance["rows"], two.compute().provenance["rows"]) == (24, 12)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_exception_in_the_block_leaves_no_hook_and_counting_goes_on(error):
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    with pytest.raises(error), meter.batch(Y):
        raise error
    assert not hooks_left(net)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    report = meter.compute()
    assert report.provenance["rows"] == 24
    assert not report.warnings


def test_an_exception_in_the_forward_leaves_whole_layers_right():
    net = mlp()
    broken_at = net[2].register_forward_hook(lambda *_: 1 / 0)
    meter = CollapseMeter(net, verbose=False)
    with pytest.raises(ZeroDivisionError), meter.batch(Y):
        net(torch.randn(12, 4))
    broken_at.remove()
    assert not hooks_left(net)
    for _ in range(2):
        with meter.batch(Y):
            net(torch.randn(12, 4))
    with pytest.warns(RuntimeWarning, match="a batch was interrupted: some layers counted it"):
        report = meter.compute()
    assert report["1"].provenance["rows"] == 36
    assert report["4"].provenance["rows"] == 24
    assert math.isfinite(report["1"]["nc1_pinv"])


def test_dropping_the_meter_removes_its_hooks_and_frees_it():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    loss(net(torch.randn(12, 4)), Y)
    alive = weakref.ref(meter)
    gc.disable()
    try:
        del meter
        assert alive() is None  # no reference cycle
    finally:
        gc.enable()
    assert not hooks_left(net, loss)


def test_a_closed_meter_is_gone_from_model_and_loss():
    net, loss = mlp(), nn.CrossEntropyLoss()
    with CollapseMeter(net, criterion=loss, verbose=False):
        assert hooks_left(net, loss)
    assert not hooks_left(net, loss)


# 11


def test_eval_and_no_grad_batches_are_not_counted():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    net.eval()
    with meter.batch(Y):
        net(torch.randn(12, 4))
    net.train()
    with torch.no_grad(), meter.batch(Y):
        net(torch.randn(12, 4))
    with meter.batch(Y), torch.no_grad():
        net(torch.randn(12, 4))
    with meter.batch(Y):
        net.eval()
        net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 12
    with meter.batch(Y):  # entered in eval mode, run in training mode
        net.train()
        net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 24


def test_eval_batches_are_counted_when_asked():
    net = mlp().eval()
    meter = CollapseMeter(net, count_eval=True, verbose=False)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context, meter.batch(Y):
            net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 36


@pytest.mark.parametrize("example", [None, torch.randn(12, 4)])
def test_nothing_counted_has_no_numbers_and_says_what_to_do(example):
    net = mlp()
    meter = CollapseMeter(net, example=example, verbose=False)
    net(torch.randn(12, 4))
    with pytest.warns(
        RuntimeWarning,
        match=r"no labelled batch was counted: wrap the forward in `with meter.batch",
    ):
        report = meter.compute()
    assert all(layer.reason("nc1_pinv") == "never_fired" for layer in report.values())
    assert list(report) == ([] if example is None else meter.selection.watched)


# 12


def wrapped(kind: str, net: nn.Module) -> nn.Module:
    if kind == "DataParallel":
        return nn.DataParallel(net)
    if kind == "AveragedModel":
        return AveragedModel(net)
    if kind == "compile":
        return torch.compile(net, backend="eager")
    if kind == "compile of DataParallel":
        return torch.compile(nn.DataParallel(net), backend="eager")
    if kind == "regional compile":
        net[0] = torch.compile(net[0], backend="eager")
        return net
    return net


@pytest.mark.parametrize(
    "kind",
    ["DataParallel", "AveragedModel", "compile", "compile of DataParallel", "regional compile"],
)
def test_wrappers_do_not_change_layer_names(kind):
    torch.compiler.reset()
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    net, x = nn.Sequential(*blocks, nn.Linear(4, 3)), torch.randn(12, 4)
    plain = CollapseMeter(net, example=x, verbose=False)
    names, skipped = plain.selection.watched, plain.skipped
    plain.close()
    meter = CollapseMeter(wrapper := wrapped(kind, net), example=x, verbose=False)
    assert meter.selection.watched == names
    assert meter.skipped == skipped
    with meter.batch(Y):
        wrapper(x)
    assert list(meter.compute()) == names
    assert meter.compute().provenance["rows"] == 12


def test_distributed_data_parallel_has_the_same_names_and_counts(tmp_path):
    from torch import distributed

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(mlp())
        meter = CollapseMeter(net, verbose=False)
        for _ in range(2):
            with meter.batch(Y):
                loss = net(torch.randn(12, 4)).sum()
            loss.backward()
        report = meter.compute()
        assert list(report) == ["1", "4"]
        assert report.provenance["rows"] == 24
    finally:
        distributed.destroy_process_group()


# 16


def test_memory_stays_flat_and_no_graph_is_retained():
    net = mlp()
    meter = CollapseMeter(net, sample_rows=16, verbose=False)
    x = torch.randn(12, 4)

    def steps(count: int) -> None:
        for _ in range(count):
            with meter.batch(Y):
                net(x).sum().backward()
            net.zero_grad()
        meter._recorder.live.flush()  # of what waits there is sometimes more and sometimes less

    def held() -> tuple[int, int]:
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, "*collapsemeter*")]
        )
        tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        return tensors, sum(trace.size for trace in ours.traces)

    _draws_of.cache_clear()  # eight blocks of 8 kB, which tests before this one may have filled unseen
    tracemalloc.start()
    steps(600)  # as many as below: the last block of both is of as many rows
    tensors, size = held()
    steps(600)
    later_tensors, later_size = held()
    tracemalloc.stop()
    assert later_tensors <= tensors
    assert later_size - size < 30_000  # 50 bytes a step: no tensor is that small
    for state in meter._recorder.live.layers.values():
        assert all(t.grad_fn is None and not t.requires_grad for t in state.tensors().values())


# 18


def test_two_threads_lose_no_update():
    net = mlp()
    meter = CollapseMeter(net, sample_rows=64, verbose=False)
    steps, errors = 150, []

    def work(seed: int) -> None:
        try:
            generator = torch.Generator().manual_seed(seed)
            for _ in range(steps):
                x = torch.randn(12, 4, generator=generator)
                with meter.batch(Y):
                    net(x)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    report = meter.compute()
    assert not report.warnings
    assert report.provenance["rows"] == 2 * steps * 12
    # Their sums are those of both threads' rows.
    rows = torch.cat(
        [
            torch.randn(12, 4, generator=g)
            for g in map(torch.Generator().manual_seed, (0, 1))
            for _ in range(steps)
        ]
    )
    truth = ClassMoments.from_batch(net[:2](rows).detach().numpy(), Y.repeat(2 * steps).numpy(), 3)
    assert report["1"]["nc1_pinv"] == pytest.approx(measure(truth)["nc1_pinv"], rel=1e-4)


def test_a_forward_in_another_thread_has_no_labels_and_is_noticed():
    net = mlp()
    meter = CollapseMeter(net, example=torch.randn(2, 4), verbose=False)
    with meter.batch(Y):
        thread = threading.Thread(target=net, args=(torch.randn(12, 4),))
        thread.start()
        thread.join()
    with pytest.warns(RuntimeWarning) as caught:
        assert meter.compute()["4"].reason("nc1_pinv") == "never_fired"
    assert len(caught) == 2
    assert all("or the forward ran in another thread" in str(one.message) for one in caught)


def test_data_loader_workers_hold_no_state():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    for x, y in DataLoader(data, batch_size=12, num_workers=1):
        with meter.batch(y):
            net(x)
    assert meter.compute().provenance["rows"] == 24


# 19


def test_the_report_says_whether_weights_moved():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    live = meter.compute()
    assert (live.phase, live["4"].provenance["phase"]) == ("live", "live")
    assert {"first_step", "last_step"} <= live.provenance.keys()
    frozen = meter.observe([(torch.randn(12, 4), Y)], phase="frozen-train", progress=False)
    assert (frozen.phase, frozen["4"].provenance["phase"]) == ("frozen-train", "frozen-train")
    assert "first_step" not in frozen.provenance


# Conservation


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = False

    def forward(self, x):
        h = self.stem(x).relu()
        return self.fc(h if self.drop else h + self.block(h))


def test_a_layer_that_is_sometimes_skipped_has_no_value_and_says_why():
    net = Skips()
    meter = CollapseMeter(net, layers=["stem", "block"], verbose=False)
    for net.drop in (False, True, False):
        with meter.batch(Y):
            net(torch.randn(12, 4))
    with pytest.warns(RuntimeWarning) as caught:
        report = meter.compute()
    assert [str(warning.message) for warning in caught] == list(report.warnings)
    (warning,) = report.warnings
    assert warning.startswith(
        "layer 'block' saw 24 of 36 label rows, so it is not measured: some forwards did not pass "
        "through it (stochastic depth, early exit, a replica, a block in which the model did not run)"
    )
    assert report["block"].reason("nc1_pinv") == "rows_missing"
    assert math.isnan(report["block"]["nc1_pinv"])
    assert report["fc"]["nc1_pinv"] > 0


def test_a_model_that_never_ran_in_the_block_is_noticed():
    net = mlp()
    meter = CollapseMeter(net, example=torch.randn(2, 4), verbose=False)
    with meter.batch(Y):
        pass
    with pytest.warns(RuntimeWarning) as caught:
        report = meter.compute()
    assert [str(warning.message) for warning in caught] == list(report.warnings)
    for name, warning in zip(("1", "4"), report.warnings, strict=True):
        assert warning.startswith(
            f"layer {name!r} saw 0 of 12 label rows, so it is not measured: its module was not called "
            "inside `with meter.batch(labels)`"
        )
        assert report[name].reason("nc1_pinv") == "never_fired"


def test_a_model_that_ran_twice_in_a_block_is_counted_once():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    x = torch.randn(12, 4)

    def twice() -> None:
        with meter.batch(Y):
            net(x)
            net(x)

    with pytest.warns(RuntimeWarning, match="the model ran more than once in one"):
        twice()
    report = meter.compute()
    assert report.provenance["rows"] == 12
    assert list(report) == ["1", "4"]


def test_rows_counted_twice_are_noticed():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    meter._recorder.live.layers["1", 0].sums.counts += 4  # as a second, unseen firing would
    with pytest.warns(
        RuntimeWarning, match=r"saw 24 of 12 label rows.*it fired more than once for a batch"
    ):
        assert meter.compute()["1"].reason("nc1_pinv") == "rows_counted_twice"


def test_parts_of_a_model_called_one_by_one_are_counted():
    net = Skips()
    meter = CollapseMeter(net, example=torch.randn(2, 4), verbose=False)
    with meter.batch(Y):
        h = net.stem(torch.randn(12, 4))
        net.fc(net.block(h))
    assert meter.compute()["fc"].provenance["rows"] == 12


def test_a_misfit_in_one_layer_costs_that_layer_and_no_batch():
    net = mlp()
    width = [8]
    meter = CollapseMeter(net, reduction={"1": lambda h: h[:, : width[0]]}, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    width[0] = 5
    message = r"layer '1' gave features of shape \(12, 5\).*another width before"
    with pytest.warns(RuntimeWarning, match="leaves layer '1' out: " + message), meter.batch(Y):
        net(torch.randn(12, 4))
    width[0] = 8
    with meter.batch(Y):
        net(torch.randn(12, 4))
    with pytest.warns(RuntimeWarning, match=message):
        report = meter.compute()
    assert report["1"].reason("nc1_pinv") == "unpaired_rows"
    assert report["4"].provenance["rows"] == 36
