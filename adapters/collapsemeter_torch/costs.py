"""The operations of a forward: those of its matrix products and convolutions, counted as they are called."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
_COUNTED_AS = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention
}
# Fused layers that the registry does not know: their arguments that multiply every row of the first one.
_WEIGHTS: dict[Any, Callable[..., list[torch.Tensor]]] = {
    _ATEN.mkldnn_rnn_layer: lambda rows, to_gates, recurrent, *_: [to_gates, recurrent],
    _ATEN._cudnn_rnn: lambda rows, weights, *_: [weight for weight in weights if weight.ndim > 1],
    _ATEN._trilinear: lambda rows, weight, *_: [weight],
}


class OperationCounter(TorchDispatchMode):
    """Counts the operations of what runs inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True wraps the method below in what takes seconds to import

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and add what it takes."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func._overloadpacket
        count = flop_registry.get(_COUNTED_AS.get(name, name))
        if count is not None:
            with contextlib.suppress(Exception):  # of shapes that the formula does not know
                self.total += count(*args, **kwargs, out_val=output)
        elif name in _WEIGHTS:
            weights = sum(weight.numel() for weight in _WEIGHTS[name](*args))
            self.total += 2 * args[0].shape[:-1].numel() * weights
        return output
