"""The head's weights on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from collapsemeter import Head
from collapsemeter.adapter.tally import classifier

from .linear import linear_map
from .running import on_host


def head_of(
    layer: Any, width: int | None = None, weights: Callable[[Any], Any] | None = None
) -> Head | None:
    """Return a head's weights on the host: those that a callable takes from it, or its linear map's."""
    if layer is None or not getattr(layer, "built", True):
        return None
    if weights is not None:
        given = weights(layer)
        if isinstance(given, Head):
            return given
        weight, bias = given if isinstance(given, tuple | list) else (given, None)
        return classifier(on_host(weight), None if bias is None else on_host(bias))
    linear = linear_map(layer)
    if linear is None:
        return None
    kernel, bias = linear
    if getattr(layer, "quantization_mode", None) == "int8":  # what its integers stand for
        kernel = ops.cast(kernel, "float32") / ops.cast(layer.kernel_scale, "float32")
    table = on_host(kernel).reshape(kernel.shape[-2:])
    if width not in (None, table.shape[1]) and width == table.shape[0]:
        table = table.T  # stored as (C, d)
    fits = bias is not None and len(bias.shape) == 1 and bias.shape[0] == table.shape[1]
    return classifier(table.T, on_host(bias) if fits else None)
