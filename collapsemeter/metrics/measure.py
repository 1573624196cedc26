"""From moments to a report: every metric that the statistics, the head and the rows allow."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..stats.head import Head, HeadLike
from ..stats.linalg import Floats
from ..stats.plain import plain
from ..stats.sums import LEFT_OUT
from ..stats.undefined import Undefined
from . import depth, imbalance, nc1, nc2, nc3, nc4, rounding_errors
from .catalogue import METRICS, Need, Property
from .class_intervals import class_intervals
from .convention import Convention
from .frames import unit_rows
from .geometry import ClassGeometry
from .layer import LayerReport
from .layer_inputs import HeadRows, LayerInputs
from .random_means import is_generic
from .uncertainty import uncertainty

if TYPE_CHECKING:
    from ..stats.moments import ClassMoments
    from .decisions import Decisions

GRAM_CLASSES = 200  # up to here a layer's report keeps its C x C matrices: 1 MB at most

# Where the function of a metric is, under the metric's name.
_FILES: dict[Property, ModuleType] = {
    "NC1": nc1,
    "NC2": nc2,
    "NC3": nc3,
    "NC4": nc4,
    "depth": depth,
    "imbalance": imbalance,
}


def measure(
    moments: ClassMoments,
    *,
    head: HeadLike | None = None,
    decisions: Decisions | None = None,
    convention: Convention | str = "papyan2020",
    center_head: bool = False,
    weight: npt.ArrayLike | None = None,
    incoming: npt.ArrayLike | None = None,
    decays: tuple[float, float] = (1.0, 1.0),
) -> LayerReport:
    """Compute every metric of one layer.

    Parameters
    ----------
    moments : ClassMoments
    head : Head, or its weight (C, d), or the pair (weight, bias), optional
        The classifier that reads this layer; without one NC3 and the ``_head`` metrics are absent.
    decisions : Decisions, optional
        From `decide`; without them NC4 is absent.
    convention : Convention or str
        A preset's name or a `Convention`.
    center_head : bool
        Centre the head's rows over the classes for NC3 and the ``_head`` metrics; published code takes
        them as they are.
    weight : (k, d) array_like, optional
        A weight matrix fed by this layer, for ``dnc3_sine``; the head's if left out.
    incoming : (d, k) array_like, optional
        The weight matrix that this layer comes out of, for ``weight_balance``.
    decays : (float, float)
        Weight decays of `incoming` and `weight`, for the same; alike if left out.

    Returns
    -------
    LayerReport
        Undefined values are NaN with a reason; nothing is raised for degenerate statistics.

    Raises
    ------
    ValueError
        If the head, a weight, the decays or decisions do not fit the layer, or the convention is unknown.

    Examples
    --------
    >>> from collapsemeter import ClassMoments, Head, simplex_etf
    >>> rows = np.repeat(simplex_etf(4, 8), 5, axis=0)
    >>> labels = np.repeat(np.arange(4), 5)
    >>> layer = measure(ClassMoments.from_batch(rows, labels, 4), head=Head(simplex_etf(4, 8)))
    >>> max(layer["nc1_pinv"], layer["nc2_etf_error"], layer["nc3_self_duality"]) < 1e-12
    True
    """
    convention = Convention.named(convention)
    fed = None if weight is None else plain(weight, "weights", np.float64)
    into = None if incoming is None else plain(incoming, "incoming weights", np.float64)
    head = None if head is None else Head.of(head)
    if head is not None:
        head.check_fit(moments.num_classes, moments.width)
    _check_fit(moments, decisions, fed, into, decays)
    if fed is None and head is not None:
        fed = head.weight
    geometry = ClassGeometry(moments, convention.center)
    rows = None if head is None else HeadRows(head, geometry.present, center_head)
    layer = LayerInputs(geometry, convention, rows, decisions, fed, into, decays)
    values, reasons = _values(layer)

    errors = rounding_errors.relative_errors(geometry, convention, values.get("nc1_pinv"))
    # What rounding made of a scatter may look as if rows had been too few.
    looks = {"within_scatter_rank_deficient"} if rounding_errors.displaced(errors) else set()
    known = [name for name in values if reasons.get(name) in (None, *looks)]
    for name in sorted(rounding_errors.undetermined(errors, known)):
        values[name], reasons[name] = math.nan, rounding_errors.CODE
    floor = rounding_errors.dtype_floor(geometry, convention)
    noise = uncertainty(layer, values)
    intervals = {
        **noise.intervals,
        **nc4.intervals(decisions, moments.rows, values),
    }
    return LayerReport(
        values_by_name=values,
        reasons=reasons,
        flags=_flags(layer, values, floor, errors, noise.flags),
        per_class=_per_class(layer),
        vectors=_vectors(geometry),
        matrices=_matrices(layer),
        intervals=intervals,
        standard_errors=_standard_errors(layer, values),
        provenance=_provenance(layer, center_head, floor, errors),
        estimates=noise.estimates,
        no_estimate=noise.no_estimate,
        no_interval={
            name: code for name, code in noise.no_interval.items() if name not in intervals
        },
    )


def undefined_report(code: str, has_head: bool) -> LayerReport:
    """Return the report of a layer that could not be measured; with ``has_head`` it would have had the metrics of one."""
    reasons = dict.fromkeys(METRICS, code)
    for name, metric in METRICS.items():
        if "incoming" in metric.needs:
            reasons[name] = "no_incoming"
        elif not has_head and {"head", "weight"} & set(metric.needs):
            reasons[name] = "no_head"
    measured = [name for name in METRICS if reasons[name] == code]
    return LayerReport(dict.fromkeys(measured, math.nan), reasons, flags=(code,))


def _check_fit(
    moments: ClassMoments,
    decisions: Decisions | None,
    weight: Floats | None,
    incoming: Floats | None,
    decays: tuple[float, float],
) -> None:
    matrices = (
        ("weight", weight, 1, "(k, d), a matrix that this layer feeds"),
        ("incoming", incoming, 0, "(d, k), the matrix that this layer comes out of"),
    )
    for name, matrix, axis, expected in matrices:
        if matrix is not None and (matrix.ndim != 2 or matrix.shape[axis] != moments.width):
            raise ValueError(
                f"{name} has shape {matrix.shape}, the layer has {moments.width} features: "
                f"expected {expected}"
            )
    if decisions is not None and decisions.rows.shape != moments.counts.shape:
        raise ValueError(
            f"decisions are about {len(decisions.rows)} classes, the moments about "
            f"{moments.num_classes}"
        )
    if len(decays) != 2 or not all(0 < decay < math.inf for decay in decays):
        raise ValueError(f"decays={decays}: pass two positive numbers, of incoming and weight")


def _values(layer: LayerInputs) -> tuple[dict[str, float], dict[str, str]]:
    """Every metric whose needs are there, NaN where it is undefined, and why others have no value."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    missing = _missing(layer)
    for name, metric in METRICS.items():
        lacks = [need for need in missing if need in metric.needs]
        if lacks:
            reasons[name] = missing[lacks[0]]
            continue
        try:
            values[name] = getattr(_FILES[metric.property], name)(layer)
        except Undefined as undefined:
            values[name], reasons[name] = math.nan, undefined.code
    return values, reasons


def _missing(layer: LayerInputs) -> dict[Need, str]:
    """Needs that the layer lacks, and the reason that its metrics then have; the first counts."""
    missing: dict[Need, str] = {}
    if layer.incoming is None or layer.weight is None:
        missing["incoming"] = "no_incoming"
    if layer.head is None:
        missing["head"] = "no_head"
    if layer.weight is None:
        missing["weight"] = "no_head"
    if layer.decisions is None:
        missing["network"] = "no_head" if layer.head is None else "no_decisions"
        missing["decisions"] = "no_decisions"
    elif layer.decisions.agree is None:
        missing["network"] = "no_logits"
    return missing


def _standard_errors(layer: LayerInputs, values: dict[str, float]) -> dict[str, float]:
    geometry = layer.geometry
    if geometry.moments.sketch is None or geometry.residuals is not None:
        return {}
    conventions = {
        "nc1_pinv": layer.convention,
        "nc1_fuzziness": nc1.fuzziness_convention(layer.convention),
    }
    return {
        name: nc1.pinv_error(layer.geometry.about(convention.center), convention)
        for name, convention in conventions.items()
        if math.isfinite(values[name])
    }


def _flags(
    layer: LayerInputs,
    values: dict[str, float],
    floor: dict[str, float],
    errors: dict[str, float],
    noise: tuple[str, ...],
) -> tuple[str, ...]:
    geometry = layer.geometry
    moments, classes = geometry.moments, geometry.num_present
    # Where rounding makes up half of a value or more, the value says more of the dtype than of the network.
    low = any(values[name] <= 2 * least for name, least in floor.items())
    raised = {
        **dict.fromkeys(noise, True),
        "resubstitution": nc4.flatters(values),
        "etf_is_generic": is_generic(values, classes, moments.width, moments.phase),
        "etf_infeasible": classes > moments.width + 1,
        "at_dtype_floor": low and moments.phase != "reference",
        "absent_classes": classes < moments.num_classes,
        "single_sample_classes": bool((moments.counts == 1).any()),
        "nonfinite_rows": moments.nonfinite > 0,
        rounding_errors.CODE: rounding_errors.displaced(errors),
        "unequal_classes": imbalance.unequal(geometry.counts),
        "unlabelled_rows": moments.unlabelled > 0,
        "mixed_rows": moments.mixed > 0,
    }
    return tuple(flag for flag, up in raised.items() if up)


def _per_class(layer: LayerInputs) -> dict[str, npt.NDArray[Any]]:
    """Figures of every class, (C,) each; NaN, and -1 for a class, where undefined."""
    geometry, decisions, head = layer.geometry, layer.decisions, layer.head

    def spread(compute: Callable[[], npt.NDArray[Any]], nothing: float = math.nan) -> Any:
        whole = np.full(geometry.moments.num_classes, nothing)
        with suppress(Undefined):
            whole[geometry.present] = compute()
        return whole

    columns = {
        "count": geometry.moments.counts,
        "variance": spread(lambda: geometry.traces / geometry.counts),
        "mean_norm": spread(lambda: geometry.norms),
        "worst_cosine": spread(lambda: geometry.pairs.worst_cosine),
        "nearest_class": spread(lambda: geometry.present[geometry.pairs.nearest], -1),
    }
    if layer.steps is not None and geometry.num_present > 1:
        with suppress(Undefined):
            about = geometry.about("class")
            ends = class_intervals(layer.steps, about.centred)
            # Norms about another centre have no interval.
            known = [name for name in ends if about is geometry or not name.startswith("mean_norm")]
            columns |= {name: spread(ends[name].copy) for name in known}
    if decisions is not None:
        rows = np.where(decisions.rows > 0, decisions.rows, 1)
        accuracy = np.where(decisions.rows > 0, decisions.correct / rows, math.nan)
        columns["ncc_accuracy"] = accuracy
        columns |= nc4.class_accuracy_intervals(decisions)
    if head is not None:
        columns["worst_cosine_head"] = spread(lambda: head.pairs.worst_cosine)
        columns["nearest_class_head"] = spread(lambda: geometry.present[head.pairs.nearest], -1)
    return columns


def _where_defined(computations: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    values = {}
    for name, compute in computations.items():
        with suppress(Undefined):
            values[name] = compute()
    return values


def _vectors(geometry: ClassGeometry) -> dict[str, npt.NDArray[Any]]:
    """Singular values of the class means and the histogram of their cosines, where defined."""
    return _where_defined(
        {
            "means_singular_values": lambda: geometry.centred_values,
            "means_singular_values_uncentred": lambda: geometry.uncentred_values,
            "means_cosine_histogram": lambda: geometry.pairs.histogram,
        }
    )


def _matrices(layer: LayerInputs) -> dict[str, Floats]:
    """The C x C matrices of few present classes, where defined."""
    geometry, head = layer.geometry, layer.head
    if geometry.num_present > GRAM_CLASSES:
        return {}

    def head_means_cosine() -> Floats:
        units = geometry.units
        assert head is not None
        directions = unit_rows(head.rows, "head_row_without_direction")
        return np.clip(directions @ units.T, -1, 1)

    def means_gram() -> Floats:
        products, means = geometry.uncentred_products, geometry.finite_means
        return means @ means.T if products is None else products

    def means_gram_centred() -> Floats:
        products, means = geometry.products, geometry.centred
        return means @ means.T if products is None else products

    computations: dict[str, Callable[[], Floats]] = {
        "means_gram": means_gram,
        "means_gram_centred": means_gram_centred,
    }
    if head is not None:
        computations["head_means_cosine"] = head_means_cosine
    return _where_defined(computations)


def _provenance(
    layer: LayerInputs, center_head: bool, floor: dict[str, float], errors: dict[str, float]
) -> dict[str, Any]:
    geometry, moments, decisions = layer.geometry, layer.geometry.moments, layer.decisions
    convention, spectrum = layer.convention, None
    with suppress(Undefined):
        spectrum = geometry.spectrum(convention.between)
    return {
        "rows": moments.rows,
        "classes": moments.num_classes,
        "classes_present": geometry.num_present,
        "absent_classes": np.flatnonzero(moments.counts == 0).tolist(),
        "single_sample_classes": np.flatnonzero(moments.counts == 1).tolist(),
        **{f"{name}_rows": getattr(moments, name) for name in LEFT_OUT},
        "seli_to_etf": imbalance.seli_to_etf(geometry.counts),
        "width": moments.width,
        "scatter": moments.kind,
        "sketch_rows": None if moments.sketch is None else len(moments.sketch),
        "phase": moments.phase,
        "shards": sorted(moments.shards),
        "feature_dtype": moments.feature_dtype,
        "dtype_floor": floor,
        "float32_error": errors,
        "convention": {"name": convention.name, **asdict(convention), "center_head": center_head},
        "nc4_rows": None if decisions is None else int(decisions.rows.sum()),
        "nc4_sampled": None if decisions is None else decisions.sampled,
        "nc4_resubstitution": None if decisions is None else decisions.alone is not None,
        "groups": 0 if moments.groups is None else moments.groups.number,
        "between_cut": None if spectrum is None else spectrum.cut,
        "between_rank": None if spectrum is None else len(spectrum.values),
        "between_smallest_kept": None if spectrum is None else spectrum.smallest_kept,
    }
