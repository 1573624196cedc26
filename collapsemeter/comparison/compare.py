"""A measured network beside the optimum that theory predicts, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..metrics.convention import Convention
from ..metrics.measure import measure
from ..report.criteria import Criteria
from ..report.report import CollapseReport
from ..stats.head import Head
from ..stats.moments import ClassMoments
from .distances import (
    counted_rank,
    free_scale,
    gaps,
    gram_distance,
    norm,
    ranks_of,
    singular_values,
    spectrum_distance,
    why_impossible,
)
from .result import Comparison, Gap, LayerComparison
from .sides import Side, pair_layers
from .verdict import Evidence, verdict

if TYPE_CHECKING:
    from ..dufm import Optimum, Solution

    Reference: TypeAlias = Optimum | Solution | CollapseReport
    Moments: TypeAlias = Mapping[str, ClassMoments] | Mapping[int, ClassMoments]
    Measured: TypeAlias = CollapseReport | Moments | Optimum | Solution

TOLERANCE = 0.05


class ComparisonSettings(NamedTuple):
    """How layers are compared; see `compare`."""

    before_activation: bool
    tolerance: float
    criteria: Criteria


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
    settings = ComparisonSettings(before_activation, tolerance, Criteria.chosen(criteria))
    measured = _measured_side(report, before_activation)
    predicted = _reference_side(reference, before_activation, measured)
    pairs = pair_layers(measured, predicted, layers)
    listed = ", ".join(f"{name} to {target}" for name, target in pairs.items())
    numbered = measured.numbered and predicted.numbered
    how = "by number" if numbered else "in order from the end"
    unmatched = tuple(name for name in measured.layers if name not in pairs)
    left = f"; not compared: {', '.join(unmatched)}" if unmatched else ""
    hidden = [name for name, target in pairs.items() if target == predicted.last_hidden]
    return Comparison(
        layers={
            name: _compare_layer(name, target, measured, predicted, settings)
            for name, target in pairs.items()
        },
        reference=predicted.words,
        mapping=f"layers, {'as asked' if layers is not None else how}: {listed}{left}",
        unmatched=unmatched,
        low_rank="" if predicted.low_rank is None else predicted.low_rank.name,
        criteria=settings.criteria,
        last_hidden=hidden[0] if hidden else "",
    )


def _measured_side(report: Any, before_activation: bool) -> Side:
    if isinstance(report, CollapseReport):
        layers = dict(report.layers)
    elif isinstance(report, Mapping):
        layers = {str(name): measure(moments) for name, moments in report.items()}
    else:
        return _theory(report, before_activation, "papyan2020", False)
    if not layers:
        raise ValueError("the report has no layer: measure at least one before comparing")
    numbered = all(isinstance(name, int) for name in report)
    names = list(layers)
    last_hidden = names[-2] if numbered and len(names) > 1 else names[-1]
    return Side(layers, last_hidden, numbered=numbered)


def _reference_side(reference: Any, before_activation: bool, measured: Side) -> Side:
    """Return the reference; a theory is measured under the convention of the measurement."""
    if isinstance(reference, CollapseReport):
        if not reference.layers:
            raise ValueError("the reference has no layer: measure at least one before comparing")
        return Side(dict(reference.layers), list(reference.layers)[-1])
    first = next(iter(measured.layers.values()))
    switches = dict(first.provenance.get("convention", {}))
    switches.pop("name", None)
    center_head = bool(switches.pop("center_head", False))
    convention = Convention(**switches) if switches else "papyan2020"
    return _theory(reference, before_activation, convention, center_head)


def _theory(
    point: Any, before_activation: bool, convention: Convention | str, center_head: bool
) -> Side:
    """Measure an Optimum or a Solution; layer l with the weight that it feeds."""
    from ..dufm.problem import survey

    problem = point.problem
    layers = {}
    for number, moments in point.moments(before_activation).items():
        last = number == problem.depth
        # What a free layer is fed to is free as well.
        inner = 2 <= number <= problem.depth and number - 1 not in point.free_layers
        layers[str(number)] = measure(
            moments,
            head=Head(point.weights[-1], point.variables.bias) if last else None,
            weight=point.weights[number - 1] if number <= problem.depth else None,
            incoming=point.weights[number - 2] if inner else None,
            decays=problem.decays[number - 2 : number] if inner else (1.0, 1.0),
            convention=convention,
            center_head=center_head,
        )
    free = tuple(str(layer) for layer in point.free_layers)
    if before_activation and "1" in free:  # layer 1 is free because what the ReLU cuts off is
        free += ("2",)
    name = getattr(point, "name", "the solution")
    trust = point.holds_for if hasattr(point, "holds_for") else point.verdict
    words = (
        f"{name} (K = {problem.num_classes}, L = {problem.depth}, loss {point.loss:.6g}), {trust}"
    )
    return Side(layers, str(problem.depth), name, words, free, True, survey(problem).low_rank)


def _compare_layer(
    name: str, target: str, measured: Side, predicted: Side, settings: ComparisonSettings
) -> LayerComparison:
    layer, reference = measured.layers[name], predicted.layers[target]
    values, expected = singular_values(layer), singular_values(reference)
    free = target in predicted.free
    obstacle = why_impossible(layer, reference, predicted.name, free and target == "1")
    ranks = ranks_of(layer, target, predicted, settings.before_activation, settings.tolerance)
    gram = centred = spectrum = math.nan
    order: tuple[int, ...] = ()
    scale = Gap(norm(values), norm(expected))
    if not (free or obstacle):
        gram, order = gram_distance(layer, reference, "means_gram")
        centred, _ = gram_distance(layer, reference, "means_gram_centred")
        spectrum = spectrum_distance(values, expected)
    elif not obstacle:
        nuclear = settings.before_activation and target == "2"
        scale = Gap(free_scale(layer, nuclear), free_scale(reference, nuclear))
    distance = max(gram, centred)
    evidence = Evidence(
        name=predicted.name,
        nc1=settings.criteria.judge(layer)["NC1"],
        geometry=settings.criteria.beside(predicted.name, distance, layer),
        gram=distance,
        rank=ranks.counted,
        predicted_rank=counted_rank(expected, settings.tolerance),
        predicted_nc1=reference.get("nc1_trace_ratio", math.nan),
        classes=ranks.classes,
        free=free,
        obstacle=obstacle,
    )
    status, sentence = verdict(evidence)
    return LayerComparison(
        layer=name,
        reference_layer=target,
        metrics=gaps(layer, reference, only_nc1=free or bool(obstacle)),
        gram_distance=gram,
        gram_distance_centred=centred,
        order=order,
        singular_values=(values, expected),
        spectrum_distance=spectrum,
        scale=Gap(math.nan, math.nan) if obstacle else scale,
        ranks=ranks,
        status=status,
        verdict=sentence,
    )
