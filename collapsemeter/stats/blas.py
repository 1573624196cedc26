"""Products of matrices by NumPy; on the way out, since each is one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ALONE_WITH_VECTOR = (
    2**13
)  # multiplications of a matrix and a vector up to which BLAS starts no threads

Reals = npt.NDArray[Any]  # float64 or float32


def product(a: Reals, b: Reals, out: Reals | None = None) -> Reals:
    """Return ``a @ b``."""
    return np.asarray(np.matmul(a, b, out=out))


def gram(rows: Reals) -> Reals:
    r"""Return :math:`A A^\top`, which NumPy computes as a symmetric product."""
    return np.asarray(rows @ rows.T)


def norm(matrix: Reals) -> float:
    """Return the Frobenius norm."""
    return float(np.linalg.norm(matrix))


def inner(a: Reals, b: Reals) -> float:
    """Return the sum of the products of the entries of two matrices of equal shape."""
    return float(np.vecdot(a, b).sum())
