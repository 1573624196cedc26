"""`observe`: one pass over a data set with frozen weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen, nnx
from jax import Array

from collapsemeter import CollapseReport
from collapsemeter.adapter.batches import check_phase, no_batch, shown, split
from collapsemeter.adapter.reduction import Reduction, check_reduction, reduction_of
from collapsemeter.stats.labels import class_labels, host_array
from collapsemeter.stats.moments import Phase

from . import linen_models, nnx_models
from .capturing import Captured, captured, find, of_linen
from .finalise import report
from .layers import Layers, Selection
from .nnx_models import abstract
from .reduction import feature_rows
from .state import State, init
from .updating import label_shape, token_labels, update

# What models call the switch between training and evaluation, and its value in evaluation.
MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


def observe(
    model: Any,
    batches: Iterable[Any],
    *,
    variables: Any = None,
    layers: Layers = "auto",
    head: str | None = "auto",
    num_classes: int | None = None,
    phase: Phase = "frozen-eval",
    progress: bool = True,
    call: Mapping[str, Any] | None = None,
    **options: Any,
) -> CollapseReport:
    """Measure in one pass with frozen weights, in evaluation mode; the model is left as it is.

    Parameters
    ----------
    model : nnx.Module or linen.Module
        Of NNX a copy runs in ``eval()`` mode.
    batches : iterable of (inputs, labels), or of dicts with "labels"
        Inputs are an array, or a tuple or dict of arguments; arrays of NumPy, JAX or any framework that
        NumPy reads. Each shape of batch is compiled once.
    variables : mapping
        Of a linen model: ``{"params": ..., "batch_stats": ...}``.
    layers, head, num_classes
        See `capture`.
    phase : {"frozen-eval", "frozen-train"}
        What the report calls the data: held-out, or the training set.
    progress : bool
        Show a progress bar on standard error.
    call : mapping, optional
        Keywords of every call of the model (of linen's ``apply``). Those named ``train``, ``training``,
        ``is_training``, ``deterministic`` and ``use_running_average`` are set for evaluation by themselves
        where the model takes them.
    **options
        Those of `init`: ``reduction``, ``scatter``, ``convention``, ``ignore_index``, ``nonfinite``,
        ``sample_rows``, ``seed``, ``sketch_rows``, ``dtype``.

    Returns
    -------
    CollapseReport

    Raises
    ------
    ValueError
        If there is no batch, labels are invalid, or a layer's output does not fit them.

    Examples
    --------
    >>> net = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    >>> images, labels = np.ones((6, 4), np.float32), np.arange(6) % 3
    >>> measured = observe(net, [(images, labels)], progress=False)
    >>> list(measured), measured.phase
    (['layers.0', 'layers.2'], 'frozen-eval')
    """
    check_phase(phase)
    chosen = {"layers": layers, "head": head, "num_classes": num_classes}
    return run(
        Frozen(model, variables, call or {}), None, batches, chosen, phase, progress, options
    )


def run(
    frozen: Frozen,
    selection: Selection | None,
    batches: Iterable[Any],
    chosen: Mapping[str, Any],
    phase: Phase,
    progress: bool,
    options: Mapping[str, Any],
) -> CollapseReport:
    """Pass every batch through a frozen model, and measure the layers selected, or chosen at the first."""
    state: State | None = None
    tokens: dict[tuple[int, ...], bool] = {}  # whether labels of a shape are one for each token
    for item in shown(batches, progress):
        inputs, labels, mask = split(item)
        args, kwargs = frozen.arguments(inputs)
        labels = labels if isinstance(labels, np.ndarray | jax.Array) else host_array(labels)
        mask = None if mask is None else np.asarray(mask)
        if selection is None:
            selection = find(frozen.model, frozen.with_weights(args), kwargs, **chosen)
        if state is None:
            classes = selection.classes(chosen["num_classes"])
            features = frozen.features(selection, args, kwargs)
            state = first_state(features, labels, mask, classes, options)
        settings = state.spec.settings
        if labels.shape not in tokens:
            features = frozen.features(selection, args, kwargs)
            tokens[labels.shape] = token_labels(labels.shape, features)
        labels = class_labels(
            labels,
            settings.num_classes,
            ignore_index=settings.ignore_index,
            tokens=tokens[labels.shape],
        )
        state = frozen.count(state, selection, args, kwargs, labels, mask)
    if state is None or selection is None:
        raise no_batch(batches)
    head = None if selection.head is None else frozen.head(selection.head)
    return report(state, head, phase=phase, skipped=selection.skipped)


def first_state(
    features: Mapping[str, Any],
    labels: Any,
    mask: Any,
    num_classes: int,
    options: Mapping[str, Any],
) -> State:
    """Return an empty state whose widths are those of these features (shapes are enough)."""
    reduction: Reduction | Mapping[str, Reduction] = options.get("reduction", "auto")
    if isinstance(reduction, Mapping):
        reduction = _of_every_call(reduction, features)
    shape = label_shape(labels, features, num_classes)
    widths = {}
    for name, value in features.items():
        rows = jax.eval_shape(
            lambda value, mask, name=name: feature_rows(
                value, shape, mask, layer=name, reduction=reduction_of(reduction, name)
            )[0],
            value,
            mask,
        )
        widths[name] = rows.shape[1]
    return init(widths, num_classes, **{**options, "reduction": reduction})


def _of_every_call(
    reduction: Mapping[str, Reduction], features: Iterable[str]
) -> dict[str, Reduction]:
    """Give every call of a layer, ``name#0``, the reduction that its name has."""
    names = list(features)
    layers = [name.partition("#")[0] for name in names]
    check_reduction(reduction, dict.fromkeys([*names, *layers]))
    keys = [
        (name, name if name in reduction else layer)
        for name, layer in zip(names, layers, strict=True)
    ]
    return {name: reduction[key] for name, key in keys if key in reduction}


def shapes_in_order(run: Callable[..., Mapping[str, Any]], *given: Any) -> dict[str, Any]:
    """Return the shapes of the features that a run gives, in their order: JAX sorts the keys of a dict."""
    names: list[str] = []

    def listing(*given: Any) -> Mapping[str, Any]:
        features = run(*given)
        names[:] = features
        return features

    shapes = abstract(listing, *given)
    return {name: shapes[name] for name in names}


class Same:
    """A linen module, equal to itself alone: one that holds a list of layers has no hash."""

    def __init__(self, model: linen.Module) -> None:
        self.model = model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.model is self.model

    def __hash__(self) -> int:
        return id(self.model)


@dataclass(frozen=True)
class Step:
    """What a compiled step of `observe` is compiled for, besides shapes."""

    model: Any  # `Same`, or the graph of an NNX model
    selection: Selection
    tree: Any
    rest: tuple[Any, ...]  # the arguments that are not arrays

    def captured(self, weights: Any, arrays: Iterable[Any]) -> Captured:
        """Run the model on the arrays among its arguments."""
        given = iter(arrays)
        leaves = [next(given) if leaf is None else leaf for leaf in self.rest]
        args, kwargs = jax.tree.unflatten(self.tree, leaves)
        if isinstance(self.model, Same):
            return captured(self.model.model, self.selection, (weights, *args), kwargs)
        return captured(nnx.merge(self.model, weights), self.selection, args, kwargs)


# The state is the pass's own, so its memory may be written over.
@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _counted(
    step: Step, state: State, weights: Any, arrays: Any, labels: Array, mask: Array | None
) -> State:
    found = step.captured(weights, arrays)
    logits = logits_for(labels, found.features, found.logits, state)
    return update(state, found.features, labels, logits=logits, mask=mask)


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
            self.graph, self.weights = Same(model), variables
            of_linen(
                model, () if variables is None else (variables,)
            )  # or an error that says why not
        self.model = model
        self.call = {**_evaluation(model, call.get("method")), **call}

    def arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs of a batch as arguments of the model."""
        inputs = jax.tree.map(_array, inputs)
        if isinstance(inputs, Mapping):
            return (), {**inputs, **self.call}
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), dict(self.call)

    def with_weights(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments as `capture` takes them: of linen the variables come first."""
        return args if isinstance(self.model, nnx.Module) else (self.weights, *args)

    def step(self, selection: Selection, args: Any, kwargs: Any) -> tuple[Step, tuple[Any, ...]]:
        """Return what to compile for, and the arrays to run it on."""
        leaves, tree = jax.tree.flatten((args, kwargs))
        rest = tuple(None if is_array(leaf) else leaf for leaf in leaves)
        return Step(self.graph, selection, tree, rest), tuple(filter(is_array, leaves))

    def features(self, selection: Selection, args: Any, kwargs: Any) -> dict[str, Any]:
        """Return shapes and dtypes of what the layers give."""
        step, arrays = self.step(selection, args, kwargs)
        return shapes_in_order(
            lambda weights, arrays: step.captured(weights, arrays).features, self.weights, arrays
        )

    def count(
        self, state: State, selection: Selection, args: Any, kwargs: Any, labels: Any, mask: Any
    ) -> State:
        """Return the state with a batch more; one that is compiled already runs at once."""
        step, arrays = self.step(selection, args, kwargs)
        counted: State = _counted(step, state, self.weights, arrays, labels, mask)
        return counted

    def head(self, name: str) -> Any:
        """Return the head: a module of NNX, or kernel and bias of linen."""
        if isinstance(self.model, nnx.Module):
            return nnx_models.module_at(self.model, name)
        return linen_models.weights_at(self.weights, name)


def logits_for(labels: Any, features: Mapping[str, Any], logits: Any, state: State) -> Any:
    """Return what the head gave, if it is one decision a label; else NC4 is absent with its reason."""
    classes = state.spec.settings.num_classes
    shape = label_shape(labels, features, classes)
    ends = {classes} | ({1} if classes == 2 else set())
    fits = logits is not None and logits.shape[:-1] == shape and logits.shape[-1] in ends
    return logits if fits else None


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _array(leaf: Any) -> Any:
    """Read arrays of other frameworks with NumPy; leave all else."""
    if is_array(leaf) or not hasattr(leaf, "__array__"):
        return leaf
    return np.asarray(leaf)


def _evaluation(model: Any, method: Any) -> dict[str, Any]:
    """Return the switches that a model's call (or another method of linen) takes, set for evaluation."""
    name = method if isinstance(method, str) else "__call__"
    taken = inspect.signature(method if callable(method) else getattr(type(model), name)).parameters
    return {name: value for name, value in MODES.items() if name in taken}
