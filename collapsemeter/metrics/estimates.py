r"""Estimates: what a metric would be without the noise of the class means, for all rows and for those that groups shift.

With :math:`D = \operatorname{diag}(1/n_c)`, :math:`J = I - 11^\top/C` and the Gram matrix :math:`MM^\top`, :math:`G = MM^\top - J \operatorname{diag}(\operatorname{tr}\Sigma_c/n_c) J`
is unbiased for that of the true means, and so is :math:`B = \operatorname{tr} G / C` for the between-class scatter. A ratio has no unbiased estimate; the
terms of second order are taken out.

Every function takes K sets of class means and returns (K,) values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..stats.linalg import Floats
from .noise import Samples


@dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of K sets of class means, with what their noise adds to them."""

    samples: Samples
    part: slice

    @cached_property
    def means(self) -> Floats:
        """M, (K, C, d)."""
        return self.samples.means(self.part)

    @cached_property
    def norms(self) -> Floats:
        """Squared norms of the rows of M, (K, C)."""
        squares: Floats = np.vecdot(self.means, self.means)
        return squares

    @cached_property
    def products(self) -> Floats:
        """M M', (K, C, C)."""
        return self.means @ self.means.swapaxes(1, 2)

    @cached_property
    def shares(self) -> Floats:
        """1/n_c, (K, C)."""
        return self.samples.shares[self.part]

    @cached_property
    def totals(self) -> Floats:
        """t, (K,)."""
        return self.samples.totals[self.part]

    @cached_property
    def variances(self) -> Floats:
        """Tr Sigma_c, (K, C)."""
        return self.samples.variances[self.part]

    @property
    def classes(self) -> int:
        """C."""
        return self.samples.noise.classes

    @cached_property
    def added(self) -> Floats:
        """What noise adds to the squared norm of each mean before centring, (K, C)."""
        return self.variances * self.shares

    @cached_property
    def norms_without(self) -> Floats:
        """Diagonal of G, (K, C)."""
        norms: Floats = self.norms - centred_diagonal(self.added)
        return norms

    @cached_property
    def between(self) -> Floats:
        """B, (K,)."""
        between: Floats = self.norms_without.mean(axis=1)
        return between

    @cached_property
    def between_variance(self) -> Floats:
        r"""Var B = (4 tr(ET) + 2 x tr E² + 2 x (tr E)²/f)/C², E = J D J, T = M S_g M' - x E."""
        noise = self.samples.noise
        own, square = self.shares, _trace_of_square(self.shares)
        along = (own * noise.along).sum(axis=1) - noise.square * square
        trace = own.sum(axis=1) * (1 - 1 / self.classes)
        x = noise.square
        variance = 4 * along + 2 * x * square + 2 * x / noise.freedom * trace**2
        of_mean: Floats = variance / self.classes**2
        return of_mean

    @cached_property
    def gram_square(self) -> Floats:
        """|G|², without bias."""
        noise, own = self.samples.noise, self.shares
        x, square = noise.square, _trace_of_square(own)
        trace = own.sum(axis=1) * (1 - 1 / self.classes)
        means = self.means
        small = self.products if self.classes <= means.shape[2] else means.swapaxes(1, 2) @ means
        plain = (small**2).sum(axis=(1, 2))
        plain -= 2 * (self.added * self.norms).sum(axis=1)
        plain += _trace_of_square(self.added)
        across = (own * noise.along).sum(axis=1) - x * square
        along = noise.along.sum() - x * trace
        added = (
            2 * across
            + 2 * trace * along
            + (square + trace**2) * x
            + 2 * x / noise.freedom * square
        )
        difference: Floats = plain - added
        return difference


def centred_diagonal(weights: Floats) -> Floats:
    """Diagonal of J diag(w) J, (K, C) -> (K, C)."""
    classes = weights.shape[1]
    total = weights.sum(axis=1, keepdims=True)
    diagonal: Floats = weights * (1 - 2 / classes) + total / classes**2
    return diagonal


def _trace_of_square(weights: Floats) -> Floats:
    """Trace of the square of J diag(w) J, (K, C) -> (K,)."""
    classes = weights.shape[1]
    squares = (weights**2).sum(axis=1)
    trace: Floats = squares * (1 - 2 / classes) + weights.sum(axis=1) ** 2 / classes**2
    return trace


def trace_ratio(gram: Gram) -> Floats:
    """(t/B)(1 - Var B/B²)."""
    between = gram.between
    ratio: Floats = gram.totals / between * (1 - gram.between_variance / between**2)
    return ratio


def separation(gram: Gram, variance_of_total: float) -> Floats:
    """B/t, less what the variance of t adds to 1/t."""
    noise = centred_diagonal(gram.added).mean(axis=1) / gram.totals
    corrected: Floats = gram.norms.mean(axis=1) / gram.totals * (1 - variance_of_total) - noise
    return corrected


def etf_error_squared(gram: Gram) -> Floats:
    """2 - 2 sqrt((tr G)²/((C - 1)|G|²)), numerator and denominator without bias."""
    between = gram.between**2 - gram.between_variance
    ratio = gram.classes**2 * between / ((gram.classes - 1) * gram.gram_square)
    return 2 - 2 * np.sqrt(np.maximum(ratio, 0.0))


def equinorm_squared(gram: Gram) -> Floats:
    """Variance of the norms over the square of their mean, without what noise adds to either."""
    noise, own = gram.samples.noise, centred_diagonal(gram.shares)
    x, norms = noise.square, gram.norms_without
    along = np.maximum(noise.along - x * own, 0.0)
    variance = 4 * own * along + 2 * own**2 * x * (1 + 1 / noise.freedom)  # of each squared norm
    lengths = np.sqrt(norms)
    spread = lengths.var(axis=1, ddof=1) - (variance / (4 * norms)).mean(axis=1)
    mean = (lengths * (1 + variance / (8 * norms**2))).mean(axis=1)
    squared: Floats = spread / mean**2
    return squared


def cdnv(gram: Gram, crossed: Floats) -> Floats:
    """Mean over pairs of (t/D)(1 - Var D/D²); NaN where two means are not apart beyond noise."""
    noise = gram.samples.noise
    a, b = np.triu_indices(gram.classes, 1)
    own, x = gram.shares[:, a] + gram.shares[:, b], noise.square
    norms, products = gram.norms, gram.products
    distance = norms[:, a] + norms[:, b] - 2 * products[:, a, b]
    distance -= gram.added[:, a] + gram.added[:, b]
    along = noise.along[a] + noise.along[b] - 2 * crossed[a, b]
    along = np.maximum(along - (1 / noise.counts[a] + 1 / noise.counts[b]) * x, 0.0)
    relative = (4 * own * along + 2 * own**2 * x * (1 + 1 / noise.freedom)) / distance**2
    # Four standard errors: pairs that are nearer would be chosen by their noise.
    apart = (distance > 0) & (relative < 1 / 16)
    spread = (gram.variances[:, a] + gram.variances[:, b]) / 2
    values = np.where(apart, spread / distance * (1 - relative), np.nan)
    mean: Floats = values.mean(axis=1)
    return mean
