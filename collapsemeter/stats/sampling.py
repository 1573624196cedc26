"""Hashes of a row's number, 32 bits wide: its place in a bounded uniform sample, its bucket and its group, the same in every framework.

Algorithm R (Vitter 1985): row number t takes slot t while there is room, afterwards a random one of t + 1, if that is
a slot at all. No random state is touched, and a resumed run draws the same sample.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = Any  # of NumPy or of a framework: unsigned 32-bit values, in uint32 or wider

Wrap = Callable[[Array], Array]

MASK = 0xFFFFFFFF
_AHEAD = 1024  # row numbers of a block of draws; a batch lies in two of them
_FACTORS = (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39)
_HALF = 0x10000
_EVEN = 0.05  # probabilities that differ by less count as equal
GROUPS = 16
_APART = 0x51ED270B  # so that a row's bucket says nothing of its place in the row sample
_DEALING = 0x2545F491 >> 1  # nor its group of either


def uint32(values: Array) -> Array:
    """Keep the values as they are: uint32 arithmetic wraps around by itself."""
    return values


def low_32_bits(values: Array) -> Array:
    """Wrap around at 2^32, for frameworks whose integers are int64."""
    return values & MASK


def mixed(values: Array, wrap: Wrap = uint32) -> Array:
    """Return a 32-bit hash of 32-bit values, in uint32 or in int64 with ``wrap=low_32_bits``."""
    # By * // ^ & alone, which every framework's integers have, and factors whose products fit int64.
    for factor in _FACTORS:
        values = wrap((values ^ (values // 2**16)) * factor)
    return values ^ (values // 2**15)


def scaled(fractions: Array, sizes: Array) -> Array:
    r"""Return :math:`\lfloor f s / 2^{32} \rfloor`, of 32-bit hashes f a number in 0..s-1, without 64-bit integers."""
    f_high, f_low = fractions // _HALF, fractions % _HALF
    s_high, s_low = sizes // _HALF, sizes % _HALF
    low, cross_a, cross_b = f_low * s_low, f_low * s_high, f_high * s_low
    carry = (low // _HALF + cross_a % _HALF + cross_b % _HALF) // _HALF
    return f_high * s_high + cross_a // _HALF + cross_b // _HALF + carry


def drawn_slots(numbers: Array, seed: int, wrap: Wrap = uint32) -> Array:
    """Return the slot that each row would take in a sample that is full, in 0..number.

    Parameters
    ----------
    numbers : array of uint32, or of int64 in 0..2^32-2
        Row numbers.
    seed : int
    wrap : callable
        `uint32` or `low_32_bits`, as the dtype asks for.

    Examples
    --------
    >>> bool((drawn_slots(np.arange(100, dtype=np.uint32), seed=0) <= np.arange(100)).all())
    True
    """
    # Python's own integers: a compiler that traces NumPy calls must not find any. Below 2^31, it fits
    # every dtype.
    salt = mixed(seed & MASK, low_32_bits) >> 1
    return scaled(mixed(wrap(mixed(numbers, wrap) + salt), wrap), numbers + 1)


def row_hashes(numbers: Array, size: int, seed: int, wrap: Wrap = uint32) -> tuple[Array, Array]:
    """Return the bucket of each row, in 0..size-1, and whether its sign is negative; the first rows have buckets of their own.

    Parameters
    ----------
    numbers : array of uint32, or of int64
        Row numbers; they count modulo 2^32.
    size : int
        k.
    seed : int
    wrap : callable
        `uint32` or `low_32_bits`, as the dtype asks for.

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
    rounds = wrap(numbers) // size  # 0 of the first rows, whose bucket is their number
    late = 2 * rounds // (rounds + 1)  # 0 or 1, in arithmetic that every framework's integers have
    buckets = late * scaled(bits, size) + (1 - late) * wrap(numbers)
    return buckets, bits % 2 == 1  # of the highest bits, and the lowest one


def dealt_groups(numbers: Array, groups: int, wrap: Wrap = uint32) -> Array:
    """Return the group of each row number, in 0..groups-1; of 8 and 4 groups each joins two of twice as many.

    Parameters
    ----------
    numbers : array of uint32, or of int64
        Row numbers; they count modulo 2^32.
    groups : int
        16, 8 or 4.
    wrap : callable
        `uint32` or `low_32_bits`, as the dtype asks for.

    Examples
    --------
    >>> sorted(dealt_groups(np.arange(16, dtype=np.uint32), 16).tolist()) == list(range(16))
    True
    """
    numbers = wrap(numbers)
    step, shift = _orders(numbers // GROUPS, wrap)
    return (numbers % GROUPS * step + shift) % groups


def dealt_range(first: int, count: int, groups: int) -> npt.NDArray[np.int64]:
    """Return `dealt_groups` of row numbers that follow each other.

    Examples
    --------
    >>> bool((dealt_range(5, 40, 8) == dealt_groups(np.arange(5, 45), 8, low_32_bits)).all())
    True
    """
    blocks = np.arange(first // GROUPS, -(-(first + count) // GROUPS)) & (2**28 - 1)
    step, shift = _orders(blocks, low_32_bits)
    places = (np.arange(GROUPS) * step[:, None] + shift[:, None]) & (groups - 1)
    start = first % GROUPS
    dealt: npt.NDArray[np.int64] = places.ravel()[start : start + count]
    return dealt


def _orders(blocks: Array, wrap: Wrap) -> tuple[Array, Array]:
    """Return the step, which is odd, and the shift that permute the places of each block."""
    bits = mixed(wrap(mixed(blocks, wrap) + _DEALING), wrap)
    return bits // 2**29 * 2 + 1, bits // 2**20 % GROUPS


def reservoir_slots(numbers: npt.NDArray[np.int64], size: int, seed: int) -> npt.NDArray[np.int64]:
    """Say where each row of a batch goes in a uniform sample of all rows so far.

    Parameters
    ----------
    numbers : (B,) int64 array
        Row numbers, counted over all rows that may be kept; -1 for a row that may not.
    size : int
        Slots; slot ``size`` is the bin for rows that are not kept.
    seed : int

    Returns
    -------
    (B,) int64 array of slots 0..size

    References
    ----------
    Vitter 1985, algorithm R.

    Examples
    --------
    >>> reservoir_slots(np.array([0, -1, 1]), 8, seed=0)
    array([0, 8, 1])
    """
    slots = np.full(len(numbers), size)
    rows, places = reservoir_rows(numbers, size, seed)
    slots[rows] = places
    return slots


def reservoir_rows(
    numbers: npt.NDArray[np.int64], size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of a batch that `reservoir_slots` gives a slot, in order, and their slots."""
    late = numbers >= size
    if (
        late.all()
    ):  # the rule once the sample is full; few rows are left, and the rest is about them
        slots = _drawn(numbers, seed) if len(numbers) else numbers
        rows = np.flatnonzero(slots < size)
    else:
        slots = numbers.copy()
        if late.any():
            slots[late] = _drawn(numbers[late], seed)
        rows = np.flatnonzero((slots >= 0) & (slots < size))
    slots = slots[rows]
    # Of two rows drawn for one slot the later replaces the earlier, as if they came one by one: NumPy
    # assigns the last of repeated indices.
    last = np.empty(size, np.int64)
    last[slots] = rows
    stays = last[slots] == rows
    return rows[stays], slots[stays]


def evenly_likely(
    numbers: npt.NDArray[np.int64], size: int, rows: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """(K,) bool: which rows of a sample of k slots to keep, so that all rows of ranks with unequal counts are equally likely in it."""
    # W processes number their rows t = iW + r, and process r has counted n_r. With m = max(t, k), row t is in the sample with
    # p(t) = min(1, k / t) prod_r min(1, m / (n_r W))^(1/W); rows then leave by a hash, until each has the least of these.
    counted = np.asarray(rows, np.float64) * len(rows)
    least = np.log(min(1.0, size / max(counted.max(), 1.0)))
    places = np.append(numbers, 0).astype(np.float64)  # the likeliest is row 0
    reach = np.maximum(places, size)
    stays = np.minimum(0.0, np.log(size / (places + 1)))
    for last in counted:
        stays -= np.maximum(0.0, np.log(np.maximum(last, 1.0) / reach)) / len(rows)
    if stays[-1] - least < _EVEN:
        return np.ones(len(numbers), bool)
    fractions = mixed((numbers + _APART).astype(np.uint32)) / 2.0**32
    even: npt.NDArray[np.bool_] = fractions < np.exp(least - stays[:-1])
    return even


def _drawn(numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the draws of row numbers near each other; those of a stream are made many batches at a time."""
    first, last = int(numbers.min()) // _AHEAD, int(numbers.max()) // _AHEAD
    if (last - first) * _AHEAD > 4 * (
        len(numbers) + _AHEAD
    ):  # far apart: those of one process among many
        apart: npt.NDArray[np.int64] = drawn_slots(numbers.astype(np.uint32), seed).astype(np.int64)
        return apart
    blocks = [_draws_of(block, seed) for block in range(first, last + 1)]
    drawn: npt.NDArray[np.int64] = np.concatenate(blocks)[numbers - first * _AHEAD]
    return drawn


@functools.lru_cache(maxsize=8)  # layers whose samples differ in size ask for the same 4096 rows
def _draws_of(block: int, seed: int) -> npt.NDArray[np.int64]:
    numbers = np.arange(block * _AHEAD, (block + 1) * _AHEAD).astype(np.uint32)
    salt = np.uint32(mixed(seed & MASK, low_32_bits) >> 1)
    fractions = _mixed_bits(_mixed_bits(numbers) + salt).astype(np.uint64)
    slots = fractions * (numbers + np.uint32(1)).astype(np.uint64) >> np.uint64(32)
    draws: npt.NDArray[np.int64] = slots.astype(np.int64)
    return draws


def _mixed_bits(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return `mixed` by bit operations, which NumPy has, in a quarter of the time."""
    for factor in _FACTORS:
        values = (values ^ (values >> np.uint32(16))) * np.uint32(factor)
    return values ^ (values >> np.uint32(15))
