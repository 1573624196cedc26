"""NNX: modules are told apart in an abstract run, and sow what they give in a real one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from flax import errors, nnx

from collapsemeter.adapter.selection import Selection, listed

from .calls import Calls, abstract, key_of, leaf_of, place_of
from .layers import Part

_LABEL = "_collapsemeter_path"


class Feature(nnx.Intermediate[Any]):
    """What a watched module gave; a type of its own, so that a model's own ``sow`` is left alone."""


def parts(model: nnx.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Part]:
    """Run a copy of the model on shapes alone; return its modules, and when each was called."""
    graph, state = nnx.split(model)
    by_name: dict[str, Part] = {}

    def run(state: Any, args: Any, kwargs: Any) -> None:
        copy = nnx.merge(graph, state)
        module: Any
        for path, module in nnx.iter_modules(copy):
            part = _part(tuple(map(str, path)), module)
            by_name[part.name] = part
            module.__captures__ = nnx.data(())  # what the model sows itself goes nowhere, unwarned
            if callable(module):
                setattr(module, _LABEL, part.name)
                kind: type = type(module)
                _become(module, _noting(kind))
        copy(*args, **kwargs)

    token = _RUN.set((by_name, itertools.count()))
    try:
        abstract(run, state, args, kwargs)
    finally:
        _RUN.reset(token)
    return list(by_name.values())


def _part(path: tuple[str, ...], module: nnx.Module) -> Part:
    own = any(isinstance(value, nnx.Param) for value in vars(module).values())
    outputs: Any = getattr(module, "out_features", None)
    if isinstance(outputs, tuple | list) and len(outputs) == 1:
        outputs = outputs[0]
    linear = isinstance(module, nnx.Linear | nnx.LinearGeneral) and isinstance(outputs, int)
    return Part(path, type(module), own, outputs if linear else None)


# The modules of the abstract run under way by name, and a count of their calls.
_RUN: ContextVar[tuple[dict[str, Part], Iterator[int]]] = ContextVar("run")


def _become(module: nnx.Module, kind: type) -> None:
    # Past the check that a module is not changed in another trace: its content stays as it is.
    object.__setattr__(module, "__class__", kind)


def _derived(kind: type, call: Callable[..., Any]) -> type:
    """A class like another but for its ``__call__``."""
    names = {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind)(kind.__name__, (kind,), names)


# The same class every time: JAX keeps every class that it has seen, and compiles for each anew.
@functools.cache
def _noting(kind: type) -> type:
    """A class whose instances note when they are called, what they are given and what they give."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        by_name, numbers = _RUN.get()
        part = by_name[getattr(self, _LABEL)]
        part.order = min(part.order, next(numbers))
        output = kind.__call__(self, *args, **kwargs)
        part.inputs.append(next(iter([*args, *kwargs.values()]), None))
        part.gives.append(leaf_of(output))
        return output

    return _derived(kind, call)


@functools.cache
def _sowing(kind: type, of_head: bool) -> type:
    """A class whose instances sow what they give; a head before that what it is given."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = kind.__call__(self, *args, **kwargs)
        noted = [keys for keys in getattr(self, "__captures__", ()) if type(keys) is Feature]
        number = sum(len(keys) for keys in noted)
        values = [next(iter([*args, *kwargs.values()])), output] if of_head else [output]
        for place, value in enumerate(values, number):
            self.sow(Feature, key_of(place, value), value)
        return output

    return _derived(kind, call)


def run(
    model: nnx.Module, selection: Selection, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Calls]]:
    """Call the model; return what it gave, and what every selected module gave."""
    try:
        return _run(model, selection, args, kwargs)
    except errors.TraceContextError:
        # A model from outside this trace cannot be written to, which a copy of it can.
        return _run(nnx.clone(model), selection, args, kwargs)


def _run(
    model: nnx.Module, selection: Selection, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, dict[str, Calls]]:
    named: dict[str, Any] = {".".join(map(str, p)): m for p, m in nnx.iter_modules(model)}
    watched = {name: named[name] for name in selection.watched}
    kinds: dict[str, type] = {name: type(module) for name, module in watched.items()}
    # A capture of the user's that is open around this one goes on after it.
    outer = {name: m.__captures__ for name, m in named.items() if "__captures__" in vars(m)}
    others = list({type(keys): None for captures in outer.values() for keys in captures})
    forward = nnx.capture(lambda model: model(*args, **kwargs), Feature, *others)
    try:
        for name, module in watched.items():
            _become(module, _sowing(kinds[name], name == selection.head))
        outputs, *states = forward(model)
    finally:
        for name, module in watched.items():
            _become(module, kinds[name])
        for name, module in named.items():
            if name in outer:
                module.__captures__ = nnx.data(outer[name])
            elif "__captures__" in vars(module):  # where the model raised
                del module.__captures__
    calls: dict[str, Calls] = {}
    for path, variable in nnx.to_flat_state(states[0]):
        name = ".".join(map(str, path[:-1]))
        calls.setdefault(name, {})[place_of(str(path[-1]))] = variable.get_value()[0]
    for kind, state in zip(others, states[1:], strict=True):
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
    """Return the module of that name."""
    named = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    if name not in named:
        raise ValueError(f"{name!r} is not a module of the model; it has {listed(named)}")
    return named[name]
