"""Matrix products by the BLAS of SciPy, which decompositions use, too.

NumPy and SciPy bring a BLAS each. Threads of either look for more work for a while after a product, by
spinning, and hold up those of the other: where both have some, a layer of a few hundred features takes several times
as long. So a product that is large enough to start threads is SciPy's. SciPy, which takes a tenth of a second
to import, is not imported for smaller ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .symmetric import mirror

# Up to which BLAS starts no threads: multiplications of two matrices, and of a matrix and a vector.
ALONE, ALONE_WITH_VECTOR = 2**17, 2**13

Reals = npt.NDArray[Any]  # float64 or float32


def product(a: Reals, b: Reals, out: Reals | None = None) -> Reals:
    """Return ``a @ b``.

    Parameters
    ----------
    a, b : arrays of one or two axes, both float64 or both float32
        The transpose of an array in C order is as good as one.
    out : array, optional
        Memory for the result of two matrices, which may not be where it is returned.

    Examples
    --------
    >>> product(np.array([[1.0, 2.0]]), np.eye(2))
    array([[1., 2.]])
    """
    rows, columns = np.atleast_2d(a), b[:, None] if b.ndim == 1 else b
    size = rows.shape[0] * rows.shape[1] * columns.shape[1]
    vector = 1 in (rows.shape[0], columns.shape[1])
    if size <= (ALONE_WITH_VECTOR if vector else ALONE):
        return np.asarray(np.matmul(a, b, out=out))
    from scipy.linalg import blas

    gemm = blas.sgemm if a.dtype == np.float32 else blas.dgemm
    # BLAS counts by columns: to it an array in C order is its transpose, and (A B)^T = B^T A^T.
    (left, left_turned), (right, right_turned) = _turned(columns), _turned(rows)
    given = {} if out is None else {"c": out.T, "overwrite_c": True}
    found = gemm(1.0, left, right, trans_a=left_turned, trans_b=right_turned, **given).T
    shape = a.shape[:-1] + b.shape[1:]
    return np.asarray(found).reshape(shape)


def gram(rows: Reals) -> Reals:
    r"""Return :math:`A A^\top`, which is symmetric to the last digit.

    Parameters
    ----------
    rows : (n, d) float64
        A; the transpose of an array in C order is as good as one.

    Examples
    --------
    >>> gram(np.array([[1.0, 2.0]]))
    array([[5.]])
    """
    if len(rows) ** 2 * rows.shape[1] <= ALONE:
        return np.asarray(rows @ rows.T)
    from scipy.linalg import blas

    matrix, turned = _turned(rows)
    whole: Reals = blas.dsyrk(1.0, matrix, trans=not turned).T
    mirror(whole)
    return whole


def norm(matrix: Reals) -> float:
    """Return the Frobenius norm.

    Examples
    --------
    >>> norm(np.array([[3.0], [4.0]]))
    5.0
    """
    return float(np.sqrt(inner(matrix, matrix)))


def inner(a: Reals, b: Reals) -> float:
    """Return the sum of the products of the entries of two matrices of equal shape.

    Examples
    --------
    >>> inner(np.eye(2), np.ones((2, 2)))
    2.0
    """
    return float(np.vecdot(a, b).sum())  # row by row: so short that no thread is started


def _turned(matrix: Reals) -> tuple[Reals, bool]:
    """Return what BLAS is to be given for the transpose of a matrix, and whether it is to turn it."""
    return (matrix, True) if matrix.flags.f_contiguous else (matrix.T, False)
