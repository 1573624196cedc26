"""From the device to the host: what each layer counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.tally import Array, Tally
from collapsemeter.stats.sums import COUNTERS

from . import compiled
from .device_sums import DeviceSums
from .state import HEAD_OUTPUT, Store


def tallies(store: Store, selection: Selection) -> dict[tuple[str, int], Callable[[], Tally]]:
    """Return how to copy what each layer that fired has counted, by layer and call."""
    copies: dict[tuple[str, int], Callable[[], Tally]] = {}
    for name in selection.watched:
        for call in itertools.count():
            state = store.layers.get((name, call))
            if state is None or (call > 0 and _is_empty(state)):
                break
            copies[name, call] = partial(_tally, store, name, call, state)
    return copies


def sample_size(store: Store, call: tuple[str, int]) -> int:
    """Return how many rows a layer that fired keeps for NC4."""
    return store.layers[call].sample_size


def _is_empty(state: DeviceSums) -> bool:
    sums = state.sums
    return not int(sums.counts.sum() + sum(getattr(sums, cause) for cause in COUNTERS))


def _tally(store: Store, name: str, call: int, state: DeviceSums) -> Tally:
    rows, labels, ids = _kept_rows(store, name, call, state)
    return Tally(
        state.host_sums(),
        state.feature_dtype,
        rows,
        labels,
        ids,
        _kept_decisions(store, call, state),
        state.seed,
    )


def _kept_rows(store: Store, name: str, call: int, state: DeviceSums) -> tuple[Array, Array, Array]:
    batches = store.exact_rows.get((name, call))
    if batches:
        rows, labels, ids = (torch.cat(part) for part in zip(*batches, strict=True))
        return rows.double().numpy(), labels.numpy(), ids.numpy()
    # By NumPy, which takes them in one thread: PyTorch's would wait for the threads of BLAS.
    sample = (state.sample_rows, state.sample_labels, state.sample_ids)
    rows_of_slots, labels_of_slots, ids_of_slots = (part[:-1].cpu().numpy() for part in sample)
    filled = ids_of_slots >= 0
    return rows_of_slots[filled], labels_of_slots[filled], ids_of_slots[filled]


def _kept_decisions(store: Store, call: int, state: DeviceSums) -> tuple[Array, Array] | None:
    """The network's decisions by row number; of its first call where the layer is called more often."""
    for head_call in (call, 0):
        batches = store.exact_rows.get((HEAD_OUTPUT, head_call))
        if batches:
            decided, _, ids = (torch.cat(part) for part in zip(*batches, strict=True))
            return ids.numpy(), decided.numpy()
        decisions = store.predictions.get((head_call, state.sample_size))
        if decisions is not None:
            numbers = decisions.ids[:-1].cpu().numpy()
            classes = decisions.predictions[:-1].cpu().numpy()
            return numbers[numbers >= 0], classes[numbers >= 0]
    return None


def causes(model: nn.Module) -> dict[str, str]:
    """Return the likely cause of rows that a layer missed or counted twice."""
    of_compile = ""
    if compiled.is_compiled(model) or compiled.anything_compiled():
        of_compile = (
            "; or torch.compile made a graph of it before the meter was attached: attach first, or "
            "call torch.compiler.reset()"
        )
    return {
        "never_fired": "its module was not called inside `with meter.batch(labels)` (its weights are "
        "used directly, another copy of the model ran, or the forward ran in another thread)"
        + of_compile,
        "rows_missing": "some forwards did not pass through it (stochastic depth, early exit, a "
        "replica, a block in which the model did not run)" + of_compile,
        "rows_counted_twice": "it fired more than once for a batch (activation checkpointing around a "
        "compiled block)",
    }
