"""Rows go into sums and samples; those of small batches wait in `state.Waiting` until they make a block, since XLA pays for every operation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from collapsemeter.adapter.waiting_on_host import usable
from collapsemeter.stats import sums
from collapsemeter.stats.sampling import GROUPS, dealt_groups
from collapsemeter.stats.sketch import row_hashes

from .namespace import JaxNamespace
from .sample import numbered, put, slots_of

if TYPE_CHECKING:
    from .state import State


class Batch(NamedTuple):
    """One batch: the rows of each layer, (B, d), and (B,) labels and decisions of the network."""

    rows: tuple[Array, ...]
    labels: Array
    decisions: Array

    @property
    def codes(self) -> Array:
        """(B, 2): labels and decisions."""
        return jnp.stack([self.labels, self.decisions], axis=1)


def let_wait(state: State, batch: Batch) -> State:
    """Put a batch into the block; where that has no room for it, its rows are added first."""
    state = settled(state, spare=len(batch.labels))
    waiting = state.waiting
    assert waiting is not None

    def written(block: Array, values: Array) -> Array:
        whole: Array = lax.dynamic_update_slice_in_dim(block, values, state.filled, axis=0)
        return whole

    rows = tuple(map(written, waiting.rows, batch.rows))
    block = replace(waiting, codes=written(waiting.codes, batch.codes), rows=rows)
    filled = state.filled + jnp.uint32(len(batch.labels))
    return replace(state, waiting=block).tallied(filled=filled)


def settled(state: State, spare: int | None = None) -> State:
    """Return the state with the rows that wait in its sums and samples, unless the block can ``spare`` so many more."""
    if state.waiting is None:
        return state
    most = 0 if spare is None else state.spec.waiting_rows - spare
    try:
        added: State = lax.cond(state.filled > most, _settled, lambda same: same, state)
    except TypeError:  # parts differ over an axis that was not named
        return _settled(state)
    return added


def _settled(state: State) -> State:
    waiting = state.waiting
    assert waiting is not None
    there = jnp.arange(state.spec.waiting_rows) < state.filled
    labels = jnp.where(there, waiting.labels, sums.ABSENT)
    first = state.next_row - usable(labels, state.spec.settings).sum(dtype=jnp.uint32)
    batch = Batch(waiting.rows, labels, waiting.predictions)
    added = with_rows(state.tallied(next_row=first), batch, JaxNamespace(state.spec.dtype))
    return added.tallied(next_row=state.next_row, filled=jnp.uint32(0))


def with_rows(state: State, batch: Batch, xp: JaxNamespace) -> State:
    """Return the state with a batch in its sums and samples, whose first row is number `next_row`."""
    spec, settings = state.spec, state.spec.settings
    # What goes into the sample: the rows of all devices, in order.
    codes = xp.gathered(batch.codes)
    numbers, numberable = numbered(usable(codes[:, 0], settings), state.next_row)
    hashes = groups = None
    if any(layer.sums.sketch is not None for layer in state.layers):
        hashes = row_hashes(xp.of_this_device(numbers), settings.sketch_rows, settings.seed)
    if any(held.groups for held in spec.holdings):
        dealt = dealt_groups(xp.of_this_device(numbers), GROUPS)
        groups = dealt.astype(batch.labels.dtype)
    slots = {size: slots_of(numbers, numberable, size, settings.seed) for size in spec.sample_sizes}
    samples = tuple(
        replace(sample, codes=put(sample.codes, slots[size], codes))
        for size, sample in zip(spec.sample_sizes, state.samples, strict=True)
    )
    layers = tuple(
        layer.with_sums(
            sums.update(
                layer.sums,
                rows,
                batch.labels,
                xp,
                ignore_index=settings.ignore_index,
                propagate=settings.propagate,
                hashes=hashes,
                groups=None if groups is None else groups % (held.groups or GROUPS),
            ),
            put(layer.rows, slots[len(layer.rows)], xp.gathered(rows)),
        )
        for layer, held, rows in zip(state.layers, spec.holdings, batch.rows, strict=True)
    )
    return replace(state, layers=layers, samples=samples)
