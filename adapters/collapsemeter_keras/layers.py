"""Which layers to watch: by name, pattern or predicate, or the blocks a person would name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
from keras import ops

from collapsemeter import Head
from collapsemeter.adapter.declared import select_layers
from collapsemeter.adapter.reduction import Layout
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.tally import classifier

Layer: TypeAlias = keras.layers.Layer
Predicate = Callable[[str, Layer], bool]
Layers = Literal["auto"] | str | Iterable[str] | Predicate

_PASSES_ON = (
    keras.layers.InputLayer,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
)
_MERGES = (
    keras.layers.Add,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Multiply,
    keras.layers.Concatenate,
)
# Layers of Keras' own that hold others but are one layer to a person.
_WHOLE = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
    keras.layers.Bidirectional,
    keras.layers.TimeDistributed,
    keras.layers.RNN,
)


def children(layer: Layer) -> list[Layer]:
    """Return the layers directly inside one, in order."""
    inner = layer._flatten_layers(include_self=False, recursive=False)
    return [child for child in inner if not isinstance(child, keras.layers.InputLayer)]


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


def select(
    model: keras.Model, layers: Layers, head: str | None, num_classes: int | None
) -> Selection:
    """Choose the layers to watch, and the head."""
    named = named_layers(model)
    hidden = _hidden(named)
    chosen = select_layers(
        named,
        layers,
        head,
        num_classes,
        blocks=lambda name: _automatic(model, named, hidden, name),
        outputs=lambda layer: int(layer.units) if isinstance(layer, keras.layers.Dense) else None,
        passes_on=lambda layer: isinstance(layer, _PASSES_ON),
        unseen=hidden,
        separator="/",
        head_kind="a Dense layer",
        model_name=type(model).__name__,
        parts="layers",
    )
    modules = {name: named[name] for name in chosen.watched}
    before = {}
    for name in chosen.layers:
        parent, _, _ = name.rpartition("/")
        members = _sequence(named[parent] if parent else model)
        if named[name] in members:
            before[name] = members[: members.index(named[name])]
    return replace(chosen, modules=modules, before=before)


def _hidden(named: dict[str, Layer]) -> dict[str, str]:
    """Name the layers inside loops and wrappers, whose outputs never reach the step itself."""
    hidden: dict[str, str] = {}
    for outer, layer in named.items():
        if isinstance(layer, keras.layers.RNN):
            why = f"is the cell of {outer!r} and runs inside its loop: watch {outer!r} instead"
        elif isinstance(layer, keras.layers.TimeDistributed | keras.layers.Bidirectional):
            why = f"is inside {outer!r}, which runs it over parts: watch {outer!r} instead"
        else:
            continue
        hidden |= {name: why for name in named if name.startswith(f"{outer}/")}
    return hidden


def _automatic(
    model: keras.Model, named: dict[str, Layer], hidden: dict[str, str], head: str | None
) -> tuple[list[str], dict[str, str]]:
    """Name the blocks of a model, but the one whose output the head's input is anyway."""
    names = {id(layer): name for name, layer in named.items()}
    head_layer = None if head is None else named[head]
    feeding = _just_before(model, head_layer)
    blocks, reasons = [], {}
    for block in _blocks(model, head_layer):
        name = names[id(block)]
        if block is feeding:
            reasons[name] = f"its output is the input of {head}"
        elif name not in hidden:
            blocks.append(name)
    return blocks, reasons


def _blocks(module: Layer, head: Layer | None) -> Iterator[Layer]:
    """Yield the blocks inside a layer, in order; what holds the head is never one itself."""
    inner = children(module)
    composite = [part for part in inner if _is_composite(part)]
    merges = [part for part in inner if isinstance(part, _MERGES)]
    tail = inner[inner.index(merges[-1]) :] if merges else inner

    def starts(layer: Layer) -> bool:
        # Branches meet where a block ends, as in a residual network; after the last, weights begin one.
        return layer in merges or (layer in tail and _holds_weights(layer))

    for part in _ends(inner, starts, head):
        # What holds the head, and a backbone that is the only composite part, is opened.
        if part in composite and (_holds(part, head) or (len(composite) == 1 and not merges)):
            yield from _blocks(part, head)
        else:
            yield part


def _ends(
    layers: list[Layer], starts: Callable[[Layer], bool], head: Layer | None
) -> Iterator[Layer]:
    """Yield the end of every run [start, norm, activation, pool]; a composite is a run of its own."""
    end: Layer | None = None
    for layer in layers:
        if layer is head or starts(layer) or _holds_weights(layer):
            if end is not None:
                yield end
            begins = layer is not head and (starts(layer) or _holds(layer, head))
            end = layer if begins else None
        elif end is not None and not isinstance(layer, _PASSES_ON) and not _is_composite(end):
            end = layer
    if end is not None:
        yield end


def _is_composite(layer: Layer) -> bool:
    return not isinstance(layer, _WHOLE) and any(_holds_weights(child) for child in children(layer))


def _holds(layer: Layer, head: Layer | None) -> bool:
    return head is not None and any(inner is head for inner in layer._flatten_layers())


def _holds_weights(layer: Layer) -> bool:
    """Whether a layer, which may not be built yet, has a kernel or a table: not a normalisation."""
    return any(
        isinstance(getattr(inner, name, None), int)
        for inner in layer._flatten_layers()
        for name in ("filters", "units", "output_dim", "num_heads", "kernel_size")
    ) or any(len(weight.shape) > 1 for weight in layer.weights)


def _sequence(model: Layer) -> list[Layer]:
    """Return the layers in the order in which they certainly run; nothing for a subclassed model."""
    known = isinstance(model, keras.Sequential) or hasattr(model, "operations")
    return children(model) if known else []


def _just_before(model: keras.Model, head: Layer | None) -> Layer | None:
    """Return the layer whose output is certainly the head's input."""
    for container in (model, *model._flatten_layers(include_self=False)):
        members = _sequence(container)
        if head not in members:
            continue
        if isinstance(container, keras.Sequential):
            before = [m for m in members[: members.index(head)] if not isinstance(m, _PASSES_ON)]
            return before[-1] if before else None
        return _feeding(head)
    return None


def _feeding(layer: Layer | None) -> Layer | None:
    """Walk back through a functional graph to the first layer that does not pass its input on."""
    while layer is not None and len(layer._inbound_nodes) == 1:
        parents = layer._inbound_nodes[0].parent_nodes
        layer = parents[0].operation if len(parents) == 1 else None
        if layer is not None and not isinstance(layer, _PASSES_ON):
            return layer if isinstance(layer, keras.layers.Layer) else None
    return None


def layout_of(layer: Layer, before: Iterable[Layer] = ()) -> Layout | None:
    """Return what the last part that has channels says of them, of a layer and what runs just before it."""
    parts = [part for outer in (*before, layer) for part in outer._flatten_layers()]
    for part in reversed(parts):
        sizes = [getattr(part, name, None) for name in ("filters", "units", "output_dim")]
        width = next((size for size in sizes if isinstance(size, int)), None)
        data_format = getattr(part, "data_format", None)
        # A Flatten has a data format, too, and no channels any more.
        if (width, data_format) != (None, None) and not isinstance(part, keras.layers.Flatten):
            return Layout(data_format == "channels_first", width)
    return None


def head_of(selection: Selection) -> Head | None:
    """Return the head's weights on the host."""
    layer = selection.head_module
    if layer is None or not layer.built:
        return None
    kernel = layer.kernel
    if layer.quantization_mode == "int8":  # what its integers stand for
        kernel = ops.cast(kernel, "float32") / ops.cast(layer.kernel_scale, "float32")
    return classifier(_host(kernel).T, _host(layer.bias) if layer.use_bias else None)


def _host(variable: Any) -> np.ndarray[Any, Any]:
    if keras.backend.standardize_dtype(variable.dtype) != "float64":
        variable = ops.cast(variable, "float32")  # NumPy has no bfloat16
    array: np.ndarray[Any, Any] = ops.convert_to_numpy(variable)
    return array.astype(np.float64)
