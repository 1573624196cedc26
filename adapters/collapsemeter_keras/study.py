"""Read scores, head and layers off one symbolic forward pass, before a batch is counted."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import keras

from collapsemeter.adapter.network import Network, positions_first

from .backend_graph import recorded
from .costs import forward_operations
from .graph import Graph, Layer, functional_of, graph_of, run_model
from .head import decision_of
from .outputs import OutputChoice
from .points import points_of, signals_before
from .positions import Position
from .traced_tensors import TracedTensor, with_rows

_CALLS = (
    "the model's operations could not be followed without values: layers are taken in the order of their calls, and "
    "NC3 needs head="
)
_NO_PATH = (
    "no one path leads from the inputs to the scores: layers are taken in the order of their calls"
)
_SINGLE = "what makes a single score of the logit is not known: it decides for class 1 above {}, as the loss says"
_NEAR = 12  # operations before a layer's output that may say where its channels are


class Study(NamedTuple):
    """A network, its parts by name, and for each the operations that speak for its channels, in order."""

    network: Network
    parts: dict[str, Any]
    before: dict[str, list[Any]]
    operations: int = 0  # of a forward of one row of the input; 0: not known
    labels: int = 1  # rows of scores that it gives
    position: Position | None = None  # of the head's output that becomes the scores, if it is one
    turned: frozenset[str] = frozenset()  # layers that give (T, B, d)


def study(
    model: keras.Model,
    inputs: Any = None,
    outputs: OutputChoice | None = None,
    num_classes: int | None = None,
) -> Study:
    """Learn a network from its graph.

    Parameters
    ----------
    model : keras.Model
        Built.
    inputs : structure of KerasTensor
        What it takes; not looked at where the model is functional.
    outputs : OutputChoice, optional
    num_classes : int, optional

    Raises
    ------
    ValueError
        If several outputs may be the scores, or those asked for do not exist.
    """
    parts: dict[str, Any] = dict(named_layers(model))
    parts |= named_operations(model)
    graph = graph_of(model, parts, inputs)
    if graph is None:
        graph = recorded(model, parts, with_rows(inputs), lambda x: run_model(model, x))
    if graph is None:
        called = _called(parts, tuple(parts), _CALLS)
        return Study(replace(called, threshold=threshold_of_loss(model)), parts, {})
    choice = OutputChoice(names=output_names(model)) if outputs is None else outputs
    _, tensor, place = choice.find(graph.outputs, num_classes, _is_value)
    decision = decision_of(graph, parts, tensor)
    points = points_of(graph, parts, tensor, decision)
    if points is None:
        network = _called(parts, tuple(graph.order), _NO_PATH)
        points_names, skipped, note = network.points, {}, network.note
    else:
        points_names, skipped, note = points.names, points.skipped, ""
    threshold = decision.threshold
    if threshold is None:
        threshold = threshold_of_loss(model)
        note = f"{note}; {_SINGLE}".removeprefix("; ").format(threshold)
    network = Network(
        order=tuple(graph.order),
        points=tuple(name for name in points_names if name != decision.head),
        head=decision.head,
        no_head=decision.no_head,
        width=tensor.shape[-1] if len(tensor.shape) > 1 else 1,
        threshold=threshold,
        place=place,
        skipped=skipped,
        note=note,
    )
    # Operations that are no point have no name that a person knows.
    watched = {
        name: part
        for name, part in parts.items()
        if isinstance(part, keras.layers.Layer) or name in network.points
    }
    positions = [size or 0 for size in tensor.shape[1:-1]]
    return Study(
        network,
        watched,
        _before(graph, watched),
        forward_operations(graph, parts),
        math.prod(positions),
        decision.position,
        positions_first(tensor.shape, {name: value.shape for name, value in graph.made.items()}),
    )


def threshold_of_loss(model: keras.Model) -> float:
    """Return where a single score decides by the loss that a model was compiled with: it takes logits or probabilities."""
    loss = getattr(model, "loss", None)
    try:
        config = keras.losses.get(loss).get_config() if loss is not None else {}
    except Exception:  # several losses, a function
        config = {}
    return 0.5 if config.get("from_logits") is False else 0.0


def output_names(model: keras.Model) -> Sequence[str]:
    """Return the names that Keras has for the outputs of a functional model."""
    return tuple(getattr(model, "output_names", None) or ())


def _is_value(part: Any) -> bool:
    return isinstance(part, TracedTensor) and part.is_float


def named_layers(model: Layer, prefix: str = "") -> dict[str, Layer]:
    """Return every layer inside a model by its path, ``backbone/conv1``."""
    named: dict[str, Layer] = {}
    for child in children(model):
        name, number = f"{prefix}{child.name}", 1
        while name in named:  # nothing keeps a subclassed model from naming two layers alike
            number += 1
            name = f"{prefix}{child.name}_{number}"
        named[name] = child
        named |= named_layers(child, f"{name}/")
    return named


def children(layer: Layer) -> list[Layer]:
    """Return the layers directly inside one, in order."""
    inner = layer._flatten_layers(include_self=False, recursive=False)
    return [child for child in inner if not isinstance(child, keras.layers.InputLayer)]


def named_operations(model: Layer) -> dict[str, Any]:
    """Return the operations of functional graphs that are no layers, such as ``x + y``, by their path."""
    named: dict[str, Any] = {}
    for prefix, part in [("", model), *((f"{n}/", p) for n, p in named_layers(model).items())]:
        functional = functional_of(part)
        if functional is not None:
            for operation in functional.operations:
                if not isinstance(operation, keras.layers.Layer):
                    named[f"{prefix}{operation.name}"] = operation
    return named


def _called(parts: Mapping[str, Any], order: tuple[str, ...], note: str) -> Network:
    """Return a network of which only the order of calls is known."""
    outer = [
        name
        for name, part in parts.items()
        if "/" not in name and isinstance(part, keras.layers.Layer)
    ]
    points = [name for name in order if name in outer and parts[name].weights]
    return Network(order=order, points=tuple(points), note=note)


def _before(graph: Graph, parts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name for each part the operations just before its output, the last one last."""
    before: dict[str, list[Any]] = {}
    for name, value in graph.made.items():
        operations: list[Any] = []
        last: TracedTensor | None = value
        while last is not None and last.operation is not None and len(operations) < _NEAR:
            operations.insert(0, last.operation)
            inputs = signals_before(last)
            last = inputs[0] if inputs else None
        if name in parts:
            before[name] = operations
    return before
