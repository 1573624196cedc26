"""One pass over a data set with frozen weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen, nnx
from jax import Array

from collapsemeter.adapter.batches import each_batch, split
from collapsemeter.adapter.reduction import BatchError, Reduction, check_reduction, reduction_of
from collapsemeter.stats.labels import class_labels, host_array

from .arguments import arguments, evaluation, is_array
from .calls import abstract
from .capturing import Captured, captured
from .labels import label_shape, token_labels
from .reduction import feature_rows
from .selection import Choice, Request, choose, of_linen
from .state import State, init
from .updating import update


def frozen_pass(
    frozen: Frozen,
    choice: Choice | None,
    batches: Iterable[Any],
    request: Request,
    progress: bool,
    options: Mapping[str, Any],
) -> tuple[State, Choice]:
    """Pass every batch through a frozen model; the layers are those selected, or chosen at the first."""
    state: State | None = None
    tokens: dict[tuple[int, ...], bool] = {}  # whether labels of a shape are one for each token
    for item in each_batch(batches, progress):
        inputs, labels, mask = split(item)
        args, kwargs = frozen.arguments(inputs)
        labels = labels if isinstance(labels, np.ndarray | jax.Array) else host_array(labels)
        mask = None if mask is None else np.asarray(mask)
        if choice is None:
            choice = choose(frozen.model, frozen.with_weights(args), kwargs, request)
        if state is None:
            classes = choice.selection.classes(request.num_classes)
            features = frozen.features(choice, args, kwargs)
            state, unpaired = first_state(features, labels, mask, classes, choice, options)
            choice = choice.without(unpaired)
        if labels.shape not in tokens:
            features = frozen.features(choice, args, kwargs)
            tokens[labels.shape] = token_labels(labels.shape, features)
        settings = state.spec.settings
        labels = class_labels(
            labels,
            settings.num_classes,
            ignore_index=settings.ignore_index,
            tokens=tokens[labels.shape],
            mixed=settings.mixed,
        )
        state = frozen.count(state, choice, args, kwargs, labels, mask)
    assert state is not None and choice is not None  # noqa: PT018 # a pass has a batch
    return state, choice


def first_state(
    features: Mapping[str, Any],
    labels: Any,
    mask: Any,
    num_classes: int,
    choice: Choice,
    options: Mapping[str, Any],
) -> tuple[State, dict[str, str]]:
    """Return an empty state whose widths are those of these features (shapes are enough).

    Return also which layers no rule pairs with the labels, and why. Where that is all of them, the
    batch and the labels do not fit, which is an error.
    """
    reduction: Reduction | Mapping[str, Reduction] = options.get("reduction", "auto")
    if isinstance(reduction, Mapping):
        reduction = _of_every_call(reduction, features)
    shape = label_shape(labels, features, num_classes)
    widths: dict[str, int] = {}
    unpaired: dict[str, BatchError] = {}
    for name, value in features.items():
        try:
            rows = jax.eval_shape(
                lambda value, mask, name=name: feature_rows(
                    value, shape, mask, layer=name, reduction=reduction_of(reduction, name)
                )[0],
                value,
                mask,
            )
        except BatchError as error:
            unpaired.setdefault(name.partition("#")[0], error)
        else:
            widths[name] = rows.shape[1]
    widths = {name: d for name, d in widths.items() if name.partition("#")[0] not in unpaired}
    if not widths:
        raise next(iter(unpaired.values()))
    if isinstance(reduction, Mapping):
        reduction = {name: how for name, how in reduction.items() if name in widths}
    size = {"memory": "auto", "parameter_bytes": choice.parameter_bytes}
    state = init(widths, num_classes, **{**size, **options, "reduction": reduction})
    return state, {
        name: str(error).removeprefix(f"layer {error.args[0]!r} ")
        for name, error in unpaired.items()
    }


def _of_every_call(
    reduction: Mapping[str, Reduction], features: Iterable[str]
) -> dict[str, Reduction]:
    """Give every call of a layer, ``name#0``, the reduction that its name has."""
    names = list(features)
    layers = [name.partition("#")[0] for name in names]
    check_reduction(reduction, dict.fromkeys([*names, *layers]))
    return {
        name: reduction_of(reduction, name if name in reduction else layer)
        for name, layer in zip(names, layers, strict=True)
    }


def shapes_in_order(run: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the shapes of the features that a run gives, in their order: JAX sorts the keys of a dict."""
    names: list[str] = []

    def listing(*arguments: Any) -> Mapping[str, Any]:
        features = run(*arguments)
        names[:] = features
        return features

    shapes = abstract(listing, *arguments)
    return {name: shapes[name] for name in names}


class ById:
    """A linen module, equal to itself alone: one that holds a list of layers has no hash."""

    def __init__(self, model: linen.Module) -> None:
        self.model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.model is self.model

    def __hash__(self) -> int:
        return id(self.model)


@dataclass(frozen=True)
class FrozenStep:
    """The key of a compiled step of `observe`, besides shapes."""

    model: Any  # `ById`, or the graph of an NNX model
    choice: Choice
    tree: Any
    static: tuple[Any, ...]  # the arguments that are not arrays

    def captured(self, weights: Any, arrays: Iterable[Any]) -> Captured:
        """Run the model on the arrays among its arguments."""
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is None else leaf for leaf in self.static]
        args, kwargs = jax.tree.unflatten(self.tree, leaves)
        if isinstance(self.model, ById):
            return captured(self.model.model, self.choice, (weights, *args), kwargs)
        return captured(nnx.merge(self.model, weights), self.choice, args, kwargs)


# The state is the pass's own, so its memory may be written over.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _counted(
    step: FrozenStep, state: State, weights: Any, arrays: Any, labels: Array, mask: Array | None
) -> State:
    run = step.captured(weights, arrays)
    scores = step.choice.scores_in(run.outputs)
    logits = _one_for_each(labels, run.features, scores, state)
    threshold = step.choice.selection.threshold
    return update(state, run.features, labels, logits=logits, mask=mask, threshold=threshold)


class Frozen:
    """A model in evaluation mode, its weights apart."""

    def __init__(self, model: Any, variables: Any, call: Mapping[str, Any]) -> None:
        self.graph: Any
        if isinstance(model, nnx.Module):
            if variables is not None:
                raise ValueError(
                    "variables= are those of a linen module: an nnx.Module holds its own"
                )
            model = nnx.clone(model)
            model.eval()
            self.graph, self.weights = nnx.split(model)
        else:
            self.graph, self.weights = ById(model), variables
            # Or an error that says why not.
            of_linen(model, () if variables is None else (variables,))
        self.model = model
        self.call = {**evaluation(model, call.get("method")), **call}

    def arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs of a batch as arguments of the model."""
        return arguments(inputs, self.call)

    def with_weights(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments as `capture` takes them: of linen the variables come first."""
        return args if isinstance(self.model, nnx.Module) else (self.weights, *args)

    def step(self, choice: Choice, args: Any, kwargs: Any) -> tuple[FrozenStep, tuple[Any, ...]]:
        """Return what to compile for, and the arrays to run it on."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        static = tuple(None if is_array(leaf) else leaf for leaf in leaves)
        return FrozenStep(self.graph, choice, tree, static), tuple(filter(is_array, leaves))

    def features(self, choice: Choice, args: Any, kwargs: Any) -> dict[str, Any]:
        """Return shapes and dtypes of what the layers give."""
        step, arrays = self.step(choice, args, kwargs)
        return shapes_in_order(
            lambda weights, arrays: step.captured(weights, arrays).features, self.weights, arrays
        )

    def count(
        self, state: State, choice: Choice, args: Any, kwargs: Any, labels: Any, mask: Any
    ) -> State:
        """Return the state with a batch more; one that is compiled already runs at once."""
        step, arrays = self.step(choice, args, kwargs)
        # Explicitly: `jax.transfer_guard` forbids all else.
        batch = jax.device_put((arrays, labels.astype(np.int32), mask))
        counted: State = _counted(step, state, self.weights, *batch)
        return counted

    def head(self, choice: Choice) -> Any:
        """Return the head's weights, None without one."""
        return choice.head_weights(
            self.model if isinstance(self.model, nnx.Module) else self.weights
        )


def _one_for_each(labels: Any, features: Mapping[str, Any], scores: Any, state: State) -> Any:
    """Return the scores, if they are one decision a label; else NC4 is absent with its reason."""
    classes = state.spec.settings.num_classes
    shape = label_shape(labels, features, classes)
    fitting = {(*shape, classes)} | ({(*shape, 1), shape} if classes == 2 else set())
    return scores if scores is not None and scores.shape in fitting else None
