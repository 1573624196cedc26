"""The Flax adapter passes the conformance kit: NNX in a jitted step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from collapsemeter import ClassMoments, testing
from collapsemeter_flax import CollapseMeter, load, merge, reset, save, to_moments


class Body(nnx.Module):
    """Passes its input on."""

    def __call__(self, x):
        return x


class Net(nnx.Module):
    """A body that passes its input on, and the given head."""

    def __init__(self, spec: testing.Spec) -> None:
        self.body = Body()
        self.head = nnx.Linear(spec.width, spec.num_classes, rngs=nnx.Rngs(0))
        self.head.kernel[...] = jnp.asarray(spec.weight.T, jnp.float32)
        self.head.bias[...] = jnp.asarray(spec.bias, jnp.float32)

    def __call__(self, x):
        x = self.body(x)
        return self.head(x.mean((1, 2)) if x.ndim == 4 else x)


class Written(nnx.Module):
    """A network as people write theirs: the head is declared first, and nothing says in what order layers run."""

    def __init__(self, spec: testing.Spec) -> None:
        self.form, self.pooled = spec.form, spec.pooled
        first, second = (2.0, 0.5) if spec.form == "reversed" else (1.0, 1.0)
        shift = 0.125 if spec.form == "two_heads" else 0.0
        self.head = linear(spec.weight.T + shift, spec.bias)
        self.other = linear(spec.weight.T - shift, spec.bias)
        self.second = linear(second * np.eye(spec.width))
        self.first = linear(first * np.eye(spec.width))

    def __call__(self, x):
        x = self.first(x)
        if self.form == "reversed":
            x = self.second(x)
        elif self.form == "repeated":
            x = self.first(x)
        scores = self.head(x.mean(1) if self.pooled else x)
        if self.form == "two_heads":
            return (scores + self.other(x)) / 2
        if self.form == "functional_tail":
            return jax.nn.log_softmax(scores)
        return jax.nn.sigmoid(scores) if self.form == "one_score" else scores


def linear(kernel, bias=None) -> nnx.Linear:
    layer = nnx.Linear(*kernel.shape, use_bias=bias is not None, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
    if bias is not None:
        layer.bias[...] = jnp.asarray(bias, jnp.float32)
    return layer


class FlaxDriver:
    """A state that is handed from batch to batch."""

    def __init__(self, spec: testing.Spec) -> None:
        self.spec = spec
        self.net = Net(spec) if spec.form == "plain" else Written(spec)
        self.batches: list[tuple[jax.Array, np.ndarray]] = []

    def attach(self) -> None:
        self.meter = CollapseMeter(
            self.net,
            *([["body"], "head"] if self.spec.form == "plain" else []),
            num_classes=self.spec.num_classes,
            verbose=False,
            **self.spec.options,
        )
        shape = (4, *self.spec.shape)
        tokens = len(shape) == 3 and not self.spec.pooled
        labels = np.zeros(shape[:2] if tokens else shape[:1], np.int32)
        self.state = self.meter.init(jnp.zeros(shape, self.spec.dtype), labels=labels)
        self.step = jax.jit(lambda x: self.meter.capture(self.net, x))

    def feed(self, features, labels) -> None:
        inputs = jnp.asarray(features, self.spec.dtype)
        if self.spec.phase == "frozen-eval":
            self.batches.append((inputs, labels))
            return
        logits, given = self.step(inputs)
        self.state = self.meter.update(self.state, given, labels, logits=logits)

    def report(self):
        if self.spec.phase == "frozen-eval":
            return self.meter.observe(self.batches, progress=False)
        return self.meter.report(self.state)

    def moments(self) -> ClassMoments:
        return to_moments(self.state)["head"]

    def reset(self) -> None:
        self.state = reset(self.state)

    def merge(self, other: FlaxDriver) -> ClassMoments:
        return to_moments(merge(self.state, other.state))["head"]

    def save(self, path) -> None:
        save(self.state, path)

    def load(self, path) -> None:
        self.state = load(path, self.state)

    def fingerprint(self):
        graph, weights = nnx.split(self.net)
        arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)]
        return hash(graph), type(self.net.body), type(self.net.head), arrays

    def close(self) -> None:
        """Nothing was put on the model."""


@pytest.mark.parametrize("case", testing.CASES)
def test_conformance(case):
    case(FlaxDriver)
