"""Watching changes nothing: the weights of a watched training are those of an unwatched one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from collapsemeter_keras import CollapseMeter

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.normal(size=(96, 10, 10, 2)).astype("float32"), np.arange(96) % 5


def network() -> keras.Model:
    """A residual network with everything that a step updates or draws."""
    inputs = keras.Input((10, 10, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.Add(name="joined")([x, layers.Dropout(0.2)(y)])
    x = layers.Dense(16, "tanh", name="hidden")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5, name="fc")(layers.Dropout(0.3)(x)))


def train(watched: bool, **options):
    keras.utils.set_random_seed(7)
    model = network()
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    chosen = ["stem", "batch_normalization*", "joined", "dropout*", "hidden"]
    meter = CollapseMeter(chosen, verbose=False, strict=True)
    history = model.fit(
        IMAGES,
        LABELS,
        batch_size=12,  # a smaller last batch would be compiled again
        epochs=3,
        verbose=0,
        validation_data=(IMAGES[:24], LABELS[:24]),
        callbacks=[meter] if watched else [],
    ).history
    weights = [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]
    return weights, history, meter


@pytest.mark.parametrize(
    "jit",
    [False, pytest.param(True, marks=pytest.mark.nightly)]
    if keras.backend.backend() == "tensorflow"
    else ["auto"],
)
def test_a_watched_training_ends_with_bit_identical_weights(jit):
    plain, history, _ = train(watched=False, jit_compile=jit)
    weights, watched, meter = train(watched=True, jit_compile=jit)
    for a, b in zip(plain, weights, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, values in history.items():
        assert watched[name] == values, name
    report = meter.reports["train"][-1].report
    assert report["joined"].provenance["rows"] == 96
    assert not report.warnings


def test_the_blocks_a_person_would_name(capsys):
    meter = CollapseMeter()
    meter.set_model(network())
    # A block ends with its activation, or where branches meet and what follows is pooled; `hidden` is
    # what the head reads.
    assert meter.selection.watched == ["re_lu", "global_average_pooling2d", "fc"]
    assert meter.selection.skipped["hidden"] == "its output is the input of fc"
    printed = capsys.readouterr().out
    assert (
        "collapsemeter watches 5 classes in: re_lu, global_average_pooling2d, fc (input of"
        in printed
    )
    meter.close()
