"""Which modules to watch: by name, pattern or predicate, or the blocks a person would name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

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
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_PASSES_ON = (nn.Flatten, nn.Identity, nn.modules.dropout._DropoutNd)
# A container that another one of a known kind holds under this name is a wrapper, not a layer.
_WRAPPED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WRAPPERS = {"DistributedDataParallel", "DataParallel", "AveragedModel"}


@dataclass
class Selection:
    """The modules to watch, in order, the head, and why every other one is not watched."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    head: str | None = None
    head_module: nn.Linear | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    automatic: bool = False


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every submodule by the name it has without wrappers.

    ``module.`` (data parallel), ``_orig_mod.`` (compile) and ``_fsdp_wrapped_module.`` are left out.

    Examples
    --------
    >>> list(named_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    ['0', '1']
    """
    named = {}
    for path, module in model.named_modules():
        segments = path.split(".") if path else []
        holder: nn.Module = model
        kept = []
        for segment in segments:
            wrapper = segment in _WRAPPED or (
                segment == "module" and type(holder).__name__ in _WRAPPERS
            )
            if not wrapper:
                kept.append(segment)
            holder = holder.get_submodule(segment)
        if kept:
            named[".".join(kept)] = module  # the innermost of a wrapped module comes last
    return named


def innermost(model: nn.Module) -> nn.Module:
    """Return the user's own module inside compile and parallel wrappers.

    Examples
    --------
    >>> inner = nn.Linear(2, 2)
    >>> innermost(nn.DataParallel(inner)) is inner
    True
    """
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
    """Choose the modules to watch.

    Parameters
    ----------
    model : nn.Module
    layers : "auto", str, iterable of str, or callable
        Names or shell patterns (``"encoder.*"``), or ``predicate(name, module) -> bool``.
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
        If a name or pattern matches nothing, or the head is not a linear layer.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> chosen = select(net, "auto", "auto", 3)
    >>> list(chosen.layers), chosen.head
    (['1'], '4')
    """
    named = named_layers(model)
    chosen = Selection()
    chosen.head, chosen.head_module = _find_head(named, head, num_classes)
    if isinstance(layers, str) and layers == "auto":
        chosen.automatic = True
        _choose_blocks(innermost(model), chosen)
    elif callable(layers):
        chosen.layers = {name: module for name, module in named.items() if layers(name, module)}
    else:
        chosen.layers = _match(named, [layers] if isinstance(layers, str) else list(layers))
    if chosen.head is not None:
        chosen.layers.pop(chosen.head, None)
    for name, module in named.items():
        if name not in chosen.layers and name != chosen.head:
            chosen.skipped.setdefault(name, _why_skipped(name, module, chosen))
    if not chosen.layers and chosen.head is None:
        raise ValueError(
            f"layers={layers!r} selects nothing of {type(model).__name__}; its modules: "
            f"{_listed(named)}"
        )
    return chosen


def _find_head(
    named: dict[str, nn.Module], head: str | None, num_classes: int | None
) -> tuple[str | None, nn.Linear | None]:
    if head is None:
        return None, None
    if head != "auto":
        module = named.get(head)
        if module is None:
            raise ValueError(f"head={head!r} is not a module of the model; it has {_listed(named)}")
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"head={head!r} is a {type(module).__name__}: name an nn.Linear, or pass head=None"
            )
        return head, module
    outputs = {num_classes} if num_classes is not None else None
    if num_classes == 2:
        outputs = {1, 2}  # one logit decides between two classes
    for name, module in reversed(named.items()):
        if isinstance(module, nn.Linear) and (outputs is None or module.out_features in outputs):
            return name, module
    return None, None


def _match(named: dict[str, nn.Module], patterns: list[str]) -> dict[str, nn.Module]:
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(named, pattern)
        if not matched:
            raise ValueError(
                f"layers={patterns!r}: {pattern!r} matches no module; the model has {_listed(named)}"
            )
        chosen.update(matched)
    return {name: module for name, module in named.items() if name in chosen}


def _listed(named: Iterable[str], most: int = 12) -> str:
    names = list(named)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def _why_skipped(name: str, module: nn.Module, chosen: Selection) -> str:
    for parent in chosen.layers:
        if name.startswith(f"{parent}."):
            return f"inside {parent}, which is watched"
    if any(layer.startswith(f"{name}.") for layer in chosen.layers):
        return "its parts are watched"
    if chosen.head is not None and chosen.head.startswith(f"{name}."):
        return "it holds the head"
    if isinstance(module, _PASSES_ON):
        return "passes its input on"
    return (
        "not chosen by layers=" if not chosen.automatic else "inside a block whose end is watched"
    )


def _choose_blocks(model: nn.Module, chosen: Selection) -> None:
    """Fill in the blocks of a model: stages, repeated blocks, or groups around a layer with weights."""
    inner = {module: name for name, module in named_layers(model).items()}
    blocks = [b for b in _blocks(model) if b is not chosen.head_module]
    if chosen.head_module is not None:
        feeding = _just_before(model, chosen.head_module)
        for block in list(blocks):
            if any(block is module for module in feeding):
                blocks.remove(block)
                chosen.skipped[inner[block]] = f"its output is the input of {chosen.head}"
    chosen.layers = {inner[block]: block for block in blocks}


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    stages = [child for child in children if isinstance(child, nn.Sequential)]
    composite = [child for child in children if _holds_weights(child) and list(child.children())]
    if isinstance(module, nn.Sequential) and not composite:
        yield from _groups(children)
        return
    if not composite:
        yield from (child for child in children if isinstance(child, _PARAMETRIC))
        return
    for child in composite:
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from (member for member in child.children() if _holds_weights(member))
        elif isinstance(child, nn.Sequential) and len(stages) == 1:
            yield from _members(child)
        elif isinstance(child, nn.Sequential) or isinstance(module, nn.Sequential):
            yield child
        elif isinstance(child, nn.TransformerEncoder | nn.TransformerDecoder):
            yield from child.layers
        elif _repeats(child) or len(composite) <= 2:
            yield from _blocks(child)
        else:
            yield child


def _members(stage: nn.Sequential) -> Iterator[nn.Module]:
    """Members of the only Sequential of a model: repeated blocks, or layers to be grouped."""
    members = list(stage.children())
    if any(list(member.children()) for member in members):
        yield from (member for member in members if _holds_weights(member))
    else:
        yield from _groups(members)


def _repeats(module: nn.Module) -> bool:
    """Whether a module holds a list of blocks somewhere, so that it is a backbone and not a block."""
    return any(
        isinstance(inner, nn.ModuleList | nn.Sequential | nn.TransformerEncoder)
        for inner in module.modules()
        if inner is not module
    )


def _groups(layers: list[nn.Module]) -> Iterator[nn.Module]:
    """The end of every run [layer with weights, norm, activation, pool]: what the next layer reads."""
    last: nn.Module | None = None
    for layer in layers:
        if isinstance(layer, _PARAMETRIC):
            if last is not None:
                yield last
            last = layer
        elif last is not None and not isinstance(layer, _PASSES_ON):
            last = layer
    if last is not None:
        yield last


def _holds_weights(module: nn.Module) -> bool:
    return any(isinstance(inner, _PARAMETRIC) for inner in module.modules())


def _just_before(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Modules whose output is certainly the head's input: those just before it in a Sequential."""
    for container in model.modules():
        members = list(container.children())
        if isinstance(container, nn.Sequential) and any(member is head for member in members):
            before = members[: next(i for i, member in enumerate(members) if member is head)]
            while before and isinstance(before[-1], _PASSES_ON):
                before.pop()
            return before[-1:]
    return []
