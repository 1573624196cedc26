"""What watching costs a training step: watched and unwatched steps in turn, in one process.

    python benchmarks/overhead.py torch|keras|flax
    python benchmarks/overhead.py torch --network resnet18
    python benchmarks/overhead.py torch --network mlp --steps 64
    python benchmarks/overhead.py flax --network tutorial --clock processor

Two copies of a network take the same steps, loss, gradients and descent, one of them watched; a round is a
few steps of each. `convnet` is a small convolutional network on images of 32 x 32, `mlp` has four hidden
layers of 512 on 784 inputs: both are watched at the head's input alone, which is 512 wide. `resnet18`, in
PyTorch, is watched at its stem, all eight blocks and the head's input. `tutorial`, in Flax, is the network of linen's tutorial on
28 x 28 digits, batch 32, watched as `auto` chooses: four layers. A third step there computes the products X'X of the same layers and
nothing else; what the meter adds beyond them is the figure. In PyTorch a block of 4096 rows, of 64
steps, is added at once: a round of fewer steps has it or has it not, and the median does not see it. Keras runs on the backend that
``KERAS_BACKEND`` names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from pairwise import Sheet, in_turn, options, share, wait_for_device

WIDTH, CLASSES, BATCH = 512, 10, 64
MLP = (784, WIDTH, WIDTH, WIDTH, WIDTH)  # inputs and hidden layers
Steps = tuple[str, Callable[[], object], Callable[[], object]]  # name, unwatched, watched
TUTORIAL_BATCH = 32


def data(network: str) -> tuple[np.ndarray, np.ndarray]:
    """One batch of noise: what a step costs does not depend on it."""
    shape = (MLP[0],) if network == "mlp" else (32, 32, 3)
    images = np.random.default_rng(0).normal(size=(BATCH, *shape))
    return images.astype("float32"), np.arange(BATCH) % CLASSES


def in_torch(network: str) -> Steps:
    import networks
    import torch
    from pairwise import device
    from torch import nn

    from collapsemeter_torch import CollapseMeter

    def net() -> nn.Module:
        torch.manual_seed(0)
        if network != "convnet":
            return networks.subject(network).model.to(device())
        return nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
            *(nn.Flatten(), nn.Linear(512, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)),
        ).to(device())

    images, labels = data(network)
    x, y = torch.tensor(np.moveaxis(images, -1, 1).copy()).to(device()), torch.tensor(labels)
    y = y.to(device())
    plain, watched = net(), net()
    blocks = networks.subject(network).layers if network == "resnet18" else lambda *_: False
    meter = CollapseMeter(watched, layers=blocks, verbose=False)

    def step(model: nn.Module) -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1e-3 * weight.grad
                weight.grad = None

    def counted() -> None:
        with meter.batch(y):
            step(watched)

    return "torch", lambda: step(plain), counted


def in_keras(network: str) -> Steps:
    import keras
    from keras import layers

    from collapsemeter_keras import CollapseMeter

    def net() -> keras.Model:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input(x.shape[1:])])
        for filters, pool in ((32, 2), (64, 2), (128, 4)) if network == "convnet" else ():
            model.add(layers.Conv2D(filters, 3, padding="same", activation="relu"))
            model.add(layers.MaxPooling2D(pool))
        model.add(layers.Flatten())
        for width in (WIDTH,) if network == "convnet" else MLP[1:]:
            model.add(layers.Dense(width, "relu"))
        model.add(layers.Dense(CLASSES, name="fc"))
        model.compile(
            keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        return model

    x, y = data(network)
    plain, watched = net(), net()
    meter = CollapseMeter(layers=lambda *_: False, verbose=False)
    meter.set_model(watched)

    def counted() -> None:
        watched.train_on_batch(x, y)
        assert meter  # the model holds its meter weakly

    name = f"keras on {keras.backend.backend()}"
    return name, lambda: plain.train_on_batch(x, y), counted


def in_flax(network: str) -> Steps:
    import jax
    import optax
    from flax import nnx

    import collapsemeter_flax as cf

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            sizes = ((3, 32), (32, 64), (64, 128)) if network == "convnet" else ()
            self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in sizes])
            widths = itertools.pairwise((512, WIDTH) if network == "convnet" else MLP)
            self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in widths])
            self.fc = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            for conv, pool in zip(self.convs, (2, 2, 4), strict=False):
                x = nnx.max_pool(nnx.relu(conv(x)), (pool, pool), (pool, pool))
            x = x.reshape(len(x), -1)
            for hidden in self.hidden:
                x = nnx.relu(hidden(x))
            return self.fc(x)

    x, y = map(jax.numpy.asarray, data(network))
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

    return "flax", run_plain, run_watched


def in_linen() -> dict[str, Callable[[], object]]:
    """Steps of the tutorial's network, by name: plain, with the products alone, watched."""
    import jax
    import optax
    from flax import linen
    from jax import lax
    from jax import numpy as jnp

    from collapsemeter_flax import CollapseMeter

    class CNN(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for filters in (32, 64):
                x = linen.relu(linen.Conv(filters, (3, 3))(x))
                x = linen.avg_pool(x, (2, 2), (2, 2))
            x = linen.relu(linen.Dense(256)(x.reshape(len(x), -1)))
            return linen.Dense(CLASSES)(x)

    model, descent = CNN(), optax.sgd(0.01, momentum=0.9)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(TUTORIAL_BATCH, 28, 28, 1)).astype("float32"))
    y = jnp.arange(TUTORIAL_BATCH) % CLASSES
    variables = model.init(jax.random.key(0), x)
    meter = CollapseMeter(model, verbose=False)
    state = meter.init(variables, x)

    def loss(variables: dict, watch: bool) -> tuple[jax.Array, object]:
        if watch:
            logits, features = meter.capture(model, variables, x)
        else:
            logits, features = model.apply(variables, x), {}
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits, features)

    def moved(variables: dict, memory: object, watch: bool) -> tuple[dict, object, tuple]:
        gradient, seen = jax.grad(loss, has_aux=True)(variables, watch)
        updates, memory = descent.update(gradient, memory, variables)
        return optax.apply_updates(variables, updates), memory, seen

    def plain(variables: dict, memory: object, _: None) -> tuple:
        return *moved(variables, memory, False)[:2], None

    def products(variables: dict, memory: object, sums: list[jax.Array]) -> tuple:
        variables, memory, (_, features) = moved(variables, memory, True)
        rows = [f if f.ndim == 2 else f.mean((1, 2)) for f in features.values()]
        exact = lax.Precision.HIGHEST
        sums = [a + jnp.matmul(r.T, r, precision=exact) for a, r in zip(sums, rows, strict=True)]
        return variables, memory, sums

    def watched(variables: dict, memory: object, state: object) -> tuple:
        variables, memory, (logits, features) = moved(variables, memory, True)
        return variables, memory, meter.update(state, features, y, logits=logits)

    def running(step: Callable[..., tuple], counted: object) -> Callable[[], None]:
        compiled = jax.jit(step, donate_argnums=(0, 1, 2))
        held = [jax.tree.map(jnp.copy, (variables, descent.init(variables), counted))]

        def run() -> None:
            held[0] = jax.block_until_ready(compiled(*held[0]))

        return run

    sums = [jnp.zeros((width, width)) for width in state.spec.widths]
    return {
        "plain": running(plain, None),
        "products": running(products, sums),
        "watched": running(watched, state),
    }


def tutorial(sheet: Sheet, rounds: int, steps: int) -> None:
    """Add what the meter costs beyond the products."""
    calls = in_linen()
    for call in calls.values():
        call()
    seconds = in_turn(calls, rounds, steps=steps, clock=sheet.clock, wait=wait_for_device)
    for what, under, target in (("in all", "plain", ""), ("beyond X'X", "products", "<= 5")):
        percent = 100 * (seconds["watched"] - seconds[under]) / seconds["plain"]
        name = f"flax linen, tutorial, 4 layers, {what}"
        sheet.add(share(name, percent, seconds, ("plain", under, "watched"), target))


def main() -> None:
    """Print what the meter adds to a step: the median of the rounds, in percent."""
    frameworks = {"torch": in_torch, "keras": in_keras, "flax": in_flax}
    parser = options(__doc__, rounds=30)
    parser.add_argument("framework", choices=frameworks)
    parser.add_argument("--network", choices=("convnet", "mlp", "resnet18", "tutorial"))
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    chosen = parser.parse_args()
    chosen.network = chosen.network or "convnet"
    if chosen.network == "resnet18" and chosen.framework != "torch":
        parser.error("resnet18 is a network of PyTorch's here")
    if chosen.network == "tutorial":
        if chosen.framework != "flax":
            parser.error("tutorial is a network of Flax's here")
        sheet = Sheet(f"What the meter adds to a training step, batch {TUTORIAL_BATCH}", chosen)
        tutorial(sheet, chosen.rounds, chosen.steps)
        return sheet.save()
    name, plain, watched = frameworks[chosen.framework](chosen.network)
    plain(), watched()  # compiles; JAX compiles a second time for what a first step gives back
    sheet = Sheet(f"What the meter adds to a training step, batch {BATCH}", chosen)
    calls = {"plain": plain, "watched": watched}
    seconds = in_turn(
        calls, chosen.rounds, steps=chosen.steps, clock=sheet.clock, wait=wait_for_device
    )
    layers = "10 layers" if chosen.network == "resnet18" else "the head's input"
    percent = 100 * (seconds["watched"] / seconds["plain"] - 1)
    target = "<= 5" if chosen.network != "convnet" else ""
    sheet.add(share(f"{name}, {chosen.network}, {layers}", percent, seconds, (*calls,), target))
    sheet.save()


if __name__ == "__main__":
    main()
