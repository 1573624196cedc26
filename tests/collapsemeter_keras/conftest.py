"""One backend a run, asked for by name: a missing one fails here and is never skipped."""

from __future__ import annotations

import importlib
import os

import pytest

BACKENDS = ("tensorflow", "jax", "torch")
NOISE = (
    # Where counting breaks a compiled graph, PyTorch looks at `.grad` of the tensors that cross.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    # Keras' variables answer NumPy's `copy=` the old way; nothing of ours.
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    backend = os.environ.get("KERAS_BACKEND")
    if backend not in BACKENDS:
        raise pytest.UsageError(
            f"KERAS_BACKEND={backend!r}: tests/keras runs once for each backend; set it to one of "
            f"{', '.join(BACKENDS)}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        importlib.import_module(backend)
        importlib.import_module("keras")
    except ImportError as error:
        raise pytest.UsageError(f"KERAS_BACKEND={backend} is not installed: {error}") from error
    for line in NOISE:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def _fresh_keras():
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)  # collecting garbage takes as long as a test


@pytest.fixture(scope="session")
def backend() -> str:
    return os.environ["KERAS_BACKEND"]
