"""Parameters that are spread over processes, by FSDP or on a device mesh: their shapes, and their values."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_FSDP = "FullyShardedDataParallel"  # the first one, whose wrappers hold flat parameters
_FSDP2 = "FSDPModule"
_DDP = "DistributedDataParallel"
_HOLDS = {_FSDP: "_fsdp_wrapped_module", _DDP: "module"}


def is_sharded(model: nn.Module) -> bool:
    """Whether some parameters are spread over several processes."""
    return bool(_wrappers(model)) or any(_is_spread(p) for p in model.parameters())


def twins(model: nn.Module) -> tuple[int, ...]:
    """Return the ranks that see the rows of this one, because layers are split among them; often none."""
    if any(_is_a(module, _FSDP2) for module in model.modules()):
        return ()  # every rank has rows of its own
    for parameter in model.parameters():
        if _is_spread(parameter):
            ranks: list[int] = parameter.device_mesh.mesh.flatten().tolist()  # type: ignore[attr-defined]
            return tuple(ranks)
    return ()


def whole(tensor: Any) -> Any:
    """Return the whole of a tensor on a device mesh, of which every process has its part; others as they are."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor


@contextlib.contextmanager
def gathered(model: nn.Module, module: nn.Module) -> Iterator[None]:
    """Let a module have its whole parameters; every process must come."""
    for wrapper in _wrappers(model):
        if any(owner is module for owner, _, _ in _originals(wrapper)):
            with type(wrapper).summon_full_params(  # type: ignore[attr-defined]
                wrapper, recurse=False, writeback=False
            ):
                yield
            return
    yield


@contextlib.contextmanager
def whole_shapes(model: nn.Module) -> Iterator[None]:
    """Let a model have the modules and shapes it had before it was wrapped or spread: zeros without memory."""
    wraps = any(_is_a(module, _DDP) for module in model.modules())
    modules = list(model.modules()) if wraps or is_sharded(model) else []
    saved = [dict(module.__dict__) for module in modules]
    wrappers = _wrappers(model)
    try:
        known: dict[int, nn.Parameter] = {}  # tied ones stay tied
        for module in modules:
            state = module.__dict__
            state["_modules"] = {n: _unwrapped(child) for n, child in module._modules.items()}
            state["_parameters"] = {n: _whole(p, known) for n, p in module._parameters.items()}
        for wrapper in wrappers:
            flat: Any = wrapper._handle.flat_param  # type: ignore[union-attr]
            for module, name, shape in _originals(wrapper):
                module.__dict__.pop(name, None)
                module._parameters[name] = _zeros(shape, flat)
        yield
    finally:
        for module, state in zip(modules, saved, strict=True):
            module.__dict__.clear()
            module.__dict__.update(state)


def _whole(parameter: nn.Parameter | None, known: dict[int, nn.Parameter]) -> nn.Parameter | None:
    """Return what has the shape of a parameter that lies on a device mesh."""
    if parameter is None or not _is_dtensor(parameter):
        return parameter
    if id(parameter) not in known:
        known[id(parameter)] = _zeros(parameter.shape, parameter)
    return known[id(parameter)]


def _zeros(shape: torch.Size, like: Any) -> nn.Parameter:
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return nn.Parameter(zero.expand(shape), requires_grad=like.is_floating_point())


def _wrappers(model: nn.Module) -> list[nn.Module]:
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    return [m for m in model.modules() if _is_a(m, _FSDP) and m._handle is not None]


def _is_a(module: nn.Module, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(module).__mro__)


def _unwrapped(module: nn.Module | None) -> nn.Module | None:
    while module is not None:
        held = next((held for name, held in _HOLDS.items() if _is_a(module, name)), None)
        if held is None:
            break
        module = module._modules[held]
    return module


def _originals(wrapper: nn.Module) -> list[tuple[nn.Module, str, torch.Size]]:
    """Return the parameters that lie in a wrapper's flat one: module, name and shape of each."""
    flat: Any = wrapper._handle.flat_param  # type: ignore[union-attr]
    own = [
        (info.module, info.param_name, shape)
        for info, shape in zip(flat._param_infos, flat._shapes, strict=True)
    ]
    shapes = {(module, name): shape for module, name, shape in own}
    return own + [
        (info.module, info.param_name, shapes[info.prim_module, info.prim_param_name])
        for info in flat._shared_param_infos
    ]


def _is_dtensor(tensor: Any) -> bool:
    """Whether a tensor lies on a device mesh."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def _is_spread(tensor: Any) -> bool:
    if not _is_dtensor(tensor) or tensor.device_mesh.size() == 1:
        return False
    return any(not placement.is_replicate() for placement in tensor.placements)
