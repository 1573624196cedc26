"""The wrapper for data parallelism, whose forward waits for other processes."""

import contextlib
from collections.abc import Iterator

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def alone(model: nn.Module) -> nn.Module:
    """Return a model without the wrapper that waits for other processes in its forward."""
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, DistributedDataParallel) else model


@contextlib.contextmanager
def waiting_for_none(model: nn.Module) -> Iterator[None]:
    """Let no wrapper within a model send its buffers in its forward: other ranks may not come."""
    wrappers = _data_parallel(model)
    syncs = [wrapper.require_forward_param_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_forward_param_sync = False
    try:
        yield
    finally:
        for wrapper, sync in zip(wrappers, syncs, strict=True):
            wrapper.require_forward_param_sync = sync


@contextlib.contextmanager
def buffers_of_rank_0(model: nn.Module) -> Iterator[None]:
    """Let every rank of a wrapper have the batch statistics of its rank 0, as the wrapper's forward would."""
    wrappers = [wrapper for wrapper in _data_parallel(model) if wrapper.broadcast_buffers]
    groups = {
        id(b): wrapper.process_group for wrapper in wrappers for b in wrapper.module.buffers()
    }
    buffers = [buffer for wrapper in wrappers for buffer in wrapper.module.buffers()]
    local_values = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        distributed.broadcast(buffer, group=groups[id(buffer)], group_src=0)
    try:
        yield
    finally:
        for buffer, saved in zip(buffers, local_values, strict=True):
            buffer.copy_(saved)


def _data_parallel(model: nn.Module) -> list[DistributedDataParallel]:
    return [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
