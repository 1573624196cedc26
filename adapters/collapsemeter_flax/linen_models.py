"""Linen: modules are told apart in an abstract run, and sow what they give in a real one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen
from flax.core.scope import in_filter, union_filters

from collapsemeter.adapter.selection import Selection

from .calls import PREFIX, Calls, abstract, key_of, leaf_of, place_of
from .layers import Part

SOWN = "intermediates"
_NOT_CARRIED = (
    "layer {!r} ran where what it gives cannot get out: a transformation around it does not carry the "
    "'intermediates' collection; add variable_axes={{'intermediates': 0}} to nn.scan or nn.vmap, or watch "
    "a layer outside it"
)


def parts(
    model: linen.Module,
    variables: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[Part]:
    """Run the model on shapes alone; return the modules that were called, and when."""
    root = Part((), type(model))
    by_path: dict[tuple[str, ...], Part] = {(): root}
    numbers = itertools.count()

    def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not module.path:
            return next_fun(*args, **kwargs)
        part = by_path.setdefault(module.path, _part(module, variables))
        part.order = min(part.order, next(numbers))
        output = next_fun(*args, **kwargs)
        part.inputs.append(next(iter([*args, *kwargs.values()]), None))
        part.gives.append(leaf_of(output))
        return output

    def apply(variables: Any, args: Any, kwargs: Any) -> None:
        with linen.intercept_methods(note):
            model.apply(variables, *args, **kwargs)

    abstract(apply, variables, args, dict(kwargs))
    for path in list(by_path):  # a parent that is not called itself still holds its children
        for length in range(1, len(path)):
            by_path.setdefault(path[:length], Part(path[:length], object))
    return list(by_path.values())


def _part(module: linen.Module, variables: Any) -> Part:
    outputs = getattr(module, "features", None)
    linear = isinstance(module, linen.Dense | linen.DenseGeneral) and isinstance(outputs, int)
    here: Any = variables.get("params", {}) if isinstance(variables, Mapping) else {}
    for name in module.path:
        here = here.get(name, {}) if isinstance(here, Mapping) else {}
    own = isinstance(here, Mapping) and any(not isinstance(v, Mapping) for v in here.values())
    return Part(module.path, type(module), own, outputs if linear else None)


def run(
    model: linen.Module,
    variables: Any,
    selection: Selection,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[Any, dict[str, Calls]]:
    """Apply the model; return what ``apply`` gives, and what every selected module gave."""
    mutable = kwargs.get("mutable", False)
    watched = {tuple(name.split(".")): name for name in selection.watched}

    def sow(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        module = context.module
        name = watched.get(module.path) if context.method_name == "__call__" else None
        if name is None:
            return output
        number = sum(key.startswith(PREFIX) for key in module.variables.get(SOWN, {}))
        inputs = [next(iter([*args, *kwargs.values()]))] if name == selection.head else []
        values = [*inputs, output]
        for place, value in enumerate(values, number):
            if not module.sow(SOWN, key_of(place, value), value):
                raise ValueError(_NOT_CARRIED.format(name))
        return output

    with linen.intercept_methods(sow):
        outputs, updated = model.apply(
            variables, *args, **{**kwargs, "mutable": union_filters(mutable, SOWN)}
        )
    calls: dict[str, Calls] = {}
    rest = _without_ours(updated.get(SOWN, {}), (), calls)
    if mutable is False:
        return outputs, calls
    others = {name: value for name, value in updated.items() if name != SOWN}
    if rest and in_filter(mutable, SOWN):
        others[SOWN] = rest
    return (outputs, others), calls


def _without_ours(sown: Mapping[str, Any], path: tuple[str, ...], calls: dict[str, Calls]) -> Any:
    """Move what was sown by `run` from a collection to calls; return the user's own part of it."""
    rest = {}
    for key, value in sown.items():
        if key.startswith(PREFIX):
            calls.setdefault(".".join(path), {})[place_of(key)] = value[0]
        elif isinstance(value, Mapping):
            if inner := _without_ours(value, (*path, key), calls):
                rest[key] = inner
        else:
            rest[key] = value
    return rest


def never_ran(name: str) -> str:
    """Say why a module sowed nothing."""
    return (
        f"layer {name!r} gave nothing: its __call__ did not run on this input (another of its methods "
        "is used), or nn.jit had compiled it before"
    )


def weights_at(variables: Any, name: str) -> Mapping[str, Any]:
    """Return the parameters of the module of that name."""
    here: Any = variables.get("params") if isinstance(variables, Mapping) else None
    for part in name.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    if not isinstance(here, Mapping):
        raise ValueError(
            f"the variables hold no parameters of {name!r}: pass those of the model, "
            "{'params': params, ...}"
        )
    return here
