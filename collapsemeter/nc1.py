r"""NC1, within-class variability: features of a class collapse to their mean.

Each function takes the geometry of the class means and returns one number; it raises `Undefined`
with a reason where there is none. Notation: :math:`v_c = \frac{1}{n_c}\sum_{i\in c}|h_i-\mu_c|^2`,
:math:`S_W`, :math:`S_B` as in `Convention`.
"""

from __future__ import annotations

import numpy as np

from .convention import PRESETS, Convention
from .frames import EPS64, Floats
from .geometry import ClassGeometry
from .pairs import pair_tiles, squared_distances, upper_pairs
from .undefined import Undefined


def nc1_pinv(geometry: ClassGeometry, convention: Convention) -> float:
    r""":math:`\operatorname{tr}(S_W S_B^+)/C` (the division as the convention says).

    By a thin SVD of the weighted means, so no d x d pseudo-inverse is formed:
    :math:`\sum_j u_j^\top S_W u_j / s_j^2` over the singular values kept.

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
    spectrum = geometry.spectrum(convention.between)
    within = geometry.within(convention.within)
    along = ((spectrum.directions @ within) * spectrum.directions).sum(axis=1)
    along = np.maximum(along, 0.0)  # variances: rounding may leave them a hair below zero
    total = float((along / spectrum.values**2).sum())
    return total / geometry.num_present if convention.divide_by_classes else total


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
    means, spread = geometry.centred, geometry.within_traces()
    total = 0.0
    for a, b in pair_tiles(geometry.num_present):
        distances = upper_pairs(squared_distances(means[a], means[b]), a, b)
        if not (distances > geometry.resolution**2).all():
            raise Undefined("coincident_class_means")
        total += float((upper_pairs(spread[a][:, None] + spread[b], a, b) / distances).sum())
    pairs = geometry.num_present * (geometry.num_present - 1) / 2
    return total / (2 * pairs)


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
    factor = spectrum.values[:, None] * spectrum.directions
    variances, axes = np.linalg.eigh(geometry.within(convention.within))
    kept = variances > max(variances[-1], 0.0) * geometry.width * EPS64
    inside = factor @ axes[:, kept]
    whitened = inside / np.sqrt(variances[kept])
    if not kept.all():
        outside = factor - inside @ axes[:, kept].T
        whitened = _vanishing_rows(outside, spectrum.cut * spectrum.values[0]) @ whitened
    ratios = np.linalg.svd(whitened, compute_uv=False)
    # A row count above the number of kept axes has ratio 0 and contributes 1 each.
    free = len(whitened) - len(ratios)
    return float((1.0 / (1.0 + ratios**2)).sum() + free) / len(spectrum.values)


def _vanishing_rows(outside: Floats, threshold: float) -> Floats:
    """Return an orthonormal basis (k, r) of the row combinations that are zero in ``outside``."""
    left, values, _ = np.linalg.svd(outside, full_matrices=True)
    rank = int((values > threshold).sum())
    basis: Floats = left[:, rank:].T
    return basis
