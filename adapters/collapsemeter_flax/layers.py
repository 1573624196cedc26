"""Which layers to watch: by name or pattern, or the blocks a person would name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from collapsemeter.adapter.declared import select_layers
from collapsemeter.adapter.selection import Selection

Layers = Literal["auto"] | str | Iterable[str] | Callable[[str, type], bool]
Path = tuple[str, ...]

_LISTS = {"List", "Dict", "Sequential"}
_LAYERS = ("flax.nnx.nn.", "flax.nnx.helpers", "flax.nnx.pytreelib", "flax.linen.")
_BASES = {"flax.linen.module"}  # and in flax.nnx.pytreelib all but the lists
_WRAPS = {"WeightNorm", "SpectralNorm"}  # around a layer: not a norm of features


@dataclass(eq=False)
class Part:
    """A module of the model, as an abstract run of it showed it."""

    path: Path  # its attributes (or linen names) from the root
    type: type
    own_weights: bool = False
    outputs: int | None = None  # of a linear layer, how many
    order: float = math.inf  # when it was first called; infinity if it never was
    inputs: list[Any] = field(default_factory=list)  # what it was given, and gave, by identity
    gives: list[Any] = field(default_factory=list)
    children: list[Part] = field(default_factory=list)

    @property
    def ran(self) -> bool:
        return self.order < math.inf

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
    """Choose the modules to watch, and the head."""
    in_order = sorted(everything(root), key=lambda part: part.order)
    named = {part.name: part for part in in_order if part.path and not _is_bare(part)}
    return select_layers(
        named,
        layers,
        head,
        num_classes,
        blocks=lambda name: _automatic(root, None if name is None else named[name]),
        # A linear layer that never ran is the head only where it is named.
        outputs=lambda part: part.outputs if part.ran or part.name == head else None,
        kind_of=lambda part: part.type,
        predicate_argument=lambda part: part.type,
        never_ran={name: "its __call__ never ran" for name, part in named.items() if not part.ran},
        separator=".",
        head_kind="an nnx.Linear or nn.Dense",
        model_name=root.type.__name__,
    )


def _is_bare(part: Part) -> bool:
    """Whether it only holds others: a list is never called."""
    return part.framework_type in ("List", "Dict")


def _automatic(root: Part, head: Part | None) -> tuple[list[str], dict[str, str]]:
    """Name the blocks, but not one whose output is just what the head is given, and say so."""
    names, reasons = [], {}
    for block in _blocks(root, head):
        if head is not None and any(x is y for x in head.inputs for y in block.gives):
            reasons[block.name] = f"its output is the input of {head.name}"
        elif block.ran:
            names.append(block.name)
    return names, reasons


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
