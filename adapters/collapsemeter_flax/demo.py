"""The demo's network and training loop in Flax NNX."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from flax import nnx
from jax import Array

from collapsemeter.activations import Writer
from collapsemeter.adapter.epoch import Epoch
from collapsemeter.adapter.reduction import Reduction

from .meter import CollapseMeter
from .reduction import feature_rows
from .state import State, reset
from .tallies import head_of

BATCH = 32
LEARNING_RATE = 0.02
WEIGHT_DECAY = 1e-2
# conv3 is flattened, as the network does before its hidden block; earlier maps are averaged.
REDUCTION: dict[str, Reduction] = {"conv3": "flatten"}


class NnxDigitsNet(nnx.Module):
    """Three convolutional blocks, a hidden block, 64 features and a linear head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv_block(1, 8, rngs)
        self.conv2 = _conv_block(8, 16, rngs, _halved)
        self.conv3 = _conv_block(16, 32, rngs, _halved)
        self.hidden = _dense_block(128, 256, rngs)
        self.features = _dense_block(256, 64, rngs)
        self.fc = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """Return logits (B, 10) of images (B, 8, 8, 1)."""
        maps = self.conv3(self.conv2(self.conv1(images)))
        rows = maps.reshape(maps.shape[0], -1)
        logits: Array = self.fc(self.features(self.hidden(rows)))
        return logits


def _conv_block(inputs: int, outputs: int, rngs: nnx.Rngs, *pool: Any) -> nnx.Sequential:
    conv = nnx.Conv(inputs, outputs, (3, 3), use_bias=False, rngs=rngs)
    return nnx.Sequential(conv, nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs), nnx.relu, *pool)


def _dense_block(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Sequential:
    linear = nnx.Linear(inputs, outputs, use_bias=False, rngs=rngs)
    return nnx.Sequential(linear, nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs), nnx.relu)


def _halved(maps: Array) -> Array:
    pooled: Array = nnx.max_pool(maps, (2, 2), strides=(2, 2))
    return pooled


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
    x, y = images[..., None], labels.astype(np.int32)
    frozen = [(x[start : start + 600], y[start : start + 600]) for start in range(0, len(x), 600)]
    rng = np.random.default_rng(seed)

    model = NnxDigitsNet(nnx.Rngs(seed))
    steps = epochs * -(-len(x) // BATCH)
    optimizer = nnx.Optimizer(model, _descent(steps), wrt=nnx.Param)
    # What `features` gives is the input of `fc`, which is watched under that name.
    meter = CollapseMeter(
        model,
        layers=["conv1", "conv2", "conv3", "hidden"],
        num_classes=10,
        reduction=REDUCTION,
    )
    state = meter.init(x[:1])

    # Arrays in, arrays out: in steps this small the bookkeeping of objects would cost more than the rest.
    graph, weights = nnx.split((model, optimizer))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: Any, state: State, x: Array, y: Array) -> tuple[Any, State, Array, Array]:
        model, optimizer = nnx.merge(graph, weights)

        def loss(model: NnxDigitsNet) -> tuple[Array, Any]:
            logits, features = meter.capture(model, x)
            return _loss(logits, y), (logits, features)

        (error, (logits, features)), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradient)
        state = meter.update(state, features, y, logits=logits)
        return nnx.state((model, optimizer)), state, error, (logits.argmax(1) != y).sum()

    def observe() -> Any:
        return meter.observe(frozen, phase="frozen-train", progress=False)

    logits = nnx.view(model, use_running_average=True)(jnp.asarray(x))
    untrained = float((logits.argmax(1) != y).mean())
    yield Epoch(0, float(_loss(logits, jnp.asarray(y))), untrained, None, observe())
    for number in range(1, epochs + 1):
        loss, wrong = 0.0, 0
        order = rng.permutation(len(x))
        for batch in np.split(order, range(BATCH, len(x), BATCH)):
            weights, state, error, missed = step(weights, state, x[batch], y[batch])
            loss += float(error) * len(batch)
            wrong += int(missed)
        nnx.update((model, optimizer), jax.tree.map(jnp.copy, weights))
        live = meter.report(state)
        state = reset(state)
        yield Epoch(number, loss / len(x), wrong / len(x), live, observe())
    if dump is None:
        return
    head, whole = head_of(model.fc), nnx.view(model, use_running_average=True)
    with Writer(dump, num_classes=10, head=head, phase="frozen-train", step=epochs) as writer:
        for inputs, classes in frozen:
            logits, features = meter.capture(whole, inputs)
            # As it is measured: one row for each image.
            rows = {
                name: feature_rows(
                    output, classes.shape, None, layer=name, reduction=REDUCTION.get(name, "auto")
                )[0]
                for name, output in features.items()
            }
            writer.write(rows, classes, predictions=logits.argmax(1))


def _descent(steps: int) -> Any:
    """SGD with Nesterov momentum and a cosine schedule, decay in the gradient."""
    rate = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(rate, momentum=0.9, nesterov=True)
    )


def _loss(logits: Array, labels: Array) -> Array:
    return ((logits - jax.nn.one_hot(labels, 10)) ** 2).sum(1).mean()
