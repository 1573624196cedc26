"""One network of Keras: a step of training that is watched, a frozen pass, and brute force."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from collapsemeter_keras import CollapseMeter

from .keras_networks import C
from .measuring import mismatch, pooled, row


def measured(given: tuple[keras.Model, np.ndarray]) -> dict[str, Any]:
    """Return the row of a network, and assert what holds for all of them."""
    model, images = given
    single = model.output_shape[-1] == 1
    labels = np.arange(len(images)) % (2 if single else C)
    loss = "binary_crossentropy" if single else "sparse_categorical_crossentropy"
    model.compile("sgd", loss)
    meter = CollapseMeter(verbose=False)
    model.fit(images, labels, batch_size=len(images), callbacks=[meter], verbose=0)
    live = meter.reports["train"][-1].report
    frozen = meter.observe(model, [(images, labels)], progress=False)
    stream = meter._attachment.streams["train"]
    arrays = (keras.ops.convert_to_numpy(variable) for variable in stream.variables)
    held = 2 * sum(array.nbytes for array in arrays)  # and for validation
    found = row(meter, live, frozen, held)
    if keras.backend.backend() == "jax":
        del found["MiB"]  # rows have that of TensorFlow, where more batches wait
    head = next(layer for layer in model.layers if layer.name == meter.selection.watched[-1])
    given, scores = keras.Model(model.inputs, [head.input, model.outputs[0]])(
        images, training=False
    )
    rows = pooled(keras.ops.convert_to_numpy(given), labels, given.shape[-1])
    threshold = meter.selection.threshold
    expected = mismatch(rows, labels, keras.ops.convert_to_numpy(scores), threshold)
    assert frozen[list(frozen)[-1]]["nc4_mismatch"] == expected
    meter.close()
    return found
