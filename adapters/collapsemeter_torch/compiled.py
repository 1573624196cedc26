"""torch.compile: graphs made before the hooks came must not be used again without them."""

import gc
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

# Why the time that counting takes is not known.
UNSEEN = "the hooks ran inside graphs of torch.compile, into which no clock looks"
CompiledMark = tuple[nn.Module, Callable[..., Any]]  # a module, and the method put on the instance


def anything_compiled() -> bool:
    """Whether torch.compile has made a graph in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and utils.counters["stats"]["unique_graphs"] > 0


def eager() -> AbstractContextManager[object]:
    """Return a context in which compiled models run as they were written."""
    if (
        "torch._dynamo.eval_frame" not in sys.modules
    ):  # nothing is compiled, and to import this takes seconds
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


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
    """Whether a model is, or holds, a compiled module."""
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def wrappers(model: nn.Module) -> list[nn.Module]:
    """Return the compiled models around a model that somebody holds."""
    if not graphs_may_come():  # to look at all objects takes a tenth of a second
        return []
    kind = sys.modules["torch._dynamo.eval_frame"].OptimizedModule
    return [o for o in gc.get_objects() if type(o) is kind and o._orig_mod is model]


def mark(modules: Iterable[nn.Module]) -> list[CompiledMark]:
    """Make graphs that were compiled for these modules without hooks invalid; return what was put.

    torch.compile does not look at hooks again once a graph exists: hooks that come later would never
    fire, silently. A graph does check that a module's ``forward`` is its class's own; the same
    method put on the instance changes nothing but that.
    """
    if not anything_compiled():
        return []
    marks = []
    for module in modules:
        forward = type(module).forward.__get__(module)
        # Another meter's mark gives way to ours, so that it does not go with that meter.
        if module.__dict__.get("forward", forward) == forward:
            module.__dict__["forward"] = forward
            marks.append((module, forward))
    return marks


def unmark(marks: Iterable[CompiledMark]) -> None:
    """Undo `mark`; what someone else has put there since stays."""
    for module, forward in marks:
        if module.__dict__.get("forward") is forward:
            del module.__dict__["forward"]


def hint(model: nn.Module) -> str:
    """Return what torch.compile may have to do with labels that were not seen."""
    if not (is_compiled(model) or anything_compiled()):
        return ""
    return (
        "; labels= is not seen inside a compiled forward unless the compiled model itself is passed to "
        "CollapseMeter"
    )
