"""NC1, within-class variability: features of a class collapse to their mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..stats.sketch import standard_error
from ..stats.undefined import Undefined, require
from .convention import PRESETS, Convention
from .spectra import is_outside, negligible, singular_values, triangle_of

if TYPE_CHECKING:
    from ..stats.linalg import Floats
    from .geometry import ClassGeometry
    from .layer_inputs import LayerInputs


def nc1_pinv(layer: LayerInputs) -> float:
    r""":math:`\operatorname{tr}(S_W S_B^+)/C`, the division as the convention says (Papyan, Han & Donoho 2020).

    It is :math:`\operatorname{tr} B S_W B^\top` with :math:`S_B^+ = B^\top B`; an unbiased estimate where the scatter is a sketch.
    """
    return _pinv_trace(layer.geometry, layer.convention)


def nc1_trace_ratio(layer: LayerInputs) -> float:
    r""":math:`\operatorname{tr} S_W / \operatorname{tr} S_B` (Tirer & Bruna 2022)."""
    geometry, convention = layer.geometry, layer.convention
    between = float(geometry.weights(convention.between) @ geometry.norms**2)
    return geometry.within_trace(convention.within) / between


def nc1_cdnv(layer: LayerInputs) -> float:
    r"""Mean over pairs of :math:`(v_a+v_b)/(2|\mu_a-\mu_b|^2)` (Galanti, György & Hutter 2021)."""
    return layer.geometry.variance_ratio


def nc1_fuzziness(layer: LayerInputs) -> float:
    r"""Separation fuzziness :math:`\operatorname{tr}(S_W S_B^+)` about the sample mean (He & Su 2023).

    Both scatters are weighted by rows; under the convention ``he_su2023`` each class has the weight :math:`1/C`.
    """
    return _pinv_trace(layer.geometry.about("sample"), fuzziness_convention(layer.convention))


def nc1_vci(layer: LayerInputs) -> float:
    r"""Variability collapse index :math:`1 - \operatorname{tr}((S_B+S_W)^+ S_B)/\operatorname{rank} S_B` (Xu & Liu 2023).

    As :math:`\frac1r \operatorname{tr}(I + A S_W^{-1} A^\top)^{-1}` with :math:`S_B = A^\top A` it subtracts no nearly equal
    numbers. Undefined where class means differ along a direction in which no class varies, as with N - C < d rows or at
    exact collapse: it would be 0 there, whatever the data. A feature that never changes is no such direction.
    """
    geometry, kind = layer.geometry, layer.convention.within
    spectrum = geometry.spectrum(layer.convention.between)
    least = spectrum.cut * spectrum.values[0]
    rows = geometry.residuals
    if rows is not None and (geometry.balanced or kind == "sample"):
        whitened = _whitened_by_rows(spectrum.root, rows, geometry.within_rank, least)
        return float((1.0 / (1.0 + singular_values(whitened) ** 2)).sum()) / len(spectrum.values)
    factored = geometry.within_cholesky(kind)
    if factored is None:
        whitened = _whitened(spectrum.root, geometry.within(kind), geometry.within_rank, least)
    else:
        constant = np.delete(spectrum.root, factored.features, axis=1)
        require(float(np.linalg.norm(constant)) <= least, "within_scatter_rank_deficient")
        whitened = factored.triangle.solved(spectrum.root[:, factored.features].T).T
    return float((1.0 / (1.0 + singular_values(whitened) ** 2)).sum()) / len(spectrum.values)


def separation(layer: LayerInputs) -> float:
    r""":math:`\operatorname{tr} S_B / \operatorname{tr} S_W`, the reciprocal of `nc1_trace_ratio` (Tirer & Bruna 2022).

    A ratio of scatters has no unbiased estimate where means may coincide, and this has.
    """
    geometry, convention = layer.geometry, layer.convention
    between = float(geometry.weights(convention.between) @ geometry.norms**2)
    within = geometry.within_trace(convention.within)
    require(within > 0 and between / within < math.inf, "no_within_class_scatter")
    return between / within


def nc1_vci_shrunk(layer: LayerInputs) -> float:
    r"""`nc1_vci` of the pooled covariance shrunk towards a multiple of I (Xu & Liu 2023; Chen et al. 2010).

    With :math:`S^* = (1 - a) S_g + a \frac{t}{d} I`, a by the oracle-approximating rule, and :math:`l_j` the eigenvalues of
    :math:`M S^{*-1} M^\top / C`, it is the mean over C - 1 of them of :math:`1 / (1 + \max(l_j - \frac{d}{nC}, 0))`, n the harmonic mean of n_c.
    """
    noise, geometry = layer.noise, layer.geometry
    rows, trace = geometry.residuals, noise.freedom * noise.pooled * noise.total
    means = noise.means / math.sqrt(noise.pooled)  # in units of the trace of S, as S is
    classes, width = means.shape
    if rows is not None:
        values = _shrunk_by_rows(means, rows / math.sqrt(trace), noise.freedom)
    else:
        shrunk = geometry.within("sample") * (geometry.rows / trace)
        share = shrinkage(shrunk, noise.freedom)
        shrunk *= 1 - share
        shrunk[np.diag_indices(width)] += share / width
        try:
            triangle = triangle_of(shrunk)
        except np.linalg.LinAlgError:  # rounding of float32 sums took more than shrinking gave
            raise Undefined("float32_sums_displaced") from None
        whitened = triangle.solved(means.T).T
        values = singular_values(whitened, classes - 1) ** 2 / classes
    raised = width * float((1 / noise.counts).mean()) / classes
    return float((1 / (1 + np.maximum(values - raised, 0.0))).mean())


def _shrunk_by_rows(means: Floats, rows: Floats, freedom: float) -> Floats:
    """Return the l_j of `nc1_vci_shrunk` from rows R with S_g = R'R, by Woodbury's identity."""
    classes, width = means.shape
    products = rows @ rows.T
    share = shrinkage(products, freedom, width)
    identity = share / width
    inner = (1 - share) * products
    inner[np.diag_indices(len(inner))] += identity
    across = rows @ means.T
    gram = means @ means.T - (1 - share) * across.T @ np.linalg.solve(inner, across)
    values: Floats = np.linalg.eigvalsh(gram / (identity * classes))
    return values[1:]


def shrinkage(scatter: Floats, freedom: float, width: int = 0) -> float:
    """Return a, the share of the multiple of I in a covariance of trace 1 (or one of its eigenvalues), by the oracle-approximating rule (Chen et al. 2010)."""
    width = width or len(scatter)
    square = float(np.vdot(scatter, scatter))
    excess = square - 1 / width
    if excess <= 0:
        return 1.0
    return min(((1 - 2 / width) * square + 1) / ((freedom + 1 - 2 / width) * excess), 1.0)


def pinv_error(geometry: ClassGeometry, convention: Convention) -> float:
    """Standard error of `nc1_pinv` where it is estimated from a sketch, over the sketch's hashes."""
    error = standard_error(geometry.sketched(convention.between, convention.within))
    return error / geometry.num_present if convention.divide_by_classes else error


def fuzziness_convention(convention: Convention) -> Convention:
    """Return the convention of `nc1_fuzziness`: weighted by rows as He & Su print it, or as their code for balanced data."""
    by_class = PRESETS["he_su2023"]
    return by_class if convention == by_class else PRESETS["he_su2023_imbalanced"]


def _pinv_trace(geometry: ClassGeometry, convention: Convention) -> float:
    total = float(geometry.pinv_traces(convention.between, convention.within).sum())
    return total / geometry.num_present if convention.divide_by_classes else total


def _whitened_by_rows(root: Floats, rows: Floats, rank: int, least: float) -> Floats:
    """Return `_whitened` from rows about their class means, few of many features."""
    _, values, axes = np.linalg.svd(rows, full_matrices=False)
    varies = values > values[0] * math.sqrt(negligible(rows.shape[1]))
    varies[rank:] = False
    inside = root @ axes[varies].T
    outside = root - inside @ axes[varies]
    require(float(np.linalg.norm(outside)) <= least, "within_scatter_rank_deficient")
    whitened: Floats = inside * (math.sqrt(len(rows)) / values[varies])
    return whitened


def _whitened(root: Floats, within: Floats, rank: int, least: float) -> Floats:
    r"""Return :math:`A S_W^{+1/2}` on the axes of S_W that vary; Undefined where more than ``least`` of A is outside."""
    code = "within_scatter_rank_deficient"
    require(rank >= len(within) or not is_outside(within, root, least), code)
    variances, axes = np.linalg.eigh(within)
    varies = variances > variances[-1] * negligible(len(within))
    varies[: max(len(varies) - rank, 0)] = False
    inside = root @ axes[:, varies]
    outside = root - inside @ axes[:, varies].T
    require(varies.all() or float(np.linalg.norm(outside)) <= least, code)
    whitened: Floats = inside / np.sqrt(variances[varies])
    return whitened
