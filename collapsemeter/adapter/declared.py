"""Which layers to watch by the order of their declaration, until every adapter learns it from a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from ..system.suggest import did_you_mean, listed
from ..system.warning import warn
from .selection import Selection, matching

Layer = TypeVar("Layer")
_NOTHING: Mapping[str, str] = MappingProxyType({})


def select_layers(
    named: Mapping[str, Layer],
    layers: Any,
    head: str | None,
    num_classes: int | None,
    *,
    blocks: Callable[[str | None], tuple[Iterable[str], Mapping[str, str]]],
    outputs: Callable[[Layer], int | None],
    head_kind: str,
    model_name: str,
    parts: str = "modules",
    separator: str = ".",
    predicate_argument: Callable[[Layer], Any] = lambda layer: layer,
    kind_of: Callable[[Layer], type] = type,
    passes_on: Callable[[Layer], bool] = lambda layer: False,
    unseen: Mapping[str, str] = _NOTHING,
    never_ran: Mapping[str, str] = _NOTHING,
) -> Selection:
    """Choose the layers to watch.

    Parameters
    ----------
    named : mapping from name to layer
        Every layer of the model.
    layers : "auto", str, iterable of str, or callable
        Names or shell patterns, or ``predicate(name, predicate_argument(layer)) -> bool``.
    head : "auto", name, or None
    num_classes : int, optional
        Helps to tell the head from other linear layers.
    blocks : callable
        From the head's name to the names that ``auto`` takes, and reasons against others.
    outputs : callable
        How many outputs a linear layer has; None for any other layer.
    head_kind : str
        What a head is in this framework, with its article.
    model_name, parts : str
        For the error: the model's class, and what its layers are called.
    separator : str
        Between the parts of a name: what is inside ``a`` is called ``a.b`` or ``a/b``.
    kind_of : callable
        The class of a layer.
    passes_on : callable
        Whether a layer gives what it is given.
    unseen : mapping from name to reason
        Layers that cannot be watched.
    never_ran : mapping from name to reason
        What comes before any other reason not to watch a layer.

    Raises
    ------
    ValueError
        If a name or pattern matches nothing, nothing is selected, the head is not a linear layer,
        or a layer cannot be watched.
    """
    skipped: dict[str, str] = {}
    if head == "auto":
        linear = {name: outputs(layer) for name, layer in named.items() if name not in unseen}
        head = _find_head(linear, num_classes, skipped)
    elif head is not None:
        _check_head(head, named, outputs, kind_of, head_kind)
    automatic = isinstance(layers, str) and layers == "auto"
    if automatic:
        automatic_names, reasons = blocks(head)
        chosen, skipped = list(automatic_names), skipped | dict(reasons)
    elif callable(layers):
        chosen = [name for name, layer in named.items() if layers(name, predicate_argument(layer))]
    else:
        chosen = matching(named, [layers] if isinstance(layers, str) else list(layers))
    chosen = [name for name in chosen if name != head]
    for name in chosen:
        if name in unseen:
            raise ValueError(f"layer {name!r} {unseen[name]}")
    if not chosen and head is None:
        raise ValueError(
            f"layers={layers!r} selects nothing of {model_name}; its {parts}: {listed(named)}"
        )
    for name, layer in named.items():
        if name in chosen:
            skipped.pop(name, None)
        elif name != head and name not in skipped:
            skipped[name] = (
                never_ran.get(name)
                or unseen.get(name)
                or _why_skipped(name, chosen, head, skipped, separator)
                or _why_no_block(passes_on(layer), automatic)
            )
    head_outputs = None if head is None else outputs(named[head])
    return Selection(tuple(chosen), head, width=head_outputs, skipped=skipped, head_kind=head_kind)


def _check_head(
    head: str,
    named: Mapping[str, Layer],
    outputs: Callable[[Layer], int | None],
    kind_of: Callable[[Layer], type],
    head_kind: str,
) -> None:
    if head not in named:
        raise ValueError(
            f"head={head!r} is not a layer of the model; it has {listed(named)}"
            f"{did_you_mean(head, named)}"
        )
    if outputs(named[head]) is None:
        raise ValueError(
            f"head={head!r} is a {kind_of(named[head]).__name__}: name {head_kind}, or pass head=None"
        )


def _find_head(
    linear: Mapping[str, int | None], num_classes: int | None, skipped: dict[str, str]
) -> str | None:
    """Return the last linear layer with an output for each class; warn where the last one has others."""
    last: str | None = None
    for name, size in reversed(list(linear.items())):
        if size is None:
            continue
        if num_classes is None or size in _head_sizes(num_classes):
            return name
        last = last or name
    if last is not None and num_classes is not None:
        size = linear[last] or 0
        skipped[last] = f"it has {size} outputs, which is no head of num_classes={num_classes}"
        warn(
            f"no head is watched, so NC3 is not measured: {last!r} is the model's last linear layer, and "
            f"{skipped[last]}; pass num_classes={max(size, 2)}, name another layer with head=, or pass head=None",
            stacklevel=6,
        )
    return None


def _head_sizes(num_classes: int) -> set[int]:
    return {1, 2} if num_classes == 2 else {num_classes}  # one logit decides between two classes


def _why_skipped(
    name: str,
    chosen: Iterable[str],
    head: str | None,
    skipped: Mapping[str, str],
    separator: str,
) -> str | None:
    """Return why a layer is not watched, as far as its place among the others tells."""
    for parent in chosen:
        if name.startswith(parent + separator):
            return f"inside {parent}, which is watched"
    for parent, reason in skipped.items():
        if name.startswith(parent + separator) and reason.startswith("its output"):
            return f"inside {parent}: {reason}"
    if any(layer.startswith(name + separator) for layer in chosen):
        return "its parts are watched"
    if head is not None and head.startswith(name + separator):
        return "it holds the head"
    return None


def _why_no_block(passes_on: bool, automatic: bool) -> str:
    if passes_on:
        return "passes its input on"
    if not automatic:
        return "not chosen by layers="
    return "not the end of a block; name it in layers= to watch it"
