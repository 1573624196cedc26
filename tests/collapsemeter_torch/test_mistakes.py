"""Honest mistakes in a training loop: one clear sentence, and nothing that was counted is lost."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from collapsemeter_torch import CollapseMeter

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
NAMES = ("conv", "act", "body", "relu", "classifier")


def network(classes: int = 3, width: int = 6) -> nn.Sequential:
    net = nn.Sequential()
    parts = (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width), nn.ReLU(), nn.Linear(width, classes))
    for name, part in zip(NAMES, parts, strict=True):
        net.add_module(name, part)
    return net


def meter_of(net: nn.Module | None = None, **options) -> CollapseMeter:
    return CollapseMeter(network() if net is None else net, verbose=False, **options)


def step(meter: CollapseMeter, labels=Y, inputs=X) -> torch.Tensor:
    with meter.batch(labels):
        return meter._model(inputs)


def said(text: str):
    return pytest.raises(ValueError, match="^" + re.escape(text) + "$")


# The batch


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            Y[:6],
            "layer 'act' gave features of shape (12, 8) and labels have shape (6,): the layer ran on a batch of 12 "
            "and there are labels for 6: pass a label for every row of the batch",
        ),
        (
            torch.cat([Y, Y]),
            "layer 'act' gave features of shape (12, 8) and labels have shape (24,): the layer ran on a batch of 12 "
            "and there are labels for 24: pass a label for every row of the batch",
        ),
        (None, "labels are None: pass those of this batch, one integer class for each row"),
        (
            {"image": X, "label": Y},
            "labels are a dict with the keys 'image', 'label': pass the labels alone, batch['label']",
        ),
        (
            9 * torch.arange(12),
            "label 9 at row 1 is outside 0..2 (num_classes=3) and is not ignore_index=-100",
        ),
    ],
)
def test_labels_that_do_not_fit_are_told_what_they_are_and_training_goes_on(labels, sentence):
    meter = meter_of()
    step(meter)
    with said(sentence):
        step(meter, labels)
    step(meter).sum().backward()
    with warnings.catch_warnings(
        record=True
    ):  # that rows of the refused batch are missing in no layer
        warnings.simplefilter("always")
        report = meter.compute()
    assert {layer.provenance["rows"] for layer in report.values()} == {24}


@pytest.mark.parametrize(
    ("shape", "labels", "reduction"),
    [((12, 4, 5, 5), (6,), "auto"), ((12, 7, 4), (6, 7), "auto"), ((12, 7, 4), (6,), "mean_last")],
)
def test_half_a_batch_of_maps_or_tokens_is_told_both_sizes(shape, labels, reduction):
    net = nn.Sequential(nn.Identity())
    meter = meter_of(net, layers=["0"], head=None, num_classes=3, reduction=reduction)
    with pytest.raises(ValueError, match="ran on a batch of 12 and there are labels for 6: pass"):
        step(meter, torch.zeros(labels, dtype=torch.long), torch.randn(shape))


@pytest.mark.parametrize(
    ("shape", "labels", "advice"),
    [
        ((7, 12, 4), (12,), "reduction={'0': 'first'}"),
        ((84, 4), (12, 7), "no rule pairs them; pass"),
    ],
)
def test_outputs_that_a_reduction_can_pair_are_told_of_it(shape, labels, advice):
    meter = meter_of(nn.Sequential(nn.Identity()), layers=["0"], head=None, num_classes=3)
    with pytest.raises(ValueError, match=re.escape(advice)):
        step(meter, torch.zeros(labels, dtype=torch.long), torch.randn(shape))


def test_half_a_batch_under_compile_is_told_both_sizes():
    net = network()
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    meter = meter_of(compiled)
    with pytest.raises(ValueError, match="ran on a batch of 12 and there are labels for 6"):
        step(meter, Y[:6])


# The data set


@pytest.mark.parametrize("method", ["observe", "dump"])
@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (
            [{"image": X, "label": Y}],
            "observe got a dict with the keys 'image', 'label' and no 'labels': pass "
            "((b['image'], b['label']) for b in loader)",
        ),
        (
            [{"image": X}],
            "observe got a dict with the keys 'image' and no 'labels': pass a pair (inputs, labels) for each batch",
        ),
        (
            [(X, Y, torch.arange(12))],
            "observe got a tuple of 3 (a Tensor of shape (12, 4), a Tensor of shape (12,), a Tensor of shape (12,)), "
            "and each batch is a pair (inputs, labels) or a dict with 'labels': pass ((b[0], b[1]) for b in loader)",
        ),
        (
            [X],
            "observe got a Tensor of shape (12, 4), and each batch is a pair (inputs, labels) or a dict with 'labels'",
        ),
        (
            [(X, None)],
            "observe got a tuple of 2 (a Tensor of shape (12, 4), a NoneType), and labels are missing: pass a "
            "loader that gives batches (inputs, labels)",
        ),
        (
            TensorDataset(X, Y),
            "observe got a tuple of 2 (a Tensor of shape (4,), a Tensor of shape ()), and that is one sample and not a "
            "batch: pass a loader that gives batches (inputs, labels)",
        ),
        ([], "observe got no batch from list: pass (inputs, labels) pairs"),
    ],
)
def test_a_data_set_of_another_form_is_told_what_it_gave(method, batches, sentence, tmp_path):
    meter = meter_of()
    step(meter)
    where = (tmp_path / "dump",) if method == "dump" else ()
    with said(sentence):
        getattr(meter, method)(batches, *where, progress=False)
    assert meter.compute()["classifier"].provenance["rows"] == 12


@pytest.mark.parametrize("names", [("image", "label"), ("input", "label", "extra")])
def test_what_a_dict_batch_is_told_to_do_works(names):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, input, extra=None):
            return self.net(input)

    meter, loader = meter_of(Net()), [dict(zip(names, (X, Y, Y), strict=False))]
    with pytest.raises(ValueError, match="no 'labels': pass ") as caught:
        meter.observe(loader, progress=False)
    batches = eval(str(caught.value).partition("pass ")[2], {"loader": loader})
    assert meter.observe(batches, progress=False)["net.classifier"].provenance["rows"] == 12


def test_a_generator_gives_its_batches_once():
    meter, once = meter_of(), iter(DataLoader(TensorDataset(X, Y), batch_size=6))
    meter.observe(once, progress=False)
    with pytest.raises(ValueError, match="what it held was taken before; make a new one, or pass"):
        meter.observe(once, progress=False)


# The model


def test_scores_of_other_classes_are_refused_unless_no_head_is_asked_for():
    meter = CollapseMeter(network(100), layers=["body"], num_classes=10, verbose=False)
    with said(
        "the output holds scores of width 100 and num_classes=10: they must agree; pass scores= to name other scores"
    ):
        step(meter)
    meter = CollapseMeter(network(100), layers=["body"], head=None, num_classes=10, verbose=False)
    step(meter)
    report = meter.compute()
    assert report["body"].reason("nc3_cosine") == "no_head"
    assert report["body"].reason("nc4_mismatch") == "no_logits"


def test_a_head_that_is_named_must_have_as_many_outputs_as_there_are_classes():
    with said(
        "head 'classifier' has 3 outputs and num_classes=10: they must agree; pass head=None to measure without a head"
    ):
        meter_of(head="classifier", num_classes=10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": "clasifier"}, "head='clasifier' is not a layer of the model; it has conv, act, body, relu, "
        "classifier; did you mean 'classifier'?"),
        ({"layers": ["bodi"]}, "layers=['bodi']: 'bodi' matches no module; the model has conv, act, body, relu, "
        "classifier; did you mean 'body'?"),
        ({"layers": [2]}, "layers=[2]: 2 is a int, and names are strings; the model has conv, act, body, relu, "
        "classifier"),
        ({"layers": ["body"], "reduction": {"bodi": "mean"}}, "reduction={'bodi': ...}: no such layer is watched; "
        "watched are body, classifier; did you mean 'body'?"),
        ({"num_classes": "3"}, "num_classes='3' is not a whole number"),
        ({"num_classes": 0}, "num_classes=0: there must be at least two classes"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_repeat_what_was_passed(options, sentence):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with said(sentence):
            meter_of(example=X, **options)


def test_what_is_no_model_is_named():
    with said("model is a SGD: pass the nn.Module that is trained"):
        CollapseMeter(torch.optim.SGD(network().parameters(), lr=0.1))
    with said("model is the class Linear: pass the nn.Module that is trained"):
        CollapseMeter(nn.Linear)


def test_a_model_without_weights_is_measured_where_it_is_told_to():
    net = nn.Sequential(nn.ReLU(), nn.Flatten())
    with pytest.raises(
        ValueError, match=r"layers=.* selects nothing of Sequential; its modules: 0, 1"
    ):
        meter_of(net, layers=lambda name, module: False, example=X, num_classes=3)
    meter = meter_of(net, layers=["1"], head=None, num_classes=3)
    step(meter)
    assert meter.compute()["1"].provenance["rows"] == 12


# The state


@pytest.mark.parametrize(
    ("other", "options", "what"),
    [
        (
            network(),
            {"layers": ["act"]},
            "layers act, classifier, this meter act, classifier, and nothing",
        ),
        (network(), {"layers": ["body"]}, "layers body, classifier, this meter act, classifier"),
        (network(width=9), {"layers": ["act"]}, "layer 'classifier' of width 9, this meter 6"),
        (network(5), {"layers": ["act"]}, "classes 5, this meter 3"),
    ],
)
def test_the_state_of_another_meter_names_both_sides_and_loads_nothing(other, options, what):
    meter, saved = meter_of(layers=["act"]), meter_of(other, **options)
    step(meter)
    step(saved)
    state, before = saved.state_dict(), meter.compute().to_json()
    if "nothing" in what:
        meter.load_state_dict(state)
        return
    for named in (state, {name: part for name, part in state.items() if name != "watched"}):
        with said(f"the state is of another meter, and nothing was loaded: it has {what}"):
            meter.load_state_dict(named)
        assert meter.compute().to_json() == before


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (
            network().state_dict(),
            "a OrderedDict with 'conv.weight', 'conv.bias', 'body.weight' and 3 more",
        ),
        (None, "a NoneType"),
    ],
)
def test_what_is_no_state_is_named(state, what):
    meter = meter_of()
    step(meter)
    with said(
        f"this is {what} and no state of a meter: pass what the meter's state_dict() returned"
    ):
        meter.load_state_dict(state)
    assert meter.compute()["classifier"].provenance["rows"] == 12


# The report


def test_a_name_that_is_close_to_one_is_asked_about():
    meter = meter_of()
    step(meter)
    report = meter.compute()
    with pytest.raises(KeyError, match="did you mean 'classifier'"):
        report["clasifier"]
    with pytest.raises(KeyError, match="no metric is named 'nc1_pinw'; did you mean 'nc1_pinv'"):
        report["classifier"]["nc1_pinw"]
    with said("table(metrics=...): no metric is named 'nc1_pinw'; did you mean 'nc1_pinv'?"):
        report.table(metrics=["nc1_pinw"])
    with pytest.raises(ValueError, match="did you mean 'classifier'"):
        meter.moments("clasifier")


@pytest.mark.parametrize("mode", ["eval", "no_grad", "no with"])
def test_a_loop_in_which_nothing_was_counted_is_told_what_counts(mode):
    net = network()
    meter = meter_of(net)
    net.train(mode != "eval")
    if mode == "no with":
        meter.batch(Y)
        net(X)
    else:
        with torch.set_grad_enabled(mode != "no_grad"):
            step(meter)
    why = (
        "wrap the forward in `with"
        if mode == "no with"
        else "the model was in eval mode, or without"
    )
    with pytest.warns(RuntimeWarning, match=f"no labelled batch was counted: {why}"):
        report = meter.compute()
    assert f"no labelled batch was counted: {why}" in report.warnings[0]
