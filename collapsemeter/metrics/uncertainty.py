r"""Estimates, intervals and flags of a layer's metrics, and why others have none.

An interval is :math:`\hat\theta \pm t_{.975} s` of the root of a ratio with the between-class scatter above, or of the square of what may be zero, :math:`s^2 = \sum_g (\theta_g - \bar\theta)^2` over the steps
:math:`\theta_g` by which groups move it.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..stats.linalg import Floats
from ..stats.undefined import Undefined
from .catalogue import METRICS
from .convention import Convention
from .estimates import ESTIMATES, Estimate, Gram
from .geometry import ClassGeometry
from .layer_inputs import LayerInputs
from .noise import Noise, centred_diagonal, trace_of_square
from .steps import quantile, squared_error

MOST_CLASSES = 2048  # whose pairs are estimated: 32 MB a matrix
LEAST_FREEDOM = 15  # of fewer rows beside the classes the spread itself is not known
LEAST_OF_MEANS = 10  # degrees of freedom of the variances of class means: small classes have most

# Of pairs of classes, and therefore of as many classes as MOST_CLASSES at most.
_PAIRWISE = ("nc1_cdnv", "nc2_etf_error", "nc2_equinorm")
_OF_CLASSES_ALIKE = ("nc1_trace_ratio", "separation", "nc2_etf_error", "nc2_equinorm")
_BESIDE = {"nc1_vci": "nc1_vci_shrunk", "ncc_accuracy": "ncc_accuracy_loo"}
NAMES = ("nc1_trace_ratio", "separation", *_PAIRWISE)  # that every layer may have


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Estimates and intervals of a layer's metrics by name, and the codes of metrics without one."""

    estimates: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    no_estimate: dict[str, str] = field(default_factory=dict)
    no_interval: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


def uncertainty(layer: LayerInputs, values: dict[str, float]) -> Uncertainty:
    """Estimate what can be estimated of these metrics."""
    finite = [name for name in values if math.isfinite(values[name])]
    names = [name for name in ESTIMATES if name in finite]
    unbiased = {name: values[twin] for name, twin in _BESIDE.items() if twin in finite}
    try:
        noise = layer.noise
    except Undefined as undefined:
        known = _refused(names, undefined.code)
    else:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            known = _estimated(layer, noise, names)
    reasons = {name: _lasting(name) for name in finite if name not in names}
    no_estimate = {name: code for name, code in reasons.items() if name not in unbiased}
    return replace(
        known,
        estimates=known.estimates | unbiased,
        no_estimate=known.no_estimate | no_estimate,
        no_interval=known.no_interval | reasons,
    )


def _refused(names: list[str], code: str, flags: tuple[str, ...] = ()) -> Uncertainty:
    return Uncertainty({}, {}, dict.fromkeys(names, code), dict.fromkeys(names, code), flags)


def _estimated(layer: LayerInputs, noise: Noise, names: list[str]) -> Uncertainty:
    gram = Gram(noise)
    # Of two or three degrees of freedom the error is not known well.
    errors = 2 * (1 + 2 / noise.freedom**2)
    if not gram.between > errors * math.sqrt(max(gram.between_variance, 0.0)):
        code = "between_scatter_not_above_noise"
        return _refused(names, code, (code,))
    unfit = {name: _unfit(name, layer, noise) for name in names}
    codes = {name: code for name, code in unfit.items() if code is not None}
    known = Uncertainty({}, {}, dict(codes), dict(codes))
    computed = {name: ESTIMATES[name](gram) for name in names if name not in codes}
    halves = _half_widths(gram, computed)
    for name, estimate in computed.items():
        value, ends = _judged(estimate, halves.get(name, math.nan))
        if math.isfinite(value):
            known.estimates[name] = value
        else:
            known.no_estimate[name] = estimate.unknown or "out_of_range"
        if halves and ends is not None:
            known.intervals[name] = ends
        elif ends is None and not math.isfinite(value):
            known.no_interval[name] = known.no_estimate[name]
        else:
            known.no_interval[name] = "estimate_not_above_noise" if halves else _without(layer)
    return known


def _without(layer: LayerInputs) -> str:
    """Return why no metric of a layer has an interval."""
    if layer.geometry.moments.groups is None:
        return "no_groups"
    return "too_few_rows_for_intervals"


def _half_widths(gram: Gram, computed: dict[str, Estimate]) -> dict[str, float]:
    """Return half the width of the interval of each estimate, on its scale; empty without groups."""
    noise, total = gram.noise, gram.noise.total
    steps = noise.steps
    if steps is None or not computed:
        return {}
    if noise.freedom < LEAST_FREEDOM or _freedom_of_means(noise.counts) < LEAST_OF_MEANS:
        return {}
    # Of few rows residuals spread less than the rows' variances do: by as much as their kurtosis says.
    moved = float(((noise.counts @ steps.spreads / (noise.counts.sum() * total)) ** 2).sum())
    widened = noise.error_of_total(noise.variances**2) / max(moved, 1e-300)
    steps = steps.widened(math.sqrt(min(max(widened, 1.0), 4.0)))
    norms, spreads, occupied = steps.norms / total, steps.spreads / total, steps.occupied
    directions = np.stack([_direction(each.form, gram.means) for each in computed.values()], -1)
    along = 2 * steps.along(directions) / math.sqrt(total)
    most = min(int(np.count_nonzero(occupied)) - 1, int(noise.freedom))
    halves = {}
    for (name, each), moves in zip(computed.items(), np.moveaxis(along, -1, 0), strict=True):
        form = each.form
        if form.ndim == 1:  # J diag(w) J
            moves += centred_diagonal(form)[:, None] * norms
            doubled = trace_of_square(form * gram.added)
        else:
            moves += form.diagonal()[:, None] * norms
            doubled = float(gram.added @ form**2 @ gram.added)
        if each.variances is not None:
            moves += each.variances[:, None] * spreads
        error = float(squared_error(moves.sum(axis=0), occupied))
        # The noise of the means is in the derivative, too.
        error = max(error - 2 * noise.square * doubled, error / 2)
        error = each.share * error + each.curved
        freedom = min(_freedom_of(moves, noise), most)
        halves[name] = float(quantile(freedom)) * math.sqrt(error)
    return halves


def _freedom_of_means(counts: Floats) -> float:
    """Return the degrees of freedom of a sum of the variances of all means, by Satterthwaite's rule: N - C of classes of one size."""
    shares, several = 1 / counts, counts > 1
    terms = shares[several] ** 2 / (counts[several] - 1)
    return float(shares[several].sum() ** 2 / terms.sum()) if several.any() else 0.0


def _direction(form: Floats, means: Floats) -> Floats:
    """Return the form times the means, (C, d)."""
    if form.ndim > 1:
        whole: Floats = form @ means
        return whole
    weighted: Floats = form[:, None] * means
    weighted -= weighted.mean(axis=0)
    return weighted


def _freedom_of(moves: Floats, noise: Noise) -> float:
    """Return the degrees of freedom of the squared error of these steps of classes, (C, G), by Satterthwaite's rule."""
    squares, counts = (moves**2).sum(axis=1), noise.counts
    uneven = 1 / np.maximum(counts - 1, 1) + 1.5 * max(noise.kurtosis, 0.0) / counts
    return max(float(squares.sum() ** 2 / (squares**2 * uneven / (1 + 2 * uneven)).sum()) - 2, 1.0)


def _judged(estimate: Estimate, half: float) -> tuple[float, tuple[float, float] | None]:
    """Return the value of an estimate and its interval, None where noise leaves none."""
    value, middle = estimate.value, estimate.value
    if estimate.scale == "square":
        middle = estimate.squared
    if not math.isfinite(half + middle):
        return value, None
    if estimate.scale == "value":
        return value, (value - half, value + half)
    if estimate.scale == "square":
        low, high = (math.sqrt(max(middle + end, 0.0)) for end in (-half, half))
        return value, (low, value if value > high else high)
    if not (value > 0 and half < 2):
        return value, None
    # The error of the root of a scatter does not depend on it.
    ends = [value * (1 + end / 2) ** (2 * estimate.power) for end in (-half, half)]
    return value, (min(ends), max(ends))


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
