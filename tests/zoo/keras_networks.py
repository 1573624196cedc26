"""Networks of keras.applications, small inputs and random weights: a new one is one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

C = 5
# By the side of the images that each takes at least.
SIDES = {
    "ConvNeXtTiny": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionResNetV2": 96,
    "InceptionV3": 96,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "NASNetMobile": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 64,
    "VGG19": 64,
    "Xception": 96,
}


def networks() -> dict[str, Callable[[], tuple[keras.Model, np.ndarray]]]:
    """Return how to make each network and a batch of images, by its name."""

    def maker(name: str, side: int) -> Callable[[], tuple[keras.Model, np.ndarray]]:
        def make() -> tuple[keras.Model, np.ndarray]:
            keras.utils.clear_session()  # names of layers are numbered anew
            keras.utils.set_random_seed(0)
            build = getattr(keras.applications, name)
            model = build(weights=None, input_shape=(side, side, 3), classes=C)
            images = np.random.default_rng(0).normal(size=(10, side, side, 3))
            return model, images.astype(np.float32)

        return make

    return {f"keras/{name}": maker(name, side) for name, side in SIDES.items()}


def few() -> dict[str, Callable[[], tuple[keras.Model, np.ndarray]]]:
    """Return a few of them and all patterns: on another backend they have the same rows but for MiB."""
    whole = networks()
    names = ["keras/ConvNeXtTiny", "keras/MobileNetV2", "keras/ResNet50"]
    return {name: whole[name] for name in names} | patterns()


def patterns() -> dict[str, Callable[[], tuple[keras.Model, np.ndarray]]]:
    """Return networks as the examples of keras.io write them."""
    kinds = {
        "mnist_convnet": mnist_convnet,
        "mlp_mixer": mlp_mixer,
        "vision_transformer": vision_transformer,
        "small_xception": small_xception,
        "text_transformer": text_transformer,
        "bidirectional_lstm": bidirectional_lstm,
        "timeseries_convnet": timeseries_convnet,
    }

    def maker(kind: Any) -> Callable[[], tuple[keras.Model, np.ndarray]]:
        def make() -> tuple[keras.Model, np.ndarray]:
            keras.utils.clear_session()
            keras.utils.set_random_seed(0)
            model: keras.Model = kind()
            rng = np.random.default_rng(0)
            shape = (10, *model.input_shape[1:])
            words = model.inputs[0].dtype == "int32"
            x = rng.integers(1, 20, shape) if words else rng.normal(size=shape)
            return model, x.astype("int32" if words else "float32")

        return make

    return {f"keras.io/{name}": maker(kind) for name, kind in kinds.items()}


def mnist_convnet() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(C, activation="softmax"),
        ]
    )


def _patches(x: Any, width: int) -> Any:
    x = layers.Conv2D(width, 4, strides=4, name="patches")(x)
    return layers.Reshape((-1, width))(x)


def mlp_mixer() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    x = _patches(inputs, 8)
    for _ in range(2):
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Dense(16)(layers.Dense(16, activation="gelu")(y))
        x = layers.Add()([x, layers.Permute((2, 1))(y)])
        y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(8)(y)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(C)(layers.Dropout(0.2)(x)))


def vision_transformer() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    x = _patches(inputs, 8)
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([layers.MultiHeadAttention(2, 8, dropout=0.1)(y, y), x])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(8, activation="gelu")(layers.Dense(16, activation="gelu")(y))
        x = layers.Add()([y, x])
    x = layers.Flatten()(layers.LayerNormalization(epsilon=1e-6)(x))
    x = layers.Dense(16, activation="gelu")(layers.Dropout(0.5)(x))
    return keras.Model(inputs, layers.Dense(C)(x))


def small_xception() -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Conv2D(16, 3, strides=2, padding="same")(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    before = x
    for size in (16, 24):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.BatchNormalization()(layers.SeparableConv2D(size, 3, padding="same")(x))
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(size, 1, strides=2, padding="same")(before)])
        before = x
    x = layers.BatchNormalization()(layers.SeparableConv2D(32, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    return keras.Model(inputs, layers.Dense(C)(layers.Dropout(0.25)(x)))


class TransformerBlock(layers.Layer):
    """As in the example of text classification: what it runs is declared in its constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.att = layers.MultiHeadAttention(2, 8)
        self.ffn = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(8)])
        self.layernorm1, self.layernorm2 = layers.LayerNormalization(), layers.LayerNormalization()

    def call(self, inputs: Any) -> Any:
        x = self.layernorm1(inputs + self.att(inputs, inputs))
        return self.layernorm2(x + self.ffn(x))


class TokenAndPositionEmbedding(layers.Layer):
    """Words and their places."""

    def __init__(self) -> None:
        super().__init__()
        self.token_emb = layers.Embedding(20, 8)
        self.pos_emb = layers.Embedding(12, 8)

    def call(self, x: Any) -> Any:
        positions = keras.ops.arange(0, keras.ops.shape(x)[-1])
        return self.token_emb(x) + self.pos_emb(positions)


def text_transformer() -> keras.Model:
    inputs = keras.Input((12,), dtype="int32")
    x = TransformerBlock()(TokenAndPositionEmbedding()(inputs))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(C, activation="softmax")(x))


def bidirectional_lstm() -> keras.Model:
    inputs = keras.Input((12,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(8))(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


def timeseries_convnet() -> keras.Model:
    inputs = keras.Input((32, 1))
    x = inputs
    for _ in range(3):
        x = layers.Conv1D(16, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(
        inputs, layers.Dense(C, activation="softmax")(layers.GlobalAveragePooling1D()(x))
    )
