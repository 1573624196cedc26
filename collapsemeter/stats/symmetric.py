"""Sums of symmetric products, of which BLAS computes one triangle, and the other copied once at the end.

NumPy's ``rows.T @ rows`` computes one triangle, too, but copies it every time, and adds it up in a pass of
its own: of a thousand rows that takes as long as the product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_SQUARE = 64  # rows that are mirrored at a time: their strip stays in a cache

Floats = npt.NDArray[np.float64]


def add_product(total: Floats, rows: Floats, weight: float = 1.0) -> None:
    """Add ``weight * rows.T @ rows`` to the lower triangle of ``total``, in place: half the work, and no copy.

    Parameters
    ----------
    total : (d, d) float64, in C order
    rows : (N, d) float64
    weight : float

    Examples
    --------
    >>> total = np.zeros((2, 2))
    >>> add_product(total, np.array([[1.0, 2.0]]))
    >>> total
    array([[1., 0.],
           [2., 4.]])
    """
    if not rows.size:
        return  # BLAS takes no empty matrix
    from scipy.linalg.blas import dsyrk  # a tenth of a second to import

    # To BLAS, which counts by columns, a transposed array of C order is one as it wants it.
    dsyrk(weight, rows.T, beta=1.0, c=total.T, overwrite_c=True)


def mirrored(lower: npt.NDArray[Any]) -> Floats:
    """Return symmetric matrices in float64 of which the lower triangles are given.

    Parameters
    ----------
    lower : (..., d, d) array
        What is above the diagonal does not matter.

    Examples
    --------
    >>> mirrored(np.array([[1, 0], [2, 4]]))
    array([[1., 2.],
           [2., 4.]])
    """
    whole = np.array(lower, np.float64, order="C")
    mirror(whole)
    return whole


def mirror(whole: Floats) -> None:
    """Copy the lower triangles of (..., d, d) matrices to the upper ones, in place.

    Examples
    --------
    >>> square = np.array([[1.0, 0.0], [2.0, 4.0]])
    >>> mirror(square)
    >>> square[0, 1]
    np.float64(2.0)
    """
    for start in range(0, whole.shape[-1], _SQUARE):
        strip = slice(start, start + _SQUARE)
        block = whole[..., strip, strip]
        block[...] = np.tril(block) + np.swapaxes(np.tril(block, -1), -2, -1)
        whole[..., :start, strip] = np.swapaxes(whole[..., strip, :start], -2, -1)
