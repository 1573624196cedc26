r"""NC1, within-class variability: features of a class collapse to their mean.

Each function takes the geometry of the class means and returns one number; it raises `Undefined`
with a reason where there is none. Notation: :math:`v_c = \frac{1}{n_c}\sum_{i\in c}|h_i-\mu_c|^2`,
:math:`S_W`, :math:`S_B` as in `Convention`.
"""

from __future__ import annotations

import numpy as np

from .blas import product
from .convention import PRESETS, Convention
from .frames import Floats
from .geometry import ClassGeometry
from .sketch import standard_error
from .spectra import decomposed, negligible, plain_values, principal_axes, sizeable

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


def nc1_fuzziness(geometry: ClassGeometry) -> float:
    r"""Separation fuzziness :math:`\operatorname{tr}(S_W S_B^+)` with classes weighted alike.

    `nc1_pinv` under the convention ``he_su2023``; its logarithm against depth is close to a line.

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
    return nc1_pinv(geometry, PRESETS["he_su2023"])


def nc1_vci(geometry: ClassGeometry, convention: Convention) -> float:
    r"""Variability collapse index :math:`1 - \operatorname{tr}((S_B+S_W)^+ S_B)/\operatorname{rank} S_B`.

    With :math:`S_B = A^\top A` (A of full row rank r) and :math:`S_W` invertible it equals
    :math:`\frac1r \operatorname{tr}(I + A S_W^{-1} A^\top)^{-1}`, which does not subtract nearly equal
    numbers at collapse. Combinations of classes that differ along directions without any
    within-class variance contribute nothing.

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
        whitened = _whitened(spectrum.root, within, spectrum.cut * spectrum.values[0])
    return _trace_of_inverse(whitened) / len(spectrum.values)


def _trace_of_inverse(whitened: Floats) -> float:
    r"""Return :math:`\operatorname{tr}(I + W W^\top)^{-1}`, (k, d) W."""
    if sizeable(whitened) and len(whitened) <= whitened.shape[1]:
        from scipy.linalg import blas, lapack

        shifted = blas.dsyrk(1.0, whitened.T, trans=1, lower=1)  # the upper triangle is zero
        norm = 1.0 + _symmetric_norm(shifted)
        shifted[np.diag_indices_from(shifted)] += 1.0
        triangle, failed = lapack.dpotrf(shifted, lower=True, clean=True, overwrite_a=True)
        if not failed and lapack.dpocon(triangle, norm, uplo="L")[0] > _WELL_CONDITIONED:
            inverse, _ = lapack.dtrtri(triangle, lower=True, overwrite_c=True)
            return float((inverse**2).sum())
    ratios = plain_values(whitened)
    # A row count above the number of kept axes has ratio 0 and contributes 1 each.
    free = len(whitened) - len(ratios)
    return float((1.0 / (1.0 + ratios**2)).sum() + free)


def _symmetric_norm(lower: Floats) -> float:
    """Return the 1-norm of a symmetric matrix of positive diagonal, given its lower triangle."""
    sizes = np.abs(lower)
    return float((sizes.sum(axis=0) + sizes.sum(axis=1) - lower.diagonal()).max())


def _whitened_by_cholesky(factor: Floats, triangle: Floats) -> Floats:
    r"""Return :math:`A L^{-\top}`, (r, d), with :math:`S_W = L L^\top`."""
    from scipy.linalg import blas

    return np.asarray(blas.dtrsm(1.0, triangle, factor.T, lower=True)).T


def _whitened(factor: Floats, within: Floats, threshold: float) -> Floats:
    r"""Return :math:`A S_W^{+1/2}` on the axes of S_W that vary, of combinations with nothing outside."""
    variances, axes = principal_axes(within)
    kept = variances > max(variances[-1], 0.0) * negligible(len(within))
    inside = product(factor, axes[:, kept])
    whitened: Floats = inside / np.sqrt(variances[kept])
    if not kept.all():
        outside = factor - product(inside, axes[:, kept].T)
        whitened = product(_vanishing_rows(outside, threshold), whitened)
    return whitened


def _vanishing_rows(outside: Floats, threshold: float) -> Floats:
    """Return an orthonormal basis (k, r) of the row combinations that are zero in ``outside``."""
    left, values, _ = decomposed(outside, full_matrices=True)
    rank = int((values > threshold).sum())
    basis: Floats = left[:, rank:].T
    return basis
