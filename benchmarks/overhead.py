"""What watching costs a training step: watched and unwatched steps in turn, in one process.

A convolutional network on 32 x 32 images, whose features of width 512 are watched under the head's name.
``python benchmarks/overhead.py torch|keras|flax`` prints the median of the ratios of neighbouring blocks
of steps; Keras runs on the backend that ``KERAS_BACKEND`` names.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

WIDTH, CLASSES, BATCH = 512, 10, 64
Steps = tuple[str, Callable[[], object], Callable[[], object]]  # name, unwatched, watched


def data() -> tuple[np.ndarray, np.ndarray]:
    """One batch of noise: what a step costs does not depend on it."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(BATCH, 32, 32, 3)).astype("float32"), np.arange(BATCH) % CLASSES


def in_torch() -> Steps:
    import torch
    from torch import nn

    from collapsemeter_torch import CollapseMeter

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
            *(nn.Flatten(), nn.Linear(512, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)),
        )

    images, labels = data()
    x, y = torch.tensor(images.transpose(0, 3, 1, 2).copy()), torch.tensor(labels)
    plain, watched = net(), net()
    meter = CollapseMeter(watched, layers=lambda *_: False, verbose=False)

    def step(model: nn.Module) -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1e-3 * weight.grad
                weight.grad = None

    def counted() -> None:
        with meter.batch(y):
            step(watched)

    return f"torch {torch.__version__}", lambda: step(plain), counted


def in_keras() -> Steps:
    import keras
    from keras import layers

    from collapsemeter_keras import CollapseMeter

    def net() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((32, 32, 3))])
        for filters, pool in ((32, 2), (64, 2), (128, 4)):
            model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
            model.add(layers.MaxPooling2D(pool))
        model.add(layers.Flatten())
        model.add(layers.Dense(WIDTH, "relu"))
        model.add(layers.Dense(CLASSES, name="fc"))
        model.compile(
            keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        return model

    x, y = data()
    plain, watched = net(), net()
    meter = CollapseMeter(layers=lambda *_: False, verbose=False)
    meter.set_model(watched)

    def counted() -> None:
        watched.train_on_batch(x, y)
        assert meter  # the model holds its meter weakly

    name = f"keras {keras.__version__} on {keras.backend.backend()}"
    return name, lambda: plain.train_on_batch(x, y), counted


def in_flax() -> Steps:
    import jax
    import optax
    from flax import nnx

    import collapsemeter_flax as cf

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = ((3, 32), (32, 64), (64, 128))
            self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in sizes])
            self.hidden = nnx.Linear(512, WIDTH, rngs=rngs)
            self.fc = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            for conv, pool in zip(self.convs, (2, 2, 4), strict=True):
                x = nnx.max_pool(nnx.relu(conv(x)), (pool, pool), (pool, pool))
            return self.fc(nnx.relu(self.hidden(x.reshape(len(x), -1))))

    x, y = map(jax.numpy.asarray, data())
    graph, weights = nnx.split(Net(nnx.Rngs(0)))

    def loss(weights: nnx.State, watch: bool) -> tuple[jax.Array, object]:
        model = nnx.merge(graph, weights)
        logits, features = model(x), {}
        if watch:
            logits, features = cf.capture(model, x, layers=(), head="fc")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits, features)

    def moved(weights: nnx.State, watch: bool) -> tuple[nnx.State, tuple[jax.Array, dict]]:
        gradient, seen = jax.grad(loss, has_aux=True)(weights, watch)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, weights, gradient), seen

    plain = jax.jit(lambda weights: moved(weights, False)[0], donate_argnums=0)

    def watched(weights: nnx.State, state: cf.State) -> tuple[nnx.State, cf.State]:
        weights, (logits, features) = moved(weights, True)
        return weights, cf.update(state, features, y, logits=logits)

    watched = jax.jit(watched, donate_argnums=(0, 1))
    kept = {
        "plain": jax.tree.map(jax.numpy.copy, weights),
        "watched": (
            jax.tree.map(jax.numpy.copy, weights),
            cf.init({"fc": WIDTH}, num_classes=CLASSES),
        ),
    }

    def run_plain() -> None:
        kept["plain"] = jax.block_until_ready(plain(kept["plain"]))

    def run_watched() -> None:
        kept["watched"] = jax.block_until_ready(watched(*kept["watched"]))

    return f"jax {jax.__version__}", run_plain, run_watched


def main() -> None:
    """Print the cost of a step without and with the meter, and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("framework", choices=("torch", "keras", "flax"))
    parser.add_argument("--blocks", type=int, default=30, help="pairs of blocks")
    parser.add_argument("--steps", type=int, default=5, help="steps a block")
    options = parser.parse_args()
    name, plain, watched = {"torch": in_torch, "keras": in_keras, "flax": in_flax}[
        options.framework
    ]()

    def seconds(step: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(options.steps):
            step()
        return (time.perf_counter() - start) / options.steps

    for step in (plain, watched, plain, watched):  # compile and warm up
        seconds(step)
    pairs = []
    for block in range(options.blocks):
        order = (plain, watched) if block % 2 == 0 else (watched, plain)
        pair = {step: seconds(step) for step in order}
        pairs.append((pair[plain], pair[watched]))
    times = np.array(pairs)
    ratios = times[:, 1] / times[:, 0]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    before, after = 1000 * np.median(times, axis=0)
    print(
        f"{name}: one watched layer, d = {WIDTH}, batch {BATCH}: {before:.1f} -> {after:.1f} ms a step, "
        f"{middle - 1:+.1%} (quartiles {low - 1:+.1%} to {high - 1:+.1%})"
    )


if __name__ == "__main__":
    main()
