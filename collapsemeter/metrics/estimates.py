r"""Estimates: what a metric would be without the noise of the class means, and how it moves with them.

Squared distances are taken from products of different rows: with :math:`J = I - 11^\top/C`, :math:`G = MM^\top - J \operatorname{diag}(v_c/n_c) J` is unbiased for the
Gram matrix of the true means, whatever the rows' distribution, and its error has two parts: one in the direction of the means,
:math:`T = M \Sigma M^\top`, and one of noise alone, x. A function of G has no unbiased estimate; its terms of second order are taken out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ..stats.linalg import Floats
from .noise import Noise, centred_diagonal, less_centred, trace_of_square

Scale = Literal["ratio", "square", "value"]

LEAST_DISTANCE = 1.0  # errors that every pair of means is apart, or two may be one point
LEAST_NORM = 1.5  # errors that every mean is from the centre
LEAST_SPREAD = 80.0  # n d, above which random means are far apart beside the noise
LARGEST_ERROR = 0.7  # squared, of the square of a deviation that nine of ten random frames exceed
_USUAL = 1.2816  # normal deviates: what nine of ten exceed
_REACH = 3.0  # of the integrals, over the error that there is without a signal
_POLE = 0.8  # of the way to where their integrands have no expectation
_END = 14.0  # exp(-14) is nothing
_FAR = 1 / 300  # noise in a value, up to which the series of a reciprocal is exact to 1e-5
_NODES, _WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(16))
_NODES = _NODES + 0.5


@dataclass(frozen=True, eq=False)
class Estimate:
    r"""An estimate and how it moves with the Gram matrix of the means and with the variances, (C,).

    ``form`` is the derivative by the Gram matrix, (C, C), or (C,) where it is :math:`J \operatorname{diag}(w) J`, of the logarithm of a ratio (a ``power`` of the
    between-class scatter), of the square (``squared``), or of the metric itself. Of the squared error that groups tell, ``share`` is not noise of the derivative; it leaves out ``curved``.
    Where noise leaves no value, it is NaN and ``unknown`` says why.
    """

    value: float
    scale: Scale
    form: Floats
    variances: Floats | None = None
    squared: float = math.nan
    share: float = 1.0
    curved: float = 0.0
    unknown: str = ""
    power: int = -1


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
        shared = self.noise.products
        plain = self.means @ self.means.T if shared is None else shared.copy()
        return less_centred(plain, self.added)

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
    def alignment(self) -> float:
        """Variance of rows along the means, tr T / tr G, within what x and the noise of T leave possible."""
        square = self.noise.square
        along = float(self.noise.along.mean()) / self.between if self.between > 0 else square
        return min(max(along, square / 8), math.sqrt(square))

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
    value, _ = reciprocal(np.array([gram.between]), np.array([gram.between_variance]))
    return _of_scatters(gram, float(value[0]), -1)


def separation(gram: Gram) -> Estimate:
    """B less what the variance of t adds to 1/t."""
    noise = gram.noise
    plain = float(np.vecdot(gram.means, gram.means).mean())
    added = gram.centred * float(gram.added.mean())
    value = plain * (1 - noise.error_of_total(noise.squared)) - added
    return _of_scatters(gram, value, 1)


def _of_scatters(gram: Gram, value: float, sign: int) -> Estimate:
    """Return the estimate of a power of B/t."""
    noise, slope = gram.noise, sign / gram.between
    return Estimate(
        value,
        "ratio",
        np.full(gram.classes, slope / gram.classes),
        variances=-sign * noise.counts / noise.counts.sum(),
        power=sign,
    )


def etf_error(gram: Gram) -> Estimate:
    """The root of 2 - 2R, R = C B / sqrt((C - 1) |G|²) less its bias of second order."""
    noise, classes, between = gram.noise, gram.classes, gram.between
    products, added, simplex = gram.products, gram.added, np.eye(classes) - 1 / classes
    plain = float(np.vdot(products, products))
    square = plain - gram.square_noise
    if not square > 0:
        return _unknown(gram, "square", "pairs_not_above_noise")
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
    slope = 2 * ratio * (products / square - simplex / (between * classes))
    free = classes * (classes - 1) / 2 - 1
    share += (1 - share) * min(math.sqrt(2 / free), 1.0)
    uneven = classes * float(added @ added) / float(added.sum()) ** 2
    components = 2 * free / (1 + uneven)
    noise_of_square = ratio * gram.square_noise / square * free / (free + 1)
    few = _seldom_above_noise(gram, free)
    return Estimate(
        math.nan if few else root(squared, noise_of_square, components),
        "square",
        slope,
        squared=squared,
        share=share,
        curved=(gram.square_noise / square) ** 2 * (1 + uneven) / free,
        unknown="few_components" if few else "",
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
    components = (classes - 1) * float(noise.sum()) ** 2 / (classes * float(noise @ noise))
    few = _seldom_above_noise(gram, classes - 1)
    return Estimate(
        math.nan if few else root(squared, float(noise.mean()) / mean**2, components),
        "square",
        slope / lengths,
        squared=squared,
        share=share + (1 - share) * min(math.sqrt(2 / (classes - 1)), 1.0),
        curved=2 * float(noise @ noise) / ((classes - 1) ** 2 * mean**4),
        unknown="few_components" if few else "",
    )


def norm_slope(gram: Gram) -> Estimate:
    """Slope by least squares of log|mu_c - m| on log n_c, without the bias of the logarithm."""
    norms, sizes = gram.norms, np.log(gram.noise.counts)
    if _at_centre(gram):
        return _unknown(gram, "value", "pairs_not_above_noise")
    weights = sizes - sizes.mean()
    weights /= weights @ weights
    value = float(weights @ (np.log(norms) / 2 + gram.norm_variances / (4 * norms**2)))
    return Estimate(value, "value", weights / (2 * norms))


def cdnv(gram: Gram) -> Estimate:
    """Mean over pairs of (v_a + v_b)/2 times the `reciprocal` of their squared distance; NaN where two means may be one point."""
    noise, classes = gram.noise, gram.classes
    pairs, diagonal = classes * (classes - 1), np.diag_indices(classes)
    square = max(noise.square, 1 / noise.width)
    distances = _sums(gram.norms)
    distances -= 2 * gram.products
    distances[diagonal] = np.inf
    shares = _sums(gram.added)
    errors = _sums(gram.added_error)
    errors += 2 * square * shares**2
    if not noise.width * noise.classes / float((1 / noise.counts).sum()) > LEAST_SPREAD:
        return _unknown(gram, "ratio", "few_rows_and_features")
    if not (distances > LEAST_DISTANCE * np.sqrt(errors)).all():
        return _unknown(gram, "ratio", "pairs_not_above_noise")
    shares *= gram.alignment
    values, slopes = reciprocal(distances, errors, shares)
    spreads = _sums(noise.variances / 2)
    value = float(np.vdot(spreads, values)) / pairs
    spreads *= -2 / (pairs * value)
    form = np.multiply(slopes, spreads, out=slopes)
    form[diagonal] = -form.sum(axis=1)
    return Estimate(value, "ratio", form, variances=values.sum(axis=1) / (pairs * value))


def reciprocal(
    values: Floats, errors: Floats, units: Floats | None = None
) -> tuple[Floats, Floats]:
    r"""Return 1/D of values y whose expectation is D and whose variance is :math:`e + 4\tau D`, and its derivative.

    Such is the sum of m squares of Gaussian errors of variance :math:`\tau`, :math:`e = 2m\tau^2`, less its noise. Then
    :math:`\int_0^T E_p(y)\, dp`, :math:`E_p` of `exponentials`, has the expectation :math:`(1 - \exp(-DT))/D`.
    No estimate of 1/D is without bias, and 1/y has no expectation.
    """
    units = np.zeros_like(values) if units is None else units
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = units / values, errors / values**2
        inverse = (1 - 4 * a - b + 24 * a**2 + 16 * a * b + 3 * b**2) / values
        slopes = -(1 - 8 * a - 3 * b + 72 * a**2 + 64 * a * b + 15 * b**2) / values**2
        near = ~((values > 0) & (a < _FAR) & (b < _FAR))
    if near.any():
        y, e, unit = values[near], errors[near], units[near]
        with np.errstate(divide="ignore"):
            reach = np.minimum(_REACH / np.sqrt(e), _POLE / (2 * unit))
            reach = np.minimum(reach, _END / np.maximum(y, 0.0))
        whole, slope = np.zeros_like(y), np.zeros_like(y)
        for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
            held = weight * reach * exponentials(y, e, unit, node * reach)
            whole += held
            slope -= held * node * reach / (1 - 2 * node * reach * unit)
        inverse[near], slopes[near] = whole, slope
    return inverse, slopes


def exponentials(values: Floats, errors: Floats, units: Floats, powers: Floats) -> Floats:
    r"""Return :math:`E_p(y) = (1 - u)^{-m/2} \exp(-(y + m\tau)p/(1 - u))`, :math:`u = 2p\tau`: its expectation is :math:`\exp(-pD)`."""
    u = 2 * powers * units
    shrunk = 1 - u
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = np.where(u > 1e-4, (u / shrunk + np.log1p(-u)) / u**2, 0.5 + 2 / 3 * u)
    held: Floats = np.exp(-powers * values / shrunk - errors * powers**2 * bent)
    return held


def root(squared: float, noise: float, components: float) -> float:
    r"""Return the root of a sum of m squared components less this noise :math:`m\tau`; 0 where it is not above zero.

    :math:`\sqrt D = \frac{1}{2\sqrt\pi} \int_0^\infty (1 - \exp(-pD)) p^{-3/2} dp`, up to p = T with `exponentials`. The root of the sum itself is too small.
    """
    unit = noise / components
    reach = min(_REACH / math.sqrt(2 * components), _POLE / 2) / unit if unit > 0 else math.inf
    reach = min(reach, _END / squared) if squared > 0 else reach
    if math.isinf(reach):
        return max(squared, 0.0)  # zero, or NaN
    powers = reach * _NODES**2
    errors = np.full_like(powers, 2 * components * unit**2)
    held = exponentials(np.full_like(powers, squared), errors, np.full_like(powers, unit), powers)
    whole = float(_WEIGHTS @ ((1 - held) / _NODES**2)) + 1
    return max(whole, 0.0) / math.sqrt(math.pi * reach)


def _seldom_above_noise(gram: Gram, free: float) -> bool:
    """Return whether the squared deviation of random means in so many components may be no larger than its error.

    It goes by what hardly depends on the noise of the estimate itself: what is refused by the estimate leaves others that are biased.
    """
    shares = 1 / gram.noise.counts
    uneven = gram.classes * float(shares @ shares) / float(shares.sum()) ** 2
    components = 2 * free / (1 + uneven)
    share = 2 / (9 * components)
    usual = components * max(1 - share - _USUAL * math.sqrt(share), 0.0) ** 3
    # Separations from 2/3 to 2 count alike, as do those from 2 to 6: what noise makes of one decides nothing.
    level = 3.0 ** math.floor(math.log(1.5 * gram.between / gram.centred, 3)) / 1.5
    noise = float(shares.mean()) / level
    noise *= 2 + noise
    return not 4 * noise * usual + 2 * components * noise**2 < LARGEST_ERROR * usual**2


def _at_centre(gram: Gram) -> bool:
    """Return whether a mean may lie at the centre for all that is known: its length has no logarithm then."""
    return not (gram.norms > LEAST_NORM * np.sqrt(gram.norm_variances)).all()


def _unknown(gram: Gram, scale: Scale, code: str) -> Estimate:
    return Estimate(math.nan, scale, gram.norms, unknown=code)


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
