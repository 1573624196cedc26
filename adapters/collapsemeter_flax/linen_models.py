"""Linen: modules are told apart in an abstract run, and sow what they give in a real one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import errors, linen
from flax.core.scope import DenyList, in_filter, union_filters

from .calls import METHODS, PREFIX, Calls, abstract, key_of, layer_of, place_of, prefix_of
from .marks import Part, marked, marked_input
from .sowing import Sown, sown_value
from .trace import Forward, ScoresOf, parameter_names, trace

SOWN = "intermediates"
NOT_CARRIED = (
    "ran where what it gives cannot get out: a transformation around it does not carry the "
    "'intermediates' collection; add variable_axes={'intermediates': 0} to nn.scan or nn.vmap, or watch "
    "a layer outside it"
)


def forward(
    model: linen.Module,
    variables: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    scores_of: ScoresOf,
) -> Forward:
    """Run the model on shapes alone; return its data flow and the modules that were called."""
    parts: dict[str, Part] = {}
    places: list[str] = []
    mutable = union_filters(kwargs.get("mutable", False), SOWN)

    def note(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        path = _called(context)
        if not path:
            return next_fun(*args, **kwargs)
        name = ".".join(path)
        gets_out = module.is_mutable_collection(SOWN)
        parts[name] = Part(path, type(module), gets_out, makes_scores=path != module.path)
        args, kwargs = marked_input(name, args, kwargs)
        return marked("out", name, next_fun(*args, **kwargs))

    def apply(variables: Any, args: Any, kwargs: Any) -> Any:
        with linen.intercept_methods(note):
            outputs, _ = model.apply(variables, *args, **{**kwargs, "mutable": mutable})
        scores, place = scores_of(outputs)
        places[:] = [place]
        return scores

    names = parameter_names(_method(model, kwargs.get("method")))
    try:
        traced = trace(apply, variables, args, kwargs, names)
    except errors.ModifyScopeVariableError:  # of batch statistics, of which nothing is kept here
        mutable = DenyList("params")
        traced = trace(apply, variables, args, kwargs, names)
    graph, weights, inputs = traced
    return Forward(graph, parts, weights, inputs, places[0], type(model).__name__)


def _called(context: Any) -> tuple[str, ...]:
    """Return the path of the layer that a method is a call of; () where it is none."""
    path: tuple[str, ...] = context.module.path
    method = METHODS.get(context.method_name)
    return (*path, *filter(None, [method])) if path and method is not None else ()


def _method(model: linen.Module, method: Any) -> Any:
    if callable(method):
        return method
    return getattr(type(model), method or "__call__", None)


def variables_for(model: linen.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the shapes of the variables that the model would be initialised with."""
    rngs = dict.fromkeys(("params", "dropout"), jax.random.key(0))
    return abstract(
        lambda args, kwargs: model.init(rngs, *args, **kwargs), tuple(args), dict(kwargs)
    )


def run(
    model: linen.Module,
    variables: Any,
    watched: Mapping[str, Sown],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[Any, dict[str, Calls]]:
    """Apply the model; return what ``apply`` gives, and what every selected module gave."""
    mutable = kwargs.get("mutable", False)
    by_path = {tuple(name.split(".")): name for name in watched}

    def sow(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        module = context.module
        name = by_path.get(_called(context))
        if name is None:
            return output
        method = context.method_name
        sown = module.variables.get(SOWN, {})
        number = sum(key.startswith(prefix_of(method)) for key in sown)
        value = sown_value(watched[name], args, kwargs, output)
        if not module.sow(SOWN, key_of(number, value, method), value):
            raise ValueError(f"layer {name!r} {NOT_CARRIED}")
        return output

    with linen.intercept_methods(sow):
        outputs, updated = model.apply(
            variables, *args, **{**kwargs, "mutable": union_filters(mutable, SOWN)}
        )
    calls: dict[str, Calls] = {}
    users_sown = _without_ours(updated.get(SOWN, {}), (), calls)
    if mutable is False:
        return outputs, calls
    collections = {name: value for name, value in updated.items() if name != SOWN}
    if users_sown and in_filter(mutable, SOWN):
        collections[SOWN] = users_sown
    return (outputs, collections), calls


def _without_ours(sown: Mapping[str, Any], path: tuple[str, ...], calls: dict[str, Calls]) -> Any:
    """Move what was sown by `run` from a collection to calls; return the user's own part of it."""
    users_own = {}
    for key, value in sown.items():
        if key.startswith(PREFIX):
            calls.setdefault(layer_of(path, key), {})[place_of(key)] = value[0]
        elif isinstance(value, Mapping):
            if inner := _without_ours(value, (*path, key), calls):
                users_own[key] = inner
        else:
            users_own[key] = value
    return users_own


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
        raise ValueError(no_parameters(name))
    return here


def no_parameters(name: str) -> str:
    """Say that the variables are not those of the model."""
    return (
        f"the variables hold no parameters of {name!r}: pass those of the model, "
        "{'params': params, ...}"
    )
