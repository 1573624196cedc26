"""Parameters that are spread over processes, by FSDP or on a device mesh: their shapes, and their values."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
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
    apart, same = data_parallel_ranks(model), set[int]()
    for parameter in model.parameters():
        if _is_spread(parameter):
            same.update(_ranks_of_layer(parameter, apart))
    return tuple(sorted(same)) if len(same) > 1 else ()


def _ranks_of_layer(parameter: Any, apart: Sequence[int]) -> list[int]:
    """Return the ranks among which a layer is split; along the dimensions of a mesh that FSDP has, rows differ."""
    mesh, here = parameter.device_mesh, parameter.device_mesh.get_coordinate()
    along: list[Any] = list(here)
    for dim, placement in enumerate(parameter.placements):
        line = mesh.mesh[(*here[:dim], slice(None), *here[dim + 1 :])].tolist()
        if not placement.is_replicate() and not set(line) <= set(apart):
            along[dim] = slice(None)
    return [int(rank) for rank in mesh.mesh[tuple(along)].flatten()]


def mesh_ranks(model: nn.Module) -> set[int]:
    """Return the ranks among which parameters are spread on device meshes."""
    meshes = {p.device_mesh for p in model.parameters() if _is_spread(p)}  # type: ignore[attr-defined]
    return {rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()}


def data_parallel_ranks(model: nn.Module) -> list[int]:
    """Return the ranks over which FSDP2 spreads rows, in their order; none where it does not."""
    mesh = _data_parallel_mesh(model)
    return [] if mesh is None else [int(rank) for rank in mesh.mesh.flatten()]


def _data_parallel_mesh(model: nn.Module) -> Any:
    for module in model.modules():
        if _is_a(module, _FSDP2):
            for group in module._get_fsdp_state()._fsdp_param_groups:  # type: ignore[operator]
                return group.mesh_info.mesh
    return None


def own_group(model: nn.Module) -> Any:
    """Return the process group of a wrapper for data parallelism, where it is a part of all processes."""
    group: Any = None
    mesh = _data_parallel_mesh(model)
    if mesh is not None and mesh.ndim == 1 and not twins(model):
        group = mesh.get_group()
    for module in model.modules():
        if any(_is_a(module, name) for name in _HOLDS) and not hasattr(module, "_inter_node_pg"):
            group = module.process_group
            break
    whole = group is None or group.size() == torch.distributed.get_world_size()
    return None if whole else group


def on_mesh(tensor: Any) -> bool:
    """Whether a tensor lies on a device mesh."""
    plain = type(tensor) is Tensor
    return not plain and isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def local(tensor: Any) -> Any:
    """Return the rows that this process has of a tensor on a device mesh, where they are whole; others as they are."""
    if not on_mesh(tensor):
        return tensor
    rows_are_whole = all(p.is_replicate() or p.is_shard(0) for p in tensor.placements)
    return tensor.to_local() if rows_are_whole else tensor


def copies(tensor: Any) -> list[int]:
    """Return the ranks that have the same rows of a tensor on a device mesh, as it says itself; often none."""
    if not on_mesh(tensor):
        return []
    mesh = tensor.device_mesh
    along = [
        slice(None) if placement.is_replicate() else place
        for place, placement in zip(mesh.get_coordinate(), tensor.placements, strict=True)
    ]
    return [int(rank) for rank in mesh.mesh[tuple(along)].flatten()]


def whole(tensor: Any) -> Any:
    """Return the whole of a tensor on a device mesh, of which every process has its part; others as they are."""
    return tensor.full_tensor() if on_mesh(tensor) else tensor


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
    if parameter is None or not on_mesh(parameter):
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
    parameters = [
        (info.module, info.param_name, shape)
        for info, shape in zip(flat._param_infos, flat._shapes, strict=True)
    ]
    shapes = {(module, name): shape for module, name, shape in parameters}
    return parameters + [
        (info.module, info.param_name, shapes[info.prim_module, info.prim_param_name])
        for info in flat._shared_param_infos
    ]


def _is_spread(tensor: Any) -> bool:
    if not on_mesh(tensor) or tensor.device_mesh.size() == 1:
        return False
    return any(not placement.is_replicate() for placement in tensor.placements)
