"""The wrapper for data parallelism, whose forward waits for other processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


def alone(model: nn.Module) -> nn.Module:
    """Return a model without the wrapper that waits for other processes in its forward."""
    wrapper = _data_parallel(model)
    return model if wrapper is None else wrapper.module


def _data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, DistributedDataParallel) else None


@contextlib.contextmanager
def buffers_of_rank_0(model: nn.Module) -> Iterator[None]:
    """Let every rank have the batch statistics of rank 0, as the forward of the wrapper would."""
    wrapper = _data_parallel(model)
    shares = wrapper is not None and wrapper.broadcast_buffers
    buffers = list(wrapper.module.buffers()) if wrapper is not None and shares else []
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        distributed.broadcast(buffer, 0)
    try:
        yield
    finally:
        for buffer, saved in zip(buffers, own, strict=True):
            buffer.copy_(saved)
