"""NNX: modules are told apart in an abstract run, and sow what they give in a real one."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import errors, nnx

from collapsemeter.adapter.selection import listed

from .calls import METHODS, Calls, key_of, layer_of, place_of, prefix_of
from .marks import Part, marked, marked_input
from .sowing import Sown, sown_value
from .trace import Forward, ScoresOf, parameter_names, trace

_LABEL = "_collapsemeter_path"


class Feature(nnx.Intermediate[Any]):
    """The output of a watched module; a type of its own, so that a model's own ``sow`` is left alone."""


def forward(
    model: nnx.Module, args: Sequence[Any], kwargs: Mapping[str, Any], scores_of: ScoresOf
) -> Forward:
    """Run a copy of the model on shapes alone; return its data flow and its modules."""
    graph, state = nnx.split(model)
    parts: dict[str, Part] = {}
    places: list[str] = []

    def run(state: Any, args: Any, kwargs: Any) -> Any:
        copy = nnx.merge(graph, state)
        module: Any
        for path, module in nnx.iter_modules(copy):
            part = Part(tuple(map(str, path)), type(module))
            parts[part.name] = part
            for method, name in METHODS.items():
                if name and hasattr(module, method):
                    attending = Part((*part.path, name), type(module), makes_scores=True)
                    parts[attending.name] = attending
            module.__captures__ = nnx.data(())  # what the model sows itself goes nowhere, unwarned
            if part.path and callable(module):
                setattr(module, _LABEL, part.name)
                kind: type = type(module)
                _become(module, _marking(kind))
        scores, place = scores_of(copy(*args, **kwargs))
        places[:] = [place]
        return scores

    names = parameter_names(type(model).__call__)
    flow, weights, inputs = trace(run, state, args, kwargs, names)
    parts.pop("", None)
    return Forward(flow, parts, weights, inputs, places[0], type(model).__name__)


def _become(module: nnx.Module, kind: type) -> None:
    # Past the check that a module is not changed in another trace: its content stays as it is.
    object.__setattr__(module, "__class__", kind)


def _derived(kind: type, methods: Mapping[str, Callable[..., Any]]) -> type:
    """A class like another but for some methods."""
    names = {**methods, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, (kind,), names)


# The same class every time: JAX keeps every class that it has seen, and compiles for each anew.
@functools.cache
def _marking(kind: type) -> type:
    """A class whose instances name what they are given and what they give."""

    def marking(method: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            layer = ".".join([getattr(self, _LABEL), *filter(None, [METHODS[method]])])
            args, kwargs = marked_input(layer, args, kwargs)
            return marked("out", layer, getattr(kind, method)(self, *args, **kwargs))

        return call

    return _derived(kind, {name: marking(name) for name in METHODS if hasattr(kind, name)})


@functools.cache
def _sowing(kind: type, sown: tuple[tuple[str, Sown], ...]) -> type:
    """A class whose instances sow what some of their methods give, or are given."""

    def sowing(method: str, sown: Sown) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = getattr(kind, method)(self, *args, **kwargs)
            noted = [keys for keys in getattr(self, "__captures__", ()) if type(keys) is Feature]
            number = sum(str(key).startswith(prefix_of(method)) for keys in noted for key in keys)
            value = sown_value(sown, args, kwargs, output)
            self.sow(Feature, key_of(number, value, method), value)
            return output

        return call

    return _derived(kind, {method: sowing(method, how) for method, how in sown})


def run(
    model: nnx.Module, watched: Mapping[str, Sown], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Calls]]:
    """Call the model; return what it gave, and what every selected module gave."""
    try:
        return _run(model, watched, args, kwargs)
    except errors.TraceContextError:
        # A model from outside this trace cannot be written to, which a copy of it can.
        return _run(nnx.clone(model), watched, args, kwargs)


def _run(
    model: nnx.Module, watched: Mapping[str, Sown], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Calls]]:
    named: dict[str, Any] = {".".join(map(str, p)): m for p, m in nnx.iter_modules(model)}
    sown: dict[str, dict[str, Sown]] = {}
    for layer, how in watched.items():
        name, method = _module_and_method(layer, named)
        sown.setdefault(name, {})[method] = how
    modules = {name: named[name] for name in sown}
    kinds: dict[str, type] = {name: type(module) for name, module in modules.items()}
    # A capture of the user's that is open around this one goes on after it.
    outer = {name: m.__captures__ for name, m in named.items() if "__captures__" in vars(m)}
    users_kinds = list({type(keys): None for captures in outer.values() for keys in captures})
    forward = nnx.capture(lambda model: model(*args, **kwargs), Feature, *users_kinds)
    try:
        for name, module in modules.items():
            _become(module, _sowing(kinds[name], tuple(sown[name].items())))
        outputs, *states = forward(model)
    finally:
        for name, module in modules.items():
            _become(module, kinds[name])
        for name, module in named.items():
            if name in outer:
                module.__captures__ = nnx.data(outer[name])
            elif "__captures__" in vars(module):  # where the model raised
                del module.__captures__
    calls: dict[str, Calls] = {}
    for path, variable in nnx.to_flat_state(states[0]):
        key = str(path[-1])
        calls.setdefault(layer_of(path[:-1], key), {})[place_of(key)] = variable.get_value()[0]
    for kind, state in zip(users_kinds, states[1:], strict=True):
        _add_to(outer, kind, state)
    return outputs, calls


def _add_to(outer: Mapping[str, Any], kind: type, state: Any) -> None:
    """Give what a model sowed itself to the capture that was open for it."""
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path[:-1]))
        keys: Any = next(keys for keys in outer[name] if type(keys) is kind)
        before, new = keys.get(path[-1], ()), variable.get_value()
        both = isinstance(before, tuple) and isinstance(new, tuple)
        keys[path[-1]] = (*before, *new) if both else new


def never_ran(name: str) -> str:
    """Say why a module sowed nothing."""
    return (
        f"layer {name!r} gave nothing: its __call__ did not run on this input (another of its methods "
        "is used, or its weights are)"
    )


def module_at(model: nnx.Module, name: str) -> nnx.Module:
    """Return the module of that name, or whose method has it."""
    named = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    name, _ = _module_and_method(name, named)
    if name not in named:
        raise ValueError(f"{name!r} is not a module of the model; it has {listed(named)}")
    return named[name]


def _module_and_method(layer: str, named: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of a layer's module, and which of its methods the layer is."""
    whole, _, last = layer.rpartition(".")
    if layer not in named and whole in named and last in METHODS.values():
        return whole, next(method for method, name in METHODS.items() if name == last)
    return layer, "__call__"
