"""The demo's network and training in Keras, on any backend."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from collapsemeter.activations import Writer
from collapsemeter.adapter.epoch import Epoch

from .head import head_of
from .meter import CollapseMeter

BATCH = 32
LEARNING_RATE = 0.02
WEIGHT_DECAY = 1e-2


def digits_net() -> keras.Model:
    """Return three convolutional blocks, a hidden block, 64 features and a linear head.

    Weight decay is part of the loss, on every weight, so that it goes through the momentum.
    """
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.Sequential(_conv(8), name="conv1"),
            keras.Sequential([*_conv(16), layers.MaxPooling2D(2)], name="conv2"),
            keras.Sequential([*_conv(32), layers.MaxPooling2D(2), layers.Flatten()], name="conv3"),
            keras.Sequential(_dense(256), name="hidden"),
            keras.Sequential(_dense(64), name="features"),
            layers.Dense(10, kernel_regularizer=_decay(), bias_regularizer=_decay(), name="fc"),
        ]
    )


def _decay() -> keras.regularizers.Regularizer:
    return keras.regularizers.L2(WEIGHT_DECAY / 2)


def _conv(filters: int) -> list[layers.Layer]:
    conv = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_regularizer=_decay())
    return _with_norm_and_relu(conv)


def _dense(units: int) -> list[layers.Layer]:
    return _with_norm_and_relu(layers.Dense(units, use_bias=False, kernel_regularizer=_decay()))


def _with_norm_and_relu(layer: layers.Layer) -> list[layers.Layer]:
    # Momentum and epsilon as PyTorch has them.
    norm = layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, gamma_regularizer=_decay(), beta_regularizer=_decay()
    )
    return [layer, norm, layers.ReLU()]


def squared_loss(targets: Any, scores: Any) -> Any:
    """Return the squared distance of the scores to one-hot targets, (B,)."""
    return ops.sum((scores - targets) ** 2, axis=-1)


def train(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    epochs: int,
    seed: int,
    dump: Path | None = None,
) -> Iterator[Epoch]:
    """Train and yield every epoch's measurements, the untrained network's first.

    The loss is the squared error to one-hot targets, under which collapse comes within a minute
    (Han, Papyan & Donoho 2022).
    """
    keras.utils.set_random_seed(seed)
    x, targets = images[..., None], np.eye(10, dtype=np.float32)[labels]
    model = digits_net()
    steps = epochs * -(-len(x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        squared_loss,
        metrics=[keras.metrics.MeanMetricWrapper(squared_loss, name="squared"), "accuracy"],
    )
    # The output of `features` is the input of `fc`, which is watched under that name.
    meter = CollapseMeter(["conv1", "conv2", "conv3", "hidden"], num_classes=10)
    meter.set_model(model)

    def observe() -> Any:
        return meter.observe(model, (x, targets), "frozen-train", batch_size=600, progress=False)

    scores = model.predict(x, BATCH, verbose=0)
    loss = float(((scores - targets) ** 2).sum(axis=1).mean())
    wrong = float((scores.argmax(axis=1) != labels).mean())
    yield Epoch(0, loss, wrong, None, observe())
    for number in range(1, epochs + 1):
        history = model.fit(
            x,
            targets,
            BATCH,
            epochs=number,
            initial_epoch=number - 1,
            verbose=0,
            callbacks=[meter],  # the meter's only place in the training
        ).history
        yield Epoch(
            number,
            history["squared"][-1],
            1 - history["accuracy"][-1],
            meter.reports["train"][-1].report,
            observe(),
        )
    meter.close()
    if dump is not None:
        head = head_of(meter.selection.head_module)
        with Writer(dump, num_classes=10, head=head, phase="frozen-train", step=epochs) as writer:
            for start in range(0, len(x), 600):
                _dump(model, x[start : start + 600], labels[start : start + 600], writer)


def _dump(model: keras.Model, x: Any, labels: Any, writer: Writer) -> None:
    """Write what is watched, as it is measured: averaged maps, flat rows, and the head's input."""
    output, outputs = ops.convert_to_tensor(x), {}
    for layer in model.layers:
        output = layer(output, training=False)
        rows = ops.mean(output, axis=(1, 2)) if len(output.shape) == 4 else output
        outputs[layer.name] = ops.convert_to_numpy(rows)
    scores = outputs.pop("fc")
    outputs["fc"] = outputs.pop("features")  # the head's input has the head's name
    writer.write(outputs, labels, predictions=scores.argmax(axis=1))
