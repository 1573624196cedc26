r"""A count sketch of the residual rows R: what stands in for the scatter of a wide layer.

:math:`K = \Omega R` (k x d) is kept: row number t goes to bucket :math:`b(t)` with sign :math:`s(t)`. Then :math:`|Ku|^2`
estimates :math:`u^\top S u = |Ru|^2` without bias for every u (Charikar, Chen & Farach-Colton 2004). The first k rows have buckets of
their own: a sketch of no more is these rows, and nothing is estimated. :math:`Z_{bc}`, the
sum of the signs of class c in bucket b, moves K to other means.
"""

import math
from typing import Any

import numpy as np

from .linalg import Floats
from .sampling import MASK, Array, low_32_bits, mixed
from .sampling import row_hashes as row_hashes
from .sums import SKETCH_ROWS as SKETCH_ROWS


def standard_error(projected: Floats) -> float:
    r"""Return the standard error of :math:`T = |P|_F^2`, P the sketch of rows V of which no few make up most.

    Over the hashes T has a variance of :math:`\frac2k |V^\top V|_F^2`; that norm is estimated by
    :math:`(|P^\top P|_F^2 - T^2/k) / (1 + 1/k)`, without bias, or by the least that it can be, :math:`T^2` over the columns.
    """
    size, columns = projected.shape
    products = projected.T @ projected
    square = float(np.trace(products)) ** 2
    spread = (np.vdot(products, products) - square / size) / (1 + 1 / size)
    return math.sqrt(2 / size * max(spread, square / columns))


def turned(array: Floats, seed: int) -> Floats:
    """Return the rows of a sketch (or of its signs) in another order, with other signs: every :math:`|Ku|` stays."""
    salt = mixed(seed & MASK, low_32_bits) >> 1
    keys = turning_keys(np.arange(len(array), dtype=np.uint32), np.uint32(salt))
    sign = 1.0 - 2.0 * (keys % 2)
    drawn: Floats = (array * sign[:, None])[np.argsort(keys)]
    return drawn


def turning_keys(places: Array, salt: Array) -> Array:
    """Return distinct 32-bit hashes of 0..k-1: their order is a permutation, their lowest bits signs."""
    return mixed(mixed(places + 1) + salt)


def derived_seed(*parts: Any) -> int:
    """Return a seed of 63 bits for what these plain values name."""
    import hashlib  # loads OpenSSL, and states without a sketch need no seed

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
