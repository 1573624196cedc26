r"""A count sketch of the residual rows: what stands in for the scatter of a wide layer.

Of R, the rows about their class's mean, :math:`K = \Omega R` (k x d) is kept: row number t goes to
bucket :math:`b(t)` with sign :math:`s(t)`, so that :math:`\Omega_{bt} = s(t)\,[b(t) = b]`. Then
:math:`u^\top S u = |Ru|^2` is estimated by :math:`|Ku|^2`, without bias for every u (Charikar, Chen &
Farach-Colton 2004). Buckets and signs are a hash of seed and row number in 32-bit arithmetic, the same
in every framework. :math:`Z_{bc}`, the sum of the signs of class c in bucket b, moves K to other means.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .sampling import MASK, Array, Wrap, low_32_bits, mixed, scaled, uint32
from .sums import SKETCH_ROWS as SKETCH_ROWS

_APART = 0x51ED270B  # so that a row's bucket says nothing of its place in the row sample

Floats = npt.NDArray[np.float64]


def row_hashes(numbers: Array, size: int, seed: int, wrap: Wrap = uint32) -> tuple[Array, Array]:
    """Return the bucket of each row, in 0..size-1, and whether its sign is negative.

    Parameters
    ----------
    numbers : array of uint32, or of int64
        Row numbers; they count modulo 2^32.
    size : int
        k.
    seed : int
    wrap : callable
        As in `sampling.mixed`.

    Returns
    -------
    buckets : array of the dtype of the numbers
    negative : array of bool

    Examples
    --------
    >>> buckets, negative = row_hashes(np.arange(4, dtype=np.uint32), 8, seed=0)
    >>> bool((buckets < 8).all()), negative.dtype
    (True, dtype('bool'))
    """
    # Python's own integers: a compiler that traces NumPy calls must not find any.
    salt = mixed((mixed(seed & MASK, low_32_bits) + _APART) & MASK, low_32_bits) >> 1
    bits = mixed(wrap(mixed(wrap(numbers), wrap) + salt), wrap)
    return scaled(bits, size), bits % 2 == 1  # of the highest bits, and the lowest one


def label_hashes(
    labels: npt.NDArray[np.int64], ignore_index: int, first_row: int, size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return `row_hashes` of rows with these labels, of which those of a class are numbered from ``first_row`` on."""
    numbered = (labels >= 0) & (labels != ignore_index)
    return row_hashes(first_row - 1 + np.cumsum(numbered), size, seed, low_32_bits)


def recentred(sketch: Floats, signs: Floats, offsets: Floats) -> Floats:
    r"""Return the sketch of the rows about other centres: :math:`K - Z \Delta`."""
    moved: Floats = sketch - signs @ offsets
    return moved


def standard_error(projected: Floats) -> float:
    r"""Return the standard error of :math:`T = |P|_F^2`, P the sketch of rows V.

    Over the hashes, T has the mean :math:`|V|_F^2` and a variance of :math:`\frac2k |V^\top V|_F^2`; the
    latter is estimated by :math:`(|P^\top P|_F^2 - T^2/k) / (1 + 1/k)`, without bias, and by the least
    that it can be, :math:`T^2` over the columns, where that is more. Both hold where no few rows make up
    most of V.
    """
    size, columns = projected.shape
    products = projected.T @ projected
    square = float(np.trace(products)) ** 2
    spread = (np.vdot(products, products) - square / size) / (1 + 1 / size)
    return math.sqrt(2 / size * max(spread, square / columns))


def turned(array: Floats, seed: int) -> Floats:
    """Return the rows of a sketch (or of its signs) in another order and with other signs.

    A signed permutation leaves every :math:`|Ku|` as it is, and has rows of equal numbers meet others in
    a sum.
    """
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
