"""The price of counting beside a training step, in operations of matrix products."""

import math
from collections.abc import Iterable

from .memory import Holding

_FORWARDS = 3  # a step takes about three times the operations of its forward
_SHARE = 0.05


def product_operations(
    layers: Iterable[tuple[int, Holding]], rows: int, *, class_products: int = 1
) -> int:
    """Return the operations of the products X'X of a batch.

    Parameters
    ----------
    layers : iterable of (width, Holding)
        What every layer keeps.
    rows : int
        Label rows of the batch.
    class_products : int
        How many pooled products the scatters of single classes cost: C where shapes must be static, 1
        where each class has a product of its own rows.
    """
    times = {"class": class_products, "pooled": 1, "sketch": 0, "trace": 0}
    return sum(2 * rows * width**2 * times[holding.kind] for width, holding in layers)


def products_note(forward: int, products: int, every: str) -> str:
    """Say what share of a step the products X'X are, and how often to count for one of at most 5 %.

    Parameters
    ----------
    forward : int
        Operations of the network's forward on such a batch.
    products : int
        Those of the products, see `product_operations`.
    every : str
        What the user writes to count every k-th batch, with ``{}`` for k.

    Examples
    --------
    >>> products_note(forward=1000, products=600, every="every={}")
    "time: products X'X are 20 % of a step's operations; every=4 brings them under 5 %"
    """
    if not forward or not products:
        return ""
    share = products / (_FORWARDS * forward)
    percent = f"{100 * share:.0f}" if share > 0.1 else f"{100 * share:.2g}"
    text = f"time: products X'X are {percent} % of a step's operations"
    if share <= _SHARE:
        return text
    often = every.format(math.ceil(share / _SHARE))
    return f"{text}; {often} brings them under {100 * _SHARE:.0f} %"
