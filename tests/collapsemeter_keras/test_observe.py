"""A pass with frozen weights by a meter that is on no model: compiled once, and nothing is left on the model."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from collapsemeter_keras import CollapseMeter

from .networks import CLASSES, WIDTH, Subclassed, data, frozen
from .test_faults import fit

X, Y = data(40)
BACKEND = keras.backend.backend()
RUNS = []


class Counted(layers.Dense):
    """A layer that notes when Python runs it: when a program is traced, and in every eager batch."""

    def call(self, x):
        RUNS.append(self.name)
        return super().call(x)


def counted() -> keras.Model:
    parts = [Counted(8, "relu", name="one"), layers.Dense(CLASSES, name="fc")]
    return keras.Sequential([keras.Input((WIDTH,)), *parts])


def observe(meter, model, rows=40):
    del RUNS[:]
    return meter.observe(model, (X[:rows], Y[:rows]), batch_size=16, progress=False)


def test_passes_of_one_meter_compile_once():
    meter, model = CollapseMeter(layers=["one"], verbose=False), counted()
    first = observe(meter, model)
    assert RUNS
    before = {**model.__dict__}
    again = observe(meter, model)
    assert BACKEND == "torch" or not RUNS
    model.layers[-1].set_weights([2 * weight for weight in model.layers[-1].get_weights()])
    moved = observe(meter, model)
    assert BACKEND == "torch" or not RUNS
    assert [*first["fc"].items()] == [*again["fc"].items()]
    assert moved["fc"]["nc1_pinv"] == first["fc"]["nc1_pinv"]
    assert np.isfinite(moved["fc"]["nc3_self_duality"])
    assert model.__dict__ == before
    assert all("call" not in layer.__dict__ for layer in model.layers)
    observe(meter, model, rows=7)  # of another shape: the layers are watched again
    assert meter.observe(model, (X[:7], Y[:7]), progress=False).provenance["rows"] == 7


def test_a_model_that_changed_is_studied_again():
    meter, model = CollapseMeter(verbose=False), counted()
    assert [*observe(meter, model)] == ["fc"]
    model.pop()
    model.add(layers.Dense(5, name="two"))
    model.add(layers.Dense(CLASSES, name="scores"))
    assert [*observe(meter, model)][-1] == "scores"
    other = counted()
    assert [*observe(meter, other)] == ["fc"]


def test_a_pass_leaves_compiled_steps_and_another_models_fit_alone():
    meter, fitted, other = (
        CollapseMeter(layers=["one"], verbose=False),
        frozen(Subclassed()),
        counted(),
    )
    fit(fitted, meter)
    step = fitted.train_function
    report = observe(meter, other)
    assert report.provenance["rows"] == 40
    assert fitted.train_function is step
    assert meter.compute().provenance["rows"] == 48
    assert meter.selection.head == "fc"
    unwatched = frozen(Subclassed())
    fit(unwatched)
    step = unwatched.train_function
    CollapseMeter(layers=["one"], verbose=False).observe(unwatched, (X, Y), progress=False)
    assert unwatched.train_function is step
    with pytest.raises(ValueError, match="observe needs a model"):
        CollapseMeter().observe(None, (X, Y))
