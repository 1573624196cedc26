"""Which position of a head's output becomes the scores, where it is one and no average of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collapsemeter.adapter.reduction import Reduction, reduction_of

from .running import after, shape_of
from .traced_tensors import TracedTensor

Reductions = Reduction | Mapping[str, Reduction]
Position = tuple[int, ...]  # along every axis between rows and channels


def picked_position(layer: Any, tail: Sequence[TracedTensor]) -> Position | None:
    """Return the only position whose scores, (B, ..., C), become those of the network; None where there is none.

    Two kinds of scores stand before and from a position on: the kind that comes out tells where the
    position is, and another one that it is an average.
    """
    shape = shape_of(tail[0])
    sizes, width = shape[1:-1], shape[-1]
    number = int(np.prod(sizes))
    if number == 1 or len(tail[-1].shape) >= len(shape):
        return None
    low = np.linspace(-2.0, 2.0, width) if width > 1 else np.full(1, -3.0)
    high = low[::-1] if width > 1 else -low

    def scores(first: int) -> np.ndarray[Any, Any]:
        table = np.repeat(low[None], number, axis=0)
        table[first:] = high
        return after(layer, tail, table.reshape(*sizes, width))

    of_low, of_high = scores(number), scores(0)
    least, most = 0, number  # the first place from which on the high kind is not what comes out
    while most - least > 1:
        middle = (least + most) // 2
        result = scores(middle)
        if np.array_equal(result, of_high):
            least = middle
        elif np.array_equal(result, of_low):
            most = middle
        else:
            return None
    return tuple(
        _from_an_end(int(place), size, known)
        for place, size, known in zip(
            np.unravel_index(least, sizes), sizes, tail[0].shape[1:-1], strict=True
        )
    )


def _from_an_end(place: int, size: int, known: int | None) -> int:
    """Count the last place of an axis from its end: other batches may be longer."""
    return -1 if known is None and place == size - 1 else place


def with_position(reduction: Reductions, head: str, position: Position) -> Reductions:
    """Have the head reduced to the position that makes the scores, unless the user says otherwise."""

    def at_position(output: Any) -> Any:
        return output[(slice(None), *position)]

    if reduction_of(reduction, head) != "auto":
        return reduction
    by_layer = reduction if isinstance(reduction, Mapping) else {}
    return {**by_layer, head: at_position}
