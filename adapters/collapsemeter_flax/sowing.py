"""Take the output of a watched module's call."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp

Sown = Literal["output", "input", "both"]


def sown_value(sown: Sown, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Return the output of a call, its first argument, or both."""
    if sown == "output":
        return output
    argument = next(iter([*args, *kwargs.values()]))
    return argument if sown == "input" else (argument, output)


def selected_rows(inputs: Any, output: Any, scores: Any) -> Any:
    """Return the rows of a head's input (..., T, d) whose output (..., T, C) became the scores (..., C), else NaN.

    A compiler may compute the scores of the chosen positions once more: the nearest position is that, as far
    as rounding goes.
    """
    if scores.ndim == output.ndim - 2 and output.shape[-1] == 1:
        scores = scores[..., None]
    if output.shape[:-2] != scores.shape[:-1] or output.shape[-1:] != scores.shape[-1:]:
        return inputs
    distance = jnp.abs(output.astype(scores.dtype) - scores[..., None, :]).max(axis=-1)
    position = distance.argmin(axis=-1)[..., None]
    size = jnp.abs(output).max(axis=-1)
    nearest, size = (jnp.take_along_axis(x, position, axis=-1) for x in (distance, size))
    rows = jnp.take_along_axis(inputs, position[..., None], axis=-2)[..., 0, :]
    finfo: Any = jnp.finfo  # it comes from a package without types
    is_same = nearest <= 64 * finfo(scores.dtype).eps * size
    return jnp.where(is_same, rows, jnp.nan)
