"""MixUp and CutMix of Keras, and smoothed labels: rows of several classes are left out, or of their largest part."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest

from collapsemeter_keras import CollapseMeter

from .networks import CLASSES, EAGER

ROWS = 48
Y = np.arange(ROWS) % CLASSES
IMAGES = np.random.default_rng(0).normal(size=(ROWS, 8, 8, 3)).astype("float32")
LOSS = keras.losses.CategoricalCrossentropy(from_logits=True)


def network() -> keras.Model:
    parts = [
        keras.layers.Conv2D(6, 3, activation="relu", name="one"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(CLASSES, name="fc"),
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *parts])


def labels_of(how: str) -> np.ndarray:
    one_hot = np.eye(CLASSES, dtype="float32")[Y]
    if how == "smoothed":
        return 0.9 * one_hot + np.float32(0.1 / CLASSES)
    kind = keras.layers.MixUp if how == "mixup" else keras.layers.CutMix
    layer = kind(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says that Keras asks for 64-bit positions
        data = layer({"images": IMAGES, "labels": one_hot}, training=True)
    return keras.ops.convert_to_numpy(data["labels"])


def counted(labels: np.ndarray, mixed: str) -> CollapseMeter:
    meter = CollapseMeter(layers=["one"], mixed=mixed, verbose=False, strict=True)
    model = network()
    model.compile(keras.optimizers.SGD(0.0), LOSS, run_eagerly=EAGER)
    model.fit(IMAGES, labels, 16, verbose=0, shuffle=False, callbacks=[meter])
    return meter


@pytest.mark.parametrize("how", ["mixup", "cutmix", "smoothed"])
def test_rows_have_the_class_of_their_largest_part(how):
    labels = labels_of(how)
    largest = labels == labels.max(-1, keepdims=True)
    single = largest.sum(-1) == 1
    meter = counted(labels, "hardest")
    report = meter.reports["train"][0].report
    assert report.provenance["mixed"] == "hardest"
    np.testing.assert_array_equal(
        meter.moments("fc").counts, np.bincount(labels.argmax(-1)[single], minlength=CLASSES)
    )
    assert report["fc"].provenance.get("mixed_rows", 0) == (~single).sum()


@pytest.mark.filterwarnings("ignore:collapsemeter|layer:RuntimeWarning")
@pytest.mark.parametrize("how", ["mixup", "smoothed"])
def test_they_are_left_out_otherwise(how):
    labels = labels_of(how)
    labels[:30] = np.eye(CLASSES)[Y[:30]]
    pure = (labels == 1).any(-1)
    report = counted(labels, "skip").reports["train"][0].report
    assert "mixed" not in report.provenance
    assert report["fc"].provenance["mixed_rows"] == (~pure).sum() > 0
    assert report["fc"].provenance["rows"] == pure.sum()
