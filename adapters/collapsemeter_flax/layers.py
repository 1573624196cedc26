"""Which layers to watch: by name or pattern, or the blocks a person would name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from collapsemeter.adapter.selection import (
    classes_of,
    listed,
    matching,
    unfit_head,
    unknown_head,
    why_skipped,
)

Layers = Literal["auto"] | str | Iterable[str] | Callable[[str, type], bool]
Path = tuple[str, ...]

_LISTS = {"List", "Dict", "Sequential"}
_LAYERS = ("flax.nnx.nn.", "flax.nnx.helpers", "flax.nnx.pytreelib", "flax.linen.")
_BASES = {"flax.linen.module"}  # and in flax.nnx.pytreelib all but the lists
_WRAPS = {"WeightNorm", "SpectralNorm"}  # around a layer: not a norm of features


@dataclass(eq=False)
class Part:
    """A module of the model, as an abstract run of it showed it.

    Attributes
    ----------
    path : tuple of str
        Its attributes (or linen names) from the root.
    type : type
    order : float
        When it was first called; infinity if it never was.
    own_weights : bool
        Whether it holds parameters itself.
    outputs : int or None
        Of a linear layer, how many.
    inputs, gives : list of object
        What it was given and what it gave, to compare by identity.
    """

    path: Path
    type: type
    own_weights: bool = False
    outputs: int | None = None
    order: float = math.inf
    inputs: list[Any] = field(default_factory=list)
    gives: list[Any] = field(default_factory=list)
    children: list[Part] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @cached_property
    def framework_type(self) -> str:
        """The class of Flax that this is or derives from; empty for a user's own module."""
        for base in self.type.__mro__:
            if base.__module__ in _BASES or not base.__module__.startswith(_LAYERS):
                continue
            if base.__module__ != "flax.nnx.pytreelib" or base.__name__ in _LISTS:
                return base.__name__
        return ""

    @property
    def is_list(self) -> bool:
        return self.framework_type in _LISTS

    @property
    def is_norm(self) -> bool:
        return self.framework_type.endswith("Norm") and self.framework_type not in _WRAPS

    @cached_property
    def holds_weights(self) -> bool:
        return not self.is_norm and (
            self.own_weights or any(child.holds_weights for child in self.children)
        )

    @cached_property
    def is_composite(self) -> bool:
        """Whether it is made of parts with weights; a layer of Flax is one thing, whatever is inside."""
        if self.framework_type and not self.is_list and self.framework_type not in _WRAPS:
            return False
        return any(child.holds_weights for child in self.children)

    def holds(self, other: Part | None) -> bool:
        return other is not None and other.path[: len(self.path)] == self.path

    def repeats(self) -> bool:
        """Whether it is or holds a row of blocks, so that it is a backbone and not a block."""
        blocks = [child for child in self.children if child.is_composite]
        alike = len({child.type for child in blocks}) < len(blocks)
        return bool(blocks and (self.is_list or alike)) or any(c.repeats() for c in self.children)


@dataclass(frozen=True)
class Selection:
    """The layers to watch in the order they run, the head, and why every other one is not watched."""

    layers: tuple[str, ...]
    head: str | None
    head_outputs: int | None
    skipped: Mapping[str, str] = field(compare=False, hash=False)

    @property
    def watched(self) -> list[str]:
        """Names of the layers, and last of the head."""
        return [*self.layers, *([] if self.head is None else [self.head])]

    def classes(self, num_classes: int | None) -> int:
        """Return C, by default the head's outputs, see `collapsemeter.adapter.selection.classes_of`."""
        kind = "nnx.Linear or nn.Dense"
        return classes_of(self.head, self.head_outputs, num_classes, kind)


def tree(parts: Iterable[Part]) -> Part:
    """Hang parts under their parents, in the order they run, and return the root."""
    by_path = {part.path: part for part in parts}
    for path in sorted(by_path, key=len, reverse=True):
        part = by_path[path]
        part.children.sort(key=lambda child: child.order)
        part.order = min([part.order, *(child.order for child in part.children)])
        # A module between them may not have been called.
        for length in range(len(path) - 1, -1, -1):
            if parent := by_path.get(path[:length]):
                parent.children.append(part)
                break
    return by_path[()]


def everything(root: Part) -> Iterator[Part]:
    """Yield a part and all inside it, in the order they run."""
    yield root
    for child in root.children:
        yield from everything(child)


def select(root: Part, layers: Layers, head: str | None, num_classes: int | None) -> Selection:
    """Choose the modules to watch.

    Parameters
    ----------
    root : Part
    layers : "auto", str, iterable of str, or callable
        Names or shell patterns (``"encoder.*"``), or ``predicate(name, type) -> bool``.
    head : "auto", name, or None
        The final linear layer; its input is watched under its name.
    num_classes : int, optional
        Helps to tell the head from other linear layers.

    Returns
    -------
    Selection

    Raises
    ------
    ValueError
        If a name or pattern matches nothing, nothing is selected, or the head is not a linear layer.
    """
    named = {part.name: part for part in everything(root) if part.path and not _is_bare(part)}
    skipped: dict[str, str] = {}
    its_head = _find_head(named, head, num_classes, skipped)
    automatic = isinstance(layers, str) and layers == "auto"
    if automatic:
        chosen = _choose_blocks(root, its_head, skipped)
    elif callable(layers):
        chosen = [name for name, part in named.items() if layers(name, part.type)]
    else:
        chosen = matching(named, [layers] if isinstance(layers, str) else list(layers))
    if its_head is not None:
        chosen = [name for name in chosen if name != its_head.name]
    if not chosen and its_head is None:
        raise ValueError(
            f"layers={layers!r} selects nothing of {root.type.__name__}; its modules: {listed(named)}"
        )
    head_name = None if its_head is None else its_head.name
    for name, part in named.items():
        if name in chosen:
            skipped.pop(name, None)
        elif name != head_name:
            never = "its __call__ never ran" if part.order == math.inf else None
            why = never or why_skipped(
                name,
                chosen,
                head_name,
                skipped,
                separator=".",
                passes_on=False,
                automatic=automatic,
            )
            skipped.setdefault(name, why)
    return Selection(
        tuple(chosen), head_name, None if its_head is None else its_head.outputs, skipped
    )


def _is_bare(part: Part) -> bool:
    """Whether it only holds others: a list is never called."""
    return part.framework_type in ("List", "Dict")


def _find_head(
    named: Mapping[str, Part], head: str | None, num_classes: int | None, skipped: dict[str, str]
) -> Part | None:
    if head is None:
        return None
    if head != "auto":
        part = named.get(head)
        if part is None:
            raise unknown_head(head, named)
        if part.outputs is None:
            raise ValueError(
                f"head={head!r} is a {part.type.__name__}: name a linear layer (nnx.Linear, "
                "nn.Dense), or pass head=None"
            )
        return part
    wanted = None if num_classes is None else {num_classes} | ({1} if num_classes == 2 else set())
    linear = [part for part in named.values() if part.outputs is not None and part.order < math.inf]
    fitting = [part for part in linear if wanted is None or part.outputs in wanted]
    if linear and not fitting and num_classes is not None:
        last = max(linear, key=lambda part: part.order)
        assert last.outputs is not None
        skipped[last.name] = unfit_head(last.name, last.outputs, num_classes)
    return max(fitting, key=lambda part: part.order, default=None)


def _choose_blocks(root: Part, head: Part | None, skipped: dict[str, str]) -> list[str]:
    """Name the blocks, but not one whose output is just what the head is given."""
    chosen = []
    for block in _blocks(root, head):
        if head is not None and any(x is y for x in head.inputs for y in block.gives):
            skipped[block.name] = f"its output is the input of {head.name}"
        elif block.order < math.inf:
            chosen.append(block.name)
    return chosen


def _blocks(part: Part, head: Part | None) -> Iterator[Part]:
    """Yield the blocks inside a part, in order; what holds the head is never one itself."""
    parts = [child for child in part.children if child.holds_weights and child is not head]
    composite = [child for child in parts if child.is_composite]
    whole = [child for child in composite if not child.holds(head)]
    ends = parts if part.is_list or not composite else _from_first_stage(parts, whole)
    for end in ends:
        if end in composite and (end not in whole or _opens(part, end, whole)):
            yield from _blocks(end, head)
        else:
            yield end


def _opens(parent: Part, part: Part, siblings: list[Part]) -> bool:
    """Whether to look for blocks inside a part: a backbone or a list, not one block of several."""
    if part.framework_type in ("List", "Dict"):
        return True
    if parent.is_list:
        return len(siblings) == 1 and parent.framework_type == "Sequential"
    alike = [sibling for sibling in siblings if sibling.type is part.type]
    parts = [child for child in part.children if child.holds_weights]
    return (len(siblings) == 1 and (len(parts) > 1 or part.repeats())) or (
        len(alike) == 1 and part.repeats()
    )


def _from_first_stage(parts: list[Part], whole: list[Part]) -> list[Part]:
    """Of a module's parts leave out the stem: what comes before the first backbone or stage."""
    stages = [
        part
        for part in whole
        if len(whole) == 1 or part.repeats() or sum(p.type is part.type for p in whole) > 1
    ]
    first = next(i for i, part in enumerate(parts) if part is (stages or whole or parts)[0])
    return parts[first:]
