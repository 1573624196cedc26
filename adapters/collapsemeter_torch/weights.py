"""The weights of a linear map as they are now, read without a trace."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .untouched import untouched, weight_hooks

Getter = Callable[[nn.Module], Any]
_PLAIN = {layer.forward for layer in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_NO_MAPS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.modules.conv._ConvTransposeNd)


def weights_of(module: nn.Module, getter: Getter | None) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias of a head, as they are now in eval mode.

    A weight may be computed where it is read (``nn.utils.parametrize``), and then draw random numbers or write
    into buffers, or by a hook before each forward (``nn.utils.weight_norm``, ``prune``), and then be out of date.
    """
    with _computed(module):
        if getter is None:
            return weight_of(module), bias_of(module)
        weights = getter(module)
        return weights if isinstance(weights, tuple) else (weights, None)


@contextlib.contextmanager
def _computed(module: nn.Module) -> Iterator[None]:
    """Let a module have the weights that a forward in eval mode would compute."""
    parts = [part for part in module.modules() if weight_hooks(part)]
    if not parts and not any(map(parametrize.is_parametrized, module.modules())):
        yield
        return
    with untouched(module, _same, torch.clone), torch.no_grad():
        for part in parts:
            for hook in part._forward_pre_hooks.values():
                hook(part, ())
        yield


def weight_of(module: nn.Module) -> Tensor | None:
    """Return the (C, d) weight of a linear map or 1x1 convolution; None of other layers."""
    weight = getattr(module, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):  # a quantised layer unpacks its own
        weight = weight()
    if not isinstance(weight, Tensor) or weight.ndim < 2 or isinstance(module, _NO_MAPS):
        return None
    if math.prod(weight.shape[2:]) != 1 or getattr(module, "groups", 1) != 1:
        return None
    weight = weight.dequantize() if weight.is_quantized else weight
    weight = weight.reshape(weight.shape[:2])
    return weight.t() if _is_transposed(module) else weight


def is_plain(module: nn.Module) -> bool:
    """Whether a layer is known to give ``x W' + b``."""
    return type(module).forward in _PLAIN or _is_transposed(module)


def gives_otherwise(module: nn.Module, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a layer gives something else than ``x W' + b`` in eval mode, as far as one row of numbers tells.

    Adapters (LoRA) are part of the weight in one mode and beside it in another, and a layer may be quantised later.
    """
    if is_plain(module) or type(weight) not in (Tensor, nn.Parameter):
        return False
    row = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
    try:
        with untouched(module, _same, torch.clone), torch.no_grad():
            given = module(row)
    except Exception:  # it takes other arguments, or rows of another form
        return False
    due = nn.functional.linear(row, weight, bias)
    tolerance = 16 * torch.finfo(weight.dtype).eps ** 0.75 * float(due.detach().abs().max())
    return given.shape == due.shape and bool((given - due).abs().max() > tolerance)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")  # of transformers


def outputs_of(module: nn.Module) -> int | None:
    """Return how many outputs a linear map has; None for any other layer."""
    weight = weight_of(module)
    return None if weight is None else len(weight)


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a linear map."""
    bias = getattr(module, "bias", None)
    if callable(bias) and not isinstance(bias, Tensor):
        bias = bias()
    return bias if isinstance(bias, Tensor) else None


def _same(parameter: Tensor) -> Tensor:
    return parameter
