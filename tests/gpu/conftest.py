"""A GPU, which must be there; settings of its products; rows that show whether these were full."""

from __future__ import annotations

import os

# Read when CUDA and JAX start. Deterministic algorithms ask for the first; JAX would take most of the
# memory for itself, and PyTorch is in this process, too.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from collapsemeter import ClassMoments, Head, LayerReport, decide, measure
from collapsemeter.testing.oracle import tolerance

STEP = 2.0**-10  # within-class standard deviation, of each coordinate
DEVICE = torch.device("cuda")


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.fail(f"these tests need a GPU, and torch {torch.__version__} finds none")
    return DEVICE


class Collapsed(NamedTuple):
    """Rows near collapse with their labels, and a head that decides for the nearest class mean."""

    rows: np.ndarray
    labels: np.ndarray
    head: Head

    @property
    def classes(self) -> int:
        return len(self.head.weight)

    @property
    def tolerance(self) -> float:
        return tolerance(len(self.rows))

    def moments(self, kind: Any) -> ClassMoments:
        """Those of float64."""
        return ClassMoments.from_batch(self.rows, self.labels, self.classes, scatter=kind)

    def check(self, found: LayerReport, kind: Any) -> None:
        """Hold every metric against the core's in float64."""
        truth = self.moments(kind)
        decisions = decide(truth, self.rows, self.labels, head=self.head)
        expected = measure(truth, head=self.head, decisions=decisions)
        assert set(found) == set(expected)
        for name, value in expected.items():
            # The others divide by spreads of the class means, which are 1, or by the head's.
            relative = self.tolerance if name.startswith("nc1") else 1e-5
            assert found[name] == pytest.approx(value, rel=relative, abs=1e-6, nan_ok=True), name


@pytest.fixture(scope="session")
def collapsed() -> Callable[[int, int, int], Collapsed]:
    """Make rows whose products lose 7e-4 in TF32 and in bfloat16, however many are added.

    Each residual is plus or minus 2^-10 (1 + 0.75 * 2^-11): three quarters of half a step of TF32 above
    a number of both formats, to which it is rounded or cut off. Errors of residuals at random would
    cancel in sums. Class means are multiples of 2^-8, so that float32 holds every row exactly, and a row
    comes with its mirror image about the mean.
    """

    def make(classes: int, width: int, per_class: int) -> Collapsed:
        rng = np.random.default_rng(0)
        means = rng.integers(-120, 121, (classes, width)) / 256
        signs = rng.choice([-1.0, 1.0], (classes * per_class // 2, width))
        labels = np.arange(len(signs)) % classes
        residuals = STEP * (1 + 0.75 * 2.0**-11) * np.concatenate([signs, -signs])
        labels = np.concatenate([labels, labels])
        rows = means[labels] + residuals
        assert (rows == rows.astype(np.float32)).all()
        order = rng.permutation(len(rows))
        bias = -0.5 * (means**2).sum(1)
        head = Head(means.astype(np.float32), bias.astype(np.float32))
        return Collapsed(rows[order].astype(np.float32), labels[order], head)

    return make


def _matmul() -> Any:
    return torch.backends.cuda.matmul


def _settings() -> tuple[str, ...]:
    backends: Any = torch.backends
    return (backends.fp32_precision, backends.cudnn.fp32_precision, _matmul().fp32_precision)


def _by_backend() -> None:
    _matmul().fp32_precision = "tf32"


def _for_everything() -> None:
    torch.backends.fp32_precision = "tf32"


def _allowed() -> None:
    _matmul().allow_tf32 = True


# Every way in which a user lets float32 products be reduced.
WAYS: dict[str, Callable[[], None]] = {
    "backend": _by_backend,
    "everything": _for_everything,
    "allow_tf32": _allowed,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "off": lambda: None,
}


@pytest.fixture
def reduced() -> Callable[[str], Any]:
    """Let products be reduced in a block, which must leave that setting alone."""

    @contextmanager
    def block(way: str) -> Iterator[None]:
        WAYS[way]()
        chosen = _settings()
        try:
            yield
            assert _settings() == chosen
        finally:
            torch.set_float32_matmul_precision("highest")
            torch.backends.fp32_precision = _matmul().fp32_precision = "none"  # as at the start

    return block
