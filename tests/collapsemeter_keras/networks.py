"""Small networks in every form that Keras has, and their features computed again in NumPy."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

CLASSES, WIDTH = 4, 6
# Where a compiled step is not the point the quicker one is run: JAX compiles every operation of an eager one.
EAGER = keras.backend.backend() != "jax"
# XLA on TensorFlow takes longer to compile than all the rest: only tests that are about it have it.
NO_XLA = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}


def data(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % CLASSES)
    means = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
    inputs = means[labels] + 0.5 * rng.normal(size=(rows, WIDTH))
    return inputs.astype("float32"), labels.astype("int32")


def body(*, name: str = "body") -> keras.Sequential:
    parts = [layers.Dense(12, "relu", name="one"), layers.Dense(8, "relu", name="two")]
    return keras.Sequential([keras.Input((WIDTH,)), *parts], name=name)


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((WIDTH,)),
            layers.Dense(12, "relu", name="one"),
            layers.Dense(8, "relu", name="two"),
            layers.Dense(CLASSES, name="fc"),
        ]
    )


def functional() -> keras.Model:
    inputs = keras.Input((WIDTH,))
    x = layers.Dense(12, "relu", name="one")(inputs)
    x = layers.Dense(8, "relu", name="two")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x))


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.one = layers.Dense(12, "relu", name="one")
        self.two = layers.Dense(8, "relu", name="two")
        self.fc = layers.Dense(CLASSES, name="fc")

    def call(self, x, training=False):
        return self.fc(self.two(self.one(x)))


def subclassed_built() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, WIDTH), "float32"))
    return model


def nested_functional() -> keras.Model:
    inputs = keras.Input((WIDTH,))
    return keras.Model(inputs, layers.Dense(CLASSES, name="fc")(body()(inputs)))


class NestedSubclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.body = body()
        self.fc = layers.Dense(CLASSES, name="fc")

    def call(self, x):
        return self.fc(self.body(x))


ARCHITECTURES = {
    "sequential": sequential,
    "functional": functional,
    "subclassed_built": subclassed_built,
    "subclassed_unbuilt": Subclassed,
    "nested_functional": nested_functional,
    "nested_subclassed": NestedSubclassed,
}


def frozen(model: keras.Model, **options) -> keras.Model:
    """Compile a model so that its weights stay where they are."""
    if not options.get("run_eagerly"):
        options = NO_XLA | options
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, **options)
    return model


def parts(model: keras.Model) -> dict[str, layers.Layer]:
    """The Dense layers of any of these networks by their own name."""
    found = {}
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.Dense):
            found[layer.name] = layer
    return found


def forward(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """What each Dense layer gives, in float64, from its weights alone; ``fc`` stands for its input."""
    dense = parts(model)
    given = np.asarray(x, np.float64)
    outputs = {}
    for name in ("one", "two"):
        weight, bias = (np.asarray(w, np.float64) for w in dense[name].get_weights())
        outputs[name] = given = np.maximum(given @ weight + bias, 0.0)
    weight, bias = (np.asarray(w, np.float64) for w in dense["fc"].get_weights())
    return outputs | {"fc": given, "logits": given @ weight + bias}
