"""Which layers to watch: by name, pattern or predicate, or the blocks a person would name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import keras

from collapsemeter.adapter.reduction import Layout
from collapsemeter.adapter.selection import listed, matching, unfit_head, unknown_head, why_skipped

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


@dataclass
class Selection:
    """The layers to watch, in order, the head, and why every other one is not watched."""

    layers: dict[str, Layer] = field(default_factory=dict)
    head: str | None = None
    head_layer: keras.layers.Dense | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    before: dict[str, list[Layer]] = field(default_factory=dict)  # that run just before, by layer

    @property
    def watched(self) -> list[str]:
        """Names of the layers, and last of the head."""
        return [*self.layers, *([] if self.head is None else [self.head])]

    @property
    def head_outputs(self) -> int | None:
        """Units of the head; None without one."""
        return None if self.head_layer is None else int(self.head_layer.units)


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
    chosen = Selection()
    chosen.head, chosen.head_layer = _find_head(named, hidden, head, num_classes, chosen.skipped)
    automatic = isinstance(layers, str) and layers == "auto"
    if automatic:
        _choose_blocks(model, named, hidden, chosen)
    elif callable(layers):
        chosen.layers = {name: layer for name, layer in named.items() if layers(name, layer)}
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        chosen.layers = {name: named[name] for name in matching(named, patterns)}
    if chosen.head is not None:
        chosen.layers.pop(chosen.head, None)
    for name in chosen.layers:
        if name in hidden:
            raise ValueError(f"layer {name!r} {hidden[name]}")
    for name, layer in named.items():
        if name in chosen.layers:
            chosen.skipped.pop(name, None)
        elif name != chosen.head:
            reason = hidden.get(name) or why_skipped(
                name,
                chosen.layers,
                chosen.head,
                chosen.skipped,
                separator="/",
                passes_on=isinstance(layer, _PASSES_ON),
                automatic=automatic,
            )
            chosen.skipped.setdefault(name, reason)
    if not chosen.watched:
        raise ValueError(
            f"layers={layers!r} selects nothing of {type(model).__name__}; its layers: "
            f"{listed(named)}"
        )
    _note_what_comes_before(model, named, chosen)
    return chosen


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


def _find_head(
    named: dict[str, Layer],
    hidden: dict[str, str],
    head: str | None,
    num_classes: int | None,
    skipped: dict[str, str],
) -> tuple[str | None, keras.layers.Dense | None]:
    if head is None:
        return None, None
    if head != "auto":
        layer = named.get(head)
        if layer is None:
            raise unknown_head(head, named)
        if not isinstance(layer, keras.layers.Dense):
            raise ValueError(
                f"head={head!r} is a {type(layer).__name__}: name a Dense layer, or pass head=None"
            )
        return head, layer
    outputs = {num_classes} if num_classes is not None else None
    if num_classes == 2:
        outputs = {1, 2}  # one logit decides between two classes
    dense = {
        name: layer
        for name, layer in reversed(named.items())
        if isinstance(layer, keras.layers.Dense) and name not in hidden
    }
    for name, layer in dense.items():
        if outputs is None or layer.units in outputs:
            return name, layer
    if num_classes is not None and dense:
        name, layer = next(iter(dense.items()))
        skipped[name] = unfit_head(name, int(layer.units), num_classes)
    return None, None


def _choose_blocks(
    model: keras.Model, named: dict[str, Layer], hidden: dict[str, str], chosen: Selection
) -> None:
    """Fill in the blocks of a model, but the one whose output the head's input is anyway."""
    names = {id(layer): name for name, layer in named.items()}
    feeding = _just_before(model, chosen.head_layer)
    for block in _blocks(model, chosen.head_layer):
        name = names[id(block)]
        if block is feeding:
            chosen.skipped[name] = f"its output is the input of {chosen.head}"
        elif name not in hidden:
            chosen.layers[name] = block


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


def _note_what_comes_before(model: keras.Model, named: dict[str, Layer], chosen: Selection) -> None:
    for name, layer in chosen.layers.items():
        parent, _, _ = name.rpartition("/")
        members = _sequence(named[parent] if parent else model)
        if layer in members:
            chosen.before[name] = members[: members.index(layer)]


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
