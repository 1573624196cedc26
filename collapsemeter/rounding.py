r"""What rounding of running float32 sums may have taken from the statistics, and from each metric.

Sums are kept about a shift :math:`k_c`, the mean of the first rows of a class. Where those rows lie far from the
rest, the second moment about the shift, :math:`G_c = S_c + n_c (\mu_c - k_c)(\mu_c - k_c)^\top`, is much larger
than the scatter :math:`S_c`, which is a difference then and keeps few digits. The error of a sum of n terms
is within :math:`\gamma = 4 \epsilon \sqrt n` of their size as a rule, since rounding errors mostly cancel (Higham &
Mary 2019), so that

.. math:: |\delta \operatorname{tr} S_c| \le \gamma \operatorname{tr} G_c, \quad
          |\delta S_{ab}| \le \gamma \sqrt{G_{aa} G_{bb}}, \quad
          |\delta \mu_c| \le \gamma \sqrt{\operatorname{tr} G_c / n_c} .
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .spectra import negligible
from .sums import Sums
from .undefined import Undefined

if TYPE_CHECKING:
    from .convention import Convention, Weighting
    from .geometry import ClassGeometry

Floats = npt.NDArray[np.float64]

CODE = "float32_sums_displaced"
FLAGGED = 0.01  # a metric that may be off by more is cautioned about
LOST = 1.0  # and one that may be off by itself has no value
EPS32 = 2.0**-23


@dataclass(frozen=True, eq=False)
class Rounding:
    """Bounds of the rounding errors of class moments, absolute.

    Attributes
    ----------
    traces : (C,) float64
        Of the traces of the scatter.
    features : (d,) float64
        Of the scatter's diagonal, summed over the classes.
    means : (C,) float64
        Of the class means: the norm of the error.
    """

    traces: Floats
    features: Floats
    means: Floats

    @classmethod
    def of(cls, sums: Sums) -> Rounding | None:
        """Return the bounds of sums that were kept in float32; None for others.

        Examples
        --------
        >>> from collapsemeter.sums import init
        >>> Rounding.of(init(2, 3, "pooled", np.float32)).means, Rounding.of(init(2, 3, "pooled"))
        (array([0., 0.]), None)
        """
        if np.asarray(sums.sums).dtype != np.float32:
            return None
        counts = np.maximum(np.asarray(sums.counts, np.float64), 1)
        squares = np.maximum(np.asarray(sums.squares, np.float64), 0)  # NaN stays
        share = 4 * EPS32 * np.sqrt(counts)
        width = sums.sums.shape[1]
        if sums.scatter is None:
            features = np.full(width, (share @ squares) / width)
        elif sums.scatter.ndim == 3:
            features = share @ np.einsum("caa->ca", sums.scatter).astype(np.float64)
        else:
            features = share.max() * np.asarray(sums.scatter.diagonal(), np.float64)
        return cls(share * squares, features, share * np.sqrt(squares / counts))

    @classmethod
    def among(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Rounding | None:
        """Return the bounds among the arrays of a state file; None where there are none.

        Raises
        ------
        ValueError
            If they do not fit the means, or are negative.
        """
        named = [arrays.get(f"rounding_{part.name}") for part in fields(cls)]
        if all(array is None for array in named):
            return None
        classes, width = arrays["means"].shape
        for array, size in zip(named, (classes, width, classes), strict=True):
            if (
                array is None
                or array.shape != (size,)
                or array.dtype.kind != "f"
                or (array < 0).any()
            ):
                raise ValueError("its bounds of rounding errors are not those of its means")
        return cls(*map(np.asarray, named))

    def arrays(self) -> dict[str, Floats]:
        """Return the bounds under the names that `among` looks for."""
        return {f"rounding_{part.name}": getattr(self, part.name) for part in fields(self)}


def merged(
    a: Rounding | None, b: Rounding | None, counts_a: npt.ArrayLike, counts_b: npt.ArrayLike
) -> Rounding | None:
    """Return the bounds of merged moments.

    Examples
    --------
    >>> one = Rounding(np.ones(1), np.ones(2), np.ones(1))
    >>> merged(one, None, [3], [1]).means
    array([0.75])
    """
    known = b if a is None else a
    if known is None:
        return None
    nothing = Rounding(*(np.zeros_like(getattr(known, part.name)) for part in fields(known)))
    a, b = a or nothing, b or nothing
    share = np.asarray(counts_b) / np.maximum(np.add(counts_a, counts_b), 1)
    means = a.means + (b.means - a.means) * share
    return Rounding(a.traces + b.traces, a.features + b.features, means)


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
