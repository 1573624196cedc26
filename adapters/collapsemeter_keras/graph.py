"""The data flow of one forward pass: read off a functional graph, or traced without values."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import keras
from keras import tree
from keras.src.models.functional import Functional
from keras.src.ops.symbolic_arguments import SymbolicArguments

from .traced_tensors import (
    TracedTensor,
    first_argument,
    node_of,
    signals_of,
    tensor_with_rows,
    traced_tensor,
    with_rows,
)
from .untouched import replaced, unchanged

Layer: TypeAlias = keras.layers.Layer
Parts: TypeAlias = Mapping[str, Any]  # layers, and operations of functional graphs, by name


class Graph:
    """The operations of one forward pass, and their inputs and outputs.

    `outputs` is what the model returns, with values in the place of tensors; `order` names the parts
    that ran, by first call.
    """

    def __init__(self, parts: Parts) -> None:
        self._names = {id(part): name for name, part in parts.items()}
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.outputs: Any = None
        self.order: list[str] = []
        self.given: dict[str, TracedTensor] = {}  # to a part when it was called last
        self.arguments: dict[str, Any] = {}  # of that call
        self.made: dict[str, TracedTensor] = {}  # by a part when it was called first
        self._values: dict[int, TracedTensor] = {}
        self._tensors: list[Any] = []  # whose ids are keys

    # Tensors

    def add_inputs(self, tensors: Iterable[Any]) -> list[TracedTensor]:
        """Take symbolic tensors for the model's inputs."""
        values = [traced_tensor(tensor) for tensor in tensors]
        for value in values:
            value.of_input, value.is_source = True, value.is_float
            value.has_signal = value.is_float
        return values

    def name(self, tensor: Any, value: TracedTensor) -> None:
        """Take a symbolic tensor for a value from here on."""
        self._values[id(tensor)] = value
        self._tensors.append(tensor)

    def value(self, tensor: Any) -> TracedTensor:
        """Return the value of a symbolic tensor, with those that operations made it from; no recursion."""
        pending = [tensor]
        while pending:
            last = pending[-1]
            node = node_of(last)
            before = [] if id(last) in self._values or node is None else node.input_tensors
            missing = [t for t in before if id(t) not in self._values and t is not last]
            if missing:
                pending += missing
                continue
            pending.pop()
            if id(last) not in self._values:
                is_computed = node is not None and all(t is not last for t in before)
                self.name(
                    last,
                    traced_tensor(last, node.operation, node.arguments, self._values)
                    if is_computed
                    else traced_tensor(last),  # of no input: positions, a constant
                )
        return self._values[id(tensor)]

    # Steps of a forward pass

    def through(self, functional: Any, inputs: Sequence[TracedTensor]) -> list[TracedTensor]:
        """Walk through a functional graph in the order in which it runs; nothing of it is run."""
        values = {id(t): value for t, value in zip(functional.inputs, inputs, strict=False)}
        for depth in sorted(functional._nodes_by_depth, reverse=True):
            for node in functional._nodes_by_depth[depth]:
                if node.is_input or any(id(t) not in values for t in node.input_tensors):
                    continue
                outputs = self._step(node, values)
                values |= {id(t): value for t, value in zip(node.outputs, outputs, strict=True)}
        return [values[id(t)] for t in functional.outputs]

    def _step(self, node: Any, before: Mapping[int, TracedTensor]) -> list[TracedTensor]:
        """Return the outputs of one node of a functional graph."""
        part, arguments = node.operation, node.arguments
        self.note(part, [before[id(t)] for t in signals_of(arguments)], arguments)
        values: list[TracedTensor] | None = None
        inner = functional_of(part)
        if inner is not None:
            values = self.through(inner, [before[id(t)] for t in first_argument(arguments)])
        elif is_custom(part):
            values = self._opened(part, arguments, before)
        if values is None or len(values) != len(node.outputs):
            self._note_inside(part)
            values = [traced_tensor(t, part, arguments, before) for t in node.outputs]
        return self.finish(part, values)

    def _opened(
        self, layer: Layer, arguments: Any, before: Mapping[int, TracedTensor]
    ) -> list[TracedTensor] | None:
        """Run a layer of the user's on tensors without values; None where it wants values."""
        stand_ins = {}
        for tensor in arguments.keras_tensors:
            stand_ins[id(tensor)] = tensor_with_rows(tensor)
            self.name(stand_ins[id(tensor)], before[id(tensor)])
        args, kwargs = arguments.fill_in(stand_ins)
        with traced(self, [layer]):
            outputs = self.attempt(layer, args, kwargs)
        return None if outputs is None else [self.value(t) for t in tree.flatten(outputs)]

    def call(self, part: Any, symbolic_call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Stand in for a layer's `symbolic_call` while it is traced."""
        called = SymbolicArguments(*args, **kwargs)
        self.note(part, [self.value(t) for t in signals_of(called)], called)
        inner = functional_of(part)
        if inner is None and is_custom(part):
            outputs = self.attempt(part, args, kwargs)
            if outputs is not None:
                self.finish(part, [self.value(t) for t in tree.flatten(outputs)])
                return outputs
        outputs = symbolic_call(*args, **kwargs)
        arguments = SymbolicArguments(*args, **kwargs)
        before = {id(t): self.value(t) for t in arguments.keras_tensors}
        tensors = tree.flatten(outputs)
        if inner is not None:
            values = self.through(inner, [before[id(t)] for t in first_argument(arguments)])
        else:
            self._note_inside(part)
            values = [traced_tensor(t, part, arguments, before) for t in tensors]
        for tensor, value in zip(tensors, self.finish(part, values), strict=True):
            self.name(tensor, value)
        return outputs

    def attempt(self, layer: Layer, args: Any, kwargs: Any) -> Any:
        """Return what a layer's `call` gives for symbolic tensors; None, with nothing noted, if it fails."""
        number = len(self.order)
        if "training" in inspect.signature(layer.call).parameters:
            kwargs = {"training": False} | kwargs
        try:
            outputs = layer.call(*args, **kwargs)
            if all(isinstance(t, keras.KerasTensor) for t in tree.flatten(outputs)):
                return outputs
        except Exception:  # whatever the user's code does to a tensor that has no values
            pass
        del self.order[number:]
        return None

    def note(self, part: Any, inputs: Sequence[TracedTensor] = (), arguments: Any = None) -> None:
        """Note that a part ran, and what it was given."""
        name = self._names.get(id(part))
        if name is None:
            return
        if name not in self.order:
            self.order.append(name)
        if inputs:
            self.given[name], self.arguments[name] = inputs[0], arguments

    def _note_inside(self, part: Any) -> None:
        """Note what is inside a layer that is not opened."""
        if isinstance(part, keras.layers.Layer):
            for inner in part._flatten_layers(include_self=False):
                self.note(inner)

    def finish(self, part: Any, values: list[TracedTensor]) -> list[TracedTensor]:
        """Note whose output these are; floats that weights made of integers begin the signal."""
        name = self._names.get(id(part))
        for value in values:
            if name is not None and name not in value.layers:
                value.layers.append(name)
                self.made.setdefault(name, value)
            if value.has_signal or not value.is_float:
                continue
            if isinstance(part, keras.layers.Embedding) or (value.of_input and has_weights(part)):
                value.is_source = value.has_signal = True
        return values


def graph_of(model: keras.Model, parts: Parts, inputs: Any = None) -> Graph | None:
    """Return the graph of a model, which is left as it was; None if it cannot run without values.

    ``inputs`` has KerasTensors, and is not looked at where the model is functional.
    """
    graph = Graph(parts)
    functional = functional_of(model)
    with unchanged([model, *parts.values()]):
        if functional is not None:
            values = graph.through(functional, graph.add_inputs(functional.inputs))
            struct = tree.pack_sequence_as(functional._outputs_struct, values)
            single = isinstance(struct, list | tuple) and len(struct) == 1
            graph.outputs = struct[0] if single else struct
            return graph
        inputs = with_rows(inputs)
        tensors = tree.flatten(inputs)
        for tensor, value in zip(tensors, graph.add_inputs(tensors), strict=True):
            graph.name(tensor, value)
        with traced(graph, [model]):
            outputs = graph.attempt(model, (inputs,), {})
        if outputs is None:
            return None
        graph.outputs = tree.map_structure(graph.value, outputs)
    return graph


def run_model(model: keras.Model, x: Any, training: bool = False) -> Any:
    """Run a model on inputs, in the mode asked for where it has modes."""
    has_modes = "training" in inspect.signature(type(model).call).parameters
    return model(x, training=training) if has_modes else model(x)


def functional_of(part: Any) -> Any:
    """Return the functional graph that a model runs; None where it has none, or a `call` of its own."""
    if isinstance(part, keras.Sequential):
        return part._functional if type(part).call is keras.Sequential.call else None
    return part if isinstance(part, Functional) and type(part).call is Functional.call else None


def has_weights(part: Any) -> bool:
    """Whether an operation is a layer with weights."""
    weights: Any = getattr(part, "weights", None)
    return bool(weights)


def is_custom(part: Any) -> bool:
    """Whether a layer is not one of Keras' own, and so may be opened."""
    if not isinstance(part, keras.layers.Layer):
        return False
    return isinstance(part, keras.Model) or not type(part).__module__.startswith("keras.")


@contextmanager
def traced(graph: Graph, layers: Iterable[Layer]) -> Iterator[None]:
    """Have the layers, and all inside them, tell the graph of their calls within the block."""
    inside = {id(part): part for layer in layers for part in layer._flatten_layers()}
    with ExitStack() as stack:
        for part in inside.values():

            def symbolic_call(*args: Any, _part: Any = part, **kwargs: Any) -> Any:
                return graph.call(_part, type(_part).symbolic_call.__get__(_part), args, kwargs)

            stack.enter_context(replaced(part, "symbolic_call", symbolic_call))
            stack.enter_context(replaced(part, "call", _noted(graph, part)))
        yield


def _noted(graph: Graph, part: Any) -> Callable[..., Any]:
    """Return a layer's `call` that says that it runs: of constants no symbolic call is made."""
    original = part.call

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        graph.note(part)
        return original(*args, **kwargs)

    return call
