"""Four devices on the host and a quick compiler, set before JAX is imported, and data near collapse."""

from __future__ import annotations

import os

# Nearly all of the time goes into compiling: the programs are the same, the code of their loops is plain.
# An XLA_FLAGS from outside replaces this, so that all can run as users compile it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false",
)

from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest

from collapsemeter_flax import State, update

Data = tuple[np.ndarray, np.ndarray]
ROWS = 600


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Let go of compiled programs: the system allows a process 65,530 mappings, and each program takes some."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def features() -> Callable[..., Data]:
    """Make float32 rows and labels: what both sides are given is rounded alike."""

    def make(classes: int, width: int, spread: float, offset: float, rows: int = ROWS) -> Data:
        rng = np.random.default_rng(0)
        labels = rng.permutation(np.arange(rows) % classes)
        means = rng.normal(size=(classes, width)) + offset
        x = means[labels] + spread * rng.normal(size=(rows, width))
        return x.astype(np.float32), labels

    return make


@pytest.fixture(scope="session")
def counted() -> Callable[..., State]:
    """Count rows in a jitted step, batch by batch."""

    def count(state: State, rows: np.ndarray, labels: np.ndarray, split: object = 1) -> State:
        parts = zip(np.array_split(rows, split), np.array_split(labels, split), strict=True)
        for x, y in parts:
            features = dict.fromkeys(state.spec.names, x)
            state = jax.block_until_ready(update(state, features, y))
        return state

    return count
