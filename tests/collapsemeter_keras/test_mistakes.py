"""Honest mistakes around fit and observe: one clear sentence, and fit itself goes on as it would."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from keras import layers

from collapsemeter_keras import CollapseMeter, watch

from .networks import CLASSES, EAGER, WIDTH, data, sequential

X, Y = data(24)


def wide() -> keras.Model:
    parts = [layers.Dense(12, "relu", name="one"), layers.Dense(10, "relu", name="two")]
    return keras.Sequential([keras.Input((WIDTH,)), *parts, layers.Dense(CLASSES, name="fc")])


def compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=EAGER)
    return model


def said(text: str):
    return pytest.raises(ValueError, match="^" + re.escape(text))


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (
            [{"image": X, "label": Y}],
            "observe got a dict with the keys 'image', 'label' and no 'labels': pass "
            "((b['image'], b['label']) for b in loader)",
        ),
        ([(X, None)], "observe got a tuple of 2 (a ndarray of shape (24, 6), a NoneType), and labels are missing: "),
        ((X, None), "observe got labels that are None: pass (x, y), or batches of both"),
        (
            [(X[0], Y[0])],
            "observe got a tuple of 2 (a ndarray of shape (6,), a int32 of shape ()), and that is one sample and not",
        ),
        (
            [(X, Y[:12])],
            "layer 'one' gave features of shape (24, 12) and labels have shape (12,): the layer ran on a batch of 24 "
            "and there are labels for 12: pass a label for every row of the batch",
        ),
        (iter(()), "observe got no batch from tuple_iterator: what it held was taken before; make a new one"),
    ],
)  # fmt: skip
def test_a_data_set_of_another_form_is_told_what_it_gave(batches, sentence):
    meter = CollapseMeter(["one"], verbose=False)
    with said(sentence):
        meter.observe(sequential(), batches, progress=False)


def test_labels_may_be_among_the_inputs_where_that_is_said():
    meter = CollapseMeter(
        ["one"], labels=lambda x, y: x["label"] if y is None else y, verbose=False
    )
    inputs = keras.Input((WIDTH,), name="image")
    label = keras.Input((), name="label")
    scores = layers.Dense(CLASSES, name="fc")(layers.Dense(8, "relu", name="one")(inputs))
    model = keras.Model({"image": inputs, "label": label}, scores)
    report = meter.observe(model, [{"image": X, "label": Y}], progress=False)
    assert report["fc"].provenance["rows"] == len(X)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"head": "fcc"}, "head='fcc' is not a layer of the model; it has one, two, fc; did you mean 'fc'?"),
        ({"layers": ["tow"]}, "layers=['tow']: 'tow' matches no module; the model has one, two, fc; did you mean 'two'?"),
        ({"layers": [1]}, "layers=[1]: 1 is a int, and names are strings; the model has one, two, fc"),
        ({"layers": ["two"], "reduction": {"tow": "mean"}}, "reduction={'tow': ...}: no such layer is watched; watched "
        "are two, fc; did you mean 'two'?"),
        ({"num_classes": "4"}, "num_classes='4' is not a whole number"),
        ({"num_classes": 9, "head": "fc"}, "the output holds scores of width 4 and num_classes=9: they must agree"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_repeat_what_was_passed(options, sentence):
    with said(sentence):
        watch(sequential(), verbose=False, **options)


def test_names_of_metrics_and_layers_that_are_close_to_one_are_asked_about():
    with pytest.raises(ValueError, match=r"log_metrics='nc1_pinw'.*did you mean 'nc1_pinv'"):
        CollapseMeter(log_metrics=["nc1_pinw"])
    meter = watch(compiled(sequential()), verbose=False)
    with pytest.raises(ValueError, match=r"layer 'fcc' has counted nothing.*did you mean 'fc'"):
        meter.moments("fcc")


def test_a_model_in_the_place_of_the_layers_is_told_where_it_belongs():
    model = sequential()
    with said(f"layers is the model {model.name!r}: the meter gets its model from fit"):
        CollapseMeter(model)


def test_scores_of_other_classes_are_an_error_before_the_first_batch():
    model, meter = compiled(sequential()), CollapseMeter(num_classes=10, verbose=False)
    with said(
        "the output holds scores of width 4 and num_classes=10: they must agree; pass scores="
    ):
        model.fit(X, Y, epochs=1, verbose=0, callbacks=[meter])


@pytest.mark.parametrize(
    ("make", "options", "what"),
    [
        (wide, {"layers": ["one"]}, "layer 'fc' of width 10, this meter 8"),
        (sequential, {"layers": ["two"]}, "layers two, fc, this meter one, fc"),
        (sequential, {"layers": ["one"], "sample_rows": 7}, "sample_rows 7, this meter 4096"),
    ],
)
def test_the_state_of_another_meter_names_both_sides_and_loads_nothing(make, options, what):
    model, other = compiled(sequential()), compiled(make())
    meter, saved = (
        watch(model, layers=["one"], verbose=False),
        watch(other, verbose=False, **options),
    )
    other.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    before = meter.compute().to_json()
    state, refusal = (
        saved.state_dict(),
        "the state is of another meter, and nothing was loaded: it has ",
    )
    with said(refusal + what):
        meter.load_state_dict(state)
    del state["watched"]  # as states were before they said what was watched
    with said(refusal):
        meter.load_state_dict(state)
    assert meter.compute().to_json() == before


@pytest.mark.parametrize("state", [None, {"fc/kernel": np.zeros(3)}])
def test_what_is_no_state_is_named(state):
    meter = watch(sequential(), verbose=False)
    with pytest.raises(
        ValueError, match="and no state of a meter: pass what the meter's state_dict"
    ):
        meter.load_state_dict(state)
