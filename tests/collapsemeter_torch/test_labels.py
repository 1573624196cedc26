"""Labels as they come: given to `batch`, to the model, or to the loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from collapsemeter import ClassMoments, measure
from collapsemeter.audit import audit
from collapsemeter.stats.labels import class_labels
from collapsemeter.stats.sums import MIXED, UNLABELLED
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.labels import label_tensor

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
        Y.float(),
        Y.double()[:, None],
        Y.half(),
        Y.bfloat16()[:, None],
        Y.to(torch.uint16),
        [*Y],
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
        "float32",
        "float64 (B,1)",
        "float16",
        "bfloat16 (B,1)",
        "uint16",
        "list of tensors",
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
            Y + 0.5,
            "label 0.5 at row 0 is no whole number: labels of dtype float32 and shape (12,) must be",
        ),
        (
            torch.full((12, 3), 1 / 3),
            "labels have dtype float32 and shape (12, 3), and 12 of 12 rows name several classes",
        ),
        (torch.tensor([0, 255] * 6, dtype=torch.uint8), "label 255 at row 1 is outside 0..2"),
    ],
)
def test_a_wrong_label_is_named_before_anything_is_counted(labels, message):
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    with pytest.raises(ValueError) as caught, meter.batch(labels):  # noqa: PT011 # the text follows
        net(torch.randn(12, 4))  # it tells how many classes there are
    assert message in str(caught.value)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
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


def elsewhere(labels):
    return labels.as_subclass(OnDevice)


def as_from_a_device(labels, classes):
    return label_tensor(elsewhere(labels), classes, -100, CPU).as_subclass(torch.Tensor)


DEVICE_FORMS = {
    "int64": Y,
    "int32 column": Y.int()[:, None],
    "uint8": Y.to(torch.uint8),
    "uint16": Y.to(torch.uint16),
    "float": Y.float(),
    "bfloat16 column": Y.bfloat16()[:, None],
    "float8": Y.to(torch.float8_e4m3fn),
    "one-hot": F.one_hot(Y),
    "one-hot bool": F.one_hot(Y).bool(),
    "one-hot float16": F.one_hot(Y).half(),
}


@pytest.mark.parametrize("form", DEVICE_FORMS)
def test_labels_on_a_device_mean_what_they_mean_on_the_host(form):
    labels = DEVICE_FORMS[form]
    found = label_tensor(elsewhere(labels), 3, -100, CPU)
    assert found.tolist() == label_tensor(labels, 3, -100, CPU).tolist() == Y.tolist()
    assert found.dtype == torch.int64
    assert found.data_ptr() != labels.data_ptr()
    # No value may be needed to know the shape.
    assert label_tensor(labels.to("meta"), 3, -100, torch.device("meta")).shape == (12,)


def test_labels_on_a_device_that_are_no_class_are_told_apart_there():
    def codes(labels, classes, ignore_index=-100):
        return label_tensor(elsewhere(torch.tensor(labels)), classes, ignore_index, CPU).tolist()

    assert codes([[0], [7]], 3) == [0, 7]
    soft = [[0.0, 1.0], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0], [float("nan"), 1.0]]
    assert codes(soft, 2) == [1, MIXED, UNLABELLED, MIXED, MIXED]
    assert codes([[0, 0, 0], [0, 0, 1], [1, 0, 1], [0, 2, 0]], 3) == [UNLABELLED, 2, MIXED, MIXED]
    assert codes([[0.0], [1.0], [0.9]], 2) == [0, 1, MIXED]
    assert codes([2.0, 1.5, float("nan"), 1e30, -100.0], 3) == [2, 3, 3, 3, -100]
    assert codes([2.0, 1.5], 3, ignore_index=3) == [2, 4]  # not taken for a label to ignore
    for labels, classes, text in (
        (
            torch.ones(3, dtype=torch.bool),
            3,
            r"labels have dtype bool and shape \(3,\): pass integer",
        ),
        (torch.ones(3).half(), 5000, "float16 does not tell whole numbers above 2048 apart"),
    ):
        with pytest.raises(ValueError, match=text):
            label_tensor(elsewhere(labels), classes, -100, CPU)


def test_integers_of_a_mask_are_tokens_however_they_look():
    labels, mask = torch.tensor([[0, 1, 0], [0, 0, 1]]), torch.ones(2, 3)
    for given in (labels, elsewhere(labels)):
        assert label_tensor(given, 3, -100, CPU).tolist() == [1, 2]
        assert label_tensor(given, 3, -100, CPU, mask).tolist() == labels.tolist()


@pytest.mark.parametrize("on_device", [False, True])
def test_rows_that_name_no_single_class_are_left_out_and_counted(on_device):
    """All zeros are not class 0, several ones not the first, and a mixture not its largest part."""
    net, x = mlp(), torch.randn(12, 4)
    labels = F.one_hot(Y).float()
    labels[:2], labels[5], labels[9] = 0, torch.tensor([0.9, 0.1, 0]), torch.tensor([1.0, 0, 1])
    meter = CollapseMeter(net, verbose=False)
    batch = meter.batch(labels)
    if on_device:
        batch.labels = as_from_a_device(labels, 3)
    with batch:
        net(x)
    with pytest.warns(
        RuntimeWarning, match="left out, 2 because their one-hot label is all zeros and 2 because"
    ):
        report = meter.compute()["2"]
    kept = [2, 3, 4, 6, 7, 8, 10, 11]
    plain = CollapseMeter(net, verbose=False)
    with plain.batch(Y[kept]):
        net(x[kept])
    due = plain.compute()["2"]
    assert report["nc1_pinv"] == pytest.approx(due["nc1_pinv"], rel=1e-5)
    assert report.per_class["count"].tolist() == due.per_class["count"].tolist()
    found = report.provenance
    assert (found["unlabelled_rows"], found["mixed_rows"], found["nc4_rows"]) == (2, 2, 8)
    assert {"unlabelled_rows", "mixed_rows"} <= set(report.flags)


def test_labels_that_are_mostly_multi_label_have_no_number():
    """On a device nobody can look at a batch; the report refuses instead."""
    net = mlp()
    meter = CollapseMeter(net, verbose=False)
    labels = torch.ones(12, 3)
    labels[:5] = F.one_hot(Y[:5])
    batch = meter.batch(Y)
    batch.labels = as_from_a_device(labels, 3)
    with batch:
        net(torch.randn(12, 4))
    with pytest.warns(
        RuntimeWarning, match=r"7 of 12 labels name several classes or parts of them"
    ):
        report = meter.compute()["2"]
    assert np.isnan(report["nc1_pinv"])
    assert report.flags == ("mixed_labels",)


def test_labels_of_minus_one_and_one_are_never_counted_in_silence():
    net = mlp(2)
    signs = (Y % 2) * 2 - 1
    meter = CollapseMeter(net, num_classes=2, verbose=False)
    for labels in (signs, signs.float()[:, None]):
        with pytest.raises(ValueError, match=r"pass \(labels \+ 1\) // 2, which are 0 and 1"):
            meter.batch(labels)
    batch = meter.batch(Y % 2)
    batch.labels = as_from_a_device(signs, 2)
    with batch:
        net(torch.randn(12, 4))
    with pytest.warns(
        RuntimeWarning, match=r"8 labels that are none .* passed as \(labels \+ 1\) // 2"
    ):
        meter.compute()
    ignoring = CollapseMeter(net, ignore_index=-1, verbose=False)
    with ignoring.batch(signs):
        net(torch.randn(12, 4))
    with pytest.warns(
        RuntimeWarning, match=r"no row of class 0, and 8 of label -1, which is ignore_index"
    ):
        ignoring.compute()


@pytest.mark.parametrize("sketched", [False, True])
def test_a_class_to_ignore_takes_no_place_in_the_sample(sketched):
    """Its rows have no number: the sample, and a sketch, are those of the other rows alone."""
    net, x = mlp(), torch.randn(600, 4)
    y = torch.arange(600) % 3
    options = {"sample_rows": 16, "scatter": "sketch" if sketched else "auto", "verbose": False}
    meters = [CollapseMeter(net, ignore_index=i, **options) for i in (1, -100)]
    for meter, rows in zip(meters, (y >= 0, y != 1), strict=True):
        with meter.batch(y[rows]):
            net(x[rows])
    found, due = (meter.compute()["2"] for meter in meters)
    assert found.provenance["nc4_rows"] == due.provenance["nc4_rows"] == 16
    for metric in ("nc4_mismatch", "ncc_accuracy"):
        assert found[metric] == due[metric]
    assert found["nc1_pinv"] == pytest.approx(due["nc1_pinv"], rel=1e-4)


def test_invalid_labels_counted_on_the_device_are_reported():
    net = mlp()
    meter = CollapseMeter(net, num_classes=3, verbose=False)
    batch = meter.batch(Y)
    batch.labels = torch.cat([Y[:-2], torch.tensor([7, -1])])  # as from a device: not checked
    with batch:
        net(torch.randn(12, 4))
    with pytest.warns(
        RuntimeWarning, match=r"got 2 labels that are none of the classes 0..2 and not ignore_index"
    ):
        assert meter.compute()["2"].provenance["rows"] == 10


def test_the_core_takes_tensors():
    plain = torch.tensor([0, 1, 1])
    for labels in (
        plain,
        plain.float().requires_grad_(),
        plain.bfloat16(),
        plain.to(torch.uint16),
        plain.bool()[:, None],
        [*plain],
        F.one_hot(plain),
        F.one_hot(plain).bfloat16(),
    ):
        assert ClassMoments.from_batch(np.eye(3), labels, 2).counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match="bfloat16 does not tell whole numbers above 256 apart"):
        class_labels(plain.bfloat16(), 300)


def test_a_dump_and_a_saved_meter_keep_the_causes(tmp_path):
    net, x = mlp(), torch.randn(12, 4)
    labels = F.one_hot(Y).float()
    labels[:2], labels[9] = 0, torch.tensor([1.0, 0, 1])
    meter = CollapseMeter(net, verbose=False)
    meter.dump([(x, labels), (x, Y.float()[:, None])], tmp_path, progress=False)
    with meter.batch(labels):
        net(x)
    state = meter.state_dict()
    resumed = CollapseMeter(net, verbose=False)
    resumed.load_state_dict(state)
    with pytest.warns(RuntimeWarning, match="their one-hot label is all zeros"):
        reports = [audit(str(tmp_path)), resumed.compute()]
    for report in reports:
        found = report["2"].provenance
        assert (found["unlabelled_rows"], found["mixed_rows"]) == (2, 1)
    # As a version wrote it that had no such counters.
    meter.reset()
    with meter.batch(Y):
        net(x)
    meter.compute()  # what waits is added up
    old = meter.state_dict()
    for layer in old["layers"]:
        del layer["tensors"]["unlabelled"], layer["tensors"]["mixed"]
    resumed.load_state_dict(old)
    assert dict(resumed.compute()["2"]) == dict(meter.compute()["2"])


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
    live = meter._recorder.live  # the labels are right for the model and wrong for the meter
    live.settings = replace(meter.settings, num_classes=2)
    with pytest.warns(RuntimeWarning, match=r"could not measure layer 'labels='.*\(ValueError"):
        net(x=torch.randn(12, 4), labels=bad)
    live.settings = meter.settings
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


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_float_labels_of_a_binary_model(shape):
    """As ``labels=`` of a model with one logit, which feeds them to BCEWithLogitsLoss."""

    class Binary(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 1)

        def forward(self, x=None, labels=None):
            logits = self.fc(self.body(x).tanh()).view(shape)
            if labels is None:
                return logits
            return F.binary_cross_entropy_with_logits(logits, labels)

    net, x, y = Binary(), torch.randn(12, 4), Y % 2
    meter = CollapseMeter(net, num_classes=2, verbose=False)
    net(x=x, labels=y.float().view(shape))
    direct = CollapseMeter(net, num_classes=2, verbose=False)
    reports = [meter.compute()]
    with direct.batch(y):
        net(x=x, labels=y.float().view(shape))
    reports += [
        direct.compute(),
        meter.observe([{"x": x, "labels": y.float().view(shape)}], progress=False),
    ]
    for report in reports:
        assert not report.warnings
        assert report["fc"].per_class["count"].tolist() == [8, 4]
    assert dict(reports[0]["fc"]) == dict(reports[1]["fc"])
    assert reports[2]["fc"]["nc1_pinv"] == pytest.approx(reports[1]["fc"]["nc1_pinv"], rel=1e-5)


# criterion=


@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()], ids=["logits", "probabilities"]
)
@pytest.mark.parametrize("squeezed", [False, True])
def test_a_binary_loss_gives_float_labels_and_decisions(loss, squeezed):
    net, x, y = mlp(1), torch.randn(12, 4), Y % 2
    meter = CollapseMeter(net, num_classes=2, criterion=loss, verbose=False)
    scores = net(x)
    targets = y.float()[:, None]
    if isinstance(loss, nn.BCELoss):
        scores = scores.sigmoid()
    loss(scores[:, 0] if squeezed else scores, targets[:, 0] if squeezed else targets).backward()
    report = meter.compute()["2"]
    direct = CollapseMeter(net, num_classes=2, verbose=False)
    with direct.batch(y):
        net(x)
    due = direct.compute()["2"]
    assert due.provenance["nc4_rows"] == 12
    assert dict(report) == dict(due)


def test_a_binary_loss_of_maps_gives_one_label_a_position():
    net = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
    loss = nn.BCEWithLogitsLoss()
    meter = CollapseMeter(net, layers="1", num_classes=2, head=None, criterion=loss, verbose=False)
    targets = torch.randint(0, 2, (4, 1, 5, 3))
    loss(net(torch.randn(4, 2, 5, 3)), targets.float())
    report = meter.compute()["1"]
    assert report.per_class["count"].tolist() == [int((targets == c).sum()) for c in (0, 1)]
    assert report.provenance["nc4_rows"] == 60


def test_soft_labels_of_a_loss_do_not_stop_the_loop():
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    x = torch.randn(12, 4)
    loss(net(x), Y).backward()
    loss(net(x), torch.full((12, 3), 1 / 3)).backward()
    with pytest.warns(RuntimeWarning, match=r"'criterion='.* 12 of 12 rows name several classes"):
        loss(net(x), Y).backward()
    with pytest.warns(RuntimeWarning, match="criterion= failed and was left out: ValueError"):
        assert meter.compute().provenance["rows"] == 24
    meter.close()
    strict = CollapseMeter(net, criterion=loss, strict=True, verbose=False)
    loss(net(x), torch.full((12, 3), 1 / 3))
    with pytest.raises(ValueError, match="12 of 12 rows name several classes"):
        strict.compute()
    strict.close()


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


class Margin(nn.Module):
    """As the losses of metric learning: the weights of the head are the loss's own."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(*shape))

    def forward(self, features, labels):
        weight = self.W if self.W.shape[1] == features.shape[1] else self.W.T
        cosines = nn.functional.linear(
            nn.functional.normalize(features), nn.functional.normalize(weight)
        )
        return nn.functional.cross_entropy(8 * cosines, labels)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("given", [{}, {"head": None}, {"num_classes": 3}])
def test_features_that_a_loss_makes_scores_of_are_no_scores(shape, given):
    """Their width is no number of classes, and the last Linear is no head."""
    net, loss = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)), Margin(*shape)
    x = torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False, **given)
    said = rf"criterion Margin has a parameter 'W' of shape \({shape[0]}, {shape[1]}\) for the 5 columns"
    with pytest.warns(RuntimeWarning, match=said):
        loss(net(x), Y).backward()
    with pytest.warns(RuntimeWarning):
        report = meter.compute()
    assert not report.layers
    assert report.warnings[-1].endswith("pass num_classes= and head=None")
    meter.close()
    right = CollapseMeter(net, criterion=loss, verbose=False, num_classes=3, head=None)
    loss(net(x), Y).backward()
    moments = ClassMoments.from_batch(net(x).detach().double().numpy(), Y.numpy(), 3)
    report = right.compute()
    assert report["2"]["nc1_pinv"] == pytest.approx(measure(moments)["nc1_pinv"], rel=1e-5)
    assert (report.provenance["classes"], report["2"].reason("nc4_mismatch") is None) == (3, False)


def test_a_matrix_between_classes_in_a_loss_leaves_scores_what_they_are():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transition = nn.Parameter(torch.eye(3))

        def forward(self, scores, labels):
            return nn.functional.nll_loss((scores.softmax(1) @ self.transition).log(), labels)

    net, loss = mlp(), Noisy()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    loss(net(torch.randn(12, 4)), Y).backward()
    assert meter.compute()["2"]["nc4_mismatch"] >= 0


@pytest.mark.parametrize("view", [False, True])
def test_a_criterion_knows_the_scores_of_a_network_that_learns_nothing(view):
    """No graph leads from its loss to its scores."""
    net, loss = mlp().requires_grad_(False), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    for _ in range(2):
        scores = net(torch.randn(12, 4))
        loss(scores.view(-1, 3) if view else scores, Y)
    assert meter.compute().provenance["rows"] == 24


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


class Ranked(nn.Module):
    """A loss that keeps its labels to itself."""

    def forward(self, scores):
        return nn.functional.cross_entropy(scores, Y)


def test_a_loss_without_labels_is_said_and_not_disturbed():
    net, loss = mlp(), Ranked()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    with pytest.warns(RuntimeWarning, match="criterion Ranked was called without labels as second"):
        loss(net(torch.randn(12, 4))).backward()
    meter.close()


def counted(net, x, labels):
    """What a meter says of these rows alone."""
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(labels):
        net(x)
    report = dict(meter.compute().final)
    meter.close()
    return report


@pytest.mark.parametrize("labelled_first", [False, True])
def test_the_labels_are_those_of_the_scores_that_the_loss_was_given(labelled_first):
    """Consistency training: a second forward has no labels."""
    net, loss = mlp(), nn.CrossEntropyLoss()
    x, unlabelled = torch.randn(2, 12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    for _ in range(2):
        if labelled_first:
            scores, others = net(x), net(unlabelled)
        else:
            others, scores = net(unlabelled), net(x)
        (loss(scores.log_softmax(1), Y) + (scores - others).square().mean()).backward()
    report = meter.compute()
    assert report.provenance["rows"] == 24
    meter.close()
    direct = CollapseMeter(net, verbose=False)
    for _ in range(2):
        with direct.batch(Y):
            net(x)
    assert dict(report.final) == dict(direct.compute().final)


def test_a_teacher_shares_the_loss():
    net, teacher, loss = mlp(), mlp(), nn.CrossEntropyLoss()
    x = torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    scores = net(x)
    with torch.no_grad():
        loss(teacher(x), 2 - Y)
    loss(teacher(x), 2 - Y)
    loss(scores / 2, Y).backward()
    report = dict(meter.compute().final)
    meter.close()
    assert report == counted(net, x, Y)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.main, self.auxiliary = mlp(8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        features = self.body(x)
        return {"auxiliary": self.auxiliary(features), "logits": self.main(features)}


def test_an_auxiliary_head_is_not_the_scores():
    torch.manual_seed(0)
    net, loss, x = TwoHeads(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    output = net(x)
    (loss(output["auxiliary"], Y) + loss(output["logits"], Y)).backward()
    report = dict(meter.compute().final)
    meter.close()
    assert report == counted(net, x, Y)


def test_mixed_examples_are_left_out():
    """Mixup as tutorials write it: two losses on one output."""
    net, loss, x = mlp(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    others = torch.cat([Y[:6], Y[6:].roll(1)])  # of the first six the partner is of the same class
    scores = net(x)
    (0.3 * loss(scores, Y) + 0.7 * loss(scores, others)).backward()
    final = meter.compute().final
    assert final.provenance["rows"] == 6
    assert final.provenance["mixed_rows"] == 6
    assert final.per_class["count"].tolist() == [2, 2, 2]


def test_what_waits_is_counted_whatever_comes_next():
    net, loss, x = mlp(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    loss(net(x), Y).backward()
    assert meter.observe([(x, Y)], progress=False).provenance["rows"] == 12
    with meter.batch(Y):
        net(x)
    loss(net(x), Y).backward()
    assert meter.moments("2").counts.sum() == 36
    assert meter.compute().provenance["rows"] == 36


def test_two_label_sets_that_do_not_mix_cost_their_batch_and_no_more():
    net, loss, x = mlp(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    scores = net(x)
    (loss(scores, Y) + loss(scores[:6], Y[:6])).backward()
    with pytest.warns(RuntimeWarning, match=r"'criterion='"):
        loss(net(x), Y).backward()
    with pytest.warns(RuntimeWarning, match="criterion= failed"):
        assert meter.compute().provenance["rows"] == 12


def test_one_loss_twice_on_one_output_is_one_batch():
    net, loss, x = mlp(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    scores = net(x)
    (loss(scores, Y) + loss(scores.sin(), Y.clone())).backward()
    assert meter.compute().final.provenance["rows"] == 12


def test_a_loss_of_several_forwards_together_is_said():
    net, loss, x = mlp(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    loss((net(x) + net(-x)) / 2, Y).backward()
    with pytest.warns(
        RuntimeWarning, match="the loss was given scores of several forwards together"
    ):
        meter.compute()


def test_forwards_that_no_loss_follows_do_not_pile_up():
    net, loss, x = mlp(), nn.CrossEntropyLoss(), torch.randn(12, 4)
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    outputs = [net(x) for _ in range(20)]
    assert len(meter._recorder.pending.forwards) == 4
    loss(outputs[-1], Y).backward()
    assert meter.compute().provenance["rows"] == 12


def test_a_criterion_refuses_a_model_compiled_later():
    torch.compiler.reset()
    net, loss = mlp(), nn.CrossEntropyLoss()
    meter = CollapseMeter(net, criterion=loss, verbose=False)
    run = torch.compile(net, backend="eager")
    with pytest.warns(RuntimeWarning, match=r"criterion= does not work under torch.compile"):
        loss(run(torch.randn(12, 4)), Y)
    meter.close()
    loss(run(torch.randn(12, 4)), Y)
    torch.compiler.reset()


def test_mixed_examples_may_have_the_class_of_their_largest_part():
    """As mixup and CutMix of torchvision give labels: rolled, and weighted."""
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).train()
    x, y = torch.randn(24, 6), torch.arange(24) % 4
    one_hot = nn.functional.one_hot(y, 4).float()
    for part in (0.7, 0.3):
        soft = part * one_hot + (1 - part) * one_hot.roll(1, 0)
        meter = CollapseMeter(net, mixed="hardest", verbose=False)
        with meter.batch(soft):
            net(x)
        report = meter.compute()
        largest = y if part > 0.5 else y.roll(1)
        expected = torch.bincount(largest, minlength=4).numpy()
        np.testing.assert_array_equal(meter.moments("2").counts, expected)
        assert report.provenance["mixed"] == "hardest"
    observed = CollapseMeter(net, mixed="hardest", num_classes=4, verbose=False).observe(
        [(x, 0.9 * one_hot + 0.025)], progress=False
    )
    assert observed["2"].provenance["rows"] == 24
