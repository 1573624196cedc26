"""A forward of somebody's network of which no trace remains: its parts stand aside while it runs."""

import contextlib
import copy
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_CONTAINERS = (list, dict, set, deque)
StandIn = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def untouched(root: nn.Module, parameter: StandIn, buffer: StandIn) -> Iterator[None]:
    """Let a network run in eval mode, without its hooks, on stand-ins of parameters and buffers.

    Of its hooks those remain that compute a weight. Attributes that the forward sets, and tensors, arrays,
    lists and dictionaries it writes into, are as before afterwards.
    """
    modules, scripted = list[nn.Module](), list[nn.Module]()
    for module in root.modules():
        (scripted if isinstance(module, torch.jit.ScriptModule) else modules).append(module)
    modes = [module.training for module in scripted]
    attributes = [dict(module.__dict__) for module in modules]
    contents = [(v, _content(v)) for a in attributes for v in a.values() if _holds(v)]
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002 # theirs, if any
    known: dict[int, Tensor] = {}
    try:
        with torch.random.fork_rng(_devices(root)):
            for module in modules:
                state = module.__dict__
                state["training"] = False
                state["_parameters"] = _replaced(module._parameters, parameter, known)
                state["_buffers"] = _replaced(module._buffers, buffer, known)
                state["_compiled_call_impl"] = None
                hooks = weight_hooks(module)
                state.update({name: OrderedDict() for name in _HOOKS})
                state["_forward_pre_hooks"] = hooks
                state.update(_copies(state, buffer))
            for module in scripted:
                module.training = False  # no norm of theirs takes note of the batch
            yield
    finally:
        for module, mode in zip(scripted, modes, strict=True):
            module.training = mode
        for module, saved in zip(modules, attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(saved)
        for value, content in contents:
            _refill(value, content)
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002


def _replaced(
    tensors: Mapping[str, Tensor | None], stand_in: StandIn, known: dict[int, Tensor]
) -> dict[str, Tensor | None]:
    """Return the same names with stand-ins; tied tensors share one."""
    for tensor in tensors.values():
        if tensor is not None and id(tensor) not in known:
            known[id(tensor)] = stand_in(tensor)
    return {name: t if t is None else known[id(t)] for name, t in tensors.items()}


def weight_hooks(module: nn.Module) -> OrderedDict[int, Any]:
    """Return the hooks that compute a weight before each forward: ``weight_norm``, ``spectral_norm``, ``prune``."""
    return OrderedDict(
        (number, hook)
        for number, hook in module._forward_pre_hooks.items()
        if type(hook).__module__.startswith("torch.nn.utils.")
    )


def copied(parameter: Tensor) -> Tensor:
    """Return a copy of a parameter; only the shape of one that is spread over processes, which has no memory."""
    return parameter.detach() if 0 in parameter.stride() else parameter.detach().clone()


def with_tensors(value: Any, change: StandIn) -> Any:
    """Return inputs of a network with other tensors, also of objects that no other library knows: what it writes into them is no trace."""
    known: dict[int, Any] = {}

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if id(leaf) not in known:
            known[id(leaf)] = leaf
            if hasattr(leaf, "__dict__") and not (callable(leaf) or isinstance(leaf, ModuleType)):
                with contextlib.suppress(Exception):  # what cannot be copied is handed on
                    known[id(leaf)] = twin = copy.copy(leaf)
                    vars(twin).update(pytree.tree_map(changed, dict(vars(twin))))
        return known[id(leaf)]

    return pytree.tree_map(changed, value)


def _copies(state: Mapping[str, Any], buffer: StandIn) -> dict[str, Any]:
    """Return stand-ins of the tensors and arrays that a module holds as plain attributes."""
    tensors = {name: buffer(v) for name, v in state.items() if isinstance(v, Tensor)}
    return tensors | {name: v.copy() for name, v in state.items() if isinstance(v, np.ndarray)}


def _devices(root: nn.Module) -> list[torch.device]:
    """GPUs whose random state a forward may move."""
    devices = {p.device for p in root.parameters() if p.device.type == "cuda"}
    return sorted(devices, key=str)


def _holds(value: Any) -> bool:
    return isinstance(value, _CONTAINERS)


def _content(value: Any) -> list[Any]:
    return list(value.items()) if isinstance(value, dict) else list(value)


def _refill(value: Any, content: list[Any]) -> None:
    """Give a container what it held before, unless it holds that still."""
    now = _content(value)
    pairs = isinstance(value, dict)
    same = len(now) == len(content) and all(
        (a[0] is b[0] and a[1] is b[1]) if pairs else a is b
        for a, b in zip(now, content, strict=True)
    )
    if same:
        return
    value.clear()
    if isinstance(value, list | deque):
        value.extend(content)
    else:
        value.update(content)
