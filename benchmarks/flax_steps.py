"""What `step_costs.py` times of NNX and linen.

NNX: `convnet` and `mlp` are those of `keras_steps.py`, watched at the head's input. Linen: `tutorial` is the network of its tutorial, on
digits of 28 x 28, and `tiny` an MLP 64-64-64-64-10; both are watched as `auto` chooses. The minimal hook is part of the same
compiled step, and its state is donated, as the meter's is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import linen, nnx
from jax import lax
from jax import numpy as jnp
from steps import Steps

from collapsemeter_flax import CollapseMeter

WIDTH, CLASSES = 512, 10
MLP = (784, WIDTH, WIDTH, WIDTH, WIDTH)  # inputs and hidden layers
SIZES = {  # rows of a batch, steps of a round, rounds
    "nnx-convnet": (64, 3, 6),
    "nnx-mlp": (64, 16, 20),
    "linen-tutorial": (32, 5, 20),
    "linen-tiny": (64, 200, 20),
}


class NNX(nnx.Module):
    """The MLP, or the convolutional network."""

    def __init__(self, name: str, rngs: nnx.Rngs) -> None:
        convolutional = name == "nnx-convnet"
        sizes = ((3, 32), (32, 64), (64, 128)) if convolutional else ()
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in sizes])
        widths = itertools.pairwise((512, WIDTH) if convolutional else MLP)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in widths])
        self.fc = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, pool in zip(self.convs, (2, 2, 4), strict=False):
            x = nnx.max_pool(nnx.relu(conv(x)), (pool, pool), (pool, pool))
        x = x.reshape(len(x), -1)
        for hidden in self.hidden:
            x = nnx.relu(hidden(x))
        return self.fc(x)


class Linen(linen.Module):
    """The network of the tutorial, or a tiny MLP."""

    filters: tuple[int, ...]
    widths: tuple[int, ...]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for filters in self.filters:
            x = linen.relu(linen.Conv(filters, (3, 3))(x))
            x = linen.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(CLASSES)(x)


def network(
    name: str, **options: Any
) -> tuple[CollapseMeter, Any, Callable[..., tuple], tuple[int, ...]]:
    """Return a meter, the weights, the forward (weights, x, watch) -> (scores, features), and a row's shape."""
    if name.startswith("nnx"):
        shape = (32, 32, 3) if name == "nnx-convnet" else MLP[:1]
        whole = NNX(name, nnx.Rngs(0))
        graph, weights = nnx.split(whole)
        meter = CollapseMeter(whole, layers=(), verbose=False, **options)

        def run(weights: nnx.State, x: jax.Array, watch: bool) -> tuple[jax.Array, dict]:
            model = nnx.merge(graph, weights)
            return meter.capture(model, x) if watch else (model(x), {})

        return meter, weights, run, shape
    tutorial = name == "linen-tutorial"
    shape = (28, 28, 1) if tutorial else (64,)
    model = Linen((32, 64), (256,)) if tutorial else Linen((), (64, 64, 64))
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    meter = CollapseMeter(model, verbose=False, **options)

    def apply(variables: dict, x: jax.Array, watch: bool) -> tuple[jax.Array, dict]:
        return meter.capture(model, variables, x) if watch else (model.apply(variables, x), {})

    return meter, variables, apply, shape


def product(a: jax.Array) -> jax.Array:
    """Return A'A in full precision."""
    return jnp.matmul(a.T, a, precision=lax.Precision.HIGHEST)


def rows_of(features: Mapping[str, jax.Array]) -> list[jax.Array]:
    """Average over space."""
    return [lax.stop_gradient(f if f.ndim == 2 else f.mean((1, 2))) for f in features.values()]


def first_sums(width: int) -> tuple[jax.Array, ...]:
    """Return counts, shift, sums, squares and scatter of nothing."""
    by_class = (CLASSES, width)
    shapes = ((CLASSES,), by_class, by_class, (CLASSES,), (width, width))
    return tuple(jnp.zeros(shape) for shape in shapes)


def added(sums: tuple[jax.Array, ...], rows: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Add a batch to the sums of a layer, as short as can be."""
    counts, shift, totals, squares, scatter = sums
    more = jnp.zeros_like(counts).at[y].add(1)

    def means(shift: jax.Array) -> jax.Array:
        return shift.at[y].add(rows / more[y][:, None])

    shift = lax.cond(counts.sum() == 0, means, lambda shift: shift, shift)
    left = rows - shift[y]
    return (
        counts + more,
        shift,
        totals.at[y].add(left),
        squares.at[y].add((left * left).sum(axis=1)),
        scatter + product(left),
    )


def steps_of(name: str) -> Steps:
    """Return steps that are watched, unwatched or hooked, each compiled as one."""
    batch, steps, rounds = SIZES[name]
    meter, weights, forward, shape = network(name)
    descent = optax.sgd(0.01, momentum=0.9)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, *shape)).astype("float32"))
    y = jnp.arange(batch) % CLASSES
    nnx_model = name.startswith("nnx")
    ungrouped = network(name, groups=0)[0]
    example = (x,) if nnx_model else (weights, x)
    state, without_groups = meter.init(*example), ungrouped.init(*example)

    def loss(weights: Any, x: jax.Array, y: jax.Array, watch: bool) -> tuple[jax.Array, tuple]:
        scores, features = forward(weights, x, watch)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, y)
        return losses.mean(), (scores, features)

    def moved(watch: bool, weights: Any, memory: Any, x: jax.Array, y: jax.Array) -> tuple:
        gradient, seen = jax.grad(loss, has_aux=True)(weights, x, y, watch)
        updates, memory = descent.update(gradient, memory, weights)
        return optax.apply_updates(weights, updates), memory, seen

    def plain(weights: Any, memory: Any, _: None, x: jax.Array, y: jax.Array) -> tuple:
        return *moved(False, weights, memory, x, y)[:2], None

    def products(weights: Any, memory: Any, sums: list, x: jax.Array, y: jax.Array) -> tuple:
        weights, memory, (_, features) = moved(True, weights, memory, x, y)
        rows = rows_of(features)
        return weights, memory, [a + product(r) for a, r in zip(sums, rows, strict=True)]

    def minimal(weights: Any, memory: Any, sums: list, x: jax.Array, y: jax.Array) -> tuple:
        weights, memory, (_, features) = moved(True, weights, memory, x, y)
        rows = rows_of(features)
        return weights, memory, [added(a, r, y) for a, r in zip(sums, rows, strict=True)]

    def watched(counting: CollapseMeter) -> Callable[..., tuple]:
        def step(weights: Any, memory: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple:
            weights, memory, (scores, features) = moved(True, weights, memory, x, y)
            return weights, memory, counting.update(state, features, y, logits=scores)

        return step

    def running(step: Callable[..., tuple], counted: object) -> Callable[[], None]:
        compiled = jax.jit(step, donate_argnums=(0, 1, 2))
        held = [jax.tree.map(jnp.copy, (weights, descent.init(weights), counted))]

        def run() -> None:
            held[0] = jax.block_until_ready(compiled(*held[0], x, y))

        return run

    widths = state.spec.widths
    calls = {
        "plain": running(plain, None),
        "products": running(products, [jnp.zeros((width, width)) for width in widths]),
        "minimal": running(minimal, [first_sums(width) for width in widths]),
        "watched": running(watched(meter), state),
        "groups=0": running(watched(ungrouped), without_groups),
    }
    return Steps(batch, steps, rounds, calls, whole_rounds=False)
