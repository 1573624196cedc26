"""The README's Keras and Flax blocks run as they stand, one after the other."""

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
RUN = """
import contextlib, runpy, sys
for kind in sys.argv[1:]:
    with open(f"{kind}.txt", "w") as printed, contextlib.redirect_stdout(printed):
        runpy.run_path(f"{kind}_block.py", run_name="__main__")
"""
MARKS = {"keras": "collapsemeter_keras", "nnx": "nnx.jit", "linen": "jax.jit"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the blocks wrote, and what they printed in a file of their name; JAX is loaded once."""
    folder = tmp_path_factory.mktemp("readme")
    for kind, before in BEFORE.items():
        (block,) = (block for block in BLOCKS if MARKS[kind] in block)
        code = DATA + before + ("" if kind == "keras" else FLAX) + block
        (folder / f"{kind}_block.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", RUN, *BEFORE],
        cwd=folder,
        env=os.environ | {"KERAS_BACKEND": "jax"},  # the example runs on every backend
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_keras(folder):
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl")}
    assert "runs/keras/reports.train.jsonl" in written
    assert "runs/keras/reports.validation.jsonl" in written


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_flax(kind, folder):
    assert "nc1_pinv" in (folder / f"{kind}.txt").read_text()
