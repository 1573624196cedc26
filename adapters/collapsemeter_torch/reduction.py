"""PyTorch's part of the reduction: its operations, and what a module tells of its channels."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from collapsemeter.adapter import reduction as core
from collapsemeter.adapter.reduction import TAKE_ONE, BatchError, Layout, Reduction

from .sharding import local

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention, nn.Embedding)


class TorchOperations:
    """PyTorch's operations for `collapsemeter.adapter.reduction.feature_rows`."""

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def is_float(self, x: Tensor) -> bool:
        return x.is_floating_point()

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def rows(self, x: Tensor) -> Tensor:
        return x.flatten(0, -2)

    def channels_to_end(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)

    def mean(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return x.mean(axes, dtype=_wide(x)) if axes else x

    def masked_mean(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = _tokens(mask).to(torch.float32)[:, :, None]
        tokens = torch.where(weight > 0, x.to(_wide(x)), 0.0)
        return tokens.sum(1) / weight.sum(1).clamp(min=1)

    def last(self, x: Tensor, mask: Tensor) -> Tensor:
        position = torch.arange(x.shape[1], device=x.device)
        last = torch.where(_tokens(mask), position, 0).amax(1)
        return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


TORCH = TorchOperations()


def _tokens(mask: Tensor) -> Tensor:
    """Return where there are tokens: where a mask is positive, or 0 in one that is added to scores, which never is."""
    if not mask.is_floating_point():
        return mask != 0
    positive = mask > 0
    return torch.where(positive.any(), positive, mask == 0)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype to average in: half-precision activations are widened before any arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def tensor_of(output: Any, layer: str, labels: Tensor) -> Tensor:
    """Return the features among what a module returned, unless they are nested or split among processes."""
    features: Tensor = local(core.tensor_of(output, layer, labels.shape, TORCH))
    if features.is_nested or type(features).__name__ == "DTensor":
        raise BatchError(layer, "a nested or distributed tensor", labels.shape, TAKE_ONE)
    return features


def feature_rows(
    output: Any,
    labels: Tensor,
    mask: Tensor | None,
    *,
    layer: str,
    layout: Layout | None,
    reduction: Reduction,
) -> Tensor:
    """Reduce a module's output to one row per label; nothing of it is recorded for gradients."""
    named = not callable(reduction)
    if named:
        output = tensor_of(output, layer, labels).detach()
    with contextlib.nullcontext() if named else torch.no_grad():
        rows: Tensor = core.feature_rows(
            output, labels.shape, mask, TORCH, layer=layer, layout=layout, reduction=reduction
        )
    return rows.detach()


def layout_of(module: nn.Module) -> Layout | None:
    """Return where a layer has its channels; None if it has none itself, or positions before the batch."""
    if isinstance(module, nn.RNNBase):
        width = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        return Layout(channels_first=False, width=width) if module.batch_first else None
    if isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST):
        return Layout(isinstance(module, _CHANNELS_FIRST), _features_of(module))
    return None


def _features_of(part: nn.Module) -> int | None:
    for attribute in (
        "out_channels",
        "num_features",
        "num_channels",
        "out_features",
        "embedding_dim",
        "embed_dim",
    ):
        if isinstance(width := getattr(part, attribute, None), int):
            return width
    shape = getattr(part, "normalized_shape", None)
    return int(shape[-1]) if shape else None
