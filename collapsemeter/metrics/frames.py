"""Frames of vectors, one row per class: the targets of neural collapse, and unit rows."""

import math

import numpy as np

from ..stats.linalg import EPS64, LARGEST, TILE, Floats, bounded, of_rows, row_norms
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
    """Return the projection that removes the mean over K classes, I - J/K."""
    return np.eye(num_classes) - 1.0 / num_classes


def products_of(frame: Floats) -> Floats | None:
    """Return the inner products of a frame's rows, which metrics share; None of more than `TILE` rows, or than features."""
    return frame @ frame.T if of_rows(frame) and len(frame) <= TILE else None


def gram_distance(a: Floats, b: Floats, target: str, products: Floats | None = None) -> float:
    r"""Return :math:`\big| AB^\top / |AB^\top| - T \big|`; NaN where the product is zero.

    T is the target's Gram matrix at norm 1, "simplex" or "orthogonal". Where C > d + 1 no C x C matrix is built; ``products`` are
    :math:`AB^\top` where they are known.
    """
    count, same = len(a), a is b  # a frame times itself is symmetric
    if of_rows(a):
        difference = _moderate(a @ b.T if products is None else products)
        size = float(np.linalg.norm(difference))
        if not size > 0:
            return math.nan
        difference = difference / size
        if target == "simplex":
            scale = math.sqrt(count - 1)
            difference += 1.0 / (count * scale)
        else:
            scale = math.sqrt(count)
        difference[np.diag_indices(count)] -= 1.0 / scale
        return float(np.linalg.norm(difference))
    a = _moderate(a)
    b = a if same else _moderate(b)
    squares = a.T @ a
    size = math.sqrt(max(float(np.vdot(squares, squares if same else b.T @ b)), 0.0))
    along = float(np.vecdot(a, b).sum())
    if target == "simplex":
        along = (along - float(a.sum(axis=0) @ b.sum(axis=0)) / count) / math.sqrt(count - 1)
    else:
        along /= math.sqrt(count)
    return math.sqrt(max(2.0 - 2.0 * along / size, 0.0)) if size > 0 else math.nan


def _moderate(matrix: Floats) -> Floats:
    """Return the matrix at a scale at which fourth powers neither underflow nor overflow."""
    largest = float(max(matrix.max(), -matrix.min()))
    return matrix if 1e-50 < largest < 1e50 or not largest else matrix / largest


def unit_rows(frame: Floats, code: str) -> Floats:
    """Return the rows at unit length; Undefined(code) where one has none."""
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
    """Return the rows less their mean; zeros where only round-off is left of them."""
    centred: Floats = frame - frame[0]  # under an offset the digits that matter are there
    centred -= centred.mean(axis=0)
    if row_norms(centred).max() <= 16 * EPS64 * row_norms(frame).max():
        return np.zeros_like(frame)
    return centred


def opposite_rows(frame: Floats) -> bool:
    """Return whether a frame has two rows, which add up to zero: those of two centred classes do."""
    if len(frame) != 2:
        return False
    return largest_norm(frame[:1] + frame[1:]) <= 16 * EPS64 * largest_norm(frame)


def largest_norm(frame: Floats) -> float:
    """Return the largest norm of a row, also where its square is zero in float64."""
    largest = float(row_norms(frame).max(initial=0.0))
    scale = 1.0 if largest > 1e-100 else float(np.abs(frame).max(initial=0.0))
    return largest if scale in (0.0, 1.0) else scale * float(row_norms(frame / scale).max())


def too_small(frame: Floats) -> bool:
    """Return whether a frame is not zero, and its fourth powers may be."""
    return 0 < largest_norm(frame) < 1 / LARGEST


def require_weight(weight: Floats) -> None:
    """Undefined unless a weight is finite and its squares stay in float64."""
    require(bounded(weight), "nonfinite_head")
    require(not too_small(weight), "out_of_range")
