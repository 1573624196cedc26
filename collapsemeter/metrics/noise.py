r"""The noise of class means: what the within-class scatter says of it, and what groups of rows add.

With f = N - C and :math:`S_g = \sum_c S_c / f`, the pooled covariance, :math:`t = \operatorname{tr} S_g` and

.. math:: x = \frac{f^2}{(f-1)(f+2)} \Bigl( |S_g|_F^2 - \frac{t^2}{f} \Bigr)

are unbiased for :math:`\operatorname{tr} \Sigma` and, of Gaussian rows, :math:`\operatorname{tr} \Sigma^2`. Everything here is divided by t or its
root: the estimates do not depend on the scale of the features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..stats.linalg import Floats
from ..stats.undefined import require

if TYPE_CHECKING:
    from .geometry import ClassGeometry


@dataclass(frozen=True, eq=False)
class Noise:
    r"""The noise of one layer, in units of t.

    Attributes
    ----------
    means : (C, d)
        M, rows :math:`\mu_c - m`.
    variances : (C,)
        :math:`\operatorname{tr} \Sigma_c`, unbiased: of each class where it has two rows, else pooled.
    square : float
        x.
    along : (C,)
        Diagonal of :math:`M S_g M^\top`.
    freedom : float
        f.
    total : float
        t, in the units of the features.
    counts : (C,)
        n_c.
    transposed : pair of (C, r)
        Rows whose inner products are :math:`M S_g M^\top`.
    """

    means: Floats
    variances: Floats
    square: float
    along: Floats
    freedom: float
    total: float
    counts: Floats
    transposed: tuple[Floats, Floats]

    @property
    def classes(self) -> int:
        """C."""
        return len(self.means)

    def crossed(self) -> Floats:
        r""":math:`M S_g M^\top` (C, C)."""
        left, right = self.transposed
        crossed: Floats = left @ right.T
        return crossed

    @property
    def variance_of_total(self) -> float:
        """Variance of t over t squared, of Gaussian rows."""
        return 2 * self.square / self.freedom


def noise_of(geometry: ClassGeometry) -> Noise:
    """Return the noise of a layer; Undefined where the moments do not tell it."""
    moments = geometry.moments
    require(moments.phase != "reference", "reference")
    centred = geometry.about("class").centred
    freedom = geometry.rows - geometry.num_present
    require(freedom >= 2, "too_few_rows")
    total = float(geometry.traces.sum()) / freedom
    require(total > 0, "no_within_class_scatter")
    require(math.isfinite(total), "out_of_range")
    require(moments.kind != "trace", "no_scatter")
    means = centred / math.sqrt(total)
    with np.errstate(over="ignore", invalid="ignore"):
        if moments.sketch is None:
            scatter = geometry.within("sample") * (geometry.rows / (freedom * total))
            square = _scatter_square(scatter, freedom)
            left, right = means @ scatter, means
        else:
            sketch = moments.sketch / math.sqrt(freedom * total)
            rows = geometry.residuals
            if rows is None:
                square = _sketch_square(sketch, freedom)
            else:  # the scatter's square is that of the rows' products
                square = _scatter_square(rows @ rows.T / (freedom * total), freedom)
            left = right = means @ sketch.T
        counts = geometry.counts.astype(np.float64)
        own = geometry.traces / np.maximum(counts - 1, 1) / total
        variances = np.where(counts > 1, own, 1.0)
        along = np.vecdot(left, right)
    require(bool(np.isfinite(along).all()) and math.isfinite(square), "out_of_range")
    return Noise(means, variances, square, along, float(freedom), total, counts, (left, right))


def _scatter_square(scatter: Floats, freedom: int) -> float:
    """Return x of a scatter whose trace is 1."""
    excess = float(np.vdot(scatter, scatter)) - 1 / freedom
    return excess * freedom**2 / ((freedom - 1) * (freedom + 2))


def _sketch_square(sketch: Floats, freedom: int) -> float:
    """Return x from the products of different rows of a sketch, in which no row meets itself."""
    products = sketch @ sketch.T
    apart = float(np.vdot(products, products)) - float((products.diagonal() ** 2).sum())
    return apart / (1 - 1 / len(sketch)) * freedom / (freedom - 1)


@dataclass(frozen=True, eq=False)
class Samples:
    r"""All rows, and where groups were kept, all rows shifted by what each group tells: K of them, the first unshifted.

    Group g moves the mean of class c by :math:`-s_{gc} / \sqrt{n_c (n_c - n_{gc})}`, :math:`s_{gc}` the sum of its rows less the mean. The
    squares of these steps add up to the variance of the mean without bias, however unevenly rows are dealt.

    Attributes
    ----------
    noise : Noise
    shares : (K, C)
        Of the variance of a row in that of its class's mean, 1/n_c unshifted.
    totals : (K,)
        t.
    variances : (K, C)
        Of each class.
    """

    noise: Noise
    shares: Floats
    totals: Floats
    variances: Floats
    steps: Floats | None

    def means(self, part: slice) -> Floats:
        """M of some of them, (k, C, d)."""
        centred = self.noise.means
        if self.steps is None:
            return centred[None]
        steps = self.steps[part]
        means: Floats = centred + (steps - steps.mean(axis=1, keepdims=True))
        return means


def unshifted(noise: Noise) -> Samples:
    """Return all rows alone."""
    return Samples(noise, 1 / noise.counts[None], np.ones(1), noise.variances[None], None)


def shifted(noise: Noise, geometry: ClassGeometry) -> Samples | None:
    """Return all rows and those that groups shift; None without groups, or of one that holds nearly all rows."""
    groups = geometry.moments.groups
    if groups is None:
        return None
    counts = groups.counts[geometry.present].T.astype(np.float64)  # (G, C)
    occupied = counts.any(axis=1)
    if np.count_nonzero(occupied) < 4:
        return None
    counts = counts[occupied]
    sums = groups.sums[geometry.present].swapaxes(0, 1)[occupied] / math.sqrt(noise.total)
    squares = groups.squares[geometry.present].T[occupied] / noise.total
    rows = noise.counts
    left = rows - counts
    some = (left > 0) & (counts > 0)
    divisor = np.where(some, np.sqrt(rows * np.maximum(left, 1)), np.inf)
    steps = -sums / divisor[:, :, None]
    shares = (1 + np.where(some, counts / rows, 0.0)) / rows
    # What a group takes from the scatter when it leaves, and the degrees of freedom that go with it.
    taken = squares + np.where(some, np.vecdot(sums, sums) / np.maximum(left, 1), 0.0)
    lost = np.minimum(counts, rows - 1)
    own = noise.variances * np.maximum(rows - 1, 0)
    totals = 1 + _steps(taken.sum(axis=1), lost.sum(axis=1), noise.freedom, 1.0)
    variances = noise.variances + _steps(taken, lost, rows - 1, own)
    few = rows <= 2  # the variance of two rows has nothing to be compared with
    variances = np.where(few, noise.variances * totals[:, None], np.maximum(variances, 0.0))
    return Samples(
        noise,
        np.concatenate([1 / rows[None], shares]),
        np.concatenate([[1.0], totals]),
        np.concatenate([noise.variances[None], variances]),
        np.concatenate([np.zeros((1, *steps.shape[1:])), steps]),
    )


def _steps(taken: Floats, lost: Floats, freedom: Floats | float, mean: Floats | float) -> Floats:
    """Return the steps of a variance: squares of them add up to its own variance."""
    total = freedom if isinstance(mean, float) else mean
    rest = freedom - lost
    without = (total - taken) / np.where(rest > 0, rest, 1)
    change = without - np.asarray(total) / np.maximum(freedom, 1)
    scale = np.sqrt(np.maximum(rest, 0) / np.maximum(lost.sum(axis=0), 1))
    steps: Floats = np.where(rest > 0, change * scale, 0.0)
    return steps
