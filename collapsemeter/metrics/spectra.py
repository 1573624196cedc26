"""Singular values of frames, by the eigenproblem of the smaller side where that keeps its digits.

Like products, what is large enough to start threads is SciPy's, see `collapsemeter.stats.blas`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..stats.blas import ALONE_WITH_VECTOR, gram, product
from ..stats.linalg import EPS64, Floats, of_rows

# A side of which singular values take no longer than inner products and their eigenvalues.
_SMALL = 64
_GRADED = 1e-6  # eigenvalues down to this share of the largest keep ten digits


def compressed(frame: Floats) -> Floats:
    """Return at most d rows with the same singular values and right singular vectors as a frame's.

    Where C is large they are found much faster from those.

    Parameters
    ----------
    frame : (C, d) float64

    Returns
    -------
    (min(C, d), d) float64
        The frame itself where C <= 2 d, else the triangle of its QR factors.

    Examples
    --------
    >>> compressed(np.ones((5, 1))).round(12) ** 2
    array([[5.]])
    """
    if len(frame) <= 2 * frame.shape[1]:
        return frame
    if not sizeable(frame):
        triangle: Any = np.linalg.qr(frame, mode="r")
    else:
        from scipy.linalg import qr

        _, triangle = qr(frame, mode="raw", check_finite=False)
    return np.asarray(triangle)


def singular_values(frame: Floats, products: Floats | None = None) -> Floats:
    """Return the singular values of a frame, largest first, (min(C, d),).

    Parameters
    ----------
    frame : (C, d) float64
    products : (C, C) or (d, d) float64, optional
        As by `frames.inner_products`, where they are known.

    References
    ----------
    Sukenik, Lampert & Mondelli 2024 (low-rank bias).

    Examples
    --------
    >>> singular_values(np.diag([1.0, 3.0]))
    array([3., 1.])
    """
    if min(frame.shape) > _SMALL:
        rows = frame if frame.shape[0] <= frame.shape[1] else frame.T
        products = gram(rows) if products is None else products
        squares = _eigenvalues(products.T)  # the same, and in the order of LAPACK
        if _graded(squares):
            return np.asarray(np.sqrt(squares))
    return plain_values(compressed(frame))


class Factors(NamedTuple):
    r"""Factors of a frame's :math:`F^\top F`, of rank r.

    ``values`` (min(C, d),) are the singular values of F, largest first; ``root`` (r, d) is A with
    :math:`A^\top A = F^\top F`, ``inverse`` (r, d) is B with :math:`B^\top B = (F^\top F)^+`.
    """

    values: Floats
    root: Floats
    inverse: Floats


def factors(frame: Floats, null: Floats, cut: float, products: Floats | None = None) -> Factors:
    r"""Factor :math:`F^\top F` and its pseudo-inverse, without a d x d matrix where C <= d.

    A frame of C <= d rows is one row more than a factor of full rank, A, and
    :math:`B = (A A^\top)^{-1} A`: no singular vector is needed where A is well conditioned.

    Parameters
    ----------
    frame : (C, d) float64
        F, not zero.
    null : (C,) float64
        Combination of the rows that is zero, not normalised: centred rows have one.
    cut : float
        Singular values up to this share of the largest are round-off.
    products : (C, C) or (d, d) float64, optional
        As by `frames.inner_products`, where they are known.

    Examples
    --------
    >>> found = factors(np.array([[3.0, 0.0], [-3.0, 0.0]]), np.ones(2), cut=1e-8)
    >>> (found.inverse.T @ found.inverse).round(12)
    array([[0.05555556, 0.        ],
           [0.        , 0.        ]])
    """
    if _SMALL < len(frame) <= frame.shape[1]:
        rows = without_null(frame, null)
        if products is None:
            products_of_rows = gram(rows)
        else:
            products_of_rows = without_null(without_null(products, null).T, null)
        squares = _eigenvalues(products_of_rows.T)
        if _graded(squares):
            return Factors(np.append(np.sqrt(squares), 0.0), rows, _solved(products_of_rows, rows))
    values, directions = thin_svd(frame, null, products)
    rank = min(int((values > cut * values[0]).sum()), len(frame) - 1)
    kept, directions = values[:rank, None], directions[:rank]
    return Factors(values, kept * directions, directions / kept)


def _solved(gram: Floats, rows: Floats) -> Floats:
    """Return (rows rows^T)^-1 rows by a Cholesky decomposition."""
    from scipy.linalg import blas, lapack  # a tenth of a second to import

    triangle, failed = lapack.dpotrf(gram, lower=False, clean=False)
    assert not failed  # the eigenvalues of a graded matrix are positive
    # From the right of the transpose, which is how BLAS sees the rows: nothing is copied.
    half = blas.dtrsm(1.0, triangle, rows.T, side=1)
    return np.asarray(blas.dtrsm(1.0, triangle, half, side=1, trans_a=1, overwrite_b=1)).T


def thin_svd(frame: Floats, null: Floats, products: Floats | None = None) -> tuple[Floats, Floats]:
    r"""Singular values, largest first, and right singular vectors in rows.

    Parameters
    ----------
    frame : (C, d) float64
    null : (C,) float64
        Combination of the rows that is zero, not normalised: centred rows have one.
    products : (C, C) or (d, d) float64, optional
        As by `frames.inner_products`, where they are known.

    Returns
    -------
    values : (min(C, d),) float64
    directions : (r, d) float64
        Of the r largest values, at least of all but the one that ``null`` makes zero.

    Examples
    --------
    >>> values, directions = thin_svd(np.array([[3.0, 0.0], [-3.0, 0.0]]), np.ones(2))
    >>> values.round(6), np.abs(directions[0])
    (array([4.242641, 0.      ]), array([1., 0.]))
    """
    if len(frame) > frame.shape[1] > _SMALL:
        if products is None or of_rows(frame):
            products = gram(frame.T)
        squares, vectors = principal_axes(products)
        if _graded(squares[::-1]):
            return np.sqrt(squares[::-1]), vectors[:, ::-1].T
    _, values, directions = decomposed(compressed(frame))
    return values, directions


def without_null(frame: Floats, null: Floats) -> Floats:
    """Return one row fewer, with the same other singular values and right singular vectors.

    A Householder reflection takes the combination ``null`` of the rows, which is zero, to the first.

    Examples
    --------
    >>> without_null(np.array([[3.0], [-3.0]]), np.ones(2)).round(12) ** 2
    array([[18.]])
    """
    normal = null / np.linalg.norm(null)
    normal[0] += np.copysign(1.0, normal[0])
    along = product(normal, frame) * (2.0 / (normal @ normal))
    reflected: Floats = np.outer(normal[1:], along)
    return np.subtract(frame[1:], reflected, out=reflected)


def sizeable(matrix: Floats) -> bool:
    """Return whether to decompose a matrix starts threads, so that it is left to SciPy."""
    return bool(matrix.size > ALONE_WITH_VECTOR)


def eigenvalues_of_sum(matrix: Floats, frame: Floats, weight: float) -> Floats:
    r"""Return the eigenvalues of :math:`S + w F^\top F`, (d,), largest first.

    Parameters
    ----------
    matrix : (d, d) float64
        S, symmetric.
    frame : (C, d) float64
    weight : float

    Examples
    --------
    >>> eigenvalues_of_sum(np.eye(2), np.array([[0.0, 2.0]]), 0.5)
    array([3., 1.])
    """
    if not sizeable(matrix):
        small = np.linalg.eigvalsh(matrix + weight * gram(frame.T))
        return np.asarray(small[::-1], np.float64)
    from scipy.linalg import blas  # a tenth of a second to import

    # One triangle is all that is read: the product is added to a copy of S, in place.
    total = blas.dsyrk(weight, frame.T, beta=1.0, c=matrix.T, lower=True)
    return _eigenvalues(total, overwrite=True)


def plain_values(matrix: Floats) -> Floats:
    """Return the singular values of a matrix, largest first, to the precision of the largest.

    Examples
    --------
    >>> plain_values(np.diag([1.0, 3.0]))
    array([3., 1.])
    """
    if not sizeable(matrix):
        return np.asarray(np.linalg.svd(matrix, compute_uv=False), np.float64)
    from scipy.linalg import svdvals

    return np.asarray(svdvals(matrix, check_finite=False), np.float64)


def decomposed(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the left singular vectors in columns, the values, largest first, and the right vectors in rows.

    Examples
    --------
    >>> decomposed(np.diag([1.0, 3.0]))[1]
    array([3., 1.])
    """
    if not sizeable(matrix):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        from scipy.linalg import svd

        left, values, right = svd(matrix, full_matrices=False, check_finite=False)
    return left, values, right


def principal_axes(matrix: Floats) -> tuple[Floats, Floats]:
    r"""Return the eigenvalues of a symmetric matrix, smallest first, and its eigenvectors in columns.

    Parameters
    ----------
    matrix : (d, d) float64

    Examples
    --------
    >>> principal_axes(np.diag([2.0, 1.0]))[0]
    array([1., 2.])
    """
    if not sizeable(matrix):
        values, axes = np.linalg.eigh(matrix)
    else:
        from scipy.linalg import eigh

        values, axes = eigh(matrix.T, lower=True, check_finite=False, driver="evd")
    return values, axes


def _eigenvalues(lower: Floats, overwrite: bool = False) -> Floats:
    """Eigenvalues, largest first, of a symmetric matrix in the order of LAPACK, by its lower triangle."""
    from scipy.linalg import eigh

    values = eigh(
        lower,
        lower=True,
        eigvals_only=True,
        overwrite_a=overwrite,
        check_finite=False,
        driver="evd",
    )
    return np.asarray(values[::-1], np.float64)


def cholesky(matrix: Floats) -> Floats | None:
    r"""Return L, lower triangular, with :math:`S = L L^\top`; None where S may be singular.

    Parameters
    ----------
    matrix : (d, d) float64
        S, symmetric.

    Returns
    -------
    (d, d) float64, or None
        In the order of LAPACK; what is above the diagonal is left as it was.

    Examples
    --------
    >>> cholesky(np.diag([4.0, 9.0])).diagonal(), cholesky(np.diag([1.0, 0.0]))
    (array([2., 3.]), None)
    """
    from scipy.linalg import lapack

    transpose = matrix.T  # the same, and in the order of LAPACK
    triangle: Floats
    triangle, failed = lapack.dpotrf(transpose, lower=True, clean=False)
    if failed:
        return None
    inverse_condition, _ = lapack.dpocon(triangle, lapack.dlange("1", transpose), uplo="L")
    # In the 1-norm, which is stricter; of an estimate that is seldom off by a factor of ten.
    return triangle if inverse_condition > 10 * negligible(len(matrix)) else None


def negligible(width: int) -> float:
    """Return the share of the largest variance below which a variance is round-off."""
    return width * EPS64


def _graded(squares: Floats) -> bool:
    return bool(squares[-1] > _GRADED * squares[0])
