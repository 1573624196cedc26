"""The two sides of a comparison, and which layer of one stands for which of the other."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..metrics.convention import Convention
from ..metrics.layer import LayerReport
from ..metrics.measure import measure
from ..report.report import CollapseReport
from ..stats.head import Head


class Side(NamedTuple):
    """One side of a comparison; for a theory also what it leaves free and how it calls itself."""

    layers: dict[str, LayerReport]
    last_hidden: str
    name: str = "the reference"
    words: str = "another network"
    free: tuple[str, ...] = ()
    numbered: bool = False
    low_rank: Any = None
    before_activation: bool = False


def measured_side(report: Any, before_activation: bool) -> Side:
    """Return what was measured, which may be a theory, too."""
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


def reference_side(reference: Any, before_activation: bool, measured: Side) -> Side:
    """Return the reference; a theory is measured under the convention of the measurement."""
    if isinstance(reference, CollapseReport):
        if not reference.layers:
            raise ValueError("the reference has no layer: measure at least one before comparing")
        return Side(dict(reference.layers), list(reference.layers)[-1])
    from ..dufm.registry import survey

    first = next(iter(measured.layers.values()))
    switches = dict(first.provenance.get("convention", {}))
    switches.pop("name", None)
    center_head = bool(switches.pop("center_head", False))
    convention = Convention(**switches) if switches else "papyan2020"
    side = _theory(reference, before_activation, convention, center_head)
    return side._replace(low_rank=survey(reference.problem, "low rank").low_rank)


def _theory(
    point: Any, before_activation: bool, convention: Convention | str, center_head: bool
) -> Side:
    """Measure an Optimum or a Solution; layer l with the weight that it feeds."""
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
    return Side(
        layers, str(problem.depth), name, words, free, True, before_activation=before_activation
    )


def pair_layers(
    measured: Side, predicted: Side, layers: Mapping[str, int | str] | None
) -> dict[str, str]:
    """Return the layer of the reference for each measured one: as asked, by number, or from the end."""
    names, targets = list(measured.layers), list(predicted.layers)
    if layers is not None:
        pairs = {str(name): str(target) for name, target in layers.items()}
        for what, asked, known in (
            ("measured", pairs.keys(), names),
            ("reference", pairs.values(), targets),
        ):
            stray = [name for name in asked if name not in known]
            if stray:
                raise ValueError(
                    f"layers={dict(layers)}: no {what} layer {stray[0]!r}; "
                    f"there are {', '.join(known)}"
                )
        if not pairs:
            raise ValueError("layers={}: name at least one layer, or leave it out")
        return pairs
    if measured.numbered and predicted.numbered:
        shared = {name: name for name in names if name in targets}
        if shared:
            return shared
    hidden = names[: names.index(measured.last_hidden) + 1]
    hidden_targets = targets[: targets.index(predicted.last_hidden) + 1]
    count = min(len(hidden), len(hidden_targets))
    return dict(zip(hidden[-count:], hidden_targets[-count:], strict=True))
