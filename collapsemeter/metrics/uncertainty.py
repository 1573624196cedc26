r"""Estimates, intervals and flags of a layer's metrics, and why others have none.

An interval is :math:`\hat\theta \pm t_{.975} s`, of the logarithm of an estimate or, where it may be zero, of its square:
:math:`s^2 = \frac{N}{N-C} \sum_g (\hat\theta_g - \bar\theta)^2` over the groups, see `noise.Samples`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..stats.linalg import Floats
from ..stats.undefined import Undefined
from . import estimates
from .catalogue import METRICS
from .class_intervals import STUDENT
from .convention import Convention
from .estimates import Gram
from .geometry import ClassGeometry
from .layer_inputs import LayerInputs
from .noise import Noise, Samples, shifted, unshifted

MOST_CLASSES = 2048  # whose pairs are estimated: 32 MB a matrix
CHUNK_ENTRIES = 2**22  # of the means and Gram matrices of sets that are estimated at once: 32 MB
MOST_PRODUCTS = 2**35  # multiplications in the Gram matrices of all groups: seconds
MOST_CORRECTION = 0.25  # of the square root of a noisy square

# Of pairs of classes, and therefore of as many classes as MOST_CLASSES at most.
_PAIRWISE = ("nc1_cdnv", "nc2_etf_error", "nc2_equinorm")
_OF_CLASSES_ALIKE = ("nc1_trace_ratio", "separation", "nc2_etf_error", "nc2_equinorm")
_BESIDE = {"nc1_vci": "nc1_vci_shrunk", "ncc_accuracy": "ncc_accuracy_loo"}
NAMES = ("nc1_trace_ratio", "separation", *_PAIRWISE)


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What is known of the noise in a layer's metrics, by name, and the codes of those without an estimate or an interval."""

    estimates: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    no_estimate: dict[str, str] = field(default_factory=dict)
    no_interval: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def uncertainty(layer: LayerInputs, values: dict[str, float]) -> Uncertainty:
    """Estimate what can be estimated of these metrics."""
    given = [name for name in values if math.isfinite(values[name])]
    found = {name: values[other] for name, other in _BESIDE.items() if other in given}
    try:
        noise = layer.noise
    except Undefined as undefined:
        known = Uncertainty(
            {}, {}, *({name: undefined.code for name in NAMES if name in given},) * 2
        )
    else:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            known = _estimated(layer, noise, [name for name in NAMES if name in given])
    others = {name: _lasting(name) for name in given if name not in NAMES}
    no_estimate = {name: code for name, code in others.items() if name not in found}
    return replace(
        known,
        estimates=known.estimates | found,
        no_estimate=known.no_estimate | no_estimate,
        no_interval=known.no_interval | others,
    )


def _estimated(layer: LayerInputs, noise: Noise, given: list[str]) -> Uncertainty:
    groups = shifted(noise, layer.geometry)
    samples = unshifted(noise) if groups is None else groups
    first = Gram(samples, slice(0, 1))
    between, error = float(first.between[0]), math.sqrt(max(float(first.between_variance[0]), 0.0))
    if not between > 2 * error:
        codes = dict.fromkeys(given, "between_scatter_not_above_noise")
        return Uncertainty({}, {}, codes, dict(codes), ("between_scatter_not_above_noise",))
    codes = {name: code for name in given if (code := _unfit(name, layer, noise)) is not None}
    computations = {name: _computation(name, noise, groups) for name in given if name not in codes}
    affordable = len(samples.totals) * noise.classes**2 * noise.means.shape[1] <= MOST_PRODUCTS
    many = {k: v for k, v in computations.items() if affordable or k not in _PAIRWISE}
    sets = _of_all(many, samples)
    sets |= {k: compute(first) for k, compute in computations.items() if k not in many}
    known = Uncertainty({}, {}, dict(codes), dict(codes))
    for name, values in sets.items():
        if not math.isfinite(values[0]):
            known.no_estimate[name] = known.no_interval[name] = "pairs_not_above_noise"
            continue
        known.estimates[name], ends = _judged(name, values, noise)
        if isinstance(ends, tuple):
            known.intervals[name] = ends
        else:
            alone = "no_groups" if groups is None else "too_many_classes_for_groups"
            known.no_interval[name] = alone if len(values) == 1 else ends
    return known


def _judged(name: str, values: Floats, noise: Noise) -> tuple[float, tuple[float, float] | str]:
    """Return the estimate of a metric, and its interval or why there is none."""
    if name in ("nc2_etf_error", "nc2_equinorm"):
        return _rooted(values, noise)
    value = float(values[0])
    if len(values) == 1 or not (np.isfinite(values).all() and values.min() > 0):
        return value, "estimate_not_above_noise"
    half = _half_width(np.log(values), noise)
    return value, (value * math.exp(-half), value * math.exp(half))


def _computation(name: str, noise: Noise, samples: Samples | None) -> Callable[[Gram], Floats]:
    if name == "nc1_trace_ratio":
        return estimates.trace_ratio
    if name == "separation":
        variance = noise.variance_of_total
        if samples is not None:  # rows of unequal sizes make t vary more than Gaussian ones do
            variance = max(variance, float(((samples.totals - samples.totals.mean()) ** 2).sum()))
        return partial(estimates.separation, variance_of_total=variance)
    if name == "nc1_cdnv":
        return partial(estimates.cdnv, crossed=noise.crossed())
    return estimates.etf_error_squared if name == "nc2_etf_error" else estimates.equinorm_squared


def _of_all(
    computations: dict[str, Callable[[Gram], Floats]], samples: Samples
) -> dict[str, Floats]:
    """(K,) by name: estimates of every set, some sets at a time."""
    classes, width = samples.noise.means.shape
    number = len(samples.totals)
    step = max(1, CHUNK_ENTRIES // (classes * max(classes, width)))
    parts: dict[str, list[Floats]] = {name: [] for name in computations}
    for start in range(0, number, step):
        gram = Gram(samples, slice(start, min(start + step, number)))
        for name, compute in computations.items():
            parts[name].append(compute(gram))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _rooted(squares: Floats, noise: Noise) -> tuple[float, tuple[float, float] | str]:
    """Return the root of the first of some squares and its interval, from 0 where the square may be."""
    value = math.sqrt(max(float(squares[0]), 0.0))
    if len(squares) == 1 or not np.isfinite(squares).all():
        return value, "estimate_not_above_noise"
    half = _half_width(squares, noise)
    low, high = (math.sqrt(max(float(squares[0]) + end, 0.0)) for end in (-half, half))
    if value > 0:  # the root of a noisy square is too small on average
        spread = float(((squares - squares.mean()) ** 2).sum())
        value *= 1 + min(spread / (8 * float(squares[0]) ** 2), MOST_CORRECTION)
    return value, (low, max(high, value))


def _half_width(sets: Floats, noise: Noise) -> float:
    """Return half of the interval about the first of some estimates, of which each group shifted one."""
    others = sets[1:]
    rows = float(noise.counts.sum())
    variance = float(((others - others.mean()) ** 2).sum()) * rows / noise.freedom
    return STUDENT[len(others) - 2] * math.sqrt(variance)


def _lasting(name: str) -> str:
    """Return why a metric never has an interval of its own, nor an estimate where no other metric is one."""
    if name in ("nc1_pinv", "nc1_fuzziness", "nc1_vci"):
        return "divides_by_noisy_directions"
    if METRICS[name].unit == "share of rows":
        return "share_of_rows"
    return "no_defensible_estimate"


def _unfit(name: str, layer: LayerInputs, noise: Noise) -> str | None:
    """Return why there is no estimate of a metric for this layer."""
    geometry, convention = layer.geometry, layer.convention
    if name in _OF_CLASSES_ALIKE and not _classes_alike(geometry, convention):
        return "classes_not_alike"
    if name in _PAIRWISE and noise.classes > MOST_CLASSES:
        return "too_many_classes"
    return None


def _classes_alike(geometry: ClassGeometry, convention: Convention) -> bool:
    if geometry.balanced:
        return True
    weights = (convention.center, convention.between, convention.within)
    return weights == ("class", "class", "sample")
