"""The geometry of the class means, which the metrics of one layer share; rows are classes everywhere."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..stats.linalg import EPS64, LARGEST, Floats, bounded, row_norms, taken
from ..stats.undefined import Undefined, require
from .convention import Center, Weighting
from .frames import have_directions, largest_norm, products_of, too_small, unit_rows
from .pairs import PairStatistics, pair_statistics
from .spectra import Cholesky, Factors, cholesky, factors, singular_values

if TYPE_CHECKING:
    from ..stats.moments import ClassMoments


class Spectrum(NamedTuple):
    r"""Factors of :math:`S_B = A^\top A` and :math:`S_B^+ = B^\top B`: A, B (r, d), and the singular values of A down to the cut."""

    root: Floats
    inverse: Floats
    values: Floats
    cut: float
    smallest_kept: float


class ClassGeometry:
    """Class means of the classes that are present, about m or g; Undefined where a value needs what they lack."""

    def __init__(self, moments: ClassMoments, center: Center = "class") -> None:
        self.moments = moments
        self.present = np.flatnonzero(moments.counts)
        self.counts = moments.counts[self.present]
        self.num_present = len(self.present)
        self.rows = moments.rows
        self.width = moments.width
        self.means = taken(moments.means, self.present)
        self.traces = moments.traces[self.present]
        self.balanced = bool((self.counts == self.counts[:1]).all())
        self._center = center
        self._spectra: dict[Weighting, Spectrum] = {}
        self._within: dict[Weighting, Floats] = {}
        self._cholesky: dict[Weighting, Cholesky | None] = {}
        self._pinv_traces: dict[tuple[Weighting, Weighting], Floats] = {}

    def about(self, center: Center) -> ClassGeometry:
        """Return the geometry about that centre: this one where both centres are the same point."""
        if center == self._center or self.balanced:
            return self
        geometry = ClassGeometry(self.moments, center)
        geometry._within, geometry._cholesky = self._within, self._cholesky  # about the class means
        return geometry

    def weights(self, kind: Weighting) -> Floats:
        """Weight of each present class: 1/C, or n_c/N."""
        if kind == "class":
            return np.full(self.num_present, 1.0 / max(self.num_present, 1))
        return self.counts / max(self.rows, 1)

    @cached_property
    def centred(self) -> Floats:
        """M, (C, d); Undefined where there are no two different class means."""
        require(self.rows > 0, "no_rows")
        require(self.num_present > 1, "one_class")
        low = self.moments.means_low
        # Differences from one mean first: under an offset the digits that matter are there.
        self._require_finite()
        centred: Floats = self.means - self.means[0]
        if low.any():
            centred += taken(low, self.present) - low[self.present[0]]
        centred -= self.weights(self._center) @ centred
        largest = largest_norm(centred)
        require(largest > self.resolution, "no_between_class_scatter")
        require(largest >= 1 / LARGEST, "out_of_range")
        return centred

    def require_range(self) -> None:
        """Undefined where statistics are not finite, or distances of class means leave float64."""
        try:
            _ = self.centred
        except Undefined as undefined:
            if undefined.code in ("nonfinite_statistics", "out_of_range"):
                raise

    @cached_property
    def resolution(self) -> float:
        """Distance below which two class means are equal: the round-off of a mean of such rows."""
        spread = np.sqrt(self.traces / self.counts)
        size = float((row_norms(self.means) + spread).max())
        return 16 * EPS64 * (size or largest_norm(self.means))

    @cached_property
    def products(self) -> Floats | None:
        """Inner products of the rows of M, see `products_of`."""
        return products_of(self.centred)

    @cached_property
    def norms(self) -> Floats:
        """Norms of the rows of M, (C,)."""
        return row_norms(self.centred)

    @cached_property
    def variances(self) -> Floats:
        r""":math:`\operatorname{tr} \Sigma_c`, (C,), without bias: of each class where it has two rows, else pooled."""
        free = self.counts - 1
        pooled = self.traces.sum() / max(int(free.sum()), 1)
        return np.where(free > 0, self.traces / np.maximum(free, 1), pooled)

    @property
    def units(self) -> Floats:
        """Unit rows of M; Undefined where a class mean is the centre."""
        return unit_rows(self.centred, "class_mean_at_centre")

    @cached_property
    def sample_mean(self) -> Floats:
        """g, (d,)."""
        mean: Floats = self.weights("sample") @ self.means
        return mean

    @property
    def pairs(self) -> PairStatistics:
        """Statistics over pairs of class means."""
        _ = self.centred
        require(have_directions(self.norms), "class_mean_at_centre")
        return self._pairs

    @property
    def variance_ratio(self) -> float:
        r"""Mean over pairs of :math:`(v_a+v_b)/(2|\mu_a-\mu_b|^2)`."""
        ratio = self._pairs.variance_ratio
        require(math.isfinite(ratio), "coincident_class_means")
        return ratio

    @cached_property
    def _pairs(self) -> PairStatistics:
        """One pass over the pairs for all that is asked of them."""
        centred = self.centred
        angle = self.resolution / (float(self.norms.min()) or math.inf)
        return pair_statistics(centred, self.within_traces(), self.resolution, angle)

    def spectrum(self, between: Weighting) -> Spectrum:
        r"""Factors of S_B, which is :math:`F^\top F` with :math:`F = \operatorname{diag}(w)^{1/2} M`."""
        between = "class" if self.balanced else between
        if between not in self._spectra:
            if between == "class":
                scale = math.sqrt(self.num_present)
                values, root, inverse = self._factors
                values, root, inverse = values / scale, root / scale, inverse * scale
            else:
                roots = np.sqrt(self.weights(between))
                values, root, inverse = factors(roots[:, None] * self.centred, self._cut)
            above_cut = values[: len(root)]
            smallest = float(above_cut[-1] / above_cut[0])
            self._spectra[between] = Spectrum(root, inverse, above_cut, self._cut, smallest)
        return self._spectra[between]

    @property
    def _cut(self) -> float:
        return math.sqrt(max(self.centred.shape) * EPS64)

    @cached_property
    def _factors(self) -> Factors:
        return factors(self.centred, self._cut, self.products)

    @property
    def centred_values(self) -> Floats:
        """Singular values of M, largest first."""
        return self._factors.values

    @cached_property
    def finite_means(self) -> Floats:
        """Uncentred class means (C, d); Undefined with fewer than two or beyond float64."""
        require(self.rows > 0, "no_rows")
        require(self.num_present > 1, "one_class")
        self._require_finite()
        require(not too_small(self.means), "out_of_range")
        return self.means

    @cached_property
    def uncentred_products(self) -> Floats | None:
        """Inner products of the uncentred class means, see `products_of`."""
        return products_of(self.finite_means)

    @cached_property
    def uncentred_values(self) -> Floats:
        """Singular values of the uncentred class means, largest first."""
        return singular_values(self.finite_means, products=self.uncentred_products)

    def within_traces(self) -> Floats:
        """v_c of each present class, (C,)."""
        self._require_finite()
        return self.traces / self.counts

    def within_trace(self, kind: Weighting) -> float:
        r""":math:`\operatorname{tr} S_W`, from the traces alone."""
        return float(self.weights(kind) @ self.within_traces())

    def within(self, kind: Weighting) -> Floats:
        r"""S_W (d, d): :math:`\frac1N \sum_c S_c`, or :math:`\frac1C \sum_c S_c / n_c`."""
        kind = "sample" if self.balanced else kind
        if kind not in self._within:
            self._within[kind] = self._pooled(kind)
        return self._within[kind]

    def within_cholesky(self, kind: Weighting) -> Cholesky | None:
        """S_W factored; None where it may be singular on the features that vary."""
        kind = "sample" if self.balanced else kind
        if kind not in self._cholesky:
            self._cholesky[kind] = cholesky(self.within(kind), self.within_rank)
        return self._cholesky[kind]

    @property
    def within_rank(self) -> int:
        """The largest rank that S_W can have: of n rows about their mean, n - 1 are independent."""
        return self.rows - self.num_present

    def _pooled(self, kind: Weighting) -> Floats:
        scatter = self.moments.scatter
        self._require_spread()
        if scatter is None:
            raise Undefined("only_a_sketch")
        if kind == "sample":
            within = (scatter if scatter.ndim == 2 else scatter.sum(axis=0)) / self.rows
        elif scatter.ndim == 2:
            raise Undefined("needs_class_scatter")
        else:
            weights = 1.0 / (self.counts * self.num_present)
            within = np.tensordot(weights, taken(scatter, self.present), axes=1)
        require(math.isfinite(float(within.sum())), "nonfinite_statistics")
        require(not 0 < within.trace() < LARGEST**-2, "out_of_range")
        return within

    def pinv_traces(self, between: Weighting, within: Weighting) -> Floats:
        r""":math:`\operatorname{diag}(B S_W B^\top)`, (r,), which add up to :math:`\operatorname{tr} S_W S_B^+`; estimated from a sketch."""
        if self.balanced:  # every weighting is the same
            between = within = "class"
        if (between, within) not in self._pinv_traces:
            inverse = self.spectrum(between).inverse
            if self.moments.sketch is None:
                traces = np.vecdot(inverse @ self.within(within), inverse)
            else:
                traces = (self.sketched(between, within) ** 2).sum(axis=0)
            # Variances: rounding may leave them a hair below zero.
            self._pinv_traces[between, within] = np.maximum(traces, 0.0)
        return self._pinv_traces[between, within]

    def sketched(self, between: Weighting, within: Weighting) -> Floats:
        r""":math:`K B^\top / \sqrt N` (k, r), whose squares add up to :math:`\operatorname{tr} S_W S_B^+`."""
        inverse = self.spectrum(between).inverse
        self._require_spread()
        sketch = self.moments.sketch
        if sketch is None:
            raise Undefined("no_scatter")
        require(self.balanced or within == "sample", "needs_class_scatter")
        projected: Floats = sketch @ inverse.T / math.sqrt(self.rows)
        require(bool(np.isfinite(projected).all()), "nonfinite_statistics")
        return projected

    @cached_property
    def residuals(self) -> Floats | None:
        """Rows less their class means, each with a sign, where a sketch has a bucket for every row; else None."""
        sketch, signs = self.moments.sketch, self.moments.signs
        if sketch is None or signs is None or self.rows > len(sketch):
            return None
        taken_buckets = np.flatnonzero(np.abs(signs).sum(axis=1))
        alone = len(taken_buckets) == self.rows == np.count_nonzero(signs)
        return sketch[taken_buckets] if alone else None

    @cached_property
    def _out_of_float64(self) -> str | None:
        """Why nothing can be computed of the means and traces, if so."""
        if not np.isfinite(self.means).all():
            return "nonfinite_statistics"
        # A row with NaN or Inf makes the mean of its class so: with finite means, squares overflowed.
        fits = bounded(self.means) and np.isfinite(self.traces).all()
        return None if fits else "out_of_range"

    def _require_finite(self) -> None:
        if self._out_of_float64 is not None:
            raise Undefined(self._out_of_float64)

    def _require_spread(self) -> None:
        require(self.rows > 0, "no_rows")
        require(self.moments.kind != "trace", "no_scatter")
        self._require_finite()
