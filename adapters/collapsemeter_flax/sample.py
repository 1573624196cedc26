"""The row sample on the device: the rows that NumPy would keep, and a uniform one of two samples."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from collapsemeter.stats.sampling import drawn_slots, mixed, scaled

from .namespace import FULL

EMPTY = -1  # the label of a slot that holds no row


def numbered(usable: Array, first: Array) -> tuple[Array, Array]:
    """Number the rows that may be kept, in order; beyond 2^32 - 2 the sample stays as it is."""
    counts = jnp.cumsum(usable.astype(jnp.uint32), dtype=jnp.uint32)
    numbers = first + counts - usable.astype(jnp.uint32)
    return numbers, usable & (numbers >= first) & (numbers != jnp.uint32(FULL))


def slots_of(numbers: Array, usable: Array, size: int, seed: int) -> Array:
    """Return the slot of each row, as `collapsemeter.stats.sampling.reservoir_slots` does; ``size`` for none."""
    # A row beyond the last slot draws one in 0..number, which may be none.
    slots = jnp.where(numbers < size, numbers, drawn_slots(numbers, seed))
    slots = jnp.where(usable & (slots < size), slots, size).astype(jnp.int32)
    # Of two rows drawn for one slot the later replaces the earlier, as if they came one by one.
    order = jnp.arange(slots.shape[0], dtype=jnp.int32)
    last = jnp.full(size + 1, -1, jnp.int32).at[slots].max(order)
    return jnp.where(last[slots] == order, slots, size)


def put(rows: Array, slots: Array, values: Array) -> Array:
    """Write values into their slots; those without one are dropped."""
    return rows.at[slots].set(values.astype(rows.dtype), mode="drop")


def shares(rows_a: Array, rows_b: Array, size: int, seed: int | Array) -> Array:
    """Return how many rows of a uniform sample of both come from a: hypergeometric, drawn one by one."""
    draws = mixed(mixed(jnp.arange(size, dtype=jnp.uint32) + jnp.uint32(1)) + (seed & 0x7FFFFFFF))

    def draw(left: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        a, b = left
        total = jnp.where(a + b < a, jnp.uint32(FULL), a + b)
        from_a = scaled(number, total) < a
        unit = jnp.uint32(1)
        a_next = jnp.where(from_a & (a > 0), a - unit, a)
        b_next = jnp.where(~from_a & (b > 0), b - unit, b)
        return (a_next, b_next), None

    (a, _), _ = lax.scan(draw, (rows_a, rows_b), draws)
    return rows_a - a


def joint_slots(
    labels_a: Array, labels_b: Array, rows_a: Array, rows_b: Array, seed: int
) -> tuple[Array, Array]:
    """Choose a uniform sample of the rows of two streams from a uniform sample of each: slots, and whether they are b's."""
    size = labels_a.shape[0]
    take_a = shares(rows_a, rows_b, size, seed)
    # A salt that differs: the same slots of a and b must not be chosen together.
    order_a, order_b = (_shuffled(labels_a, seed), _shuffled(labels_b, seed + 0x5BD1E995))
    place = jnp.arange(size, dtype=jnp.int32)
    first_b = jnp.minimum(take_a, size).astype(jnp.int32)
    from_b = place >= first_b
    slots = jnp.where(from_b, order_b[jnp.clip(place - first_b, 0)], order_a[place])
    # The sample of an empty stream changes nothing, not even the order.
    alone = (rows_a == 0) | (rows_b == 0)
    return jnp.where(alone, place, slots), jnp.where(alone, rows_a == 0, from_b)


def _shuffled(labels: Array, seed: int) -> Array:
    """Slots in random order, the empty ones last; in their own order while none was replaced."""
    place = jnp.arange(labels.shape[0], dtype=jnp.uint32)
    keys = mixed(mixed(place) + jnp.uint32(seed & 0x7FFFFFFF))
    filled = labels != EMPTY
    keys = jnp.where(filled.all(), keys, place)
    return jnp.lexsort((keys, ~filled)).astype(jnp.int32)
