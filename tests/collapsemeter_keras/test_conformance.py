"""The Keras adapter passes the conformance kit on the backend of this run."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from collapsemeter import ClassMoments, testing
from collapsemeter_keras import CollapseMeter

from .networks import EAGER


def network(spec: testing.Spec) -> keras.Model:
    """The body passes its input on; the layer named body is watched."""
    if spec.form != "plain":
        return compiled(written(spec))
    parts = [keras.Input(spec.shape), layers.Identity(name="body", dtype=spec.dtype)]
    if len(spec.shape) == 3:
        parts.append(layers.GlobalAveragePooling2D(name="pool", dtype="float32"))
    # The head computes in float32, and is watched before its input is cast.
    parts.append(layers.Dense(spec.num_classes, name="head", dtype=_head_dtype(spec)))
    net = keras.Sequential(parts)
    net.layers[-1].set_weights([spec.weight.T, spec.bias])
    return compiled(net)


def compiled(net: keras.Model) -> keras.Model:
    # A NaN row has a NaN gradient, whatever the learning rate: the kit's weights must not move.
    net.trainable = False
    net.compile(keras.optimizers.SGD(0.0), loss=constant, run_eagerly=EAGER)
    return net


class Written(keras.Model):
    """A network as people write theirs: the head is declared first, and nothing says in what order layers run."""

    def __init__(self, spec: testing.Spec) -> None:
        super().__init__(dtype=spec.dtype)
        self.form, self.pooled = spec.form, spec.pooled
        first, second = (2.0, 0.5) if spec.form == "reversed" else (1.0, 1.0)
        self.head = layers.Dense(len(spec.bias), name="head")
        if spec.form == "two_heads":
            self.other = layers.Dense(len(spec.bias), name="other")
        if spec.form == "reversed":
            self.second = self._passes_on("second", spec.width, second)
        self.first = self._passes_on("first", spec.width, first)

    def _passes_on(self, name: str, width: int, factor: float) -> layers.Layer:
        identity = keras.initializers.Identity(factor)
        return layers.Dense(width, use_bias=False, kernel_initializer=identity, name=name)

    def call(self, x):
        x = self.first(x)
        if self.form == "reversed":
            x = self.second(x)
        elif self.form == "repeated":
            x = self.first(x)
        scores = self.head(ops.mean(x, axis=1) if self.pooled else x)
        if self.form == "two_heads":
            return (scores + self.other(x)) / 2
        if self.form == "functional_tail":
            return ops.log_softmax(scores)
        return ops.sigmoid(scores) if self.form == "one_score" else scores


def written(spec: testing.Spec) -> keras.Model:
    net = Written(spec)
    net(np.zeros((2, *spec.shape), np.float32))
    shift = 0.125 if spec.form == "two_heads" else 0.0
    net.head.set_weights([spec.weight.T + shift, spec.bias])
    if spec.form == "two_heads":
        net.other.set_weights([spec.weight.T - shift, spec.bias])
    return net


def _head_dtype(spec: testing.Spec) -> str:
    return "float32" if len(spec.shape) == 3 else spec.dtype


def constant(targets, scores):
    """A loss that takes labels of any form."""
    return ops.mean(ops.zeros_like(scores), axis=-1)


class KerasDriver:
    """A loop of ``train_on_batch``."""

    def __init__(self, spec: testing.Spec) -> None:
        self.spec = spec
        self.net = network(spec)
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []

    def attach(self) -> None:
        self.meter = CollapseMeter(
            ["body"] if self.spec.form == "plain" else "auto",
            num_classes=self.spec.num_classes,
            strict=True,
            verbose=False,
            **self.spec.options,
        )
        self.meter.set_model(self.net)

    def feed(self, features, labels) -> None:
        if self.spec.phase == "frozen-eval":
            self.batches.append((features, labels))
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The model does not have any trainable")
            self.net.train_on_batch(features, labels)

    def report(self):
        if self.spec.phase == "frozen-eval":
            return self.meter.observe(self.net, self.batches, progress=False)
        return self.meter.compute()

    def moments(self) -> ClassMoments:
        try:
            return self.meter.moments("head")
        except ValueError:  # nothing was fed
            return ClassMoments.empty(self.spec.num_classes, self.spec.width)

    def reset(self) -> None:
        self.meter.reset()

    def merge(self, other: KerasDriver) -> ClassMoments:
        return self.moments().merge(other.moments())

    def save(self, path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **self.meter.state_dict())

    def load(self, path) -> None:
        with np.load(path) as state:
            self.meter.load_state_dict(state)

    def fingerprint(self):
        attributes = {
            # Keras itself leaves the step's state on a model that was trained on JAX.
            layer.name: sorted(vars(layer).keys() - {"_jax_state"})
            for layer in self.net._flatten_layers()
        }
        metrics = [id(metric) for metric in self.net.metrics]
        weights = [weight.numpy().tobytes() for weight in self.net.weights]
        return attributes, metrics, weights

    def close(self) -> None:
        self.meter.close()


@pytest.mark.parametrize("case", testing.CASES)
def test_conformance(case):
    case(KerasDriver)
