r"""The noise of class means: what the within-class scatter and the groups of rows say of it.

The covariance of class c is taken for :math:`v_c \Sigma`, :math:`\operatorname{tr} \Sigma = 1`. Rows of it have

.. math:: x = \operatorname{tr} \Sigma^2, \quad \kappa = E|\xi|^4 - 1 - 2x,

of Gaussian rows :math:`\kappa = 0`. With the residuals :math:`P \xi`, P of rank f = N - C, and :math:`p = \sum_i P_{ii}^2`,
:math:`E|S|_F^2 = f^2 x + f (1 + x) + p \kappa` tells x; sums of :math:`|r_i|^4`, or of squares over the rows of a group, tell :math:`\kappa`. Both are without bias
whatever the rows' distribution. All here is in units of :math:`t = \sum_c n_c v_c / N`: the estimates do not depend on the scale of the features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..stats.linalg import Floats
from ..stats.undefined import require

if TYPE_CHECKING:
    from .geometry import ClassGeometry
    from .steps import Steps

FARTHEST = 1e36  # norm of a mean in units of the spread, up to which eighth powers stay in float64
_ROUNDS = 8  # each takes the error of x and the kurtosis down by 1/n or more


@dataclass(frozen=True, eq=False)
class Noise:
    """The noise of one layer, in units of t."""

    means: Floats  # M, (C, d)
    products: Floats | None  # their inner products, where the geometry has them
    counts: Floats  # n_c, (C,)
    variances: Floats  # v_c without bias, (C,)
    squared: Floats  # v_c² without bias, (C,)
    square: float  # x
    kurtosis: float
    freedom: float  # f
    total: float  # t, in the units of the features
    pooled: float  # tr S / f
    factors: tuple[Floats, Floats]  # (C, r): their inner products are M S M', S of trace 1
    steps: Steps | None  # in the units of the features

    @property
    def classes(self) -> int:
        """C."""
        return len(self.means)

    @property
    def width(self) -> int:
        """Number of features, d."""
        return int(self.means.shape[1])

    @property
    def added(self) -> Floats:
        """The noise in the squared norm of each mean before centring, (C,)."""
        return self.variances / self.counts

    @property
    def added_error(self) -> Floats:
        """The variance with which `added` is taken out of it, (C,)."""
        alone = self.counts < 2
        return 2 * self.square * self.added**2 / np.where(alone, self.freedom, self.counts - 1)

    @property
    def bent(self) -> Floats:
        r"""The noise in :math:`\mu_c^\top S \mu_c` before centring, (C,)."""
        of_kurtosis = (
            self.kurtosis * self.squared * (self.counts - 1) / (self.freedom * self.pooled)
        )
        bent: Floats = self.added * self.square + of_kurtosis / self.counts**2
        return bent

    @cached_property
    def along(self) -> Floats:
        r"""Diagonal of :math:`T = M \Sigma M^\top`, (C,)."""
        along: Floats = np.vecdot(*self.factors) - centred_diagonal(self.bent)
        return along

    @cached_property
    def crossed(self) -> Floats:
        """T, (C, C)."""
        left, right = self.factors
        return less_centred(left @ right.T, self.bent)

    def error_of_total(self, squares: Floats) -> float:
        """Return the squared relative error of t, given the squares of the classes' variances."""
        each = 2 * self.square / np.maximum(self.counts - 1, 1) + self.kurtosis / self.counts
        weights = (self.counts / self.counts.sum()) ** 2
        return float((weights * squares * each).sum())


def centred_diagonal(weights: Floats) -> Floats:
    """Return the diagonal of J diag(w) J, (C,)."""
    classes = len(weights)
    diagonal: Floats = weights * (1 - 2 / classes) + weights.sum() / classes**2
    return diagonal


def trace_of_square(weights: Floats) -> float:
    """Return the trace of the square of J diag(w) J."""
    classes = len(weights)
    return float((weights**2).sum() * (1 - 2 / classes) + weights.sum() ** 2 / classes**2)


def less_centred(matrix: Floats, weights: Floats) -> Floats:
    """Return a C x C matrix less J diag(w) J, in its place."""
    shifts = weights / len(weights)
    matrix += shifts[:, None]
    matrix += shifts - shifts.mean()
    matrix[np.diag_indices(len(weights))] -= weights
    return matrix


def noise_of(geometry: ClassGeometry, steps: Steps | None) -> Noise:
    """Return the noise of a layer; Undefined where the moments do not tell it."""
    moments = geometry.moments
    require(moments.phase != "reference", "reference")
    about = geometry.about("class")
    centred, products = about.centred, about.products
    freedom = geometry.rows - geometry.num_present
    require(freedom >= 2, "too_few_rows")
    trace = float(geometry.traces.sum()) / freedom
    require(trace > 0, "no_within_class_scatter")
    require(math.isfinite(trace), "out_of_range")
    require(moments.kind != "trace", "no_scatter")
    counts = geometry.counts.astype(np.float64)
    total = float(counts @ geometry.variances) / geometry.rows
    variances = geometry.variances / total
    unit = math.sqrt(total)
    require(float(about.norms.max()) < FARTHEST * unit, "out_of_range")
    means = centred / unit
    products = None if products is None else products / total
    norm = moment = None
    with np.errstate(over="ignore", invalid="ignore"):
        if moments.sketch is None:
            scatter, unit = geometry.within("sample"), geometry.rows / (freedom * trace)
            norm = float(np.vdot(scatter, scatter)) * unit**2
            factors = unit * (means @ scatter), means
        else:
            sketch = moments.sketch / math.sqrt(freedom * trace)
            rows = geometry.residuals
            if rows is None:
                moment = _sketch_square(sketch, freedom)
            else:  # the scatter's square is that of the rows' products
                norm = float(np.linalg.norm(rows @ rows.T) / (freedom * trace)) ** 2
            factors = (means @ sketch.T,) * 2
        square, kurtosis, squared = _moments_of_rows(
            counts, variances, trace / total, norm, moment, steps, total, geometry.width
        )
        finite = np.isfinite(np.vecdot(*factors)).all() and math.isfinite(square + kurtosis)
    require(bool(finite), "out_of_range")
    return Noise(
        means, products, counts, variances, squared, square, kurtosis, float(freedom), total, trace / total, factors, steps
    )  # fmt: skip


def _sketch_square(sketch: Floats, freedom: int) -> float:
    """Return x from the products of different rows of a sketch, in which no row meets itself."""
    products = sketch @ sketch.T
    apart = float(np.vdot(products, products)) - float((products.diagonal() ** 2).sum())
    return apart / (1 - 1 / len(sketch)) * freedom / (freedom - 1)


def _moments_of_rows(
    counts: Floats,
    variances: Floats,
    pooled: float,
    norm: float | None,
    square: float | None,
    steps: Steps | None,
    total: float,
    width: int,
) -> tuple[float, float, Floats]:
    """Return x, the kurtosis (0 without groups) and squares of the variances, from |S|² or from x itself."""
    free = counts - 1
    freedom = float(free.sum())
    diagonal = free**2 / counts  # the sum of P_ii² over a class
    forms, observed = np.stack([free, diagonal]), 0.0
    if steps is not None:
        m, n = steps.counts, counts[:, None]
        inside, outside = (1 - 1 / n) ** 2 + (m - 1) / n**2, m / n**2
        fourth = (m * inside**2 + (n - m) * outside**2).sum(axis=1)
        expected = (m**2 * (1 - 1 / n) ** 2).sum(axis=1)
        crossed = (m * (1 - 1 / n) ** 2 + m * (m - 1) / n**2).sum(axis=1)
        forms = np.stack([free, diagonal, fourth, expected, crossed])
        observed = float(((steps.squares / total) ** 2).sum())
    several, least = counts > 2, 0.1 / width  # x is 1/d or more, but for its error
    first_square, kurtosis = square, 0.0
    square = least if square is None else max(square, least)
    for _ in range(_ROUNDS):
        shrunk = 1 + 2 * square / np.maximum(free, 1) + kurtosis / counts
        squared = np.where(several, variances**2 / shrunk, pooled**2)
        sums = (forms @ squared).tolist()
        if steps is not None and sums[2] > 0:
            kurtosis = max((observed - sums[3] - 2 * square * sums[4]) / sums[2], -2 * square)
        if first_square is None and norm is not None:
            scale = (freedom * pooled) ** 2
            solved = (norm * scale - sums[0] - kurtosis * sums[1]) / (scale + sums[0])
            square = max(solved, least)
    return square, kurtosis, squared
