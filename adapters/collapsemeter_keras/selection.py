"""Which layers to watch: by name, pattern or predicate, or the points that the whole signal passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import keras

from collapsemeter.adapter.memory import Memory
from collapsemeter.adapter.network import Scores
from collapsemeter.adapter.reduction import Layout
from collapsemeter.adapter.selection import MAX_LAYERS, Layers, Selection, select_layers

from .linear import linear_map

if TYPE_CHECKING:
    from .study import Study

# "auto", a name, None, or a layer (or its name) and what takes the weights from it.
HeadOption: TypeAlias = str | tuple[Any, Callable[[Any], Any]] | None
_HEAD = "a Dense layer"


@dataclass(frozen=True)
class Request:
    """The user's arguments to a meter, before there is a model."""

    layers: Layers = "auto"
    head: HeadOption = "auto"
    num_classes: int | None = None
    scores: Scores = "auto"
    labels: Any = None
    example: Any = None
    max_layers: int = MAX_LAYERS
    memory: Memory = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)  # of `Settings`
    strict: bool = False
    verbose: bool = True


def select(
    model: keras.Model, study: Study, layers: Layers, head: HeadOption, max_layers: int
) -> Selection:
    """Choose the layers to watch, and the head, of a model that was studied."""
    parts, network = study.parts, study.network
    head_name = _head_name(parts, head)
    chosen = select_layers(
        network,
        parts,
        layers,
        head_name,
        max_layers=max_layers,
        head_kind=_HEAD,
        model_name=type(model).__name__,
        parts="layers",
        separator="/",
        unseen=hidden(parts),
    )
    if chosen.head is not None and not isinstance(head, tuple) and head != "auto":
        _check_head(chosen.head, parts[chosen.head], network.width)
    modules = {name: parts[name] for name in chosen.watched}
    before = {name: study.before.get(name, [parts[name]]) for name in chosen.watched}
    return replace(chosen, modules=modules, before=before, turned=study.turned)


def _head_name(parts: Mapping[str, Any], head: HeadOption) -> str | None:
    if not isinstance(head, tuple):
        return head
    asked = head[0]
    name = next((name for name, part in parts.items() if part is asked), asked)
    if not isinstance(name, str):
        raise ValueError(f"head={head!r}: the {type(asked).__name__} is no layer of the model")
    return name


def _check_head(name: str, layer: Any, width: int | None) -> None:
    """Raise unless a head that was named has a weight for each score."""
    weights = linear_map(layer)
    if weights is None and getattr(layer, "built", False):
        raise ValueError(
            f"head={name!r} is a {type(layer).__name__}: name {_HEAD}, pass a layer and what takes its weight "
            "from it, (layer, getter), or pass head=None"
        )
    sizes = () if weights is None else tuple(weights[0].shape[-2:])
    if weights is not None and width is not None and width not in sizes:
        raise ValueError(
            f"head {name!r} has {sizes[-1]} outputs and the scores have width {width}: they must agree; "
            "pass head=None to measure without a head"
        )


def hidden(parts: Mapping[str, Any]) -> dict[str, str]:
    """Name the layers inside loops and wrappers, whose outputs never reach the step itself."""
    inside: dict[str, str] = {}
    for outer, layer in parts.items():
        if isinstance(layer, keras.layers.RNN):
            why = f"is the cell of {outer!r} and runs inside its loop: watch {outer!r} instead"
        elif isinstance(layer, keras.layers.TimeDistributed | keras.layers.Bidirectional):
            why = f"is inside {outer!r}, which runs it over parts: watch {outer!r} instead"
        else:
            continue
        inside |= {name: why for name in parts if name.startswith(f"{outer}/")}
    return inside


def layout_of(operations: Iterable[Any]) -> Layout | None:
    """Return what the last operation that has channels says of them."""
    parts = [
        part
        for operation in operations
        for part in (
            operation._flatten_layers()
            if isinstance(operation, keras.layers.Layer)
            else [operation]
        )
    ]
    for part in reversed(parts):
        sizes = [getattr(part, name, None) for name in ("filters", "units", "output_dim")]
        width = next((size for size in sizes if isinstance(size, int)), None)
        data_format = getattr(part, "data_format", None)
        # A Flatten has a data format, too, and no channels any more.
        if (width, data_format) != (None, None) and not isinstance(part, keras.layers.Flatten):
            return Layout(data_format == "channels_first", width)
    return None
