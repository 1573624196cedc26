"""From a layer's output to one feature row per label, or an error that names layer and shape."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, get_args

from ..system.patterns import matches
from ..system.suggest import did_you_mean

Array = Any  # of the framework that the operations speak for
Named = Literal["auto", "flatten", "mean", "mean_last", "tokens", "first", "last"]
Reduction = Named | Callable[[Any], Array]
Shape = tuple[int | None, ...]  # None: not known while a graph is traced

_NAMES = ", ".join(get_args(Named)[1:])
_ROWS = "expected one row of floats (d,) for each label; pass reduction={LAYER: ...}"
_CHOOSE = "no rule pairs them; pass reduction={LAYER: ...}, one of " + _NAMES + " or a callable"
TAKE_ONE = "pass reduction={LAYER: ...}, a callable from this output to a tensor (rows, d)"
_SIZES = "the layer ran on a batch of ROWS and there are labels for LABELS: pass a label for every row of the batch"
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

    Its arguments are the layer, the shape or what else came, the labels' shape and what to do.
    The message is put together when it is read: under torch.compile this is raised and caught within
    a trace, where text cannot be formatted (and a class with an ``__init__`` cannot be raised).
    """

    def __str__(self) -> str:
        layer, shape, labels, advice = self.args
        what = f"features of shape {tuple(shape)}" if isinstance(shape, tuple) else shape
        advice = advice.replace("LAYER", repr(layer))
        if advice == _SIZES:
            advice = advice.replace("ROWS", str(shape[0])).replace("LABELS", str(labels[0]))
        return f"layer {layer!r} gave {what} and labels have shape {tuple(labels)}: {advice}"


class Operations(Protocol):
    """The operations that `feature_rows` needs of a framework."""

    def is_tensor(self, value: Any) -> bool: ...
    def is_float(self, x: Array) -> bool: ...
    def flat(self, x: Array) -> Array:
        """(B, ...) -> (B, d)."""

    def rows(self, x: Array) -> Array:
        """(..., d) -> (N, d)."""

    def channels_to_end(self, x: Array) -> Array:
        """(B, d, ...) -> (B, ..., d)."""

    def mean(self, x: Array, axes: tuple[int, ...]) -> Array:
        """Mean over axes; half precision is widened before any arithmetic."""

    def masked_mean(self, x: Array, mask: Array) -> Array:
        """(B, T, d), (B, T) -> (B, d): mean over the positions where the mask is not zero."""

    def last(self, x: Array, mask: Array) -> Array:
        """(B, T, d), (B, T) -> (B, d): the last position where the mask is not zero."""


def check_reduction(
    reduction: Reduction | Mapping[str, Reduction], watched: Iterable[str] = ()
) -> None:
    """Raise ValueError unless every reduction is a known name or a callable, of a watched layer."""
    for value in reduction.values() if isinstance(reduction, Mapping) else [reduction]:
        if not callable(value) and value not in get_args(Named):
            raise ValueError(
                f"reduction={value!r}: choose {', '.join(get_args(Named))}, or pass a callable"
            )
    if isinstance(reduction, Mapping):
        for pattern in reduction:
            if not any(matches(pattern, layer) for layer in watched):
                raise ValueError(
                    f"reduction={{{pattern!r}: ...}}: no such layer is watched; watched are "
                    f"{', '.join(watched)}{did_you_mean(pattern, watched)}"
                )


def reduction_of(reduction: Reduction | Mapping[str, Reduction], layer: str) -> Reduction:
    """Return the reduction of one layer: by its name, or by the first pattern that selects it."""
    if not isinstance(reduction, Mapping):
        return reduction
    if layer in reduction:
        return reduction[layer]
    return next((how for pattern, how in reduction.items() if matches(pattern, layer)), "auto")


def tensor_of(output: Any, layer: str, labels: Shape, ops: Operations) -> Array:
    """Return the features among what a layer returned: a tensor, the first entry of a tuple, ``last_hidden_state`` or the only tensor of a mapping."""
    if ops.is_tensor(output):  # the rule, and for every layer of every batch
        return output
    features = None
    if isinstance(output, Mapping):
        tensors = {key: value for key, value in output.items() if ops.is_tensor(value)}
        if "last_hidden_state" not in tensors and len(tensors) != 1:
            names = "a dict of tensors " + ", ".join(tensors)
            raise BatchError(layer, names, labels, TAKE_ONE)
        features = tensors.get("last_hidden_state", next(iter(tensors.values())))
    elif isinstance(output, tuple | list) and output:
        features = output[0]
    if not ops.is_tensor(features):
        raise BatchError(layer, "a " + type(output).__name__, labels, TAKE_ONE)
    return features


def feature_rows(
    output: Any,
    labels: Shape,
    mask: Array | None,
    ops: Operations,
    *,
    layer: str,
    layout: Layout | None,
    reduction: Reduction,
) -> Array:
    """Reduce a layer's output to one row per label.

    Parameters
    ----------
    output : object
        What the layer returned (or the head was given).
    labels : tuple of int
        Shape of the labels, (B,) or (B, T, ...): it says whether a row is a sample or a token.
    mask : (B, T) array, optional
        Attention mask: nonzero where there is a token.
    ops : Operations
        Those of the framework.
    layer : str
        For the error.
    layout : Layout, optional
        What the layer tells of where its channels are.
    reduction : str or callable
        ``flatten``; ``mean`` over all but batch and channels (axis 1); ``mean_last`` the same with
        channels last; ``tokens`` one row per position; ``first`` or ``last`` position of a sequence;
        or a callable from the output to rows. ``auto`` takes (B, d) as it is, averages maps over space
        and sequences over positions (under the mask, where there is one), pairs tokens with labels of
        their shape, and refuses what could be two things. A map is never averaged over its channels.

    Returns
    -------
    (N, d) array, N = number of labels

    Raises
    ------
    BatchError
        If the output does not give one row per label.
    """
    if callable(reduction):
        rows = reduction(output)
        if not ops.is_tensor(rows):
            raise BatchError(layer, "a " + type(rows).__name__, labels, _ROWS)
    else:
        x = tensor_of(output, layer, labels, ops)
        if _of_another_batch(tuple(x.shape), labels):
            raise BatchError(layer, tuple(x.shape), labels, _SIZES)
        rows = _reduced(x, labels, mask, ops, layer, layout, reduction)
    if len(rows.shape) != 2 or not _alike((rows.shape[0],), (_number(labels),)):
        raise BatchError(layer, tuple(rows.shape), labels, _ROWS)
    if not ops.is_float(rows):
        raise BatchError(layer, "features that are not floats", labels, _ROWS)
    return rows


def _number(labels: Shape) -> int | None:
    return None if None in labels else math.prod(labels)  # type: ignore[arg-type]  # none is None


def _of_another_batch(shape: Shape, labels: Shape) -> bool:
    """Whether the labels are those of a larger or smaller batch, however the output is reduced."""
    if len(shape) < 2 or not labels or None in (shape[0], *labels) or shape[0] == labels[0]:
        return False
    # Positions may come before the batch, and tokens in one long row.
    return labels[0] not in shape[1:-1] and shape[0] != _number(labels)


def _alike(a: Shape, b: Shape) -> bool:
    """Whether two shapes are equal, as far as they are known."""
    return len(a) == len(b) and all(
        m is None or n is None or m == n for m, n in zip(a, b, strict=True)
    )


def _reduced(
    x: Array,
    labels: Shape,
    mask: Array | None,
    ops: Operations,
    layer: str,
    layout: Layout | None,
    how: str,
) -> Array:
    shape, axes = tuple(x.shape), len(x.shape)
    how = _settled(shape, labels, layer, layout, how)
    if how == "rows":
        return x
    if how == "flatten":
        return ops.flat(x)
    if how == "tokens":
        return ops.rows(ops.channels_to_end(x) if _tokens_last(shape, labels, layout) else x)
    if how in ("mean", "mean_last") and (mask is None or axes != 3):
        return ops.mean(x, _averaged(how, axes))
    if axes != 3:
        raise BatchError(layer, shape, labels, _CHOOSE)
    if how == "first":
        return x[:, 0]
    if how == "mean" and layout is not None and layout.channels_first:
        x = ops.channels_to_end(x)
    if mask is not None and not _alike(tuple(mask.shape), tuple(x.shape[:2])):
        raise BatchError(layer, shape, labels, _MASK)
    if how == "last":
        return x[:, -1] if mask is None else ops.last(x, mask)
    return ops.masked_mean(x, mask)


def mean_axes(
    shape: Shape, labels: Shape, *, layer: str, layout: Layout | None, reduction: Reduction
) -> tuple[int, ...] | None:
    """Return over which axes `feature_rows` averages an output without a mask: () for one that is rows, None where it does something else."""
    if callable(reduction):
        return None
    how = _settled(shape, labels, layer, layout, reduction)
    if how in ("mean", "mean_last"):
        return _averaged(how, len(shape))
    return () if how == "rows" else None


def row_width(shape: tuple[int, ...], layout: Layout | None, reduction: Reduction) -> int | None:
    """Return the features of a row that `feature_rows` makes, as far as the shape of an output tells; None where only the user's function knows."""
    if callable(reduction) or len(shape) < 2:
        return None
    try:
        how = _settled(shape, shape[:1], "", layout, reduction)
    except BatchError:  # labels of another shape may tell, and of a sequence do
        how = "tokens"
    if how == "flatten":
        return math.prod(shape[1:])
    if how == "tokens":
        how = "mean_last" if len(shape) < 4 else _automatic(shape, shape[:1], "", layout)
    return shape[1] if how == "mean" else shape[-1]


def _settled(shape: Shape, labels: Shape, layer: str, layout: Layout | None, how: str) -> str:
    """Return what a reduction means for a shape: "rows" where nothing is to be done."""
    if len(shape) < 2:
        raise BatchError(layer, shape, labels, _CHOOSE)
    if len(shape) == 2 and len(labels) < 2:
        return "rows"
    if how == "auto":
        how = _automatic(shape, labels, layer, layout)
    if how == "mean_last" and len(shape) > 3 and _channels_come_first(shape, layout):
        return "mean"  # asked for tokens, and this layer gives a map
    return how


def _averaged(how: str, axes: int) -> tuple[int, ...]:
    return tuple(range(2, axes) if how == "mean" else range(1, axes - 1))


def _automatic(shape: Shape, labels: Shape, layer: str, layout: Layout | None) -> Named:
    if len(labels) > 1:
        if _alike(shape[:-1], labels) or _tokens_last(shape, labels, layout):
            return "tokens"
        raise BatchError(layer, shape, labels, _CHOOSE)
    channels_first = _channels_come_first(shape, layout)
    if len(shape) == 3:
        # Only a convolution's own word makes a map of three axes: else it is a sequence.
        unclear = layout is None or (channels_first and not layout.channels_first)
        if unclear or not _alike(shape[:1], labels):
            raise BatchError(layer, shape, labels, _SEQUENCE)
        return "mean" if channels_first else "mean_last"
    if len(shape) not in (4, 5):
        raise BatchError(layer, shape, labels, _CHOOSE)
    return "mean_last" if channels_first is False else "mean"


def _channels_come_first(shape: Shape, layout: Layout | None) -> bool | None:
    """Whether axis 1 holds the channels; None if nothing tells."""
    if layout is None:
        return None
    at_axis_1, at_end = shape[1] == layout.width, shape[-1] == layout.width
    # A block may permute after its last layer (ConvNeXt): where only one axis fits, it decides.
    return at_axis_1 if at_axis_1 != at_end else layout.channels_first


def _tokens_last(shape: Shape, labels: Shape, layout: Layout | None) -> bool:
    """Whether the positions that the labels name are behind the channels, as in a map."""
    if not _alike(shape[:1] + shape[2:], labels):
        return False
    # Where both orders fit the labels, the layer decides.
    return not _alike(shape[:-1], labels) or (layout is not None and layout.channels_first)
