"""torch.compile: graphs made before the hooks came must not be used again without them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .scope import Store

# Why the time that counting takes is not known.
UNSEEN = "the hooks ran inside graphs of torch.compile, into which no clock looks"
Mark = tuple[nn.Module, Callable[..., Any]]  # a module, and the method put on the instance


def anything_compiled() -> bool:
    """Whether torch.compile has made a graph in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and utils.counters["stats"]["unique_graphs"] > 0


def graphs_may_come() -> bool:
    """Whether torch.compile has been called in this process, or has made a graph.

    What it makes of a forward in an open batch is known too late: a graph cannot prepare what it reads.
    """
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is None:
        return False
    # Optimizers leave a None there, of what they exempt.
    called = getattr(frames, "cached_backends", {None: True})
    return any(backend is not None for backend in called.values()) or anything_compiled()


def is_compiled(model: nn.Module) -> bool:
    """Whether a model is, or holds, a compiled module.

    Examples
    --------
    >>> import torch
    >>> is_compiled(nn.Linear(2, 2)), is_compiled(torch.compile(nn.Linear(2, 2), backend="eager"))
    (False, True)
    """
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def mark(modules: Iterable[nn.Module]) -> list[Mark]:
    """Make graphs that were compiled for these modules without hooks invalid; return what was put.

    torch.compile does not look at hooks again once a graph exists: hooks that come later would never
    fire, silently. A graph does check that a module's ``forward`` is its class's own; the same
    method put on the instance changes nothing but that.
    """
    if not anything_compiled():
        return []
    marks = []
    for module in modules:
        own = type(module).forward.__get__(module)
        # Another meter's mark gives way to ours, so that it does not go with that meter.
        if module.__dict__.get("forward", own) == own:
            module.__dict__["forward"] = own
            marks.append((module, own))
    return marks


def unmark(marks: Iterable[Mark]) -> None:
    """Undo `mark`; what someone else has put there since stays."""
    for module, own in marks:
        if module.__dict__.get("forward") is own:
            del module.__dict__["forward"]


def repair(store: Store) -> None:
    """Make ordinary tensors of what a compiled graph made for a state.

    In inference mode a graph makes tensors that cannot be updated outside of it, and where it is recorded
    as a CUDA graph they lie in memory that the next graph takes for its own.
    """
    for state in store.layers.values():
        for name, tensor in state.tensors().items():
            if state.made_in_graph or tensor.is_inference():
                state.replace(name, tensor.clone())
        state.made_in_graph = False
    for decisions in store.predictions.values():
        if decisions.made_in_graph or decisions.ids.is_inference():
            decisions.ids, decisions.predictions = (
                decisions.ids.clone(),
                decisions.predictions.clone(),
            )
        decisions.made_in_graph = False


def hint(model: nn.Module) -> str:
    """Return what torch.compile may have to do with labels that were not seen."""
    if not (is_compiled(model) or anything_compiled()):
        return ""
    return (
        "; labels= is not seen inside a compiled forward unless the compiled model itself is passed to "
        "CollapseMeter"
    )
