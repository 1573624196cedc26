"""Choose the layers and the head to watch, from one abstract run and the user's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from collapsemeter.adapter.network import Scores, find_scores
from collapsemeter.adapter.reduction import Reduction, reduction_of
from collapsemeter.adapter.selection import MAX_LAYERS, Layers, Selection, select_layers

from . import linen_models, nnx_models
from .head import LinearCall, weights_of
from .marks import Part
from .study import Study, study
from .trace import Forward, leaves_by_path, other_rows

HEAD_KIND = "an nnx.Linear or nn.Dense"
Getter = Callable[[Any], Any]
HeadOption = str | None | tuple[Any, Getter]


@dataclass(frozen=True)
class Request:
    """The layers, head and scores that the user asks for."""

    layers: Layers = "auto"
    head: HeadOption = "auto"
    num_classes: int | None = None
    scores: Scores | None = "auto"
    max_layers: int = MAX_LAYERS
    reduction: Reduction | Mapping[str, Reduction] = field(default="auto", compare=False)

    def scores_in(self, outputs: Any) -> tuple[Any, str]:
        """Return the scores among what the model returned, and where they are."""
        asked = "auto" if self.scores is None else self.scores
        return find_scores(outputs, asked, is_tensor=is_scores, num_classes=self.num_classes)


@dataclass(frozen=True)
class Choice:
    """The layers to watch, and what a run of the model told of them."""

    selection: Selection
    request: Request = field(compare=False)
    scores: Scores | None = "auto"
    depth: Mapping[str, int] = field(
        default_factory=dict, compare=False
    )  # the place of every call, "layer#0"
    head_call: int = -1  # which call of the head makes the scores
    linear: LinearCall | None = field(default=None, compare=False)
    getter: Getter | None = None
    forward: Forward | None = field(default=None, compare=False, repr=False)
    unpaired: tuple[tuple[str, str], ...] = ()  # layers that are left out, and why
    selects: bool = False  # the scores are those that the head gave at some positions
    turned: frozenset[str] = frozenset()  # layers that give (T, B, d)

    @property
    def watched(self) -> list[str]:
        """Names of the layers whose output can be paired with the labels, the head last."""
        left_out = dict(self.unpaired)
        return [name for name in self.selection.watched if name not in left_out]

    @property
    def parameter_bytes(self) -> int:
        """Bytes of the model's parameters, without batch statistics and random state."""
        assert self.forward is not None
        graph, of_linen = (
            self.forward.graph,
            {"params"} & {p[0] for p in self.forward.weights.values()},
        )
        return sum(
            math.prod(graph[number].shape) * jnp.dtype(graph[number].dtype).itemsize
            for number, path in self.forward.weights.items()
            if graph[number].is_float and (not of_linen or path[0] == "params")
        )

    def scores_in(self, outputs: Any) -> Any:
        """Return the scores among what the model returned; None where there are none."""
        if self.selection.width is None:
            return None
        return self.request.scores_in(outputs)[0]

    def head_weights(self, weights: Any) -> Any:
        """Return the head's weights now, in a form that `report` takes; None without a head.

        ``weights`` are an NNX module, or a mapping of linen variables.
        """
        name = self.selection.head
        if name is None or name in dict(self.unpaired):
            return None
        if self.getter is not None:
            return self.getter(part_at(weights, name))
        assert self.linear is not None and self.forward is not None  # noqa: PT018 # of every head
        if isinstance(weights, nnx.Module):
            part_at(weights, name)  # or an error that says which modules there are
            weights = nnx.state(weights)
        leaves = leaves_by_path(weights)
        graph, linear = self.forward.graph, self.linear.linear
        needed = graph.ancestors(linear.weight)
        needed |= set() if linear.bias is None else graph.ancestors(linear.bias)
        values = {}
        for number in needed & self.forward.weights.keys():
            path = self.forward.weights[number]
            if path not in leaves:
                raise ValueError(linen_models.no_parameters(name))
            values[number] = leaves[path]
        weight, bias = weights_of(graph, linear, values)
        return weight.T, bias

    def without(self, unpaired: Mapping[str, str]) -> Choice:
        """Leave out layers whose output no rule pairs with the labels."""
        return replace(self, unpaired=(*self.unpaired, *unpaired.items()))


def part_at(weights: Any, name: str) -> Any:
    """Return the NNX module of that name, or the linen parameters."""
    if isinstance(weights, nnx.Module):
        return nnx_models.module_at(weights, name)
    return linen_models.weights_at(weights, name)


def choose(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], request: Request) -> Choice:
    """Choose the layers of a model in an abstract run on these arguments."""
    learnt = _learn(model, args, kwargs, request)
    forward, network = learnt.forward, learnt.network
    ordered = dict.fromkeys([*network.order, *forward.parts])
    ran = set(network.order)
    parts = {name: forward.parts[name] for name in ordered if forward.parts[name].is_layer(ran)}
    unseen = {name: linen_models.NOT_CARRIED for name, part in parts.items() if not part.gets_out}
    head, getter = _named_head(model, request.head)
    if head not in ("auto", None) and getter is None:
        _check_head(head, parts, learnt)
    selection = select_layers(
        network,
        parts,
        request.layers,
        head,
        max_layers=request.max_layers,
        head_kind=HEAD_KIND,
        model_name=forward.model_name,
        predicate_argument=lambda part: part.type,
        unseen=unseen,
    )
    linear = learnt.linear.get(selection.head or "")
    call = -1 if linear is None else linear.call.number
    if selection.head == network.head and learnt.head_call is not None:
        call = learnt.head_call
    depth = {name: place for place, name in enumerate(learnt.depth)}
    selects = (
        learnt.selects
        and selection.head == network.head
        and reduction_of(request.reduction, selection.head or "") == "auto"
    )
    return Choice(
        selection,
        request,
        request.scores,
        depth,
        call,
        linear,
        getter,
        forward,
        selects=selects,
        turned=frozenset(
            name for name in learnt.turned if not callable(reduction_of(request.reduction, name))
        ),
    )


def _learn(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], request: Request) -> Study:
    def scores_of(outputs: Any) -> tuple[Any, str]:
        try:
            return request.scores_in(outputs)
        except ValueError:
            named = not isinstance(request.layers, str) or request.layers != "auto"
            if request.scores == "auto" and (request.head is None or named):
                return jnp.zeros(()), ""
            raise

    def forward(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Forward:
        if isinstance(model, nnx.Module):
            return nnx_models.forward(model, args, kwargs, scores_of)
        return linen_models.forward(model, variables, args, kwargs, scores_of)

    variables, args = (None, args) if isinstance(model, nnx.Module) else of_linen(model, args)
    has_scores = request.scores is not None
    learnt, other = study(forward(args, kwargs), has_scores), other_rows(args, kwargs)
    if other is not None:
        with suppress(Exception):  # whatever a model of somebody's does with another number of rows
            learnt = replace(learnt, turned=study(forward(*other), has_scores).turned)
    return learnt


def _named_head(model: Any, head: HeadOption) -> tuple[str | None, Getter | None]:
    if not isinstance(head, tuple):
        return head, None
    module, getter = head
    if isinstance(module, nnx.Module):
        names = [".".join(map(str, p)) for p, m in nnx.iter_modules(model) if m is module]
        if not names:
            raise ValueError(
                f"head=({type(module).__name__}, ...): it is not a module of the model"
            )
        module = names[0]
    if not isinstance(module, str) or not callable(getter):
        raise ValueError(
            f"head={head!r}: pass a pair of a module's name and a callable that gives its kernel (d, C), "
            "or kernel and bias"
        )
    return module, getter


def _check_head(head: str | None, parts: Mapping[str, Part], learnt: Study) -> None:
    """Raise ValueError where a named head is no linear map to the classes."""
    if head not in parts:
        return  # which `select_layers` says
    linear, kind = learnt.linear.get(head or ""), parts[head or ""].type.__name__
    if linear is None:
        raise ValueError(
            f"head={head!r} is a {kind}: name {HEAD_KIND}, or pass head=None; a head of another make is "
            "head=(name, callable that gives its kernel)"
        )
    width = learnt.forward.graph[linear.call.output].shape[-1]
    if learnt.network.width not in (None, width):
        raise ValueError(
            f"head={head!r} gives {width} numbers a row and the scores have {learnt.network.width}: name "
            "the layer that makes them, or pass head=None"
        )


def is_scores(value: Any) -> bool:
    """Whether this is an array of floats."""
    return isinstance(value, jax.Array | np.ndarray) and bool(
        jnp.issubdtype(value.dtype, jnp.floating)
    )


def of_linen(model: Any, args: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Take the variables off the arguments of a linen module, or say what is wrong."""
    if not isinstance(model, linen.Module):
        raise ValueError(
            f"model is a {type(model).__module__}.{type(model).__qualname__}: pass an nnx.Module or a "
            "linen.Module"
        )
    if not args or not isinstance(args[0], Mapping) or "params" not in args[0]:
        what = f"a {type(args[0]).__name__}" if args else "nothing"
        raise ValueError(
            f"{type(model).__name__} is a linen module and was given {what}: pass its variables first, "
            "capture(model, {'params': params}, inputs)"
        )
    return args[0], args[1:]
