"""Which modules to watch: by name, pattern or predicate, or the blocks a person would name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from collapsemeter.adapter.declared import select_layers
from collapsemeter.adapter.selection import Selection

Predicate = Callable[[str, nn.Module], bool]
Layers = Literal["auto"] | str | Iterable[str] | Predicate

_PARAMETRIC = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.MultiheadAttention,
)
_PASSES_ON = (nn.Flatten, nn.Identity, nn.modules.dropout._DropoutNd)
# A container that another one of a known kind holds under this name is a wrapper, not a layer.
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WRAPPERS = {"DistributedDataParallel", "DataParallel", "AveragedModel"}


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every submodule by the name it has without wrappers: data parallel, compile and FSDP."""
    named = {}
    for path, module in model.named_modules():
        segments = path.split(".") if path else []
        holder: nn.Module = model
        names = []
        for segment in segments:
            wrapper = segment in _WRAPPED or (
                segment == "module" and type(holder).__name__ in _WRAPPERS
            )
            if not wrapper:
                names.append(segment)
            holder = holder.get_submodule(segment)
        if names:
            named[".".join(names)] = module  # the innermost of a wrapped module comes last
    return named


def innermost(model: nn.Module) -> nn.Module:
    """Return the user's own module inside compile and parallel wrappers."""
    while True:
        for name, child in model.named_children():
            if name in _WRAPPED or (name == "module" and type(model).__name__ in _WRAPPERS):
                model = child
                break
        else:
            return model


def select(
    model: nn.Module, layers: Layers, head: str | None, num_classes: int | None
) -> Selection:
    """Choose the modules to watch."""
    named, root = named_layers(model), innermost(model)

    selection = select_layers(
        named,
        layers,
        head,
        num_classes,
        blocks=partial(_blocks_by_name, root),
        outputs=lambda module: module.out_features if isinstance(module, nn.Linear) else None,
        head_kind="an nn.Linear",
        model_name=type(model).__name__,
        passes_on=lambda module: isinstance(module, _PASSES_ON),
    )
    before = {}
    for name in selection.layers:
        parent, _, last = name.rpartition(".")
        container = named[parent] if parent else root
        if isinstance(container, nn.Sequential):
            names = list(container._modules)
            before[name] = [container.get_submodule(n) for n in names[: names.index(last)]]
    modules = {name: named[name] for name in selection.watched}
    return replace(selection, modules=modules, before=before)


def _blocks_by_name(root: nn.Module, head: str | None) -> tuple[list[str], dict[str, str]]:
    """Name the blocks of a model, but the one whose output the head's input is anyway."""
    named = named_layers(root)
    names = {module: name for name, module in named.items()}
    head_module = None if head is None else named[head]
    feeding = _just_before(root, head_module)
    blocks = {names[block]: block for block in _blocks(root, head_module)}
    chosen = [name for name, block in blocks.items() if block is not feeding]
    return chosen, {
        name: f"its output is the input of {head}" for name in blocks if name not in chosen
    }


def _blocks(module: nn.Module, head: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the blocks inside a module, in order; what holds the head is never one itself."""
    children = [innermost(child) for child in module.children()]
    parts = [child for child in children if _holds_weights(child) and child is not head]
    composite = [part for part in parts if not isinstance(part, _PARAMETRIC)]
    whole = [part for part in composite if all(inner is not head for inner in part.modules())]
    if isinstance(module, nn.Sequential):
        ends = dict(_groups(children))
    elif isinstance(module, nn.ModuleList | nn.ModuleDict) or not composite:
        ends = {part: part for part in composite or parts}
    else:
        ends = _named_parts(parts, whole, head)
    for part, end in ends.items():
        if part is head:
            continue
        if part in composite and (part not in whole or _opens(module, part, whole)):
            yield from _blocks(part, head)
        else:
            yield end


def _opens(module: nn.Module, part: nn.Module, siblings: list[nn.Module]) -> bool:
    """Whether to look for blocks inside a part: a backbone or a list, not one block of several."""
    if isinstance(part, nn.ModuleList | nn.ModuleDict):
        return True
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    alike = [sibling for sibling in siblings if type(sibling) is type(part)]
    if isinstance(module, nn.Sequential):
        return len(siblings) == 1
    return len(siblings) == 1 or (len(alike) == 1 and _repeats(part))


def _named_parts(
    parts: list[nn.Module], whole: list[nn.Module], head: nn.Module | None
) -> dict[nn.Module, nn.Module]:
    """Of a module's attributes leave out the stem: what comes before the first backbone or stage."""
    stages = [
        part
        for part in whole
        if len(whole) == 1 or _repeats(part) or sum(type(p) is type(part) for p in whole) > 1
    ]
    first = parts.index((stages or whole or parts)[0])
    return {part: part for part in parts[first:]}


def _repeats(module: nn.Module) -> bool:
    """Whether a module is or holds a list of blocks, so that it is a backbone and not a block."""
    return any(
        isinstance(inner, nn.ModuleList | nn.ModuleDict | nn.Sequential)
        and any(
            _holds_weights(member) and not isinstance(innermost(member), _PARAMETRIC)
            for member in inner.children()
        )
        for inner in module.modules()
    )


def _groups(layers: list[nn.Module]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield start and end of every run [part with weights, norm, activation, pool] of a Sequential."""
    start = end = None
    for layer in layers:
        if _holds_weights(layer):
            if start is not None and end is not None:
                yield start, end
            start = end = layer
        elif start is not None and not isinstance(layer, _PASSES_ON):
            end = layer
    if start is not None and end is not None:
        yield start, end


def _holds_weights(module: nn.Module) -> bool:
    return any(isinstance(inner, _PARAMETRIC) for inner in module.modules())


def _just_before(model: nn.Module, head: nn.Module | None) -> nn.Module | None:
    """Return the module of a Sequential whose output is certainly the head's input."""
    for container in model.modules():
        members = [innermost(child) for child in container.children()]
        if isinstance(container, nn.Sequential) and head in members:
            before = [m for m in members[: members.index(head)] if not isinstance(m, _PASSES_ON)]
            return before[-1] if before else None
    return None
