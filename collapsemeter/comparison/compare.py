"""A report beside another one, or beside the optimum that theory predicts, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..metrics.depth import effective_rank
from ..metrics.layer import LayerReport
from ..report.criteria import Criteria
from ..report.report import CollapseReport
from ..stats.linalg import EPS64, Floats
from ..stats.moments import ClassMoments
from .layer_comparison import EffectiveRanks, Gap, LayerComparison
from .matching import match_classes
from .result import Comparison
from .sides import Side, measured_side, pair_layers, reference_side
from .verdict import verdict

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
    measured = measured_side(report, before_activation)
    predicted = reference_side(reference, before_activation, measured)
    pairs = pair_layers(measured, predicted, layers)
    listed = ", ".join(f"{name} to {target}" for name, target in pairs.items())
    numbered = measured.numbered and predicted.numbered
    how = "by number" if numbered else "in order from the end"
    unmatched = tuple(name for name in measured.layers if name not in pairs)
    left = f"; not compared: {', '.join(unmatched)}" if unmatched else ""
    hidden = [name for name, target in pairs.items() if target == predicted.last_hidden]
    return Comparison(
        layers={
            name: _compare_layer(
                name, target, measured.layers[name], predicted, tolerance, criteria
            )
            for name, target in pairs.items()
        },
        reference=predicted.words,
        mapping=f"layers, {'as asked' if layers is not None else how}: {listed}{left}",
        unmatched=unmatched,
        low_rank="" if predicted.low_rank is None else predicted.low_rank.name,
        criteria=criteria,
        last_hidden=hidden[0] if hidden else "",
    )


def _compare_layer(
    name: str,
    target: str,
    layer: LayerReport,
    predicted: Side,
    tolerance: float,
    criteria: Criteria,
) -> LayerComparison:
    reference = predicted.layers[target]
    values, expected = _singular_values(layer), _singular_values(reference)
    free = target in predicted.free
    obstacle = _obstacle(layer, reference, predicted.name, free and target == "1")
    gram = centred = spectrum = math.nan
    order: tuple[int, ...] = ()
    scale = Gap(math.nan, math.nan)
    if free and not obstacle:
        nuclear = predicted.before_activation and target == "2"
        scale = Gap(_free_scale(layer, nuclear), _free_scale(reference, nuclear))
    elif not obstacle:
        gram, order = _gram_distance(layer, reference, "means_gram")
        centred, _ = _gram_distance(layer, reference, "means_gram_centred")
        spectrum = _spectrum_distance(values, expected)
        scale = Gap(_norm(values), _norm(expected))
    low_rank = math.nan
    if predicted.low_rank is not None:
        structure = predicted.low_rank.singular_values(int(target), predicted.before_activation)
        low_rank = _effective_rank(structure)
    ranks = EffectiveRanks(
        measured=_effective_rank(values),
        reference=math.nan if free else _effective_rank(expected),
        classes=_classes(reference),
        low_rank=low_rank,
        counted=_counted_rank(values, tolerance),
    )
    status, sentence = verdict(
        predicted.name,
        criteria.judge(layer)["NC1"],
        criteria.beside(predicted.name, max(gram, centred), layer),
        gram=max(gram, centred),
        rank=ranks.counted,
        predicted_rank=_counted_rank(expected, tolerance),
        predicted_nc1=reference.get("nc1_trace_ratio", math.nan),
        classes=ranks.classes,
        free=free,
        obstacle=obstacle,
    )
    gaps = {
        metric: Gap(
            layer[metric],
            reference[metric],
            layer.intervals.get(metric),
            _reference_interval(reference, metric),
        )
        for metric in layer
        if metric in reference and (metric.startswith("nc1_") or not (free or obstacle))
    }
    return LayerComparison(
        layer=name,
        reference_layer=target,
        metrics=gaps,
        gram_distance=gram,
        gram_distance_centred=centred,
        order=order,
        singular_values=(values, expected),
        spectrum_distance=spectrum,
        scale=scale,
        ranks=ranks,
        status=status,
        verdict=sentence,
    )


def _reference_interval(reference: LayerReport, metric: str) -> tuple[float, float] | None:
    """Return the interval of a reference: a point for an optimum, in which there is no noise."""
    if reference.no_estimate.get(metric) == "reference":
        return reference[metric], reference[metric]
    return reference.intervals.get(metric)


def _singular_values(layer: LayerReport) -> Floats:
    return layer.vectors.get("means_singular_values_uncentred", np.zeros(0))


def _classes(layer: LayerReport) -> int:
    return int((layer.per_class.get("count", np.zeros(0)) > 0).sum())


def _obstacle(layer: LayerReport, reference: LayerReport, name: str, halved: bool) -> str:
    """Say why the reference cannot exist in a layer; nothing if it can."""
    classes, expected = _classes(layer), _classes(reference)
    if classes and classes != expected:
        return f"{classes} classes are present, {name} has {expected}"
    width = layer.provenance.get("width")
    rank = _counted_rank(_singular_values(reference), 1e-9)
    rank = (rank + 1) // 2 if halved else rank
    if width is not None and width < rank:
        return f"the class means of {name} have rank {rank}, this layer has {width} features"
    return ""


def _gram_distance(
    layer: LayerReport, reference: LayerReport, kind: str
) -> tuple[float, tuple[int, ...]]:
    if "means_gram" not in layer.matrices or "means_gram" not in reference.matrices:
        return math.nan, ()
    # No centred Gram matrix where all class means are equal: it is zero.
    zero = np.zeros_like(reference.matrices["means_gram"])
    match = match_classes(layer.matrices.get(kind, zero), reference.matrices.get(kind, zero))
    return match.distance, tuple(match.order.tolist())


def _spectrum_distance(values: Floats, expected: Floats) -> float:
    if not (values.size and expected.size):
        return math.nan
    size = max(values.size, expected.size)
    padded = [np.pad(v, (0, size - v.size)) for v in (values, expected)]
    a, b = (v / (np.linalg.norm(v) or 1.0) for v in padded)
    return float(np.linalg.norm(a - b))


def _norm(values: Floats) -> float:
    return float(np.linalg.norm(values)) if values.size else math.nan


def _free_scale(layer: LayerReport, nuclear: bool) -> float:
    """Return what is fixed where the frame is not: root mean square norm of the class means by class size, or before the ReLU their nuclear norm."""
    gram = layer.matrices.get("means_gram")
    if gram is None:
        return math.nan
    counts = layer.per_class["count"]
    roots = np.sqrt(counts[counts > 0] / counts.sum())
    squares = np.linalg.eigvalsh(roots[:, None] * gram * roots)
    squares = np.where(squares > len(gram) * EPS64 * squares.max(initial=0.0), squares, 0.0)
    return float(np.sqrt(squares).sum() if nuclear else np.sqrt(squares.sum()))


def _effective_rank(values: Floats) -> float:
    return effective_rank(values) if values.any() else 0.0


def _counted_rank(values: Floats, tolerance: float) -> int:
    return int((values > tolerance * values.max(initial=0.0)).sum())
