"""Frames of vectors, one row per class: the targets of neural collapse, and unit rows."""

from __future__ import annotations

import math

import numpy as np

from ..stats.blas import gram, inner, norm, product
from ..stats.linalg import EPS64, LARGEST, Floats, of_rows, row_norms
from ..stats.undefined import require


def simplex_etf(num_classes: int, width: int) -> Floats:
    r"""Return a simplex equiangular tight frame: unit rows with pairwise cosine :math:`-1/(C-1)`.

    Parameters
    ----------
    num_classes, width : int
        C and d, with C <= d + 1.

    Returns
    -------
    (C, d) float64

    Raises
    ------
    ValueError
        If C > d + 1, where no simplex ETF exists, or C < 2.

    References
    ----------
    Papyan, Han & Donoho 2020.

    Examples
    --------
    >>> frame = simplex_etf(3, 2)
    >>> np.round(frame @ frame.T, 12)
    array([[ 1. , -0.5, -0.5],
           [-0.5,  1. , -0.5],
           [-0.5, -0.5,  1. ]])
    """
    if not 2 <= num_classes <= width + 1:
        raise ValueError(
            f"a simplex ETF of {num_classes} classes in {width} dimensions does not exist: "
            "it needs 2 <= classes <= dimensions + 1"
        )
    # The rows of I - J/C, written in an orthonormal basis of the complement of the ones vector.
    basis = np.zeros((num_classes, num_classes - 1))
    for k in range(1, num_classes):
        basis[:k, k - 1] = 1.0 / math.sqrt(k * (k + 1))
        basis[k, k - 1] = -k / math.sqrt(k * (k + 1))
    frame = np.zeros((num_classes, width))
    frame[:, : num_classes - 1] = basis * math.sqrt(num_classes / (num_classes - 1))
    return frame


def centring(num_classes: int) -> Floats:
    r"""Return the projection that removes the mean over classes, :math:`I - J/K`.

    Parameters
    ----------
    num_classes : int
        Number of classes, K.

    Returns
    -------
    ndarray, shape (K, K)

    References
    ----------
    Papyan, Han & Donoho 2020.

    Examples
    --------
    >>> centring(2)
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    return np.eye(num_classes) - 1.0 / num_classes


def simplex_gram(num_classes: int) -> Floats:
    r"""Return :math:`P = (I - 11^\top/C)/\sqrt{C-1}`: a simplex ETF's Gram matrix, Frobenius norm 1.

    Examples
    --------
    >>> simplex_gram(2)
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    return centring(num_classes) / math.sqrt(num_classes - 1)


def inner_products(frame: Floats, most: int) -> Floats | None:
    r"""Return :math:`F F^\top`, (C, C), or :math:`F^\top F`, (d, d), where C > d + 1, to be used more than once.

    Parameters
    ----------
    frame : (C, d) float64
    most : int
        The largest side; None where it is larger, or where squares of the products may leave float64.

    Examples
    --------
    >>> inner_products(np.array([[3.0, 4.0]]), 10), inner_products(np.ones((3, 1)), 10)
    (array([[25.]]), array([[3.]]))
    """
    rows = of_rows(frame)
    side = frame.shape[0 if rows else 1]
    if not 0 < side <= most or _moderate(frame) is not frame:
        return None
    return gram(frame if rows else frame.T)


def moved_products(products: Floats, frame: Floats, by: Floats) -> Floats | None:
    r"""Return what `inner_products` does of the rows :math:`f_a + t`, where the rows :math:`f_a` add up to zero.

    :math:`F F^\top + (F t) 1^\top + 1 (F t)^\top + |t|^2`, or :math:`F^\top F + C t t^\top`: no matrix
    product, and no term is larger than what it is a part of, so that it has the digits of one.

    Parameters
    ----------
    products : (C, C) or (d, d) float64
        As by `inner_products`.
    frame : (C, d) float64
        F.
    by : (d,) float64
        t.

    Examples
    --------
    >>> frame = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> moved_products(inner_products(frame, 10), frame, np.array([2.0, 4.0]))
    array([[25., 19.],
           [19., 17.]])
    """
    if of_rows(frame):
        along = product(frame, by) + (by @ by) / 2
        moved: Floats = products + along
        moved += along[:, None]
    else:
        moved = products + len(frame) * np.outer(by, by)
    return moved if moved.diagonal().max() < 1e100 else None


def gram_distance(
    a: Floats,
    b: Floats,
    target: str,
    of_a: Floats | None = None,
    of_b: Floats | None = None,
) -> float:
    r"""Distance of the normalised product of two frames from that of a target frame.

    :math:`\big| AB^\top / |AB^\top| - T \big|` with T the simplex Gram matrix P, or
    :math:`I/\sqrt{C}`. Where C > d + 1 no C x C matrix is built:
    :math:`|AB^\top|^2 = \langle A^\top A, B^\top B\rangle`.

    Parameters
    ----------
    a, b : (C, d) float64
    target : {"simplex", "orthogonal"}
    of_a, of_b : (C, C) or (d, d) float64, optional
        Of each frame what `inner_products` returns, where it is known.

    Returns
    -------
    float
        Between 0 and 2; NaN if the product is zero.

    Examples
    --------
    >>> frame = simplex_etf(5, 8)
    >>> gram_distance(frame, frame, "simplex") < 1e-14
    True
    """
    count = len(a)
    same = a is b  # a frame times itself is symmetric
    if of_a is None:
        a = _moderate(a)
    if same:
        b, of_b = a, of_a
    elif of_b is None:
        b = _moderate(b)
    if of_rows(a):
        products = of_a if same else product(a, b.T)
        if products is None:
            products = gram(a)
        size = norm(products)
        if not size > 0:
            return math.nan
        difference = products / size
        if target == "simplex":
            scale = math.sqrt(count - 1)
            difference += 1.0 / (count * scale)
        else:
            scale = math.sqrt(count)
        difference[np.diag_indices(count)] -= 1.0 / scale
        return norm(difference)
    squares = gram(a.T) if of_a is None else of_a
    others = squares if same else gram(b.T) if of_b is None else of_b
    size = math.sqrt(max(inner(squares, others), 0.0))
    along = inner(a, b)
    if target == "simplex":
        along = (along - float(a.sum(axis=0) @ b.sum(axis=0)) / count) / math.sqrt(count - 1)
    else:
        along /= math.sqrt(count)
    return math.sqrt(max(2.0 - 2.0 * along / size, 0.0)) if size > 0 else math.nan


def _moderate(frame: Floats) -> Floats:
    """Return the frame at a scale at which fourth powers neither underflow nor overflow."""
    largest = float(max(frame.max(), -frame.min()))
    return frame if 1e-50 < largest < 1e50 or not largest else frame / largest


def cosines_of(gram: Floats, norms: Floats) -> Floats:
    """Return the cosines between rows, (C, C), of their inner products and norms.

    Examples
    --------
    >>> cosines_of(np.array([[4.0, 3.0], [3.0, 9.0]]), np.array([2.0, 3.0]))
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    cosines = gram / norms
    cosines /= norms[:, None]
    return cosines


def unit_rows(frame: Floats, code: str) -> Floats:
    """Return the rows at unit length; Undefined(code) where one has none.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0]]), "zero_head")
    array([[0.6, 0.8]])
    """
    return frame / norms_of_directions(frame, code)[:, None]


def norms_of_directions(frame: Floats, code: str) -> Floats:
    """Return the norm of every row, (C,); Undefined(code) where a row has no direction."""
    norms = row_norms(frame)
    require(have_directions(norms), code)
    return norms


def have_directions(norms: Floats) -> bool:
    """Return whether no row of these norms is round-off beside the longest."""
    return bool((norms > 16 * EPS64 * norms.max()).all())


def centred_rows(frame: Floats) -> Floats:
    """Return the rows less their mean; zeros where only round-off is left of them.

    Examples
    --------
    >>> centred_rows(np.full((3, 1), 0.1))
    array([[0.],
           [0.],
           [0.]])
    """
    centred: Floats = frame - frame[0]  # under an offset the digits that matter are there
    centred -= centred.mean(axis=0)
    if row_norms(centred).max() <= 16 * EPS64 * row_norms(frame).max():
        return np.zeros_like(frame)
    return centred


def opposite_rows(frame: Floats) -> bool:
    """Return whether a frame has two rows, which add up to zero: those of two centred classes do.

    Examples
    --------
    >>> opposite_rows(np.array([[1.0, 2.0], [-1.0, -2.0]])), opposite_rows(np.eye(2))
    (True, False)
    """
    if len(frame) != 2:
        return False
    return largest_norm(frame[:1] + frame[1:]) <= 16 * EPS64 * largest_norm(frame)


def largest_norm(frame: Floats) -> float:
    """Return the largest norm of a row, also where its square is zero in float64.

    Examples
    --------
    >>> largest_norm(np.array([[3e-200, 4e-200]]))
    5e-200
    """
    largest = float(row_norms(frame).max(initial=0.0))
    scale = 1.0 if largest > 1e-100 else float(np.abs(frame).max(initial=0.0))
    return largest if scale in (0.0, 1.0) else scale * float(row_norms(frame / scale).max())


def too_small(frame: Floats) -> bool:
    """Return whether a frame is not zero, and its fourth powers may be.

    Examples
    --------
    >>> too_small(np.array([[1e-80, 0.0]])), too_small(np.zeros((1, 2)))
    (True, False)
    """
    return 0 < largest_norm(frame) < 1 / LARGEST
