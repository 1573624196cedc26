"""Networks of keras.applications, small inputs and random weights: a new one is one line."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

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
