"""What `step_costs.py` times of Keras, on the backend that ``KERAS_BACKEND`` names.

`convnet` is a small convolutional network on images of 32 x 32, `mlp` has four hidden layers of 512 on 784 inputs: both are
watched at the head's input alone, which is 512 wide. The minimal hook is a metric that a model of its own class adds to in its
loss, in Keras' own operations.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops
from steps import Steps

from collapsemeter_keras import CollapseMeter

WIDTH, CLASSES, BATCH = 512, 10, 64
INPUTS = 784
STEPS = 16  # one block of 1024 rows


class Minimal(keras.metrics.Metric):
    """The sums of one layer, as short as can be, or the products X'X alone."""

    def __init__(self, *, products_alone: bool) -> None:
        super().__init__(name="minimal")
        self.products_alone = products_alone
        self.counts = self.add_weight(shape=(CLASSES,), initializer="zeros", name="counts")
        self.shift = self.add_weight(shape=(CLASSES, WIDTH), initializer="zeros", name="shift")
        self.sums = self.add_weight(shape=(CLASSES, WIDTH), initializer="zeros", name="sums")
        self.squares = self.add_weight(shape=(CLASSES,), initializer="zeros", name="squares")
        self.scatter = self.add_weight(shape=(WIDTH, WIDTH), initializer="zeros", name="scatter")

    def add(self, rows: Any, labels: Any) -> None:
        """Add a batch."""
        if self.products_alone:
            self.scatter.assign_add(ops.matmul(ops.transpose(rows), rows))
            return
        one_hot = ops.one_hot(labels, CLASSES)
        counts, by_class = ops.sum(one_hot, axis=0), ops.transpose(one_hot)
        first = ops.sum(self.counts.value) == 0
        means = ops.matmul(by_class, rows) / ops.maximum(counts, 1.0)[:, None]
        self.shift.assign(ops.where(first, means, self.shift.value))
        residuals = rows - ops.take(self.shift.value, labels, axis=0)
        self.counts.assign_add(counts)
        self.sums.assign_add(ops.matmul(by_class, residuals))
        squares = ops.sum(residuals * residuals, axis=1)
        self.squares.assign_add(ops.matmul(by_class, squares[:, None])[:, 0])
        self.scatter.assign_add(ops.matmul(ops.transpose(residuals), residuals))

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the loss calls `add`."""

    def reset_state(self) -> None:
        """Do nothing: Keras resets metrics before every step."""

    def result(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class Tap(layers.Layer):
    """Shows what passes to the model's loss."""

    def call(self, x: Any) -> Any:
        self._seen = [x]  # a plain list: Keras does not look inside
        return x


class Hooked(keras.Model):
    """A model whose loss adds to a minimal hook."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # type: ignore[no-untyped-def]
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self.minimal.add(ops.stop_gradient(self.tap._seen[0]), y)
        return loss


def network(name: str, hook: Minimal | None = None) -> keras.Model:
    """Return a network that is ready to train, with a hook in it or none."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((32, 32, 3) if name == "convnet" else (INPUTS,))
    for filters, pool in ((32, 2), (64, 2), (128, 4)) if name == "convnet" else ():
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D(pool)(x)
    x = layers.Flatten()(x)
    for _ in range(1 if name == "convnet" else 4):
        x = layers.Dense(WIDTH, "relu")(x)
    tap = Tap()
    head = layers.Dense(CLASSES, name="fc")
    if hook is None:
        model = keras.Model(inputs, head(x))
    else:
        model = Hooked(inputs, head(tap(x)))
        model.minimal, model.tap = hook, tap
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss)
    return model


def steps_of(name: str) -> Steps:
    """Return steps that are watched, unwatched or hooked."""
    network_name = name.split("-")[1]
    shape = (32, 32, 3) if network_name == "convnet" else (INPUTS,)
    x = np.random.default_rng(0).normal(size=(BATCH, *shape)).astype("float32")
    y = np.arange(BATCH) % CLASSES
    models = {
        "plain": network(network_name),
        "products": network(network_name, Minimal(products_alone=True)),
        "minimal": network(network_name, Minimal(products_alone=False)),
        "watched": network(network_name),
    }
    meter = CollapseMeter(layers=lambda *_: False, verbose=False)
    meter.set_model(models["watched"])

    def step(model: keras.Model) -> None:
        model.train_on_batch(x, y)
        assert meter  # the model holds its meter weakly

    calls = {what: lambda model=model: step(model) for what, model in models.items()}
    rounds = 12 if network_name == "mlp" else 4
    return Steps(BATCH, STEPS, rounds, calls, whole_rounds=False)
