r"""Estimates: what a metric would be without the noise of the class means, and how it moves with them.

Squared distances are taken from products of different rows: with :math:`J = I - 11^\top/C`, :math:`G = MM^\top - J \operatorname{diag}(v_c/n_c) J` is unbiased for the
Gram matrix of the true means, whatever the rows' distribution, and its error has two parts: one in the direction of the means,
:math:`T = M \Sigma M^\top`, and one of noise alone, x. A function of G has no unbiased estimate; its terms of second order are taken out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ..stats.linalg import Floats
from .noise import Noise, centred_diagonal, less_centred, trace_of_square

Scale = Literal["logarithm", "square", "value"]

LEAST_DISTANCE = 0.0  # errors that every pair of means is apart, or two may be one point
LEAST_NORM = 1.5  # errors that every mean is from the centre
_FAR = 6.0  # errors from zero, from which on the series of a reciprocal is exact to 1e-4
_REACH = 3.0  # of its integral, in the same units
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


@dataclass(frozen=True, eq=False)
class Estimate:
    r"""An estimate and how it moves with the Gram matrix of the means and with the variances, (C,).

    ``form`` is the derivative by the Gram matrix, (C, C), or (C,) where it is :math:`J \operatorname{diag}(w) J`, of the metric's logarithm, of its square
    (``squared``), or of itself. Of the squared error that groups tell, ``share`` is not noise of the derivative; it leaves out ``curved``.
    """

    value: float
    scale: Scale
    form: Floats
    variances: Floats | None = None
    squared: float = math.nan
    share: float = 1.0
    curved: float = 0.0


class Gram:
    """Inner products of class means without noise, with what is known of their errors."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.classes = noise.classes
        self.means = noise.means
        self.added, self.added_error = noise.added, noise.added_error
        self.centred = 1 - 1 / self.classes

    @cached_property
    def norms(self) -> Floats:
        """Diagonal of G, (C,)."""
        norms: Floats = np.vecdot(self.means, self.means) - centred_diagonal(self.added)
        return norms

    @cached_property
    def products(self) -> Floats:
        """G, (C, C)."""
        return less_centred(self.means @ self.means.T, self.added)

    @cached_property
    def between(self) -> float:
        """B."""
        return float(self.norms.mean())

    @cached_property
    def between_variance(self) -> float:
        """Var B."""
        noise = self.noise
        variance = 4 * max(float(self.added @ noise.along), 0.0)
        variance += 2 * noise.square * trace_of_square(self.added)
        variance += self.centred**2 * float(self.added_error.sum())
        return variance / self.classes**2

    @cached_property
    def square_noise(self) -> float:
        """V, what noise adds to |G|²."""
        noise, total = self.noise, self.centred * float(self.added.sum())
        added = 2 * total * float(noise.along.sum()) + 2 * float(self.added @ noise.along)
        added += noise.square * (trace_of_square(self.added) + total**2)
        return added + self.centred**2 * float(self.added_error.sum())

    @cached_property
    def norm_variances(self) -> Floats:
        """Variance of each squared norm, (C,)."""
        noise, shares = self.noise, centred_diagonal(self.added)
        along = 4 * shares * np.maximum(noise.along, 0.0)
        variances: Floats = along + 2 * shares**2 * noise.square + self.added_error
        return variances


def trace_ratio(gram: Gram) -> Estimate:
    """1/B, by `reciprocal`."""
    value, _, _ = reciprocal(np.array([gram.between]), np.array([gram.between_variance]))
    return _of_scatters(gram, float(value[0]), -1.0)


def separation(gram: Gram) -> Estimate:
    """B less what the variance of t adds to 1/t."""
    noise = gram.noise
    plain = float(np.vecdot(gram.means, gram.means).mean())
    added = gram.centred * float(gram.added.mean())
    value = plain * (1 - noise.error_of_total(noise.squared)) - added
    return _of_scatters(gram, value, 1.0)


def _of_scatters(gram: Gram, value: float, sign: float) -> Estimate:
    """Return the estimate of a power of B/t."""
    noise, slope = gram.noise, sign / gram.between
    return Estimate(
        value,
        "logarithm",
        np.full(gram.classes, slope / gram.classes),
        variances=-sign * noise.counts / noise.counts.sum(),
    )


def etf_error(gram: Gram) -> Estimate:
    """The root of 2 - 2R, R = C B / sqrt((C - 1) |G|²) less its bias of second order."""
    noise, classes, between = gram.noise, gram.classes, gram.between
    products, added, simplex = gram.products, gram.added, np.eye(classes) - 1 / classes
    plain = float(np.vdot(products, products))
    square = plain - gram.square_noise
    if not square > 0:
        return _unknown(gram, "square")
    # The part of G that is no simplex is shrunk to its size without noise.
    level = between / gram.centred
    apart, excess = square - level**2 * (classes - 1), plain - level**2 * (classes - 1)
    share = min(max(apart / excess, 0.0), 1.0) if excess > 0 else 0.0
    along = float(noise.along.sum()) / (classes - 1)
    near = level * simplex + math.sqrt(share) * (products - level * simplex)
    bent = along * simplex + math.sqrt(share) * (noise.crossed - along * simplex)
    moved, diagonal = near @ bent, near.diagonal()
    variance = 16 * float(added @ np.vecdot(moved, near))
    variance += 8 * noise.square * float(added @ near**2 @ added)
    variance += 4 * float(diagonal**2 @ gram.added_error)
    covariance = 8 * float(added @ moved.diagonal())
    covariance += 4 * noise.square * float(diagonal @ added**2 - added @ near @ added / classes)
    covariance += 2 * gram.centred * float(diagonal @ gram.added_error)
    covariance /= classes
    ratio = classes * between / math.sqrt((classes - 1) * square)
    first, second = covariance / (between * square), variance / square**2
    squared = 2 - 2 * ratio * (1 + first / 2 - 3 / 8 * second)
    relative = 4 * gram.between_variance / between**2 + second - 4 * first
    slope = 2 * ratio * (products / square - simplex / (between * classes))
    free = classes * (classes - 1) / 2 - 1
    share += (1 - share) * min(math.sqrt(2 / free), 1.0)
    uneven = classes * float(added @ added) / float(added.sum()) ** 2
    return Estimate(
        root(squared, ratio**2 * max(relative, 0.0)),
        "square",
        slope,
        squared=squared,
        share=share,
        curved=(gram.square_noise / square) ** 2 * (1 + uneven) / free,
    )


def equinorm(gram: Gram) -> Estimate:
    """Standard deviation of the norms over their mean, without what noise adds to either."""
    classes, norms, variances = gram.classes, gram.norms, gram.norm_variances
    norms = np.maximum(norms, np.sqrt(variances))  # that may be at the centre for all that is known
    lengths = np.sqrt(norms)
    noise = variances / (4 * norms)
    spread = float(lengths.var(ddof=1))
    mean = float((lengths * (1 + variances / (8 * norms**2))).mean())
    squared = (spread - float(noise.mean())) / mean**2
    slope = (lengths - lengths.mean()) / ((classes - 1) * mean**2) - squared / (mean * classes)
    share = min(max(squared * mean**2 / spread, 0.0), 1.0) if spread > 0 else 0.0
    return Estimate(
        math.nan,
        "square",
        slope / lengths,
        squared=squared,
        share=share + (1 - share) * min(math.sqrt(2 / (classes - 1)), 1.0),
        curved=2 * float(noise @ noise) / ((classes - 1) ** 2 * mean**4),
    )


def norm_slope(gram: Gram) -> Estimate:
    """Slope by least squares of log|mu_c - m| on log n_c, without the bias of the logarithm."""
    norms, sizes = gram.norms, np.log(gram.noise.counts)
    if _at_centre(gram):
        return _unknown(gram, "value")
    weights = sizes - sizes.mean()
    weights /= weights @ weights
    value = float(weights @ (np.log(norms) / 2 + gram.norm_variances / (4 * norms**2)))
    return Estimate(value, "value", weights / (2 * norms))


def cdnv(gram: Gram) -> Estimate:
    """Mean over pairs of (v_a + v_b)/2 times the `reciprocal` of their squared distance; NaN where two means are not apart."""
    noise, classes = gram.noise, gram.classes
    pairs = classes * (classes - 1)
    distances = _sums(gram.norms)
    distances -= 2 * gram.products
    shares = _sums(gram.added)
    errors = _sums(noise.along)
    errors -= 2 * noise.crossed
    np.maximum(errors, 0.0, out=errors)
    errors *= 4
    errors += 2 * noise.square * shares
    errors *= shares
    errors += _sums(gram.added_error)
    diagonal = np.diag_indices(classes)
    distances[diagonal], errors[diagonal] = np.inf, 1.0
    values, slopes, apart = reciprocal(distances, errors)
    if not apart.min() > LEAST_DISTANCE:
        return _unknown(gram, "logarithm")
    spreads = _sums(noise.variances / 2)
    value = float(np.vdot(spreads, values)) / pairs
    spreads *= -2 / (pairs * value)
    form = np.multiply(slopes, spreads, out=slopes)
    form[diagonal] = -form.sum(axis=1)
    return Estimate(value, "logarithm", form, variances=values.sum(axis=1) / (pairs * value))


def reciprocal(values: Floats, errors: Floats) -> tuple[Floats, Floats, Floats]:
    r"""Return 1/D of values y with expectation D and these variances, its derivative, and how many errors y is from zero.

    Of Gaussian errors, :math:`\int_0^T \exp(-yu - \sigma^2 u^2/2)\, du` has the expectation :math:`(1 - e^{-DT})/D`, here with :math:`T = 3/\sigma`:
    no estimate of 1/D itself is without bias, and 1/y has no expectation.
    """
    roots = np.sqrt(errors)
    apart = values / roots
    near = apart < _FAR
    with np.errstate(divide="ignore"):
        small = 1 / np.where(near, np.inf, apart)
    squares = small**2
    inverse = small * (1 - squares * (1 - squares * (3 - 15 * squares)))
    slopes = -small * inverse * (1 - 2 * squares)
    if near.any():
        z, u = apart[near], _REACH / 2 * (_NODES + 1)
        held = np.exp(-np.multiply.outer(z, u) - u**2 / 2) @ (_REACH / 2 * _WEIGHTS)
        inverse[near] = held
        slopes[near] = z * held - 1 + np.exp(-_REACH * z - _REACH**2 / 2)
    return inverse / roots, slopes / errors, apart


def root(squared: float, error: float) -> float:
    """Return the root of a square of this variance, which is too small on average; 0 where the square is not above zero."""
    if not squared > 0:
        return 0.0 if squared <= 0 else math.nan
    return math.sqrt(squared) * (1 + error / (8 * (squared**2 + error)))


def _at_centre(gram: Gram) -> bool:
    """Return whether a mean may lie at the centre for all that is known: its length has no logarithm then."""
    return not (gram.norms > LEAST_NORM * np.sqrt(gram.norm_variances)).all()


def _unknown(gram: Gram, scale: Scale) -> Estimate:
    return Estimate(math.nan, scale, gram.norms)


def _sums(values: Floats) -> Floats:
    """Return a_i + a_j, (C, C)."""
    return np.add.outer(values, values)


ESTIMATES: dict[str, Callable[[Gram], Estimate]] = {
    "nc1_trace_ratio": trace_ratio,
    "separation": separation,
    "nc1_cdnv": cdnv,
    "nc2_etf_error": etf_error,
    "nc2_equinorm": equinorm,
    "means_norm_slope": norm_slope,
}
