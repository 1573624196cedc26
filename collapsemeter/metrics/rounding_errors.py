"""Bounds on the rounding in each metric: that of the features' own dtype, and of running float32 sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.linalg import EPS64, Floats
from ..stats.sums import EPS
from ..stats.undefined import Undefined
from . import nc1
from .catalogue import METRICS
from .pairs import EPS32
from .spectra import negligible

if TYPE_CHECKING:
    from .convention import Convention, Weighting
    from .geometry import ClassGeometry

CODE = "float32_sums_displaced"
FLAGGED = 0.01  # a metric that may be off by more is cautioned about
LOST = 1.0  # and one that may be off by itself has no value


def dtype_floor(geometry: ClassGeometry, convention: Convention) -> dict[str, float]:
    r"""Return NC1 of features that are collapsed but for the rounding of their dtype.

    Rounding to a multiple of u adds a variance of :math:`u^2/12` (an error uniform within half of u);
    near collapse u is that of the class mean, :math:`\epsilon\, 2^{\lfloor \log_2 |\mu| \rfloor}`.
    """
    eps = EPS.get(geometry.moments.feature_dtype)
    if eps is None:
        return {}
    try:
        _ = geometry.centred
        squares = np.spacing(geometry.means)  # float64's
        squares *= squares
        rounding = geometry.weights(convention.within) @ squares
        rounding *= (eps / EPS64) ** 2 / 12
        spectrum = geometry.spectrum(convention.between)
    except Undefined:
        return {}
    along = float(np.einsum("rj,rj->j", spectrum.inverse, spectrum.inverse) @ rounding)
    between = float((spectrum.values**2).sum())
    divisor = geometry.num_present if convention.divide_by_classes else 1
    return {"nc1_pinv": along / divisor, "nc1_trace_ratio": float(rounding.sum()) / between}


def relative_errors(
    geometry: ClassGeometry, convention: Convention, pinv: float | None
) -> dict[str, float]:
    """Return relative bounds of what float32 sums lost of means, traces, `nc1_pinv` (which is ``pinv``) and `nc1_vci`.

    A scatter is compared with itself and the rounding of the features in float32, below which nothing is resolved.
    """
    rounding, moments = geometry.moments.rounding, geometry.moments
    if rounding is None:
        return {}
    try:
        distance = math.sqrt(float((geometry.norms**2).mean()))
        within = geometry.within_traces()
    except Undefined:
        return {}
    present = geometry.present
    unit = EPS32**2 * geometry.means**2  # of each entry's rounding, squared
    resolved = moments.counts[present] * (within + unit.sum(axis=1))
    bounds = {
        "means": float(rounding.means[present].max()) / distance,
        "traces": float(_ratio(rounding.traces[present], resolved).max()),
    }
    errors = rounding.features / geometry.rows
    unit = geometry.weights("sample") @ unit
    if pinv is not None and math.isfinite(pinv):
        inverse = geometry.spectrum(convention.between).inverse
        along = np.vecdot(inverse.T, inverse.T)  # the diagonal of S_B^+
        divisor = geometry.num_present if convention.divide_by_classes else 1
        least = float(along @ unit) / divisor
        bounds["nc1_pinv"] = float(_ratio(along @ errors / divisor, pinv + least))
    if moments.scatter is not None:
        with suppress(Undefined):
            bounds["nc1_vci"] = _of_inverse(geometry, convention.within, errors, unit)
            bounds["nc1_vci_shrunk"] = min(bounds["nc1_vci"], _of_shrunk(geometry, errors))
    return bounds


def undetermined(errors: Mapping[str, float], names: Iterable[str]) -> set[str]:
    """Return which of the metrics rounding may have taken whole."""
    lost = {name for name, error in errors.items() if not error <= LOST}
    if "nc1_pinv" in lost:
        lost.add("nc1_fuzziness")
    spread = {"traces", "scatter"} if "traces" in lost else set()
    statistics = spread | ({"means"} & lost)
    return {name for name in names if name in lost or statistics & set(METRICS[name].needs)}


def displaced(errors: Mapping[str, float]) -> bool:
    """Whether rounding may be seen in the metrics."""
    return any(
        not error <= FLAGGED for name, error in errors.items() if not name.startswith("nc1_vci")
    )


def _of_inverse(geometry: ClassGeometry, kind: Weighting, errors: Floats, unit: Floats) -> float:
    """Return the error of a feature's variance as a share of the part that no other feature explains."""
    within = geometry.within(kind)
    factored = geometry.within_cholesky(kind)
    # A feature that hardly varies has a small error, too: all are judged at unit variance.
    varies = np.flatnonzero(within.diagonal() > 0) if factored is None else factored.features
    if not len(varies):
        return 0.0
    scale = within.diagonal()[varies] + unit[varies]
    if factored is not None:
        least = float((factored.triangle.lower.diagonal() ** 2 / scale).min())
    else:
        roots = np.sqrt(scale)
        values = np.linalg.eigvalsh(within[np.ix_(varies, varies)] / np.outer(roots, roots))
        least = float(values[values > values[-1] * negligible(geometry.width)].min(initial=1.0))
    return float(_ratio((errors[varies] / scale).mean(), least))


def _of_shrunk(geometry: ClassGeometry, errors: Floats) -> float:
    """Return the same for the shrunk covariance, in which every direction varies by a share of all variance."""
    freedom = geometry.rows - geometry.num_present
    within = geometry.within("sample")
    total = float(within.trace())
    if freedom < 1 or total <= 0:
        return math.inf
    least = nc1.shrinkage(within / total, freedom) * total / len(within)
    return float(_ratio(errors.mean(), least))


def _ratio(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Return a / b, 0 where a is 0, and a large number where only b is."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(a > 0, a / np.maximum(b, 1e-300), 0.0)
