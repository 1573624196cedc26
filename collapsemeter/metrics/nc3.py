r"""NC3, self-duality: the head's rows align with the centred class means.

``weight`` holds the rows of W for the classes present; ``means`` is :math:`M` of the same classes.
"""

from __future__ import annotations

import math

import numpy as np

from ..stats.blas import norm, product
from ..stats.linalg import Floats, row_blocks
from ..stats.undefined import Undefined, require
from .frames import gram_distance, largest_norm, norms_of_directions, opposite_rows

"""What `measure` and `decide` take as a head: one, its weight (C, d), or weight and bias."""


def nc3_self_duality(weight: Floats, means: Floats) -> float:
    r""":math:`\big|\, W/|W| - M/|M| \,\big|^2`, squared.

    Parameters
    ----------
    weight, means : (C, d) float64

    Returns
    -------
    float
        Between 0 and 4; no unit.

    References
    ----------
    Papyan, Han & Donoho 2020, figure 5.

    Examples
    --------
    >>> nc3_self_duality(np.eye(4), 2 * np.eye(4)), nc3_self_duality(np.eye(4), -np.eye(4))
    (0.0, 4.0)
    """
    length, size = _norm(weight), norm(means)
    total = 0.0
    for rows in row_blocks(weight):
        difference = weight[rows] / length
        difference -= means[rows] / size
        total += float(np.vecdot(difference, difference).sum())
    return total


def nc3_etf_error(weight: Floats, means: Floats, products: Floats | None = None) -> float:
    r""":math:`\big| W M^\top / |W M^\top| - P \big|`.

    Parameters
    ----------
    weight, means : (C, d) float64
        W and M.
    products : (C, C) or (d, d) float64, optional
        Of the means, as by `frames.inner_products`, where they are known.

    Raises
    ------
    Undefined
        Of a head that is zero or orthogonal to the means, and of two opposite rows, as those of two
        centred classes are: it is then 0 or 2, whichever the angle.

    References
    ----------
    Zhu et al. 2021.

    Examples
    --------
    >>> from collapsemeter.metrics.frames import simplex_etf
    >>> nc3_etf_error(simplex_etf(3, 4), 2 * simplex_etf(3, 4)) < 1e-14
    True
    """
    _norm(weight)
    require(not opposite_rows(weight), "two_classes_trivial")
    error = gram_distance(weight, means, "simplex", of_b=products)
    if math.isnan(error):
        raise Undefined("head_orthogonal_to_means")
    return error


def cosines(weight: Floats, means: Floats) -> Floats:
    r"""Return :math:`\cos(w_c, \mu_c - m)` of every class, (C,)."""
    along: Floats = np.vecdot(weight, means)
    along /= norms_of_directions(weight, "head_row_without_direction")
    along /= norms_of_directions(means, "class_mean_at_centre")
    return along


def nc3_cosine(weight: Floats, means: Floats) -> float:
    r"""Mean over classes of :math:`\cos(w_c, \mu_c - m)`; 1 at self-duality.

    Examples
    --------
    >>> nc3_cosine(np.eye(2), np.eye(2))
    1.0
    """
    return float(cosines(weight, means).mean())


def nc3_uniform(weight: Floats, means: Floats) -> float:
    r"""Variance over classes (ddof = 1) of :math:`\cos(w_c, \mu_c - m)`: uniform duality, UNC3.

    Raises
    ------
    Undefined
        Where a row has no direction, and of two opposite rows, as those of two centred classes are:
        both cosines are then the same.

    References
    ----------
    Wu & Papyan 2024.

    Examples
    --------
    >>> nc3_uniform(np.eye(2), np.eye(2))
    0.0
    """
    of_classes = cosines(weight, means)
    require(not opposite_rows(weight), "two_classes_trivial")
    return float(of_classes.var(ddof=1))


def nc3_bias(weight: Floats, bias: Floats, sample_mean: Floats) -> float:
    r"""Bias collapse :math:`|W g + b|`, in units of logits.

    References
    ----------
    Zhu et al. 2021.

    Examples
    --------
    >>> nc3_bias(np.eye(2), np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    0.0
    """
    return largest_norm((product(weight, sample_mean) + bias)[None])


def _norm(weight: Floats) -> float:
    length = norm(weight)
    if not length > 0:
        raise Undefined("zero_head")
    return length
