"""Which layers to watch: what every adapter's ``layers=``, ``head=`` and printed summary share."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from ..system.escaping import printable
from ..system.suggest import did_you_mean
from ..system.suggest import listed as listed
from ..system.warning import warn

Layer = TypeVar("Layer")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Selection:
    """The layers to watch, in order, the head, and why every other one is not watched.

    Attributes
    ----------
    layers : tuple of str
        Without the head.
    head : str or None
        The final linear layer; its input is watched under its name.
    head_outputs : int or None
        How many outputs the head has.
    skipped : mapping from name to reason
    modules : mapping from name to object
        The framework's own objects, the head among them.
    before : mapping from name to objects
        What runs just before a layer and speaks for its channels.
    head_kind : str
        What a head is in this framework, with its article.
    """

    layers: tuple[str, ...]
    head: str | None = None
    head_outputs: int | None = None
    skipped: Mapping[str, str] = field(default_factory=dict, compare=False)
    modules: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    before: Mapping[str, Sequence[Any]] = field(default_factory=dict, compare=False, repr=False)
    head_kind: str = "a linear layer"

    @property
    def watched(self) -> list[str]:
        """Names of the layers, and last of the head."""
        return [*self.layers, *([] if self.head is None else [self.head])]

    @property
    def head_module(self) -> Any:
        """The framework's own object of the head; None without one."""
        return None if self.head is None else self.modules.get(self.head)

    def classes(self, num_classes: int | None) -> int:
        """Return C: what was asked for, by default the head's outputs, two for a single logit."""
        if num_classes is None:
            if self.head_outputs is None:
                kind = self.head_kind.partition(" ")[2]
                raise ValueError(
                    f"the model has no final {kind} to count classes by: pass num_classes="
                )
            return max(self.head_outputs, 2)
        if self.head_outputs is not None and self.head_outputs not in _head_sizes(num_classes):
            raise ValueError(
                f"head {self.head!r} has {self.head_outputs} outputs and num_classes={num_classes}: "
                "they must agree; pass head=None to measure without a head"
            )
        return num_classes

    def describe(self, num_classes: int) -> str:
        """Return in words what is watched, and why every other layer is not."""
        names = [
            f"{printable(name)} (input of the head)" if name == self.head else printable(name)
            for name in self.watched
        ]
        lines = [f"collapsemeter watches {num_classes} classes in: {', '.join(names)}"]
        if self.head is None:
            lines.append(
                f"  no head, which would be {self.head_kind} with {num_classes} outputs: NC3 and NC4 "
                "are not measured; name it with head="
            )
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            by_reason.setdefault(printable(reason), []).append(printable(name))
        lines += [f"  not {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
        return "\n".join(lines)


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
    return Selection(tuple(chosen), head, head_outputs, skipped, head_kind=head_kind)


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


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that a name or shell pattern selects, in the order of the model."""
    names = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} is a {type(pattern).__name__}, and names are strings; the "
                f"model has {listed(names)}"
            )
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"layers={list(patterns)!r}: {pattern!r} matches no module; the model has "
                f"{listed(names)}{did_you_mean(pattern, names)}"
            )
        chosen.update(matched)
    return [name for name in names if name in chosen]


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
