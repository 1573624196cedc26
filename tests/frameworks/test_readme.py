"""The README's Keras and Flax blocks run as they stand, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

DATA = """
import numpy as np
rng = np.random.default_rng(0)
images = rng.normal(size=(60, 16)).astype("float32")
labels = np.arange(60) % 10
held_out, held_labels, epochs = images[:20], labels[:20], 2
batches = [(images[i:i + 20], labels[i:i + 20]) for i in range(0, 60, 20)]
"""
BEFORE = {
    "keras": """
import keras
model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(12, "relu"), keras.layers.Dense(10, name="fc")])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
""",
    "nnx": """
import optax
from flax import nnx
r = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(16, 12, rngs=r), nnx.relu, nnx.Linear(12, 10, rngs=r))
optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
""",
    "linen": """
import jax, optax
from flax import linen
from flax.training.train_state import TrainState
model = linen.Sequential([linen.Dense(12), linen.relu, linen.Dense(10)])
variables = model.init(jax.random.key(0), images[:1])
train = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optax.sgd(0.1))
""",
}
FLAX = """
def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
"""
MARKS = {"keras": "collapsemeter_keras", "nnx": "nnx.jit", "linen": "jax.jit"}


def test_keras(tmp_path):
    run("keras", tmp_path, {"KERAS_BACKEND": "jax"})  # the example runs on every backend
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")}
    assert "runs/keras/reports.train.jsonl" in written
    assert "runs/keras/reports.validation.jsonl" in written


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_flax(kind, tmp_path):
    assert "nc1_pinv" in run(kind, tmp_path, {})


def run(kind: str, folder: Path, environment: dict[str, str]) -> str:
    (block,) = (block for block in BLOCKS if MARKS[kind] in block)
    code = DATA + BEFORE[kind] + ("" if kind == "keras" else FLAX) + block
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
