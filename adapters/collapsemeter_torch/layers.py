"""Which modules to watch: by name, pattern or predicate, or the blocks a person would name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from collapsemeter.adapter.selection import listed, matching, unfit_head, unknown_head, why_skipped

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


@dataclass
class Selection:
    """The modules to watch, in order, the head, and why every other one is not watched."""

    layers: dict[str, nn.Module] = field(default_factory=dict)
    head: str | None = None
    head_module: nn.Linear | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    before: dict[str, list[nn.Module]] = field(default_factory=dict)  # in its Sequential, by layer
    automatic: bool = False

    @property
    def watched(self) -> list[str]:
        """Names of the layers, and last of the head."""
        return [*self.layers, *([] if self.head is None else [self.head])]

    @property
    def head_outputs(self) -> int | None:
        """Outputs of the head; None without one."""
        return None if self.head_module is None else self.head_module.out_features


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
    chosen.head, chosen.head_module = _find_head(named, head, num_classes, chosen.skipped)
    if isinstance(layers, str) and layers == "auto":
        chosen.automatic = True
        _choose_blocks(innermost(model), chosen)
    elif callable(layers):
        chosen.layers = {name: module for name, module in named.items() if layers(name, module)}
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        chosen.layers = {name: named[name] for name in matching(named, patterns)}
    if chosen.head is not None:
        chosen.layers.pop(chosen.head, None)
    for name, module in named.items():
        if name in chosen.layers:
            chosen.skipped.pop(name, None)
        elif name != chosen.head:
            why = why_skipped(
                name,
                chosen.layers,
                chosen.head,
                chosen.skipped,
                separator=".",
                passes_on=isinstance(module, _PASSES_ON),
                automatic=chosen.automatic,
            )
            chosen.skipped.setdefault(name, why)
    if not chosen.layers and chosen.head is None:
        raise ValueError(
            f"layers={layers!r} selects nothing of {type(model).__name__}; its modules: "
            f"{listed(named)}"
        )
    for name in chosen.layers:
        parent, _, own = name.rpartition(".")
        container = named[parent] if parent else innermost(model)
        if isinstance(container, nn.Sequential):
            names = list(container._modules)
            chosen.before[name] = [container.get_submodule(n) for n in names[: names.index(own)]]
    return chosen


def _find_head(
    named: dict[str, nn.Module],
    head: str | None,
    num_classes: int | None,
    skipped: dict[str, str],
) -> tuple[str | None, nn.Linear | None]:
    if head is None:
        return None, None
    if head != "auto":
        module = named.get(head)
        if module is None:
            raise unknown_head(head, named)
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"head={head!r} is a {type(module).__name__}: name an nn.Linear, or pass head=None"
            )
        return head, module
    outputs = {num_classes} if num_classes is not None else None
    if num_classes == 2:
        outputs = {1, 2}  # one logit decides between two classes
    linear = {name: m for name, m in reversed(named.items()) if isinstance(m, nn.Linear)}
    for name, module in linear.items():
        if outputs is None or module.out_features in outputs:
            return name, module
    if num_classes is not None and linear:
        name, module = next(iter(linear.items()))
        skipped[name] = unfit_head(name, module.out_features, num_classes)
    return None, None


def _choose_blocks(model: nn.Module, chosen: Selection) -> None:
    """Fill in the blocks of a model, but the one whose output the head's input is anyway."""
    inner = {module: name for name, module in named_layers(model).items()}
    blocks = {inner[block]: block for block in _blocks(model, chosen.head_module)}
    feeding = _just_before(model, chosen.head_module)
    for name, block in blocks.items():
        if block is feeding:
            chosen.skipped[name] = f"its output is the input of {chosen.head}"
        else:
            chosen.layers[name] = block


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
