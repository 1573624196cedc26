"""Watch neural collapse in a Flax NNX training step: two lines in it, two after each epoch."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from sklearn.datasets import load_digits

from collapsemeter.sinks import Fan
from collapsemeter_flax import CollapseMeter, State, reset

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target, jnp.int32)
batches = list(zip(jnp.split(images[:1792], 28), jnp.split(labels[:1792], 28), strict=True))

rngs = nnx.Rngs(0)
first, second, last = (nnx.Linear(*sizes, rngs=rngs) for sizes in ((64, 128), (128, 64), (64, 10)))
model = nnx.Sequential(first, nnx.relu, second, nnx.relu, last)
optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)
meter = CollapseMeter(model, num_classes=10)


@nnx.jit
def step(
    model: nnx.Sequential,
    optimizer: nnx.Optimizer[nnx.Sequential],
    state: State,
    x: Array,
    y: Array,
) -> State:
    def loss(model: nnx.Sequential) -> tuple[Array, Any]:
        logits, features = meter.capture(model, x)  # what model(x) returns, and features by name
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits, features)

    (_, (logits, features)), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradient)
    return meter.update(state, features, y, logits=logits)


state = meter.init(images[:1])
with Fan("runs/nnx/events", "runs/nnx/reports.jsonl") as sink:
    for epoch in range(5):
        for x, y in batches:
            state = step(model, optimizer, state, x, y)
        report, state = meter.report(state), reset(state)
        sink.write(epoch, report)
        print(f"epoch {epoch}\n{report.table()}")
print(meter.observe(batches, phase="frozen-train").summary())
