"""From a layer's output to one feature row per label, or an error that names the layer and the shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

Named = Literal["auto", "flatten", "mean", "mean_last", "tokens", "first", "last"]
Reduction = Named | Callable[[Any], Tensor]

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


_NAMES = ", ".join(get_args(Named)[1:])
_ROWS = "expected one row of floats (d,) for each label; pass reduction={LAYER: ...}"
_CHOOSE = "no rule pairs them; pass reduction={LAYER: ...}, one of " + _NAMES + " or a callable"
_TAKE_ONE = "pass reduction={LAYER: ...}, a callable from this output to a tensor (rows, d)"
_MASK = "a mask must have the shape (batch, positions) of the sequence"
_SEQUENCE = (
    "say which row of the sequence belongs to a label with reduction={LAYER: 'first'} "
    "('first' or 'last' position, or 'mean_last' over the positions)"
)


class Layout(NamedTuple):
    """Where a module's last part with channels has them, and how many (None: a pool cannot say)."""

    channels_first: bool
    width: int | None


class BatchError(ValueError):
    """The batch and the labels do not fit; the layer did not count the batch.

    Its arguments are the layer, the shape or what else was found, the labels' shape and what to do.
    The message is put together when it is read: under torch.compile this is raised and caught within
    a trace, where text cannot be formatted (and a class with an ``__init__`` cannot be raised).
    """

    def __str__(self) -> str:
        layer, found, labels, advice = self.args
        what = f"features of shape {tuple(found)}" if isinstance(found, tuple) else found
        advice = advice.replace("LAYER", repr(layer))
        return f"layer {layer!r} gave {what} and labels have shape {tuple(labels)}: {advice}"


def check_reduction(
    reduction: Reduction | Mapping[str, Reduction], watched: Iterable[str] = ()
) -> None:
    """Raise ValueError unless every reduction is a known name or a callable, of a watched layer.

    Examples
    --------
    >>> check_reduction("mean")
    >>> check_reduction("median")
    Traceback (most recent call last):
        ...
    ValueError: reduction='median': choose auto, flatten, mean, mean_last, tokens, first, last, or pass a callable
    """
    chosen = reduction.values() if isinstance(reduction, Mapping) else [reduction]
    for one in chosen:
        if not callable(one) and one not in get_args(Named):
            raise ValueError(
                f"reduction={one!r}: choose {', '.join(get_args(Named))}, or pass a callable"
            )
    if isinstance(reduction, Mapping):
        for layer in reduction:
            if layer not in watched:
                raise ValueError(
                    f"reduction={{{layer!r}: ...}}: no such layer is watched; watched are "
                    f"{', '.join(watched)}"
                )


def tensor_of(output: Any, layer: str, labels: Tensor) -> Tensor:
    """Return the features among what a module returned.

    A tensor is itself; of a tuple or list its first entry; of a dict or ``ModelOutput`` its
    ``last_hidden_state`` or its only tensor.

    Raises
    ------
    BatchError
        If there is no one tensor to take.

    Examples
    --------
    >>> tensor_of((torch.ones(2, 3), None), "lstm", torch.zeros(2)).shape
    torch.Size([2, 3])
    """
    found = output
    if isinstance(output, Mapping):
        tensors = {key: value for key, value in output.items() if isinstance(value, Tensor)}
        if "last_hidden_state" in tensors:
            found = tensors["last_hidden_state"]
        elif len(tensors) == 1:
            found = next(iter(tensors.values()))
        else:
            names = "a dict of tensors " + ", ".join(tensors)
            raise BatchError(layer, names, labels.shape, _TAKE_ONE)
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise BatchError(layer, "a " + type(output).__name__, labels.shape, _TAKE_ONE)
    if found.is_nested or type(found).__name__ == "DTensor":
        raise BatchError(layer, "a nested or distributed tensor", labels.shape, _TAKE_ONE)
    return found


def feature_rows(
    output: Any,
    labels: Tensor,
    mask: Tensor | None,
    *,
    layer: str,
    layout: Layout | None,
    reduction: Reduction,
) -> Tensor:
    """Reduce a layer's output to one row per label.

    Parameters
    ----------
    output : object
        What the module returned (or the head was given).
    labels : (B,) or (B, T, ...) integer tensor
        Their shape says whether a row is a sample or a token.
    mask : (B, T) tensor, optional
        Attention mask: nonzero where there is a token.
    layer : str
        For the error.
    layout : Layout, optional
        What the module tells of where its channels are.
    reduction : str or callable
        ``flatten``; ``mean`` over all but batch and channels (axis 1); ``mean_last`` the same with
        channels last; ``tokens`` one row per position; ``first`` or ``last`` position of a sequence;
        or a callable from the output to rows. ``auto`` takes (B, d) as it is, averages maps, pairs
        tokens with labels of their shape, and refuses what could be two things.

    Returns
    -------
    (N, d) tensor, N = number of labels

    Raises
    ------
    BatchError
        If the output does not give one row per label.

    Examples
    --------
    >>> maps, labels = torch.ones(5, 8, 4, 4), torch.zeros(5, dtype=torch.long)
    >>> feature_rows(maps, labels, None, layer="c", layout=layout_of(nn.Conv2d(3, 8, 1)), reduction="auto").shape
    torch.Size([5, 8])
    """
    if callable(reduction):
        rows = reduction(output)
        if not isinstance(rows, Tensor):
            raise BatchError(layer, "a " + type(rows).__name__, labels.shape, _ROWS)
    else:
        x = tensor_of(output, layer, labels)
        rows = _reduced(x, labels, mask, layer, layout, reduction)
    if rows.ndim != 2 or rows.shape[0] != labels.numel():
        raise BatchError(layer, rows.shape, labels.shape, _ROWS)
    if not rows.is_floating_point():
        raise BatchError(layer, "features that are not floats", labels.shape, _ROWS)
    return rows


def _reduced(
    x: Tensor, labels: Tensor, mask: Tensor | None, layer: str, layout: Layout | None, how: str
) -> Tensor:
    if x.ndim < 2:
        raise BatchError(layer, x.shape, labels.shape, _CHOOSE)
    if x.ndim == 2 and labels.ndim < 2:
        return x
    if how == "auto":
        how = _automatic(x, labels, layer, layout)
    if how == "flatten":
        return x.flatten(1)
    if how == "mean" and mask is None:
        return x.flatten(2).mean(2, dtype=_wide(x))
    if how == "mean_last" and mask is None:
        return x.flatten(1, -2).mean(1, dtype=_wide(x))
    if how == "tokens":
        return (x.movedim(1, -1) if _tokens_last(x, labels, layout) else x).flatten(0, -2)
    if x.ndim != 3:
        raise BatchError(layer, x.shape, labels.shape, _CHOOSE)
    if how in ("mean", "mean_last"):
        return _masked_mean(x, mask, labels, layer)
    if how == "first":
        return x[:, 0]
    if mask is not None and mask.shape != x.shape[:2]:
        raise BatchError(layer, x.shape, labels.shape, _MASK)
    return x[:, -1] if mask is None else _last_token(x, mask)


def _automatic(x: Tensor, labels: Tensor, layer: str, layout: Layout | None) -> Named:
    if labels.ndim > 1:
        if x.shape[:-1] == labels.shape or _tokens_last(x, labels, layout):
            return "tokens"
        raise BatchError(layer, x.shape, labels.shape, _CHOOSE)
    channels_first = _channels_come_first(x, layout)
    # Only a convolution's own word makes a map of three axes: it could be a sequence.
    if x.ndim == 3 and not (channels_first and layout is not None and layout.channels_first):
        raise BatchError(layer, x.shape, labels.shape, _SEQUENCE)
    if x.ndim not in (3, 4, 5):
        raise BatchError(layer, x.shape, labels.shape, _CHOOSE)
    return "mean_last" if channels_first is False else "mean"


def layout_of(module: nn.Module, before: Iterable[nn.Module] = ()) -> Layout | None:
    """Return what the last part of a module that has channels says of them; None if none has.

    Parameters
    ----------
    module : nn.Module
    before : iterable of nn.Module
        What runs just before it in a Sequential, in order, and speaks for an activation.

    Examples
    --------
    >>> layout_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()))
    Layout(channels_first=True, width=8)
    >>> layout_of(nn.ReLU(), [nn.Conv2d(3, 8, 1)])
    Layout(channels_first=True, width=8)
    """
    parts = [part for sibling in (*before, module) for part in sibling.modules()]
    for part in reversed(parts):
        if isinstance(part, _CHANNELS_FIRST + _CHANNELS_LAST):
            return Layout(isinstance(part, _CHANNELS_FIRST), _features_of(part))
    return None


def _channels_come_first(x: Tensor, layout: Layout | None) -> bool | None:
    """Whether axis 1 holds the channels; None if nothing tells."""
    if layout is None:
        return None
    at_axis_1, at_end = x.shape[1] == layout.width, x.shape[-1] == layout.width
    # A block may permute after its last layer (ConvNeXt): where only one axis fits, it decides.
    return at_axis_1 if at_axis_1 != at_end else layout.channels_first


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


def _tokens_last(x: Tensor, labels: Tensor, layout: Layout | None) -> bool:
    """Whether the positions that the labels name are behind the channels, as in a map."""
    if x.ndim != labels.ndim + 1 or x.shape[:1] + x.shape[2:] != labels.shape:
        return False
    # Where both orders fit the labels, the layer decides.
    return x.shape[:-1] != labels.shape or (layout is not None and layout.channels_first)


def _masked_mean(x: Tensor, mask: Tensor | None, labels: Tensor, layer: str) -> Tensor:
    if mask is None or mask.shape != x.shape[:2]:
        raise BatchError(layer, x.shape, labels.shape, _MASK)
    weight = (mask != 0).to(torch.float32)[:, :, None]
    kept = torch.where(weight > 0, x.to(_wide(x)), 0.0)
    return kept.sum(1) / weight.sum(1).clamp(min=1)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype to average in: half-precision activations are widened before any arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _last_token(x: Tensor, mask: Tensor) -> Tensor:
    position = torch.arange(x.shape[1], device=x.device)
    last = torch.where(mask != 0, position, 0).amax(1)
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
