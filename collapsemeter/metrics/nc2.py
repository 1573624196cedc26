r"""NC2, the class means become a simplex equiangular tight frame.

The functions with a frame argument serve the class means (rows :math:`\mu_c - m`) and the head (rows
of W, suffix ``_head``) alike.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from ..stats.linalg import TILE, Floats, of_rows, row_norms
from ..stats.undefined import Undefined, require
from .frames import cosines_of, gram_distance, have_directions, inner_products
from .pairs import CosineSpread, PairStatistics, cosine_spread, spread_of


def nc2_equinorm(norms: Floats) -> float:
    r""":math:`\operatorname{std}_c |\mu_c - m| \,/\, \operatorname{mean}_c |\mu_c - m|`, ddof = 1.

    Parameters
    ----------
    norms : (C,) float64
        Norms of the centred rows, C >= 2.

    Returns
    -------
    float
        0 where all norms are equal; no unit.

    References
    ----------
    Papyan, Han & Donoho 2020, figure 2.

    Examples
    --------
    >>> nc2_equinorm(np.array([2.0, 2.0, 2.0]))
    0.0
    """
    return float(norms.std(ddof=1) / norms.mean())


def nc2_equiangular(pairs: PairStatistics | CosineSpread) -> float:
    r"""Population standard deviation over pairs of :math:`\cos(\mu_a - m, \mu_b - m)`.

    References
    ----------
    Papyan, Han & Donoho 2020, figure 3.

    Examples
    --------
    >>> nc2_equiangular(cosine_spread(np.eye(3)))
    0.0
    """
    return pairs.cos_std


def nc2_max_angle(pairs: PairStatistics | CosineSpread) -> float:
    r"""Mean over pairs of :math:`|\cos(\mu_a - m, \mu_b - m) + 1/(C-1)|`.

    References
    ----------
    Papyan, Han & Donoho 2020, figure 4.

    Examples
    --------
    >>> nc2_max_angle(cosine_spread(np.eye(3)))  # orthogonal, not at the maximal angle
    0.5
    """
    return pairs.cos_deviation


def nc2_etf_error(frame: Floats, products: Floats | None = None) -> float:
    r"""Distance to a simplex ETF: :math:`\big| G/|G| - P \big|`, :math:`G = M M^\top`.

    Parameters
    ----------
    frame : (C, d) float64
        M.
    products : (C, C) or (d, d) float64, optional
        As by `frames.inner_products`, where they are known.

    References
    ----------
    Zhu et al. 2021; Kothapalli 2023.

    Examples
    --------
    >>> from collapsemeter.metrics.frames import simplex_etf
    >>> nc2_etf_error(3.0 * simplex_etf(4, 6)) < 1e-14
    True
    """
    return gram_distance(frame, frame, "simplex", products)


def nc2_of_error(means: Floats, products: Floats | None = None) -> float:
    r"""Distance of the uncentred class means to an orthogonal frame: :math:`\big| G/|G| - I/\sqrt C \big|`.

    The target after a ReLU in deep neural collapse.

    Parameters
    ----------
    means : (C, d) float64
        Uncentred class means.
    products : (C, C) or (d, d) float64, optional
        As by `frames.inner_products`, where they are known.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023.

    Examples
    --------
    >>> nc2_of_error(5.0 * np.eye(3)) < 1e-14
    True
    """
    error = gram_distance(means, means, "orthogonal", products)
    if math.isnan(error):
        raise Undefined("zero_class_mean")
    return error


def gnc2_log_mean(pairs: PairStatistics) -> float:
    r"""Mean over pairs of :math:`-\log|u_a - u_b|`, u the unit rows of M (hyperspherical uniformity).

    References
    ----------
    Liu et al. 2023.

    Examples
    --------
    >>> from collapsemeter.metrics.pairs import pair_statistics
    >>> round(gnc2_log_mean(pair_statistics(np.array([[1.0, 0.0], [-1.0, 0.0]]))), 6)  # -log 2
    -0.693147
    """
    return _distinct(pairs).log_mean


def gnc2_log_var(pairs: PairStatistics) -> float:
    r"""Population variance over pairs of :math:`-\log|u_a - u_b|`.

    References
    ----------
    Liu et al. 2023.

    Examples
    --------
    >>> from collapsemeter.metrics.pairs import pair_statistics
    >>> gnc2_log_var(pair_statistics(np.eye(3))) < 1e-30
    True
    """
    return _distinct(pairs).log_variance


def _distinct(pairs: PairStatistics) -> PairStatistics:
    if not math.isfinite(pairs.log_mean):
        raise Undefined("coincident_directions")
    return pairs


class HeadFrame:
    """The rows of the head, with their pair statistics.

    Parameters
    ----------
    rows : (C, d) float64
        Of the classes that are present; as they are, or centred over classes.

    Examples
    --------
    >>> nc2_equinorm(HeadFrame(np.array([[3.0, 4.0], [5.0, 0.0]])).norms)
    0.0
    """

    def __init__(self, rows: Floats) -> None:
        if len(rows) < 2:
            raise Undefined("one_class")
        self.rows = rows
        self.norms = row_norms(self.rows)
        if not np.any(self.norms):
            raise Undefined("zero_head")

    @cached_property
    def products(self) -> Floats | None:
        """Inner products of the rows, (C, C), or columns, (d, d), where they are few."""
        return inner_products(self.rows, TILE)

    @cached_property
    def pairs(self) -> CosineSpread:
        """Spread of the cosines over pairs of rows."""
        require(have_directions(self.norms), "head_row_without_direction")
        if of_rows(self.rows) and self.products is not None:
            return spread_of(cosines_of(self.products, self.norms))
        return cosine_spread(self.rows / self.norms[:, None])
