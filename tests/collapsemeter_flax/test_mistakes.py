"""Honest mistakes around a jitted step: one clear sentence that repeats what was passed."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from flax import nnx

import collapsemeter_flax as cf

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 3


class Net(nnx.Module):
    def __init__(self, classes: int = 3, width: int = 6) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Linear(4, 8, rngs=rngs)
        self.body = nnx.Linear(8, width, rngs=rngs)
        self.fc = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.body(nnx.relu(self.stem(x)))))


def counted(labels=Y, net=None, compiled=False, **options):
    net = Net() if net is None else net
    meter = cf.CollapseMeter(net, verbose=False, **options)
    state = meter.init(X)

    def step(state, x, labels):
        _, features = meter.capture(net, x)
        return meter.update(state, features, labels)

    state = (jax.jit(step) if compiled else step)(state, X, labels)
    return meter, state


def said(text: str):
    return pytest.raises(ValueError, match="^" + re.escape(text))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            Y[:6],
            "layer 'stem' gave features of shape (12, 8) and labels have shape (6,): the layer ran on a batch of 12 "
            "and there are labels for 6: pass a label for every row of the batch",
        ),
        (None, "labels are None: pass those of this batch"),
        ({"x": X, "y": Y}, "labels are a dict with the keys 'x', 'y': pass the labels alone, batch['y']"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_told_what_they_are(labels, sentence, compiled):
    with said(sentence):
        counted(labels, compiled=compiled)


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (
            [{"image": X, "label": Y}],
            "observe got a dict with the keys 'image', 'label' and no 'labels': pass "
            "((b['image'], b['label']) for b in loader)",
        ),
        ([(X, None)], "observe got a tuple of 2 (a ndarray of shape (12, 4), a NoneType), and labels are missing: "),
        (
            [(X[0], Y[0])],
            "observe got a tuple of 2 (a ndarray of shape (4,), a int64 of shape ()), and that is one sample and not",
        ),
        ([(X, Y[:6])], "layer 'stem' gave features of shape (12, 8) and labels have shape (6,): the layer ran on"),
        (iter(()), "observe got no batch from tuple_iterator: what it held was taken before; make a new one"),
    ],
)  # fmt: skip
def test_a_data_set_of_another_form_is_told_what_it_gave(batches, sentence):
    with said(sentence):
        cf.observe(Net(), batches, progress=False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": "fcc"}, "head='fcc' is not a layer of the model; it has stem, body, fc; did you mean 'fc'?"),
        ({"layers": ["bodi"]}, "layers=['bodi']: 'bodi' matches no module; the model has stem, body, fc; did you mean "
        "'body'?"),
        ({"layers": [1]}, "layers=[1]: 1 is a int, and names are strings; the model has stem, body, fc"),
        ({"reduction": {"bodi": "mean"}}, "reduction={'bodi': ...}: no such layer is watched; watched are stem, body, "
        "fc; did you mean 'body'?"),
        ({"num_classes": "3"}, "num_classes='3' is not a whole number"),
        ({"num_classes": 9}, "the output holds scores of width 3 and num_classes=9: they must agree; pass scores="),
        ({"head": "body"}, "head='body' gives 6 numbers a row and the scores have 3: name the layer that makes them"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_repeat_what_was_passed(options, sentence):
    with said(sentence):
        counted(**options)


def test_features_that_init_was_not_told_of_are_asked_about():
    meter, state = counted()
    _, features = meter.capture(Net(), X)
    features["bodi"] = features.pop("body")
    with said(
        "features lack body and hold bodi, which init was not told of: the state counts stem, body, fc; did you mean "
        "'body'?"
    ):
        meter.update(state, features, Y)


def test_where_nothing_was_counted_the_report_says_so():
    meter = cf.CollapseMeter(Net(), verbose=False)
    with pytest.warns(
        RuntimeWarning, match="no labelled batch was counted: keep what update returns"
    ):
        report = meter.report(meter.init(X))
    assert report["fc"].reason("nc1_pinv") == "never_fired"


@pytest.mark.parametrize(
    ("net", "found", "due"),
    [
        (Net(width=9), "3 classes in stem (8, class), body (9, class), fc (9, class)", "fc (6, class)"),
        (Net(classes=5), "5 classes in stem (8, class)", "3 classes in stem (8, class)"),
    ],
)  # fmt: skip
def test_the_state_of_another_model_names_both_sides(net, found, due, tmp_path):
    _, other = counted(net=net)
    _, state = counted()
    cf.save(other, tmp_path / "state.npz")
    with pytest.raises(ValueError, match="and like= counts") as caught:
        cf.load(tmp_path / "state.npz", state)
    assert found in str(caught.value).partition("and like=")[0]
    assert due in str(caught.value).partition("and like=")[2]
    with pytest.raises(ValueError, match="the states differ in"):
        cf.merge(state, other)
    with said("like= is a Net: pass a State that the same init made"):
        cf.load(tmp_path / "state.npz", Net())
