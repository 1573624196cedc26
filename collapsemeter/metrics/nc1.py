r"""NC1, within-class variability: features of a class collapse to their mean.

Each function takes the geometry of the class means and returns one number; it raises `Undefined`
with a reason where there is none. Notation: :math:`v_c = \frac{1}{n_c}\sum_{i\in c}|h_i-\mu_c|^2`,
:math:`S_W`, :math:`S_B` as in `Convention`.
"""

from __future__ import annotations

import numpy as np

from ..stats.blas import norm, product
from ..stats.linalg import Floats
from ..stats.sketch import standard_error
from ..stats.undefined import require
from .convention import PRESETS, Convention
from .geometry import ClassGeometry
from .spectra import negligible, plain_values, principal_axes, sizeable

_WELL_CONDITIONED = 1e-6  # an inverse keeps ten digits


def nc1_pinv(geometry: ClassGeometry, convention: Convention) -> float:
    r""":math:`\operatorname{tr}(S_W S_B^+)/C` (the division as the convention says).

    By factors of the weighted means, so no d x d pseudo-inverse is formed: :math:`\operatorname{tr} B S_W B^\top`
    with :math:`S_B^+ = B^\top B` of the singular values kept. Of a wide layer, whose scatter
    is a sketch, it is an unbiased estimate; `nc1_pinv_error` is its standard error.

    Parameters
    ----------
    geometry : ClassGeometry
        Centred as ``convention.center`` says.
    convention : Convention

    Returns
    -------
    float
        0 at collapse; no unit.

    Raises
    ------
    Undefined
        Without two different class means or without a scatter.

    References
    ----------
    Papyan, Han & Donoho 2020.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> rows = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> m = ClassMoments.from_batch(rows, [0, 0, 1, 1], num_classes=2)
    >>> nc1_pinv(ClassGeometry(m), Convention())  # all spread is orthogonal to the means
    0.0
    """
    total = float(geometry.pinv_traces(convention.between, convention.within).sum())
    return total / geometry.num_present if convention.divide_by_classes else total


def nc1_pinv_error(geometry: ClassGeometry, convention: Convention) -> float:
    r"""Standard error of `nc1_pinv` where it is estimated from a sketch, over the sketch's hashes.

    Raises
    ------
    Undefined
        As `nc1_pinv`, and of a layer that keeps its scatter.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> rows, labels = np.array([[1.0], [3.0], [-1.0], [-3.0]]), [0, 0, 1, 1]
    >>> m = ClassMoments.from_batch(rows, labels, num_classes=2, scatter="sketch", sketch_rows=32)
    >>> nc1_pinv_error(ClassGeometry(m), Convention())  # a quarter of nc1_pinv = 1/8, as k = 32
    0.03125
    """
    error = standard_error(geometry.sketched(convention.between, convention.within))
    return error / geometry.num_present if convention.divide_by_classes else error


def nc1_trace_ratio(geometry: ClassGeometry, convention: Convention) -> float:
    r""":math:`\operatorname{tr} S_W / \operatorname{tr} S_B`; needs traces only.

    References
    ----------
    Tirer & Bruna 2022.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> m = ClassMoments.from_batch([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1], num_classes=2)
    >>> nc1_trace_ratio(ClassGeometry(m), Convention())
    0.25
    """
    between = float(geometry.weights(convention.between) @ geometry.norms**2)
    return geometry.within_trace(convention.within) / between


def nc1_cdnv(geometry: ClassGeometry) -> float:
    r"""Class-distance normalised variance: mean over pairs of :math:`(v_a+v_b)/(2|\mu_a-\mu_b|^2)`.

    References
    ----------
    Galanti, Gyorgy & Hutter 2021.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> m = ClassMoments.from_batch([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1], num_classes=2)
    >>> nc1_cdnv(ClassGeometry(m))
    0.0625
    """
    return geometry.variance_ratio


def fuzziness_convention(convention: Convention) -> Convention:
    """Return the convention of `nc1_fuzziness`: weighted by rows, as He & Su print it.

    Their code weights classes alike, which is the same on balanced data: that is ``he_su2023``.

    Examples
    --------
    >>> fuzziness_convention(Convention()).name
    'he_su2023_imbalanced'
    """
    by_class = PRESETS["he_su2023"]
    return by_class if convention == by_class else PRESETS["he_su2023_imbalanced"]


def nc1_fuzziness(geometry: ClassGeometry, convention: Convention | None = None) -> float:
    r"""Separation fuzziness :math:`\operatorname{tr}(S_W S_B^+)`, both scatters weighted by rows.

    :math:`S_B = \frac1N \sum_c n_c (\mu_c-g)(\mu_c-g)^\top` and
    :math:`S_W = \frac1N \sum_c \sum_{i\in c} (h_i-\mu_c)(h_i-\mu_c)^\top`; under the convention
    ``he_su2023`` each class has the weight :math:`1/C`. Its logarithm against depth is close to a line.

    Parameters
    ----------
    geometry : ClassGeometry
        Centred at the sample mean.
    convention : Convention, optional
        That of the measurement.

    Returns
    -------
    float
        0 at collapse; no unit.

    Raises
    ------
    Undefined
        As `nc1_pinv`.

    References
    ----------
    He & Su 2023.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> m = ClassMoments.from_batch([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1], num_classes=2)
    >>> round(nc1_fuzziness(ClassGeometry(m, "sample")), 12)
    0.25
    """
    return nc1_pinv(geometry, fuzziness_convention(convention or Convention()))


def nc1_vci(geometry: ClassGeometry, convention: Convention) -> float:
    r"""Variability collapse index :math:`1 - \operatorname{tr}((S_B+S_W)^+ S_B)/\operatorname{rank} S_B`.

    With :math:`S_B = A^\top A` (A of full row rank r) and :math:`S_W` invertible it equals
    :math:`\frac1r \operatorname{tr}(I + A S_W^{-1} A^\top)^{-1}`, which does not subtract nearly equal
    numbers at collapse.

    Class means that differ along a direction in which no class varies contribute 0, whatever the data.
    With N - C < d rows these are as a rule all directions. There is no value then. Exact collapse looks
    the same and has no value either. A feature that never changes is no such direction.

    Raises
    ------
    Undefined
        ``within_scatter_rank_deficient`` unless the range of :math:`S_W` holds all differences of class
        means; as `nc1_pinv`.

    References
    ----------
    Xu & Liu 2023.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> m = ClassMoments.from_batch([[1.0], [3.0], [-1.0], [-3.0]], [0, 0, 1, 1], num_classes=2)
    >>> round(nc1_vci(ClassGeometry(m), Convention()), 12)  # 1 - 4 / (4 + 1)
    0.2
    """
    spectrum = geometry.spectrum(convention.between)
    within = geometry.within(convention.within)
    triangle = geometry.within_triangle(convention.within)
    if triangle is not None:
        whitened = _whitened_by_cholesky(spectrum.root, triangle)
    else:
        least = spectrum.cut * spectrum.values[0]
        whitened = _whitened(spectrum.root, within, geometry.within_rank, least)
    return _trace_of_inverse(whitened) / len(spectrum.values)


def _trace_of_inverse(whitened: Floats) -> float:
    r"""Return :math:`\operatorname{tr}(I + W W^\top)^{-1}`, (r, k) W with r <= k."""
    if sizeable(whitened):
        from scipy.linalg import blas, lapack

        shifted = blas.dsyrk(1.0, whitened.T, trans=1, lower=1)  # the upper triangle is zero
        size = 1.0 + _symmetric_norm(shifted)
        shifted[np.diag_indices_from(shifted)] += 1.0
        triangle, failed = lapack.dpotrf(shifted, lower=True, clean=True, overwrite_a=True)
        if not failed and lapack.dpocon(triangle, size, uplo="L")[0] > _WELL_CONDITIONED:
            inverse, _ = lapack.dtrtri(triangle, lower=True, overwrite_c=True)
            return float((inverse**2).sum())
    return float((1.0 / (1.0 + plain_values(whitened) ** 2)).sum())


def _symmetric_norm(lower: Floats) -> float:
    """Return the 1-norm of a symmetric matrix of positive diagonal, given its lower triangle."""
    sizes = np.abs(lower)
    return float((sizes.sum(axis=0) + sizes.sum(axis=1) - lower.diagonal()).max())


def _whitened_by_cholesky(factor: Floats, triangle: Floats) -> Floats:
    r"""Return :math:`A L^{-\top}`, (r, d), with :math:`S_W = L L^\top`."""
    from scipy.linalg import blas

    return np.asarray(blas.dtrsm(1.0, triangle, factor.T, lower=True)).T


def _whitened(factor: Floats, within: Floats, rank: int, least: float) -> Floats:
    r"""Return :math:`A S_W^{+1/2}` on the axes of S_W that vary, ``rank`` at most.

    Undefined where more than ``least`` of A is outside them.
    """
    variances, axes = principal_axes(within)
    kept = variances > variances[-1] * negligible(len(within))
    kept[: max(len(kept) - rank, 0)] = False
    inside = product(factor, axes[:, kept])
    if not kept.all():
        outside = factor - product(inside, axes[:, kept].T)
        require(norm(outside) <= least, "within_scatter_rank_deficient")
    whitened: Floats = inside / np.sqrt(variances[kept])
    return whitened
