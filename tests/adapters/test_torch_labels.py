"""Labels as they come: given to `batch`, to the model, or to the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from collapsemeter import ClassMoments, measure
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.scope import label_tensor

Y = torch.arange(12) % 3
CPU = torch.device("cpu")


def mlp(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))


# batch(labels)


@pytest.mark.parametrize(
    "labels",
    [
        Y,
        Y.int(),
        Y.to(torch.uint8),
        Y[:, None],
        Y.tolist(),
        Y.numpy(),
        Y.numpy().astype(np.uint8),
        F.one_hot(Y),
        F.one_hot(Y).float(),
        F.one_hot(Y).bfloat16(),
        F.one_hot(Y).bool(),
    ],
    ids=[
        "int64",
        "int32",
        "uint8",
        "(B,1)",
        "list",
        "numpy",
        "numpy uint8",
        "one-hot",
        "floats",
        "bfloat16",
        "bool",
    ],
)
def test_labels_of_many_kinds_are_the_same(labels):
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(labels):
        net(torch.randn(12, 4))
    assert meter.compute()["2"].per_class["count"].tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.tensor([0, 3] * 6),
            "label 3 at row 1 is outside 0..2 (num_classes=3) and is not ignore_index=-100",
        ),
        (torch.tensor([0, -1] * 6), "label -1 at row 1 is outside 0..2"),
        (
            Y.float(),
            "labels have dtype float32 and shape (12,): pass integer classes 0..2, or one-hot rows of 3",
        ),
        (torch.full((12, 3), 1 / 3), "labels have dtype float32 and shape (12, 3)"),
        (torch.tensor([0, 255] * 6, dtype=torch.uint8), "label 255 at row 1 is outside 0..2"),
    ],
)
def test_a_wrong_label_is_named_before_anything_is_counted(labels, message):
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        meter.batch(labels)
    assert message in str(caught.value)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 12


def test_labels_of_another_length_name_both_shapes_and_nothing_is_half_counted():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    for _ in range(2):
        with (
            pytest.raises(
                ValueError, match=r"features of shape \(12, 8\) and labels have shape \(5,\)"
            ),
            meter.batch(Y[:5]),
        ):
            net(torch.randn(12, 4))
        with meter.batch(Y):
            net(torch.randn(12, 4))
    report = meter.compute()
    assert not report.warnings
    assert report["2"].provenance["rows"] == 24


def test_an_ignored_label_is_left_out_and_another_ignore_index_is_honoured():
    net = mlp()
    meter = CollapseMeter(net, ignore_index=255, verbose=False)
    labels = Y.clone()
    labels[:3] = 255
    with meter.batch(labels):
        net(torch.randn(12, 4))
    report = meter.compute()["2"]
    assert (report.provenance["rows"], report.provenance["ignored_rows"]) == (9, 3)


def test_labels_that_arrive_twice_are_refused_and_the_first_batch_stays():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y):
        with (
            pytest.raises(
                ValueError,
                match=r"labels of shape \(5,\) arrive while labels of shape \(12,\) wait",
            ),
            meter.batch(Y[:5]),
        ):
            pass
        net(torch.randn(12, 4))
    assert meter.compute().provenance["rows"] == 12


def test_the_loop_may_write_into_its_labels():
    net, labels = mlp(), Y.clone()
    meter = CollapseMeter(net, exact=True, verbose=False)
    with meter.batch(labels):
        labels.fill_(1)
        net(torch.randn(12, 4))
    labels.fill_(2)
    assert meter.compute()["2"].per_class["count"].tolist() == [4, 4, 4]


def test_labels_that_cannot_be_written_are_read():
    labels = Y.numpy().copy()
    labels.flags.writeable = False
    assert label_tensor(labels, 3, -100, CPU).tolist() == Y.tolist()


def test_a_loop_may_write_into_its_labels():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    for labels in (Y.clone(), Y.clone().int(), Y.clone()[:, None]):
        with meter.batch(labels):
            net(torch.randn(12, 4))
        labels.fill_(0)
    assert meter.compute()["2"].per_class["count"].tolist() == [12, 12, 12]


@pytest.mark.parametrize("ignored", [-100, 1])
def test_labels_to_ignore_are_not_sampled(ignored):
    net = mlp()
    meter = CollapseMeter(net, ignore_index=ignored, verbose=False)
    labels = torch.where(Y == 1, ignored, Y)
    with meter.batch(labels):
        net(torch.randn(12, 4))
    assert meter.compute()["2"].provenance["nc4_rows"] == 8


class OnDevice(torch.Tensor):
    """Labels that claim to be elsewhere: their values are not looked at."""

    @property
    def device(self):
        return torch.device("cuda")


def test_labels_on_a_device_are_checked_there():
    def elsewhere(labels):
        return labels.as_subclass(OnDevice)

    assert label_tensor(elsewhere(torch.tensor([[0], [7]])), 3, -100, CPU).tolist() == [0, 7]
    one_hot = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    assert label_tensor(elsewhere(one_hot), 2, -100, CPU).tolist() == [1, -1]
    with pytest.raises(
        ValueError, match=r"labels have dtype torch.float32 and shape \(3,\): pass integer"
    ):
        label_tensor(elsewhere(torch.rand(3)), 2, -100, CPU)


def test_invalid_labels_counted_on_the_device_are_reported():
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    batch = meter.batch(Y)
    batch._labels = torch.cat([Y[:-2], torch.tensor([7, -1])])  # as from a device: not checked
    with batch:
        net(torch.randn(12, 4))
    with pytest.warns(
        RuntimeWarning, match=r"got 2 labels outside 0..2 that are not ignore_index=-100"
    ):
        assert meter.compute()["2"].provenance["rows"] == 10


# labels= of the model


class Classifier(nn.Module):
    """As in transformers: keyword arguments, loss inside, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc, self.fails = nn.Linear(4, 8), nn.Linear(8, 3), None

    def forward(self, x=None, attention_mask=None, labels=None):
        h = self.body(x).tanh()
        if self.fails is not None:
            raise self.fails
        logits = self.fc(h)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return {"loss": loss, "logits": logits}


def test_labels_given_to_the_model_are_counted():
    net = Classifier()
    meter = CollapseMeter(net, layers="body", verbose=False)
    x = torch.randn(12, 4)
    for _ in range(2):
        net(x=x, labels=Y)["loss"].backward()
    net(x=x)  # no labels
    net.eval()
    net(x=x, labels=Y)
    net.train()
    with torch.no_grad():
        net(x=x, labels=Y)
    report = meter.compute()
    assert report.provenance["rows"] == 24
    assert not report.warnings
    assert report["fc"]["nc4_mismatch"] >= 0


def test_labels_given_to_both_are_those_of_the_batch():
    net = Classifier()
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(Y.flip(0)):
        net(x=torch.randn(12, 4), labels=Y)
    assert meter.compute().provenance["rows"] == 12


@pytest.mark.parametrize("error", [ZeroDivisionError("theirs"), KeyboardInterrupt()])
def test_an_exception_in_a_labelled_forward_is_the_users_and_counting_goes_on(error):
    net = Classifier()
    meter = CollapseMeter(net, layers="body", verbose=False)
    x = torch.randn(12, 4)
    net(x=x, labels=Y)
    net.fails = error
    with pytest.raises(type(error)):
        net(x=x, labels=Y)
    net.fails = None
    meter.observe([(x, Y)], progress=False)  # nothing is left open
    net(x=x, labels=Y)
    with pytest.warns(RuntimeWarning, match="interrupted"):
        report = meter.compute()
    assert (report["body"].provenance["rows"], report["fc"].provenance["rows"]) == (36, 24)


def test_bad_labels_of_the_model_do_not_stop_it():
    net = Classifier()
    meter = CollapseMeter(net, verbose=False)
    net(x=torch.randn(12, 4), labels=Y)
    bad = Y.clone()
    bad[0] = 2
    right = meter.settings
    meter.settings = replace(
        right, num_classes=2
    )  # the labels are right for the model and wrong for the meter
    with pytest.warns(RuntimeWarning, match=r"could not measure layer 'labels='.*\(ValueError"):
        net(x=torch.randn(12, 4), labels=bad)
    meter.settings = right
    net(x=torch.randn(12, 4), labels=Y)
    with pytest.warns(RuntimeWarning, match="labels= failed and was left out: ValueError"):
        assert meter.compute().provenance["rows"] == 24


def test_labels_of_the_model_that_do_not_fit_a_layer_do_not_stop_it():
    class Ignores(Classifier):
        def forward(self, x=None, labels=None):
            return super().forward(x=x)

    net = Ignores()
    meter = CollapseMeter(net, verbose=False)
    net(x=torch.randn(12, 4), labels=Y)
    with pytest.warns(RuntimeWarning, match=r"could not measure layer 'labels='.*\(5,\)"):
        net(x=torch.randn(12, 4), labels=Y[:5])
    net(x=torch.randn(12, 4), labels=Y)
    with pytest.warns(RuntimeWarning, match="labels= failed and was left out"):
        assert meter.compute()["fc"].provenance["rows"] == 24
    strict = CollapseMeter(net, strict=True, verbose=False)
    meter.close()
    with pytest.raises(ValueError, match=r"labels have shape \(5,\)"):
        net(x=torch.randn(12, 4), labels=Y[:5])
    strict.close()


def test_a_model_without_parameters_is_on_the_host():
    net = nn.Sequential(nn.Identity())
    meter = CollapseMeter(net, layers="0", num_classes=3, verbose=False)
    with meter.batch(Y):
        net(torch.randn(12, 4))
    resumed = CollapseMeter(net, layers="0", num_classes=3, verbose=False)
    resumed.load_state_dict(meter.state_dict())
    assert resumed.compute()["0"].provenance["rows"] == 12


class TinyCausalLM(Classifier): ...


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_a_causal_language_model_predicts_the_next_token(wrap):
    inner = TinyCausalLM()
    net = wrap(inner)
    meter = CollapseMeter(net, ignore_index=-7, verbose=False)
    x, labels = torch.randn(3, 4, 4), torch.randint(0, 3, (3, 4))
    net(x=x, labels=labels)
    rows = inner.body(x).tanh()[:, :-1].flatten(0, 1).detach().numpy()
    truth = measure(ClassMoments.from_batch(rows, labels[:, 1:].flatten().numpy(), 3))
    found = meter.compute()["fc"]
    assert found["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=1e-5)
    assert found.provenance["ignored_rows"] == 3


# criterion=


def test_labels_given_to_the_loss_are_counted():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, layers="1", criterion=loss, verbose=False)
    x = torch.randn(12, 4)
    for _ in range(3):  # gradient accumulation
        loss(net(x), Y).backward()
    loss(net(x), target=Y)
    net.eval()
    loss(net(x), Y)
    net.train()
    with torch.no_grad():
        loss(net(x), Y)
    loss(torch.randn(12, 3), Y)  # of another model
    net(x)  # without a loss
    loss(net(x), Y)
    report = meter.compute()
    assert report.provenance["rows"] == 60
    assert not report.warnings
    direct = CollapseMeter(mlp(), layers="1", verbose=False)
    for _ in range(5):
        with direct.batch(Y):
            direct._model(x)
    assert dict(report["2"]) == dict(direct.compute()["2"])


def test_a_batch_and_a_criterion_count_once():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    with meter.batch(Y):
        loss(net(torch.randn(12, 4)), Y).backward()
    assert meter.compute().provenance["rows"] == 12


def test_a_criterion_counts_every_position():
    net = nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), nn.Conv1d(8, 3, 1))
    loss = nn.CrossEntropyLoss()
    meter = CollapseMeter(net, layers="1", num_classes=3, head=None, criterion=loss, verbose=False)
    loss(net(torch.randn(4, 2, 5)), torch.randint(0, 3, (4, 5)))
    assert meter.compute()["1"].provenance["nc4_rows"] == 20


def test_a_functional_loss_is_refused():
    with pytest.raises(
        ValueError,
        match=r"criterion=<function cross_entropy.* is not an nn.Module: pass the loss as a module",
    ):
        CollapseMeter(mlp(), criterion=F.cross_entropy, verbose=False)
    with pytest.raises(ValueError, match=r"criterion= does not work under torch.compile"):
        CollapseMeter(
            torch.compile(mlp(), backend="eager"), criterion=nn.CrossEntropyLoss(), verbose=False
        )


def test_a_loss_without_labels_is_refused():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    output = net(torch.randn(12, 4))
    with pytest.raises(
        ValueError, match="criterion CrossEntropyLoss was called without labels as second argument"
    ):
        loss(output)
    meter.close()


def test_a_criterion_refuses_a_model_compiled_later():
    torch.compiler.reset()
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    run = torch.compile(net, backend="eager")
    with pytest.raises(RuntimeError, match=r"criterion= does not work under torch.compile"):
        loss(run(torch.randn(12, 4)), Y)
    meter.close()
    loss(run(torch.randn(12, 4)), Y)
    torch.compiler.reset()
