r"""The geometry of the class means: what the metrics of one layer share.

Rows are classes everywhere: :math:`M` has the rows :math:`\mu_c - m`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..stats.blas import product
from ..stats.linalg import EPS64, LARGEST, TILE, Floats, bounded, of_rows, row_norms, taken
from ..stats.moments import ClassMoments
from ..stats.undefined import Undefined, require
from .convention import Center, Weighting
from .frames import (
    cosines_of,
    have_directions,
    inner_products,
    largest_norm,
    moved_products,
    too_small,
    unit_rows,
)
from .pairs import PairStatistics, VarianceRatio, observe, pair_statistics
from .spectra import Factors, cholesky, factors, singular_values, sizeable


class Spectrum(NamedTuple):
    r"""The between-class scatter in factors, cut where float64 has no digits left.

    ``root`` (r, d) is A with :math:`S_B = A^\top A`, ``inverse`` (r, d) is B with :math:`S_B^+ = B^\top B`,
    ``values`` (r,) the singular values of A, ``cut`` the relative threshold and ``smallest_kept`` the
    smallest kept value over the largest.
    """

    root: Floats
    inverse: Floats
    values: Floats
    cut: float
    smallest_kept: float


class ClassGeometry:
    r"""Class means of the classes that are present, with what the metrics share.

    Parameters
    ----------
    moments : ClassMoments
    center : {"class", "sample"}
        Centre of the means: their own mean :math:`m`, or the sample mean :math:`g`.

    Raises
    ------
    Undefined
        By the attributes that need two classes, or means that differ, where there are none.

    Examples
    --------
    >>> m = ClassMoments.from_batch(np.eye(3), [0, 1, 1], num_classes=4)
    >>> ClassGeometry(m).num_present
    2
    """

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
        self._triangles: dict[Weighting, Floats | None] = {}
        self._traces: dict[tuple[Weighting, Weighting], Floats] = {}
        self._sketched: dict[tuple[Weighting, Weighting], Floats] = {}

    def about(self, center: Center) -> ClassGeometry:
        """Return the geometry about that centre: this one where both centres are the same point."""
        if center == self._center or self.balanced:
            return self
        return ClassGeometry(self.moments, center)

    def weights(self, kind: Weighting) -> Floats:
        """Weight of each present class: 1/C, or n_c/N."""
        if kind == "class":
            return np.full(self.num_present, 1.0 / max(self.num_present, 1))
        return self.counts / max(self.rows, 1)

    @cached_property
    def centred(self) -> Floats:
        """M, (C, d); Undefined where there are no two different class means."""
        if self.rows == 0:
            raise Undefined("no_rows")
        if self.num_present == 1:
            raise Undefined("one_class")
        low = self.moments.means_low
        assert low is not None
        # Differences from one mean first: under an offset the digits that matter are there.
        self._require_finite()
        centred: Floats = self.means - self.means[0]
        if low.any():
            centred += taken(low, self.present) - low[self.present[0]]
        centred -= product(self.weights(self._center), centred)
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
    def norms(self) -> Floats:
        """Norms of the rows of M, (C,)."""
        return row_norms(self.centred)

    @cached_property
    def units(self) -> Floats:
        """Unit rows of M; Undefined where a class mean is the centre."""
        return unit_rows(self.centred, "class_mean_at_centre")

    @cached_property
    def products(self) -> Floats | None:
        """Inner products of the rows of M, (C, C), or of its columns, (d, d), where they are few."""
        return inner_products(self.centred, TILE)

    @cached_property
    def uncentred_products(self) -> Floats | None:
        """The same of the uncentred class means."""
        means = self.finite_means
        try:
            products = self.products
        except Undefined:  # the means are one point
            products = None
        if products is None or not (self._center == "class" or self.balanced):
            return inner_products(means, TILE)
        return moved_products(products, self.centred, product(self.weights("class"), means))

    @cached_property
    def sample_mean(self) -> Floats:
        """g, (d,)."""
        return product(self.weights("sample"), self.means)

    @property
    def pairs(self) -> PairStatistics:
        """Statistics over pairs of class means."""
        require(self._angles_known, "class_mean_at_centre")
        statistics, _ = self._pairs
        assert statistics is not None
        return statistics

    @property
    def variance_ratio(self) -> float:
        r"""Mean over pairs of :math:`(v_a+v_b)/(2|\mu_a-\mu_b|^2)`."""
        _ = self.centred, self.within_traces()
        _, ratio = self._pairs
        if not math.isfinite(ratio.mean):
            raise Undefined("coincident_class_means")
        return ratio.mean

    @property
    def _angles_known(self) -> bool:
        return have_directions(self.norms)

    @cached_property
    def _pairs(self) -> tuple[PairStatistics | None, VarianceRatio]:
        """One pass over the pairs for all that is asked of them."""
        ratio = VarianceRatio(self.centred, self.traces / self.counts, self.resolution)
        if not self._angles_known:
            observe(ratio.directions(), [ratio])
            return None, ratio
        resolution = self.resolution / float(self.norms.min())
        products = self.products if of_rows(self.centred) else None
        cosines = None if products is None else cosines_of(products, self.norms)
        return pair_statistics(ratio.directions(), resolution, [ratio], cosines), ratio

    def spectrum(self, between: Weighting) -> Spectrum:
        r"""Factors of S_B, which is :math:`F^\top F` with :math:`F = \operatorname{diag}(w)^{1/2} M`."""
        if between in self._spectra:
            return self._spectra[between]
        if between == "class" or self.balanced:
            values, root, inverse = self._factors
            scale = math.sqrt(self.num_present)
            values, root, inverse = values / scale, root / scale, inverse * scale
        else:
            roots = np.sqrt(self.weights(between))
            null = self.weights(self._center) / roots
            values, root, inverse = factors(roots[:, None] * self.centred, null, self._cut)
        kept = values[: len(root)]
        spectrum = Spectrum(root, inverse, kept, self._cut, float(kept[-1] / kept[0]))
        self._spectra[between] = spectrum
        return spectrum

    @property
    def _cut(self) -> float:
        return math.sqrt(max(self.centred.shape) * EPS64)

    @cached_property
    def _factors(self) -> Factors:
        return factors(self.centred, self.weights(self._center), self._cut, self.products)

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
    def uncentred_values(self) -> Floats:
        """Singular values of the uncentred class means, largest first."""
        return singular_values(self.finite_means, self.uncentred_products)

    def within_traces(self) -> Floats:
        """v_c of each present class, (C,)."""
        self._require_finite()
        return self.traces / self.counts

    def within(self, kind: Weighting) -> Floats:
        r"""S_W (d, d): :math:`\frac1N \sum_c S_c`, or :math:`\frac1C \sum_c S_c / n_c`."""
        kind = "sample" if self.balanced else kind
        if kind not in self._within:
            self._within[kind] = self._pooled(kind)
        return self._within[kind]

    def within_triangle(self, kind: Weighting) -> Floats | None:
        r"""L (d, d), lower triangular, with :math:`S_W = L L^\top`; None where S_W is small or may be singular."""
        kind = "sample" if self.balanced else kind
        if kind not in self._triangles:
            within = self.within(kind)
            regular = self.within_rank >= self.width and sizeable(within)
            self._triangles[kind] = cholesky(within) if regular else None
        return self._triangles[kind]

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
            present = taken(scatter, self.present).reshape(len(weights), -1)
            within = product(weights, present).reshape(scatter.shape[1:])
        if not np.isfinite(within).all():
            raise Undefined("nonfinite_statistics")
        return within

    def pinv_traces(self, between: Weighting, within: Weighting) -> Floats:
        r""":math:`\operatorname{diag}(B S_W B^\top)`, (r,), which add up to :math:`\operatorname{tr} S_W S_B^+`; estimated from a sketch."""
        if self.balanced:  # every weighting is the same
            between = within = "class"
        if (between, within) not in self._traces:
            if self.moments.sketch is None:
                traces = self._projected_traces(self.spectrum(between).inverse, within)
            else:
                traces = (self.sketched(between, within) ** 2).sum(axis=0)
            # Variances: rounding may leave them a hair below zero.
            self._traces[between, within] = np.maximum(traces, 0.0)
        return self._traces[between, within]

    def _projected_traces(self, inverse: Floats, kind: Weighting) -> Floats:
        within, triangle = self.within(kind), self.within_triangle(kind)
        if triangle is None:
            return np.asarray(np.vecdot(product(inverse, within), inverse))
        from scipy.linalg import blas

        # Half the products, as B S_W B^T = (B L)(B L)^T, and squares do not cancel.
        halves = blas.dtrmm(1.0, triangle, inverse.T, lower=True, trans_a=True).T
        return np.asarray(np.vecdot(halves, halves))

    def sketched(self, between: Weighting, within: Weighting) -> Floats:
        r""":math:`K B^\top / \sqrt N` (k, r), whose squares add up to :math:`\operatorname{tr} S_W S_B^+`."""
        if self.balanced:
            between = within = "class"
        if (between, within) not in self._sketched:
            inverse = self.spectrum(between).inverse
            self._sketched[between, within] = self._projected(inverse, within)
        return self._sketched[between, within]

    def _projected(self, inverse: Floats, kind: Weighting) -> Floats:
        self._require_spread()
        sketch = self.moments.sketch
        if sketch is None:
            raise Undefined("no_scatter")
        if kind != "sample" and not self.balanced:
            raise Undefined("needs_class_scatter")
        projected: Floats = product(sketch, inverse.T) / math.sqrt(self.rows)
        if not np.isfinite(projected).all():
            raise Undefined("nonfinite_statistics")
        return projected

    @cached_property
    def finite(self) -> bool:
        """Whether no class mean has a NaN or Inf."""
        return bool(np.isfinite(self.means).all())

    @cached_property
    def _bounded(self) -> bool:
        return bounded(self.means)

    def _require_finite(self) -> None:
        require(self.finite, "nonfinite_statistics")
        # A row with NaN or Inf makes the mean of its class so: with finite means, squares overflowed.
        require(self._bounded and bool(np.isfinite(self.traces).all()), "out_of_range")

    def _require_spread(self) -> None:
        require(self.rows > 0, "no_rows")
        require(self.moments.kind != "trace", "no_scatter")
        self._require_finite()

    def within_trace(self, kind: Weighting) -> float:
        r""":math:`\operatorname{tr} S_W`, from the traces alone."""
        weights = self.weights(kind)
        return float(weights @ self.within_traces())
