r"""`merge`: two states of the same layers into one, without leaving the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
from jax import Array

from collapsemeter.stats.sampling import mixed
from collapsemeter.stats.sketch import turning_keys
from collapsemeter.stats.sums import COUNTERS, Sums

from .namespace import counted, product
from .sample import joint_slots
from .sharding import by_own_rules, on_automatic_axes
from .state import Sample, State
from .waiting import settled


def merge(a: State, b: State) -> State:
    r"""Return the state that has counted the batches of both.

    Sums of different shifts are never added as they are. Of a class that both hold, the new shift is
    the joint mean, so that with :math:`\delta = \mu_b - \mu_a`

    .. math:: G = S_a + S_b + \sum_c \frac{n_a n_b}{n_a + n_b}\, \delta \delta^\top

    (Chan, Golub & LeVeque 1983) loses no digits to the distance between the shifts; of a class that
    only one holds, the sums are taken as they are. A class whose shift lies far from its rows keeps it, so
    that `report` still knows what that has cost (`collapsemeter.stats.rounding`). The row samples become one uniform sample of all
    rows. A pure function, which works under ``jit``; the empty state is its identity, bit for bit.

    States of one `init` have one seed, so that rows of equal numbers share bucket and sign in the sketch
    of a wide layer. The sketch of b is therefore added with its rows in another order and with other signs,
    drawn from the seed and the rows that each has counted, and the sum is unbiased. Another order of merging
    gives another, equally good sketch.

    Parameters
    ----------
    a, b : State
        Made by the same `init`.

    Raises
    ------
    ValueError
        If they count different layers, widths or classes, or with other settings.

    Examples
    --------
    >>> from collapsemeter_flax import init, to_moments, update
    >>> empty = init({"fc": 3}, num_classes=2)
    >>> a, b = (update(empty, {"fc": jnp.eye(3)}, jnp.array([0, 1, 1])) for _ in range(2))
    >>> to_moments(merge(a, b))["fc"].counts
    array([2, 4])
    """
    _check(a, b)
    with by_own_rules():
        merged: State = on_automatic_axes(_merged, a, b)
    return merged


@functools.partial(jax.jit, inline=True)
def _merged(a: State, b: State) -> State:
    a, b = settled(a), settled(b)
    chosen = {
        size: joint_slots(left.labels, right.labels, a.next_row, b.next_row, a.spec.settings.seed)
        for size, left, right in zip(a.spec.sample_sizes, a.samples, b.samples, strict=True)
    }

    def joint(left: Array, right: Array) -> Array:
        slots, from_b = chosen[left.shape[0]]
        return jnp.where(from_b.reshape(-1, *(1,) * (left.ndim - 1)), right[slots], left[slots])

    settings = a.spec.settings
    turn = _turn(settings.sketch_rows, settings.seed, a.next_row, b.next_row)
    low = a.expected[1] + b.expected[1]
    carry = (low < a.expected[1]).astype(jnp.uint32)
    layers = tuple(
        left.with_sums(merged_sums(left.sums, right.sums, turn), joint(left.rows, right.rows))
        for left, right in zip(a.layers, b.layers, strict=True)
    )
    samples = tuple(
        Sample(joint(left.codes, right.codes))
        for left, right in zip(a.samples, b.samples, strict=True)
    )
    return replace(a, layers=layers, samples=samples).tallied(
        next_row=counted(a.next_row, b.next_row),
        batches=counted(a.batches, b.batches),
        expected=jnp.stack([a.expected[0] + b.expected[0] + carry, low]),
        feature_dtypes=jnp.maximum(a.feature_dtypes, b.feature_dtypes),
    )


def _check(a: State, b: State) -> None:
    if a.spec == b.spec:
        return
    for part in fields(a.spec):
        part_a, part_b = getattr(a.spec, part.name), getattr(b.spec, part.name)
        if part_a != part_b:
            raise ValueError(
                f"the states differ in {part.name}, {part_a!r} and {part_b!r}: merge only states of "
                "one init"
            )


def _turn(size: int, seed: int, rows_a: Array, rows_b: Array) -> tuple[Array, Array]:
    """Return an order (k,) and signs (k,) for the sketch of b; where a or b is empty, what changes nothing."""
    places = jnp.arange(size, dtype=jnp.uint32)
    salt = mixed(mixed(mixed(rows_a) + rows_b) + jnp.uint32(seed & 0x7FFFFFFF))
    keys = turning_keys(places, salt)
    alone = (rows_a == 0) | (rows_b == 0)
    order = jnp.argsort(jnp.where(alone, places, keys))
    return order, jnp.where(alone | (keys % 2 == 0), 1.0, -1.0)


def merged_sums(a: Sums, b: Sums, turn: tuple[Array, Array]) -> Sums:
    """Merge the sums of one layer, see `merge`."""
    merged = _merged_classes(a.by_class(), b.by_class(), turn)
    if a.group_counts is None or b.group_counts is None:
        return merged
    from_a, from_b = (_moved_groups(part, merged.shift - part.shift) for part in (a, b))
    return replace(
        merged,
        sums=from_a[0] + from_b[0],
        squares=from_a[1] + from_b[1],
        group_counts=counted(a.group_counts, b.group_counts),
    )


def _moved_groups(part: Sums, moves: Array) -> tuple[Array, Array]:
    """Return sums and squares of groups about shifts that lie these (C, d) moves from their own."""
    assert part.group_counts is not None
    move = jnp.repeat(moves, part.groups, axis=0)
    added = part.group_counts.astype(move.dtype)[:, None] * move
    squares = part.squares + ((added - 2 * part.sums) * move).sum(axis=1)
    return part.sums - added, jnp.maximum(squares, 0.0)


def _merged_classes(a: Sums, b: Sums, turn: tuple[Array, Array]) -> Sums:
    """Merge the sums of classes."""
    dtype = a.shift.dtype
    n_a, n_b = a.counts.astype(dtype), b.counts.astype(dtype)
    offset_a = a.sums / jnp.maximum(n_a, 1)[:, None]
    offset_b = b.sums / jnp.maximum(n_b, 1)[:, None]
    both = ((a.counts > 0) & (b.counts > 0))[:, None]
    # A shift far from its rows has cost their sums digits: it stays, for the report to see how many.
    keeps_shift = both & (_is_far(a, offset_a) | _is_far(b, offset_b))[:, None]
    joint, keeps_a = both & ~keeps_shift, (a.squares >= b.squares)[:, None]
    alone = (b.counts > 0)[:, None] & ~both  # only b has the class
    share = n_b / jnp.maximum(n_a + n_b, 1)
    delta = (b.shift - a.shift) + (offset_b - offset_a)
    step = jnp.where(joint, delta * jnp.sqrt(n_a * share)[:, None], 0.0)

    # The joint mean as a shift, and as sums what its rounding took.
    offset = offset_a + delta * share[:, None]
    mean = a.shift + jnp.where(jnp.isfinite(offset), offset, 0.0)
    sums_about_mean = (offset - (mean - a.shift)) * (n_a + n_b)[:, None]
    left = jnp.where(joint, sums_about_mean, 0.0)
    shift = jnp.where(alone | (keeps_shift & ~keeps_a), b.shift, a.shift)
    shift = jnp.where(joint, mean, shift)
    # Of a class that keeps a shift the other part moves to it.
    moved = jnp.where(keeps_a, b.sums, a.sums)
    far = jnp.where(keeps_shift, jnp.where(keeps_a, a.shift - b.shift, b.shift - a.shift), 0.0)
    added = jnp.where(keeps_a, n_b[:, None], n_a[:, None]) * far
    # Sums of squares move to another centre: off their own shifts, on to the new one.
    products = (
        (step, step),
        (left, left / jnp.maximum(n_a + n_b, 1)[:, None]),
        (jnp.where(joint, -a.sums, -far), jnp.where(keeps_shift, moved, offset_a)),
        (
            jnp.where(joint, -b.sums, added - jnp.where(keeps_shift, moved, 0.0)),
            jnp.where(keeps_shift, far, offset_b),
        ),
    )
    totals = jnp.where(keeps_shift, a.sums + b.sums - added, jnp.where(alone, b.sums, a.sums))
    moves = [jnp.where(both, shift - part.shift, 0.0) for part in (a, b)]
    sketch, signs = _sketch(a, b, moves, turn)
    return Sums(
        counts=counted(a.counts, b.counts),
        shift=shift,
        sums=jnp.where(joint, sums_about_mean, totals),
        squares=a.squares + b.squares + sum((u * v).sum(axis=1) for u, v in products),
        scatter=_scatter(a.scatter, b.scatter, products),
        **{cause: counted(getattr(a, cause), getattr(b, cause)) for cause in COUNTERS},
        sketch=sketch,
        signs=signs,
    )


def _is_far(part: Sums, offset: Array) -> Array:
    """(C,): the shift is much farther from the mean than the rows are, and than rounding of the features."""
    distance = (offset**2).sum(axis=1)
    around = distance * part.counts.astype(distance.dtype)
    resolved = 2.0**-40 * (part.shift**2).sum(axis=1)
    far: Array = (around > 8 * (part.squares - around)) & (distance > resolved)
    return far


def _sketch(
    a: Sums, b: Sums, moves: Sequence[Array], turn: tuple[Array, Array]
) -> tuple[Array | None, Array | None]:
    """Add the sketch of b, turned, to that of a, both about the new shifts; and the sums of signs."""
    if a.sketch is None or b.sketch is None or a.signs is None or b.signs is None:
        return None, None
    order, sign = turn
    sign = sign.astype(a.sketch.dtype)[:, None]
    from_a = a.sketch - product(a.signs, moves[0])
    from_b = b.sketch - product(b.signs, moves[1])
    return from_a + (from_b * sign)[order], a.signs + (b.signs * sign)[order]


def _scatter(
    a: Array | None, b: Array | None, products: Sequence[tuple[Array, Array]]
) -> Array | None:
    if a is None or b is None:
        return None
    if a.ndim == 2:
        left, right = (jnp.concatenate(rows) for rows in zip(*products, strict=True))
        return a + b + product(left.T, right)
    moved = jnp.zeros_like(a)
    for left, right in products:
        moved += left[:, :, None] * right[:, None, :]
    return a + b + moved
