"""A measured network beside the optimum that theory predicts, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..metrics.depth import effective_rank
from ..metrics.layer import LayerReport
from ..report.criteria import Criteria
from ..report.report import CollapseReport
from ..stats.linalg import EPS64, Floats
from ..stats.moments import ClassMoments
from .matching import match_classes
from .result import Comparison, Gap, LayerComparison, Ranks
from .sides import Side, convention_of, measured_side, pair_layers, reference_side
from .verdict import Evidence
from .verdict import verdict as say

if TYPE_CHECKING:
    from ..dufm import Optimum, Solution

    Reference: TypeAlias = Optimum | Solution | CollapseReport
    Moments: TypeAlias = Mapping[str, ClassMoments] | Mapping[int, ClassMoments]
    Measured: TypeAlias = CollapseReport | Moments | Optimum | Solution

TOLERANCE = 0.05


def compare(
    report: Measured,
    reference: Reference,
    layers: Mapping[str, int | str] | None = None,
    *,
    before_activation: bool = False,
    tolerance: float = TOLERANCE,
    criteria: Criteria | None = None,
) -> Comparison:
    r"""Put measured geometry and a reference side by side.

    Nothing here depends on how classes are numbered or on a rotation of the features, and nothing is
    compared where the theory leaves freedom: in a free layer of an optimum (the first, where a class
    has neurons of its own: from an orthogonal frame to a simplex ETF all have the same loss) only NC1 is,
    and the root mean square norm of the class means, or before the activation the nuclear norm.

    Parameters
    ----------
    report : CollapseReport, mapping of name to ClassMoments, Optimum or Solution
        What was measured. Of more than 200 classes a report keeps no Gram matrix: their distance is
        then NaN.
    reference : Optimum, Solution or CollapseReport
        From `collapsemeter.dufm`, or another network.
    layers : mapping, optional
        Which layer of the reference (1 for the features, l for what W_l reads, L + 1 for the output)
        each measured layer stands for; the others are left out. By default in order from the end: the
        last measured layer is what the head reads, so it stands for layer L. Layers named by numbers, as
        those of ``Optimum.moments()``, stand for their number.
    before_activation : bool
        Whether hidden layers were measured before their ReLU; by default they compare with what
        comes out of it.
    tolerance : float
        Singular values below this fraction of the largest are not counted in the rank.
    criteria : Criteria, optional
        What counts as collapsed: NC1 as in every summary, and the larger of the two Gram distances
        over what NC2 is divided by.

    Returns
    -------
    Comparison
        The metrics that both sides have. Gram distances are minimised over the order of the classes of
        each layer by itself; exactly for up to seven classes, see `match_classes`.

    Raises
    ------
    ValueError
        If nothing was measured, or `layers` names a layer that does not exist.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023; Sukenik, Lampert & Mondelli 2024 (low rank).

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM, dnc, srg
    >>> problem = DUFM(10, 50, 4, feature_decay=0.004, weight_decay=0.004)
    >>> comparison = compare(srg(problem).moments(), dnc(problem))
    >>> print(comparison["3"].verdict)  # doctest: +NORMALIZE_WHITESPACE
    below DNC rank: rank 5 of 10 classes (dnc has 10); NC1 collapsed: 0 % of the variance is within
    classes; class means are 190 % as far from dnc as random ones from a simplex ETF
    >>> comparison["1"].status  # the theory leaves it open
    'free'
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: pass a positive number, such as {TOLERANCE}")
    criteria = Criteria.chosen(criteria)
    found = measured_side(report, before_activation)
    convention, center_head = convention_of(found.layers)
    wanted = reference_side(reference, before_activation, convention, center_head)
    pairs = pair_layers(found, wanted, layers)
    compared = {
        name: _compare_layer(name, other, found, wanted, before_activation, tolerance, criteria)
        for name, other in pairs.items()
    }
    listed = ", ".join(f"{name} to {other}" for name, other in pairs.items())
    how = "as asked" if layers is not None else HOW[found.numbered and wanted.numbered]
    unmatched = tuple(name for name in found.layers if name not in pairs)
    left = f"; not compared: {', '.join(unmatched)}" if unmatched else ""
    return Comparison(
        layers=compared,
        reference=wanted.words,
        mapping=f"layers, {how}: {listed}{left}",
        unmatched=unmatched,
        low_rank="" if wanted.low_rank is None else wanted.low_rank.name,
        criteria=criteria,
        last_hidden=next((n for n, other in pairs.items() if other == wanted.last_hidden), ""),
    )


HOW = {True: "by number", False: "in order from the end"}


def _compare_layer(
    name: str,
    other: str,
    found: Side,
    wanted: Side,
    before_activation: bool,
    tolerance: float,
    criteria: Criteria,
) -> LayerComparison:
    layer, target = found.layers[name], wanted.layers[other]
    free = other in wanted.free
    values, predicted = _singular_values(layer), _singular_values(target)
    classes = _classes(target)
    obstacle = _obstacle(layer, target, wanted.name, free and other == "1")
    ranks = Ranks(
        _effective_rank(values),
        math.nan if free else _effective_rank(predicted),
        classes,
        math.nan
        if wanted.low_rank is None
        else _rank_of(wanted.low_rank, other, before_activation),
        _counted(values, tolerance),
    )
    metrics = _gaps(layer, target, free or bool(obstacle))
    gram = centred = math.nan
    order: tuple[int, ...] = ()
    if not (free or obstacle):
        gram, order = _gram_distance(layer, target, "means_gram")
        centred, _ = _gram_distance(layer, target, "means_gram_centred")
    spectrum = math.nan if free or obstacle else _spectrum_distance(values, predicted)
    nuclear = before_activation and other == "2"
    scale = _free_scale(layer, target, nuclear) if free else _scale(values, predicted)
    away = max(gram, centred)
    evidence = Evidence(
        name=wanted.name,
        nc1=criteria.judge(layer)["NC1"],
        geometry=criteria.beside(wanted.name, away, layer),
        gram=away,
        rank=ranks.counted,
        predicted_rank=_counted(predicted, tolerance),
        predicted_nc1=target.get("nc1_trace_ratio", math.nan),
        classes=classes,
        free=free,
        obstacle=obstacle,
    )
    status, verdict = say(evidence)
    return LayerComparison(
        layer=name,
        reference_layer=other,
        metrics=metrics,
        gram_distance=gram,
        gram_distance_centred=centred,
        order=order,
        singular_values=(values, predicted),
        spectrum_distance=spectrum,
        scale=Gap(math.nan, math.nan) if obstacle else scale,
        ranks=ranks,
        status=status,
        verdict=verdict,
    )


def _classes(layer: LayerReport) -> int:
    return int((layer.per_class.get("count", np.zeros(0)) > 0).sum())


def _singular_values(layer: LayerReport) -> Floats:
    return layer.vectors.get("means_singular_values_uncentred", np.zeros(0))


def _obstacle(layer: LayerReport, target: LayerReport, name: str, halved: bool) -> str:
    """Say why the reference cannot exist in a layer; nothing if it can.

    In a free first layer pairs of classes may share a direction, with opposite signs.
    """
    classes, due = _classes(layer), _classes(target)
    if classes and classes != due:
        return f"{classes} classes are present, {name} has {due}"
    width = layer.provenance.get("width")
    rank = _counted(_singular_values(target), 1e-9)
    rank = (rank + 1) // 2 if halved else rank
    if width is not None and width < rank:
        return f"the class means of {name} have rank {rank}, this layer has {width} features"
    return ""


def _gaps(layer: LayerReport, target: LayerReport, only_nc1: bool) -> dict[str, Gap]:
    return {
        metric: Gap(layer[metric], target[metric])
        for metric in layer
        if metric in target and (metric.startswith("nc1_") or not only_nc1)
    }


def _gram_distance(
    layer: LayerReport, target: LayerReport, kind: str
) -> tuple[float, tuple[int, ...]]:
    if "means_gram" not in layer.matrices or "means_gram" not in target.matrices:
        return math.nan, ()
    # No centred Gram matrix where all class means are equal: it is zero.
    nothing = np.zeros_like(target.matrices["means_gram"])
    match = match_classes(layer.matrices.get(kind, nothing), target.matrices.get(kind, nothing))
    return match.distance, tuple(match.order.tolist())


def _spectrum_distance(values: Floats, predicted: Floats) -> float:
    if not (values.size and predicted.size):
        return math.nan
    size = max(values.size, predicted.size)
    padded = [np.pad(v, (0, size - v.size)) for v in (values, predicted)]
    a, b = (v / (np.linalg.norm(v) or 1.0) for v in padded)
    return float(np.linalg.norm(a - b))


def _scale(values: Floats, predicted: Floats) -> Gap:
    norms = [float(np.linalg.norm(v)) if v.size else math.nan for v in (values, predicted)]
    return Gap(norms[0], norms[1])


def _free_scale(layer: LayerReport, target: LayerReport, nuclear: bool) -> Gap:
    r"""What is fixed where the frame is not, weighted by class size.

    :math:`\sqrt{\sum_k n_k \|\mu_k\|^2 / N}` of the features, as :math:`\lambda_H \|H_1\|^2` is fixed;
    the nuclear norm :math:`\|M\,\mathrm{diag}(n_k/N)^{1/2}\|_*` of what the ReLU reads.
    """
    sizes = []
    for side in (layer, target):
        gram = side.matrices.get("means_gram")
        if gram is None:
            return Gap(math.nan, math.nan)
        counts = side.per_class["count"]
        roots = np.sqrt(counts[counts > 0] / counts.sum())
        weighted = roots[:, None] * gram * roots
        squares = np.linalg.eigvalsh(weighted)
        squares = np.where(squares > len(gram) * EPS64 * squares.max(initial=0.0), squares, 0.0)
        sizes.append(float(np.sqrt(squares).sum() if nuclear else np.sqrt(squares.sum())))
    return Gap(sizes[0], sizes[1])


def _effective_rank(values: npt.NDArray[np.float64]) -> float:
    return effective_rank(values) if values.any() else 0.0


def _counted(values: Floats, tolerance: float) -> int:
    return int((values > tolerance * values.max(initial=0.0)).sum())


def _rank_of(optimum: Any, layer: str, before_activation: bool) -> float:
    return _effective_rank(optimum.singular_values(int(layer), before_activation))
