"""Watch neural collapse in a Flax linen training step: two lines in it, two after each epoch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from jax import Array
from sklearn.datasets import load_digits

from collapsemeter.sinks import Fan
from collapsemeter_flax import CollapseMeter, State, reset

digits = load_digits()
images, labels = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target, jnp.int32)
batches = list(zip(jnp.split(images[:1792], 28), jnp.split(labels[:1792], 28), strict=True))

model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(64), nn.relu, nn.Dense(10)])
variables = model.init(jax.random.key(0), images[:1])
train = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.adamw(3e-3))
meter = CollapseMeter(model, num_classes=10)


@jax.jit
def step(train: TrainState, state: State, x: Array, y: Array) -> tuple[TrainState, State]:
    def loss(params: Any) -> tuple[Array, Any]:
        # What model.apply returns, and features by name.
        logits, features = meter.capture(model, {"params": params}, x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits, features)

    (_, (logits, features)), gradient = jax.value_and_grad(loss, has_aux=True)(train.params)
    state = meter.update(state, features, y, logits=logits)
    return train.apply_gradients(grads=gradient), state


state = meter.init(variables, images[:1])
with Fan("runs/linen/events", "runs/linen/reports.jsonl") as sink:
    for epoch in range(5):
        for x, y in batches:
            train, state = step(train, state, x, y)
        variables = {"params": train.params}
        report, state = meter.report(state, variables), reset(state)
        sink.write(epoch, report)
        print(f"epoch {epoch}\n{report.table()}")
print(meter.observe(batches, variables=variables, phase="frozen-train").summary())
