"""From moments to a report: every metric that the statistics, the head and the rows allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..stats.blas import product
from ..stats.head import Head, HeadLike
from ..stats.linalg import EPS64, Floats, bounded, taken
from ..stats.moments import EPS, ClassMoments
from ..stats.plain import plain
from ..stats.undefined import Undefined, require
from . import depth as rank
from . import nc1, nc2, nc3, rounding_errors
from .catalogue import METRICS
from .convention import Convention
from .details import matrices, per_class, vectors
from .frames import centred_rows, opposite_rows, too_small
from .geometry import ClassGeometry, Spectrum
from .layer import LayerReport
from .nc2 import HeadFrame
from .nc4 import Decisions, wilson_interval

Computed = Iterator[tuple[str, Callable[[], float]]]


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
    >>> from collapsemeter.metrics.frames import simplex_etf
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
    _check_fit(moments, decisions, fed)
    _check_balance(moments, into, decays)
    if fed is None and head is not None:
        fed = head.weight
    geometry = ClassGeometry(moments, convention.center)

    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for family in (
        _nc2(geometry),
        _of_head(geometry, head, center_head),
        _nc4(geometry, decisions),
        _fed(geometry, fed),
        _balance(into, fed, decays),
        _nc1(geometry, convention),
        _rank(geometry),
    ):
        for name, compute in family:
            try:
                values[name] = compute()
            except Undefined as undefined:
                values[name], reasons[name] = math.nan, undefined.code
    reasons |= _absent(values, head, decisions)
    errors = rounding_errors.relative_errors(geometry, convention, values.get("nc1_pinv"))
    # What rounding made of a scatter may look as if rows had been too few.
    looks = {"within_scatter_rank_deficient"} if rounding_errors.displaced(errors) else set()
    open_names = [name for name in values if reasons.get(name) in (None, *looks)]
    for name in rounding_errors.undetermined(errors, open_names):
        values[name], reasons[name] = math.nan, rounding_errors.CODE
    floor = _dtype_floor(geometry, convention)
    return LayerReport(
        values_by_name={name: values[name] for name in METRICS if name in values},
        reasons=reasons,
        flags=_flags(geometry, values, floor, errors),
        per_class=per_class(geometry, decisions),
        vectors=vectors(geometry),
        matrices=matrices(geometry, head, center_head),
        intervals=_intervals(decisions, values),
        standard_errors=_standard_errors(geometry, convention, values),
        provenance=_provenance(geometry, convention, center_head, decisions, floor, errors),
    )


def undefined_report(code: str, has_head: bool) -> LayerReport:
    """Return the report of a layer that could not be measured: every metric NaN, for one reason.

    Parameters
    ----------
    code : str
        A key of `REASONS`; it is the report's flag, too.
    has_head : bool
        Whether the layer feeds the head, and so would have had the metrics of one.

    Examples
    --------
    >>> layer = undefined_report("never_fired", has_head=False)
    >>> layer["nc1_pinv"], layer.reason("nc1_pinv"), layer.reason("nc3_cosine")
    (nan, 'never_fired', 'no_head')
    """
    names = [
        name for name in METRICS if name != "weight_balance" and (has_head or not _needs_head(name))
    ]
    absent = {name: "no_head" for name in METRICS if name not in names}
    absent["weight_balance"] = "no_incoming"
    reasons = {name: absent.get(name, code) for name in METRICS}
    return LayerReport(dict.fromkeys(names, math.nan), reasons, flags=(code,))


def _needs_head(name: str) -> bool:
    return name.endswith("_head") or name.startswith("nc3") or name == "dnc3_sine"


def _check_fit(
    moments: ClassMoments,
    decisions: Decisions | None,
    weight: npt.NDArray[np.float64] | None,
) -> None:
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != moments.width):
        raise ValueError(
            f"weight has shape {weight.shape}, the layer has {moments.width} features: "
            "expected (k, d), a matrix that this layer feeds"
        )
    if decisions is not None and decisions.rows.shape != moments.counts.shape:
        raise ValueError(
            f"decisions are about {len(decisions.rows)} classes, the moments about "
            f"{moments.num_classes}"
        )


def _check_balance(
    moments: ClassMoments,
    incoming: npt.NDArray[np.float64] | None,
    decays: tuple[float, float],
) -> None:
    if incoming is not None and (incoming.ndim != 2 or incoming.shape[0] != moments.width):
        raise ValueError(
            f"incoming has shape {incoming.shape}, the layer has {moments.width} features: "
            "expected (d, k), the matrix that this layer comes out of"
        )
    if len(decays) != 2 or not all(0 < decay < math.inf for decay in decays):
        raise ValueError(f"decays={decays}: pass two positive numbers, of incoming and weight")


def _nc1(geometry: ClassGeometry, convention: Convention) -> Computed:
    yield "nc1_trace_ratio", lambda: nc1.nc1_trace_ratio(geometry, convention)
    yield "nc1_cdnv", lambda: nc1.nc1_cdnv(geometry)
    yield "nc1_pinv", lambda: nc1.nc1_pinv(geometry, convention)
    by_sample = geometry.about("sample")
    yield "nc1_fuzziness", lambda: nc1.nc1_fuzziness(by_sample, convention)
    yield "nc1_vci", lambda: nc1.nc1_vci(geometry, convention)


def _nc2(geometry: ClassGeometry) -> Computed:
    def centred() -> ClassGeometry:
        _ = geometry.centred
        require(geometry.num_present > 2, "two_classes_trivial")
        return geometry

    yield "nc2_equinorm", lambda: nc2.nc2_equinorm(centred().norms)
    yield "nc2_equiangular", lambda: nc2.nc2_equiangular(centred().pairs)
    yield "nc2_max_angle", lambda: nc2.nc2_max_angle(centred().pairs)
    yield "nc2_etf_error", lambda: nc2.nc2_etf_error(centred().centred, geometry.products)
    yield "nc2_of_error", lambda: _of_error(geometry)
    yield "gnc2_log_mean", lambda: nc2.gnc2_log_mean(centred().pairs)
    yield "gnc2_log_var", lambda: nc2.gnc2_log_var(centred().pairs)


def _of_error(geometry: ClassGeometry) -> float:
    _ = geometry.centred  # undefined where the means do not differ
    return nc2.nc2_of_error(geometry.finite_means, geometry.uncentred_products)


def _of_head(geometry: ClassGeometry, head: Head | None, center_head: bool) -> Computed:
    if head is None:
        return
    weight, bias = (taken(values, geometry.present) for values in (head.weight, head.bias))
    finite = head.finite

    @cache
    def rows() -> Floats:
        require(finite, "nonfinite_head")
        _require_range(weight)
        return centred_rows(weight) if center_head and len(weight) else weight

    @cache
    def frame() -> HeadFrame:
        return HeadFrame(rows())

    def apart() -> HeadFrame:
        require(not opposite_rows(frame().rows), "two_classes_trivial")
        return frame()

    def spread() -> float:
        of_all = apart().pairs
        require(geometry.num_present > 2, "two_classes_trivial")  # one pair
        return nc2.nc2_equiangular(of_all)

    def dual(metric: Callable[[Any, Any], float]) -> float:
        means = geometry.centred
        return metric(rows(), means)

    yield "nc2_equinorm_head", lambda: nc2.nc2_equinorm(apart().norms)
    yield "nc2_equiangular_head", spread
    yield "nc2_max_angle_head", lambda: nc2.nc2_max_angle(apart().pairs)
    yield "nc2_etf_error_head", lambda: nc2.nc2_etf_error(apart().rows, frame().products)
    yield "nc3_self_duality", lambda: dual(nc3.nc3_self_duality)
    yield "nc3_etf_error", lambda: dual(partial(nc3.nc3_etf_error, products=geometry.products))
    yield "nc3_cosine", lambda: dual(nc3.nc3_cosine)
    yield "nc3_uniform", lambda: dual(nc3.nc3_uniform)

    def bias_norm() -> float:
        _ = geometry.centred
        require(finite, "nonfinite_head")
        return nc3.nc3_bias(weight, bias, geometry.sample_mean)

    yield "nc3_bias", bias_norm


def _nc4(geometry: ClassGeometry, decisions: Decisions | None) -> Computed:
    if decisions is None:
        return

    def share(counts: npt.NDArray[np.int64]) -> float:
        require(geometry.num_present != 1, "one_class")
        geometry.require_range()
        total = int(decisions.rows.sum())
        if total == 0:
            raise Undefined("no_decisions")
        return int(counts.sum()) / total

    agree = decisions.agree
    if agree is not None:
        yield "nc4_agreement", lambda: share(agree)
        yield "nc4_mismatch", lambda: share(decisions.rows - agree)
    yield "ncc_accuracy", lambda: share(decisions.correct)


def _rank(geometry: ClassGeometry) -> Computed:
    yield "features_effective_rank", lambda: rank.features_effective_rank(geometry)
    yield "means_effective_rank", lambda: rank.effective_rank(geometry.centred_values)
    yield "means_stable_rank", lambda: rank.stable_rank(geometry.centred_values)
    yield (
        "means_condition",
        lambda: rank.means_condition(geometry.uncentred_values, geometry.num_present),
    )


def _fed(geometry: ClassGeometry, weight: npt.NDArray[np.float64] | None) -> Computed:
    if weight is None:
        return

    def sine() -> float:
        means = geometry.finite_means
        _require_range(weight)
        return rank.dnc3_sine(weight, means)

    yield "dnc3_sine", sine


def _balance(
    incoming: npt.NDArray[np.float64] | None,
    weight: npt.NDArray[np.float64] | None,
    decays: tuple[float, float],
) -> Computed:
    if incoming is None or weight is None:
        return

    def balance() -> float:
        for matrix in (incoming, weight):
            _require_range(matrix)
        return rank.weight_balance(incoming, weight, decays)

    yield "weight_balance", balance


def _require_range(weight: Floats) -> None:
    require(bounded(weight), "nonfinite_head")
    require(not too_small(weight), "out_of_range")


def _absent(
    values: dict[str, float], head: Head | None, decisions: Decisions | None
) -> dict[str, str]:
    def reason(name: str) -> str:
        if name.startswith("nc4") and decisions is not None:
            return "no_logits"
        if name == "weight_balance":
            return "no_incoming"
        if name == "ncc_accuracy":
            return "no_decisions"
        return "no_head" if head is None else "no_decisions"

    return {name: reason(name) for name in METRICS if name not in values}


def _intervals(
    decisions: Decisions | None, values: dict[str, float]
) -> dict[str, tuple[float, float]]:
    if decisions is None or not decisions.sampled:
        return {}
    total = int(decisions.rows.sum())
    return {
        name: wilson_interval(round(values[name] * total), total)
        for name in ("nc4_agreement", "nc4_mismatch", "ncc_accuracy")
        if math.isfinite(values.get(name, math.nan))
    }


def _standard_errors(
    geometry: ClassGeometry, convention: Convention, values: dict[str, float]
) -> dict[str, float]:
    if geometry.moments.sketch is None:
        return {}
    conventions = {
        "nc1_pinv": convention,
        "nc1_fuzziness": nc1.fuzziness_convention(convention),
    }
    return {
        name: nc1.nc1_pinv_error(geometry.about(chosen.center), chosen)
        for name, chosen in conventions.items()
        if math.isfinite(values[name])
    }


def _dtype_floor(geometry: ClassGeometry, convention: Convention) -> dict[str, float]:
    r"""NC1 of features that are collapsed but for the rounding of their dtype.

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
        rounding = product(geometry.weights(convention.within), squares)
        rounding *= (eps / EPS64) ** 2 / 12
        spectrum = geometry.spectrum(convention.between)
    except Undefined:
        return {}
    along = float(np.einsum("rj,rj->j", spectrum.inverse, spectrum.inverse) @ rounding)
    between = float((spectrum.values**2).sum())
    divisor = geometry.num_present if convention.divide_by_classes else 1
    return {"nc1_pinv": along / divisor, "nc1_trace_ratio": float(rounding.sum()) / between}


def _flags(
    geometry: ClassGeometry,
    values: dict[str, float],
    floor: dict[str, float],
    errors: dict[str, float],
) -> tuple[str, ...]:
    moments = geometry.moments
    # Where rounding makes up half of a value or more, the value says more of the dtype than of the network.
    low = any(values[name] <= 2 * least for name, least in floor.items())
    raised = {
        "etf_infeasible": geometry.num_present > moments.width + 1,
        "at_dtype_floor": low and moments.phase != "reference",
        "absent_classes": geometry.num_present < moments.num_classes,
        "single_sample_classes": bool((moments.counts == 1).any()),
        "nonfinite_rows": moments.nonfinite > 0,
        rounding_errors.CODE: rounding_errors.displaced(errors),
        "unlabelled_rows": moments.unlabelled > 0,
        "mixed_rows": moments.mixed > 0,
    }
    return tuple(flag for flag, up in raised.items() if up)


def _provenance(
    geometry: ClassGeometry,
    convention: Convention,
    center_head: bool,
    decisions: Decisions | None,
    floor: dict[str, float],
    errors: dict[str, float],
) -> dict[str, Any]:
    moments = geometry.moments
    spectrum: Spectrum | None
    try:
        spectrum = geometry.spectrum(convention.between)
    except Undefined:
        spectrum = None
    return {
        "rows": moments.rows,
        "classes": moments.num_classes,
        "classes_present": geometry.num_present,
        "absent_classes": np.flatnonzero(moments.counts == 0).tolist(),
        "single_sample_classes": np.flatnonzero(moments.counts == 1).tolist(),
        "ignored_rows": moments.ignored,
        "nonfinite_rows": moments.nonfinite,
        "unlabelled_rows": moments.unlabelled,
        "mixed_rows": moments.mixed,
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
        "between_cut": None if spectrum is None else spectrum.cut,
        "between_rank": None if spectrum is None else len(spectrum.values),
        "between_smallest_kept": None if spectrum is None else spectrum.smallest_kept,
    }
