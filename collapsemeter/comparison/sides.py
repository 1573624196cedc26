"""The two sides of a comparison as layers measured alike, and which layer stands for which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..metrics.convention import Convention
from ..metrics.layer import LayerReport
from ..metrics.measure import measure
from ..report.report import CollapseReport
from ..stats.head import Head


class Side(NamedTuple):
    """Layers by name, in order, and for a theory what it leaves free and how it calls itself."""

    layers: dict[str, LayerReport]
    last_hidden: str
    name: str = "the reference"
    words: str = "another network"
    free: tuple[str, ...] = ()
    numbered: bool = False
    low_rank: Any = None


def measured_side(report: Any, before_activation: bool) -> Side:
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
    last = names[-2] if numbered and len(names) > 1 else names[-1]
    return Side(layers, last, numbered=numbered)


def convention_of(layers: Mapping[str, LayerReport]) -> tuple[Convention | str, bool]:
    """Return the convention of the measurement: the reference is measured under the same."""
    used = dict(next(iter(layers.values())).provenance.get("convention", {}))
    used.pop("name", None)
    center_head = bool(used.pop("center_head", False))
    return (Convention(**used) if used else "papyan2020"), center_head


def reference_side(
    reference: Any, before_activation: bool, convention: Convention | str, center_head: bool
) -> Side:
    if not isinstance(reference, CollapseReport):
        return _theory(reference, before_activation, convention, center_head)
    if not reference.layers:
        raise ValueError("the reference has no layer: measure at least one before comparing")
    return Side(dict(reference.layers), list(reference.layers)[-1])


def _theory(
    point: Any, before_activation: bool, convention: Convention | str, center_head: bool
) -> Side:
    """Measure an Optimum or a Solution; layer l with the weight that it feeds."""
    from ..dufm.closed.references import low_rank

    problem = point.problem
    layers = {}
    for number, moments in point.moments(before_activation).items():
        fed = point.weights[number - 1] if number <= problem.depth else None
        last = number == problem.depth
        head = Head(point.weights[-1], point.variables.bias) if last else None
        # What a free layer is fed to is free as well.
        inner = 2 <= number <= problem.depth and number - 1 not in point.free_layers
        layers[str(number)] = measure(
            moments,
            head=head,
            weight=fed,
            incoming=point.weights[number - 2] if inner else None,
            decays=problem.decays[number - 2 : number] if inner else (1.0, 1.0),
            convention=convention,
            center_head=center_head,
        )
    free = tuple(str(layer) for layer in point.free_layers)
    if before_activation and "1" in free:  # layer 1 is free because what the ReLU cuts off is
        free += ("2",)
    name = getattr(point, "name", "the solution")
    sure = point.holds_for if hasattr(point, "holds_for") else point.verdict
    words = (
        f"{name} (K = {problem.num_classes}, L = {problem.depth}, loss {point.loss:.6g}), {sure}"
    )
    return Side(layers, str(problem.depth), name, words, free, True, low_rank(problem.references()))


def pair_layers(
    found: Side, wanted: Side, layers: Mapping[str, int | str] | None
) -> dict[str, str]:
    names, others = list(found.layers), list(wanted.layers)
    if layers is not None:
        pairs = {str(name): str(other) for name, other in layers.items()}
        for what, asked, known in (
            ("measured", pairs.keys(), names),
            ("reference", pairs.values(), others),
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
    if found.numbered and wanted.numbered:
        shared = [name for name in names if name in others]
        if shared:
            return dict(zip(shared, shared, strict=True))
    ends = names[: names.index(found.last_hidden) + 1]
    targets = others[: others.index(wanted.last_hidden) + 1]
    count = min(len(ends), len(targets))
    return dict(zip(ends[-count:], targets[-count:], strict=True))
