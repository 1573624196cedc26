"""What the rounding of running float32 sums may have taken from each metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.linalg import Floats
from ..stats.rounding import EPS32
from ..stats.undefined import Undefined
from .spectra import negligible

if TYPE_CHECKING:
    from .convention import Convention, Weighting
    from .geometry import ClassGeometry


CODE = "float32_sums_displaced"
FLAGGED = 0.01  # a metric that may be off by more is cautioned about
LOST = 1.0  # and one that may be off by itself has no value


def relative_errors(
    geometry: ClassGeometry, convention: Convention, pinv: float | None
) -> dict[str, float]:
    r"""Return bounds of relative errors, of the means, the traces, and the metrics that need S_B^+ or S_W^+.

    A scatter is compared with itself and the rounding of the features in float32, below which nothing is resolved.

    Parameters
    ----------
    geometry : ClassGeometry
    convention : Convention
    pinv : float or None
        The value of ``nc1_pinv``, where it has one.

    Returns
    -------
    dict of str to float
        ``means`` (of their distance from the centre), ``traces`` (the worst class's), ``nc1_pinv`` and
        ``nc1_vci``, which a layer need not have; empty for sums in float64.
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
    found = {
        "means": float(rounding.means[present].max()) / distance,
        "traces": float(_ratio(rounding.traces[present], resolved).max()),
    }
    errors = rounding.features / geometry.rows
    unit = geometry.weights("sample") @ unit
    if pinv is not None and math.isfinite(pinv):
        spectrum = geometry.spectrum(convention.between)
        along = np.vecdot(spectrum.inverse.T, spectrum.inverse.T)  # the diagonal of S_B^+
        divisor = geometry.num_present if convention.divide_by_classes else 1
        least = float(along @ unit) / divisor
        found["nc1_pinv"] = float(_ratio(along @ errors / divisor, pinv + least))
    if moments.scatter is not None:
        with suppress(Undefined):
            found["nc1_vci"] = _of_inverse(geometry, convention.within, errors, unit)
    return found


def undetermined(errors: Mapping[str, float], names: Iterable[str]) -> set[str]:
    """Return which of the metrics rounding may have taken whole.

    Examples
    --------
    >>> sorted(undetermined({"means": 0.1, "traces": 2.0}, ["nc1_cdnv", "nc2_etf_error"]))
    ['nc1_cdnv']
    """
    lost = {name for name, error in errors.items() if not error <= LOST}
    if "nc1_pinv" in lost:
        lost.add("nc1_fuzziness")
    chosen = set()
    for name in names:
        of_scatter = name.startswith("nc1_") or name == "features_effective_rank"
        of_means = not name.endswith("_head") and name != "weight_balance"
        if name in lost or (of_scatter and "traces" in lost) or (of_means and "means" in lost):
            chosen.add(name)
    return chosen


def displaced(errors: Mapping[str, float]) -> bool:
    """Whether rounding may be seen in the metrics.

    Examples
    --------
    >>> displaced({"means": 1e-6, "traces": 0.5})
    True
    """
    return any(not error <= FLAGGED for name, error in errors.items() if name != "nc1_vci")


def _of_inverse(geometry: ClassGeometry, kind: Weighting, errors: Floats, unit: Floats) -> float:
    """Return the error of a feature's variance as a share of the part that no other feature explains."""
    within = geometry.within(kind)
    # A feature that hardly varies has a small error, too: all are judged at unit variance.
    varies = np.flatnonzero(within.diagonal() > 0)
    scale = within.diagonal()[varies] + unit[varies]
    triangle = geometry.within_triangle(kind)
    if not len(varies):
        return 0.0
    if triangle is not None:
        least = float((triangle.diagonal()[varies] ** 2 / scale).min())
    else:
        roots = np.sqrt(scale)
        values = np.linalg.eigvalsh(within[np.ix_(varies, varies)] / np.outer(roots, roots))
        least = float(values[values > values[-1] * negligible(geometry.width)].min(initial=1.0))
    return float(_ratio((errors[varies] / scale).mean(), least))


def _ratio(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Return a / b, 0 where a is 0, and a large number where only b is."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.where(a > 0, a / np.maximum(b, 1e-300), 0.0)
