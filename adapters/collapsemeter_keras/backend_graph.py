"""The graph of a model that calls its backend's own operations, from one forward of shapes alone.

Such operations take no symbolic tensors of Keras. What they made a tensor from is read off TensorFlow's
graph or JAX's trace, and recorded as PyTorch runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import keras
from keras import ops, tree
from keras.src.backend import compute_output_spec  # nothing public infers shapes of a function

from .graph import (
    Graph,
    Layer,
    Parts,
    functional_of,
    is_custom,
)
from .operations import BACKEND, dtype_of
from .traced_tensors import TracedTensor
from .untouched import replaced, unchanged

_SAME = (
    "identity",
    "cast",
    "convert_element_type",
    "to",
    "float",
    "stopgradient",
    "detach",
    "clone",
)
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sigmoid": ops.sigmoid,
    "logistic": ops.sigmoid,
    "softmax": ops.softmax,
    "logsoftmax": ops.log_softmax,
    "log_softmax": ops.log_softmax,
    "relu": ops.relu,
    **dict.fromkeys(_SAME, lambda x: x),
    **dict.fromkeys(("squeeze", "reshape"), lambda x: x),  # of a single score
}


class BackendOperation:
    """An operation of the backend, known by its name; called, it does what that name says."""

    weights = ()

    def __init__(self, name: str) -> None:
        self.name = name.lower()

    def __call__(self, x: Any) -> Any:
        if self.name not in _FUNCTIONS:
            raise ValueError(f"{self.name} is not known to keep the order of scores")
        return _FUNCTIONS[self.name](x)


class OneArgument:
    """The arguments of such an operation, as far as a signal comes along them."""

    def fill_in(self, values: dict[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with tensors in their places."""
        return tuple(values.values()), {}


class BackendListener:
    """Names the tensors of one forward of a backend as the values of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._values: dict[Any, TracedTensor] = {}
        self._tensors: list[Any] = []  # whose ids may be keys
        self._origins: dict[int, tuple[str, list[Any]]] = {}  # of PyTorch's tensors

    def begin(self, inputs: Any) -> None:
        """Start a forward: the inputs are what the signal comes from."""
        self.graph.clear()
        self._values, self._tensors, self._origins = {}, [], {}
        tensors = tree.flatten(inputs)
        for tensor, value in zip(tensors, self.graph.add_inputs(tensors), strict=True):
            self._name(tensor, value)

    def value(self, tensor: Any) -> TracedTensor:
        """Return the value of a tensor, with those that operations of the backend made it from; no recursion."""
        pending = [tensor]
        while pending:
            last = pending[-1]
            name, before = ("", []) if _key(last) in self._values else self._origin(last)
            missing = [t for t in before if _key(t) not in self._values]
            if missing:
                pending += missing
                continue
            pending.pop()
            if _key(last) not in self._values:
                inputs = tuple(self._values[_key(t)] for t in before)
                self._name(last, _value(last, BackendOperation(name), inputs))
        return self._values[_key(tensor)]

    def called(self, part: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a layer, and note what it was given and gave."""
        flat = [t for t in tree.flatten((args, kwargs)) if _is_traced(t)]
        inputs = [self.value(t) for t in flat if keras.backend.is_float_dtype(dtype_of(t))]
        inputs = inputs or [self.value(t) for t in flat]
        self.graph.note(part, inputs)
        outputs = original(*args, **kwargs)
        tensors = [t for t in tree.flatten(outputs) if _is_traced(t)]
        for tensor in tensors:
            # A dropout that drops nothing gives the tensor that it got.
            if not is_block(part) and _key(tensor) not in self._values:
                self._name(tensor, _value(tensor, part, tuple(inputs)))
        self.graph.finish(part, [self.value(t) for t in tensors])
        return outputs

    def listening(self) -> AbstractContextManager[Any]:
        """Record what PyTorch's functions make of what, within a block."""
        if BACKEND != "torch":
            return nullcontext()
        from torch.overrides import TorchFunctionMode

        origins, tensors = self._origins, self._tensors

        class Listener(TorchFunctionMode):
            def __torch_function__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                result = function(*args, **(kwargs or {}))
                for tensor in tree.flatten(result):
                    if _is_traced(tensor):
                        before = [t for t in tree.flatten((args, kwargs or {})) if _is_traced(t)]
                        if all(t is not tensor for t in before):  # nothing in place
                            origins.setdefault(id(tensor), (function.__name__, before))
                            tensors.append(tensor)
                return result

        return Listener()

    def _origin(self, tensor: Any) -> tuple[str, list[Any]]:
        """Return the name of the operation that made a tensor, and the tensors that it was given."""
        if BACKEND == "tensorflow":
            return tensor.op.type, [t for t in tensor.op.inputs if t.dtype.name != "resource"]
        if BACKEND == "torch":
            return self._origins.get(id(tensor), ("", []))
        equation = getattr(tensor, "parent", None)
        if equation is None:
            return "", []
        name = equation.params.get("name", equation.primitive.name)
        return str(name), [t for t in equation.in_tracers if _is_traced(t)]

    def _name(self, tensor: Any, value: TracedTensor) -> None:
        self._values[_key(tensor)] = value
        self._tensors.append(tensor)


def recorded(
    model: keras.Model, parts: Parts, inputs: Any, run: Callable[[Any], Any]
) -> Graph | None:
    """Return the graph of a forward in the backend's own tensors; None where there are no shapes without values."""
    graph = Graph(parts)
    recorder = BackendListener(graph)

    def forward(x: Any) -> Any:
        recorder.begin(x)
        with recorder.listening():
            outputs = run(x)
            graph.outputs = tree.map_structure(recorder.value, outputs)
        return outputs

    with unchanged([model, *parts.values()], nested=False), _wrapped(recorder, model):
        try:
            compute_output_spec(forward, inputs)
        except Exception:  # whatever the user's code does to a tensor that has no values
            return None
    return graph


def is_block(part: Any) -> bool:
    """Whether what a layer computes is seen inside of it."""
    return functional_of(part) is not None or is_custom(part)


@contextmanager
def _wrapped(recorder: BackendListener, model: Layer) -> Iterator[None]:
    """Have every layer inside a model tell the recorder of its calls."""
    with ExitStack() as stack:
        for part in model._flatten_layers(include_self=False):

            def call(
                *args: Any, _part: Any = part, _original: Any = part.call, **kwargs: Any
            ) -> Any:
                return recorder.called(_part, _original, args, kwargs)

            stack.enter_context(replaced(part, "call", call))
        yield


def _value(tensor: Any, operation: Any, inputs: Sequence[TracedTensor]) -> TracedTensor:
    places = tuple(object() for _ in inputs)
    return TracedTensor(
        tuple(tensor.shape), dtype_of(tensor), operation, tuple(inputs), OneArgument(), places
    )


def _is_traced(part: Any) -> bool:
    """Whether something is a tensor of the forward under way."""
    if BACKEND == "jax":
        import jax

        return isinstance(part, jax.core.Tracer)
    return bool(ops.is_tensor(part)) and not isinstance(part, keras.Variable)


def _key(tensor: Any) -> Any:
    if BACKEND == "tensorflow":
        return tensor.name
    return id(tensor.val) if BACKEND == "jax" and hasattr(tensor, "val") else id(tensor)
