"""Save the counts as arrays by name, and load them: an interrupted run goes on."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from keras import ops

from collapsemeter.adapter.checkpoint import (
    check_same,
    check_widths,
    not_a_state,
    saved_layers,
    say_without_groups,
)
from collapsemeter.adapter.memory import Holding
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import ScatterKind

from .linear import linear_map
from .operations import Key
from .state import StreamSums
from .waiting import WaitingBlock

_OPTIONS = ("num_classes", "sample_rows", "sketch_rows", "seed")
SavedArrays = Mapping[str, np.ndarray[Any, Any]]


def state_dict(
    selection: Selection, settings: Settings, streams: Mapping[str, StreamSums]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the variables of the streams by name, with what is needed to make them again."""
    state = {option: np.asarray(getattr(settings, option)) for option in _OPTIONS}
    state["watched"] = np.asarray(selection.watched)
    for name, stream in streams.items():
        for number, ((layer, call), variables) in enumerate(stream.layers.items()):
            width = str(int(variables.rows.shape[1]))
            state[f"{name}/{number}"] = np.asarray([layer, str(call), width, variables.dtype])
        for variable, used in stream.rows_in_use():
            state[f"{name}/{variable.name}"] = ops.convert_to_numpy(variable.value)[used].copy()
        for number, variables in enumerate(stream.layers.values()):
            if not variables.has_groups:
                _regroup(state, _prefix(name, stream, number), 0)
    return state


def load_state_dict(
    selection: Selection, settings: Settings, streams: Mapping[str, StreamSums], state: SavedArrays
) -> None:
    """Fill the streams from `state_dict`, or leave them as they are where the state is another's."""
    if not hasattr(state, "keys") or not set(_OPTIONS) <= set(state.keys()):
        raise not_a_state(state)
    saved = {name: list(_layers_of(state, name)) for name in streams}
    widths = {key[0]: width for layers in saved.values() for key, width, _ in layers}
    _check_same(selection, settings, streams, state, widths)
    held = {
        (name, key): _held(state, name, stream, number, key[0], width)
        for name, stream in streams.items()
        for number, (key, width, _) in enumerate(saved[name])
    }
    for (name, key), holding in held.items():
        if key in streams[name].layers:
            here = streams[name].layers[key].holding
            if (holding.kind, here.kind) == ("class", "pooled"):  # as was kept before it was dear
                held[name, key] = holding = replace(holding, kind="pooled")
            what = f"rows and scatter of layer {key[0]!r}"
            check_same({what: _said(holding)}, {what: _said(here)})
    for name, stream in streams.items():
        for key, width, dtype in saved[name]:
            stream.allocate(key, width, dtype, held[name, key])
        stream.let_wait()
    arrays = dict(state)
    without_groups = [
        (stream, key)
        for name, stream in streams.items()
        for number, (key, _, _) in enumerate(saved[name])
        if not _regroup(arrays, _prefix(name, stream, number), stream.layers[key].holding.groups)
    ]
    without_room = [
        (stream, _without_room(arrays, name, stream)) for name, stream in streams.items()
    ]
    values = [
        (variable, _filled_up(arrays[f"{name}/{variable.name}"], variable.shape))
        for name, stream in streams.items()
        for variable in stream.variables
        if f"{name}/{variable.name}" in arrays
    ]
    for stream in streams.values():
        stream.clear()
    for variable, rows in values:  # all of which fit
        variable.assign(rows)
    for stream in streams.values():
        stream.resume()
    for stream, block in without_room:
        if block is not None:
            stream.add(block)
    for stream, key in without_groups:
        stream.layers[key] = stream.layers[key]._replace(has_groups=False)
    lacking = {layer for _, (layer, _) in without_groups}
    say_without_groups(filter(lacking.__contains__, selection.watched), until="the next reset()")


def _filled_up(rows: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return what was saved of a variable in its shape now: rows that begin it, or scatters to be pooled."""
    if rows.shape == shape:
        return rows
    if rows.shape[1:] == shape:  # the scatters of all classes are that of all rows
        pooled: np.ndarray[Any, Any] = rows.sum(axis=0)
        return pooled
    whole = np.zeros(shape, rows.dtype)
    whole[: len(rows)] = rows
    return whole


def _without_room(arrays: dict[str, Any], name: str, stream: StreamSums) -> WaitingBlock | None:
    """Take out the rows that waited where fewer, or none, wait now."""
    prefix = f"{name}/{stream.name}_"
    waited = len(arrays.get(f"{prefix}waiting_labels", ()))
    if waited <= (0 if stream.waiting is None else stream.waiting.size):
        return None
    del arrays[f"{prefix}waiting"]
    labels, decided = (
        ops.convert_to_tensor(arrays.pop(f"{prefix}waiting_{part}"))
        for part in ("labels", "decided")
    )
    rows = {
        key: ops.convert_to_tensor(arrays.pop(f"{prefix}{number}_waiting"))
        for number, key in enumerate(stream.layers)
        if f"{prefix}{number}_waiting" in arrays
    }
    return WaitingBlock(rows, labels, decided)


def _layers_of(state: SavedArrays, stream: str) -> Iterator[tuple[Key, int, str]]:
    for number in itertools.count():
        if f"{stream}/{number}" not in state:
            return
        layer, call, width, dtype = state[f"{stream}/{number}"].tolist()
        yield (layer, int(call)), int(width), dtype


def _prefix(name: str, stream: StreamSums, number: int) -> str:
    return f"{name}/{stream.name}_{number}_"


def _regroup(arrays: dict[str, Any], prefix: str, groups: int) -> bool:
    """Have a layer's sums in so many groups, or in the first alone where there were fewer; whether there were enough."""
    counts = arrays[f"{prefix}counts"]
    parts = {part: arrays[prefix + part] for part in ("sums", "squares")}
    parts["group_counts"] = arrays.pop(f"{prefix}group_counts", counts)
    saved = len(parts["group_counts"]) // len(counts)
    enough = groups <= (saved if saved > 1 else 0)
    if not groups:
        del parts["group_counts"]
    for part, rows in parts.items():
        shape = len(counts), max(groups, 1), *rows.shape[1:]
        cells = rows.reshape(len(counts), -1, shape[1] if enough else 1, *rows.shape[1:]).sum(1)
        whole = np.zeros(shape, rows.dtype)
        whole[:, : cells.shape[1]] = cells
        arrays[prefix + part] = whole.reshape(-1, *rows.shape[1:])
    return enough


def _held(
    state: SavedArrays, name: str, stream: StreamSums, number: int, layer: str, width: int
) -> Holding:
    """Return what a saved layer kept."""
    prefix = _prefix(name, stream, number)
    kind: ScatterKind = "sketch" if f"{prefix}sketch" in state else "trace"
    if f"{prefix}scatter" in state:
        kind = "class" if state[f"{prefix}scatter"].ndim == 3 else "pooled"
    groups = stream.holding_of(layer, width).groups
    return Holding(kind, len(state[f"{prefix}rows"]) - 1, groups)


def _said(holding: Holding) -> str:
    return f"{holding.sample_rows} and {holding.kind!r}"


def _check_same(
    selection: Selection,
    settings: Settings,
    streams: Mapping[str, StreamSums],
    state: SavedArrays,
    counted: Mapping[str, int],
) -> None:
    """Raise unless the state is of these layers and options."""
    watched = selection.watched
    layers = saved_layers(
        state["watched"].tolist() if "watched" in state else None, counted, watched
    )
    check_same(
        {option: int(state[option]) for option in _OPTIONS} | {"layers": layers},
        {option: getattr(settings, option) for option in _OPTIONS} | {"layers": watched},
    )
    head, widths = selection.head_module, {}
    weights = None if head is None else linear_map(head)
    if selection.head is not None and weights is not None:
        widths[selection.head] = int(weights[0].shape[-2])
    for stream in streams.values():
        widths |= {
            layer: int(variables.rows.shape[1]) for (layer, _), variables in stream.layers.items()
        }
    check_widths(counted, widths)
