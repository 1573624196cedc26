"""One pass with frozen weights: any iterable, every mode as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from collapsemeter import CollapseReport
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.namespace import has_float64
from collapsemeter_torch.reporting import Reporter

X, Y = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 3)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, x, shift=0.0):
        self.seen.append((self.training, torch.is_inference_mode_enabled()))
        return self.fc(self.drop(torch.tanh(self.norm(self.body(x + shift)))))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


@pytest.mark.parametrize(
    "batches",
    [
        [(X[:12], Y[:12]), (X[12:], Y[12:])],
        ((x, y) for x, y in zip(X.split(7), Y.split(7), strict=True)),
        DataLoader(TensorDataset(X, Y), batch_size=10),
        DataLoader(Stream(), batch_size=10),
        [{"x": X, "shift": 0.0, "labels": Y}],
        [(X.numpy(), Y.numpy())],
        [[(X, 0.0), Y]],
        [({"x": X}, Y)],
    ],
    ids=["list", "generator", "DataLoader", "stream", "dict", "numpy", "arguments", "keywords"],
)
def test_any_iterable_of_batches(batches):
    net = Net()
    net.drop.eval()  # a part that its owner froze
    meter = CollapseMeter(net, layers="norm", verbose=False)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = meter.observe(batches, progress=False)
    assert set(net.seen) == {(False, True)}
    assert (net.training, net.norm.training, net.drop.training) == (True, True, False)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert report.provenance["rows"] == 24
    expected = CollapseMeter(Net(), layers="norm", verbose=False).observe([(X, Y)], progress=False)
    for name, value in expected["fc"].items():
        assert report["fc"][name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name


def test_the_live_count_is_not_touched():
    net = Net()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(X)
    before = meter.state_dict()
    meter.observe([(X, Y)], progress=False)
    after = meter.state_dict()
    assert (before["expected"], before["next_row"]) == (after["expected"], after["next_row"])
    for one, other in zip(before["layers"], after["layers"], strict=True):
        assert all(torch.equal(one["tensors"][k], other["tensors"][k]) for k in one["tensors"])


def test_an_exception_restores_modes_and_hooks():
    net = Net()
    meter = CollapseMeter(net, verbose=False)

    def batches():
        yield X, Y
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        meter.observe(batches(), progress=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        meter.observe([(torch.randn(24, 5), Y)], progress=False)
    assert net.training
    assert net._forward_hooks, "what was attached before is attached"
    assert not torch.is_inference_mode_enabled()
    with meter.batch(Y):
        net(X)
    assert meter.compute().provenance["rows"] == 24


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "observe got no batch from list: pass (inputs, labels) pairs"),
        (
            [X],
            "observe got a Tensor of shape (24, 4), and each batch is a pair (inputs, labels) or a dict with 'labels'",
        ),
        (
            [(X, X, Y)],
            "observe got a tuple of 3 (a Tensor of shape (24, 4), a Tensor of shape (24, 4), a Tensor of",
        ),
        (
            [{"x": X}],
            "observe got a dict with the keys 'x' and no 'labels': pass a pair (inputs, labels) for each batch",
        ),
        ([(X, Y[:5])], "features of shape (24, 8) and labels have shape (5,)"),
    ],
)
def test_what_is_no_batch_is_named(batches, message):
    meter = CollapseMeter(Net(), verbose=False)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        meter.observe(batches, progress=False)
    assert message in str(caught.value)


def test_phases():
    meter = CollapseMeter(Net(), verbose=False)
    assert meter.observe([(X, Y)], progress=False).phase == "frozen-eval"
    assert meter.observe([(X, Y)], phase="frozen-train", progress=False).phase == "frozen-train"
    with pytest.raises(ValueError, match="phase='live': choose 'frozen-eval' or 'frozen-train'"):
        meter.observe([(X, Y)], phase="live")


def test_progress_goes_to_standard_error(capsys):
    CollapseMeter(Net(), verbose=False).observe(DataLoader(Stream(), batch_size=10))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "observing" in printed.err


def test_a_closed_meter_observes_and_leaves_no_hook():
    net = Net()
    meter = CollapseMeter(net, verbose=False)
    meter.close()
    assert meter.observe([(X, Y)], progress=False).provenance["rows"] == 24
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_compiled_model_is_observed_eagerly():
    torch.compiler.reset()
    net = Net()
    run = torch.compile(net, backend="eager")
    run(X)
    meter = CollapseMeter(run, layers="norm", verbose=False)
    report = meter.observe([(X, Y)], progress=False)
    assert not report.warnings
    assert {layer.provenance["rows"] for layer in report.values()} == {24}
    torch.compiler.reset()


def test_observing_inside_a_batch_is_refused():
    net = Net()
    meter = CollapseMeter(net, verbose=False)
    with (
        pytest.raises(ValueError, match=r"arrive while labels of shape \(24,\) wait"),
        meter.batch(Y),
    ):
        meter.observe([(X, Y[:24])], progress=False)
    assert net.training


def test_a_causal_model_is_observed_with_the_labels_of_the_next_token():
    class TinyCausalLM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.lm_head = nn.Embedding(5, 8), nn.Linear(8, 5)

        def forward(self, input_ids, attention_mask=None):
            return self.lm_head(self.emb(input_ids))

    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (6, 7)))
    meter = CollapseMeter(TinyCausalLM(), verbose=False)
    report = meter.observe([{"input_ids": tokens, "labels": tokens}], progress=False)
    assert report["lm_head"].provenance["rows"] == 6 * 6
    assert report["lm_head"]["nc1_cdnv"] > 1e-3  # with its own input as label it would be nothing


def test_a_frozen_pass_sums_in_float64_and_a_training_in_float32(monkeypatch):
    stores = []
    monkeypatch.setattr(
        Reporter,
        "report",
        lambda reporter, store, *rest, **more: stores.append(store) or CollapseReport({}),
    )
    net = Net()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        net(X)
    meter.compute()
    meter.observe([(X, Y)], progress=False)
    live, frozen = (store.layers["fc", 0] for store in stores)
    assert live.sums.sums.dtype == live.sample_rows.dtype == torch.float32
    assert (frozen.sums.sums.dtype, frozen.sample_rows.dtype) == (torch.float64, torch.float32)


@pytest.mark.parametrize("error", [TypeError, RuntimeError])
def test_a_device_without_float64_sums_in_float32(error, monkeypatch):
    meter = CollapseMeter(Net(), verbose=False)
    expected = meter.observe([(X, Y)], progress=False)

    def refused(*shape, **options):
        raise error("no float64 on this device")

    with monkeypatch.context() as patched:
        patched.setattr("collapsemeter_torch.namespace.torch.ones", refused)
        assert not has_float64(torch.device("cpu"))
        found = meter.observe([(X, Y)], progress=False)
    assert found["fc"]["nc1_pinv"] == pytest.approx(expected["fc"]["nc1_pinv"], rel=1e-4)
    assert found["fc"]["nc1_pinv"] != expected["fc"]["nc1_pinv"]
