"""A store as tensors and plain values, for ``torch.save``, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collapsemeter.adapter.checkpoint import (
    check_same,
    check_widths,
    not_a_state,
    saved_layers,
    say_without_groups,
)
from collapsemeter.adapter.settings import Settings

from .device_sums import DeviceSums
from .ranks import Numbering
from .state import Store
from .waiting import SampledDecisions

if TYPE_CHECKING:
    from .learnt import Learnt

STATE_VERSION = 1
ADDED = ("unlabelled", "mixed")  # counters that older states lack


def state_dict(store: Store, learnt: Learnt) -> dict[str, Any]:
    """Return a store as tensors and plain values, which ``torch.load(weights_only=True)`` reads."""
    store.flush_decisions()
    return {
        "version": STATE_VERSION,
        "num_classes": store.settings.num_classes,
        "watched": learnt.selection.watched,
        "network": learnt.saved(),
        "expected": store.expected_rows,
        "batches": store.batches,
        "next_row": store.next_row,
        "numbering": [store.numbering.rank, store.numbering.ranks],
        "degraded": dict(store.degraded),
        "unpaired": dict(store.unpaired),
        "partial": [[*key, rows] for key, rows in store.interrupted.items()],
        "layers": [
            {
                "layer": layer,
                "call": call,
                "kind": state.kind,
                "seed": state.seed,
                "feature_dtype": state.feature_dtype,
                "tensors": {name: t.detach().cpu().clone() for name, t in state.tensors().items()},
                # Not added to the sums: blocks must end where they would have without being saved.
                "waiting": _waiting(state),
            }
            for (layer, call), state in store.layers.items()
        ],
        "predictions": [
            {
                "call": call,
                "ids": decisions.ids.cpu().clone(),
                "predictions": decisions.predictions.cpu().clone(),
            }
            for (call, _), decisions in store.predictions.items()
        ],
        "kept": [
            [*key, *(torch.cat(part) for part in zip(*batches, strict=True))]
            for key, batches in store.exact_rows.items()
        ],
    }


def _waiting(state: DeviceSums) -> list[Tensor]:
    if not state.waiting.count:
        return []
    rows, block = state.waiting.held()
    return [rows.cpu().clone(), block.labels.cpu(), torch.from_numpy(block.numbers)]


def empty_state() -> dict[str, Any]:
    """Return the state of a meter that has not seen its network run."""
    return {"version": STATE_VERSION, "num_classes": None, "layers": []}


def check_state(state: Any) -> None:
    """Raise ValueError unless this is what `state_dict` returned, and can be read."""
    if not isinstance(state, Mapping) or not {"version", "num_classes", "layers"} <= state.keys():
        raise not_a_state(state)
    version = state["version"]
    if version != STATE_VERSION:
        raise ValueError(
            f"the state has version {version}, this collapsemeter reads {STATE_VERSION}: "
            "upgrade collapsemeter, or start from reset()"
        )


def load_state(store: Store, state: dict[str, Any], learnt: Learnt, device: torch.device) -> None:
    """Fill a store from a checked state, or leave it as it is where the state is another's."""
    if state["num_classes"] is None:
        store.clear()
        return
    _check_resumable(store, state, learnt)
    layers = {
        (saved["layer"], saved["call"]): _loaded(store, saved, device) for saved in state["layers"]
    }
    store.clear()
    store.layers |= layers
    say_without_groups(
        (
            name
            for (name, _), layer in layers.items()
            if not layer.groups and store.holding(name, layer.sample_rows).groups
        ),
        until="the next reset()",
    )
    for saved in state["predictions"]:
        size = len(saved["ids"]) - 1
        decisions = SampledDecisions(device, size)
        decisions.ids.copy_(saved["ids"])
        decisions.predictions.copy_(saved["predictions"])
        store.predictions[saved["call"], size] = decisions
    for layer, call, rows, labels, ids in state["kept"]:
        store.exact_rows[layer, call] = [(rows, labels, ids)]
    store.expected_rows, store.batches = state["expected"], state["batches"]
    store.next_row, store.degraded = state["next_row"], dict(state["degraded"])
    store.unpaired = dict(state.get("unpaired", {}))
    store.numbering = Numbering(*state.get("numbering", (0, 1)))
    store.interrupted = {(layer, call): rows for layer, call, rows in state["partial"]}


def _loaded(store: Store, saved: dict[str, Any], device: torch.device) -> DeviceSums:
    """Make the state of a layer from what was saved of it."""
    tensors: dict[str, Tensor] = saved["tensors"]
    shift = tensors["shift"]
    first_rows = torch.empty(0, shift.shape[1], dtype=shift.dtype, device=device)
    groups = len(tensors.get("group_counts", ())) // len(tensors["counts"])
    size = len(tensors["sample_ids"]) - 1
    layer = DeviceSums(
        first_rows,
        store.settings,
        saved["kind"],
        size,
        groups=groups,
        waiting_rows=store.plan.room(saved["layer"], shift.shape[1], store.settings, device),
    )
    layer.feature_dtype = saved["feature_dtype"]
    for name, tensor in layer.tensors().items():
        if name in tensors or name not in ADDED:
            tensor.copy_(tensors[name])
    if saved["waiting"]:
        rows, labels, numbers = saved["waiting"]
        layer.load_waiting(rows.to(device), labels.to(device, copy=True), numbers.clone().numpy())
    return layer


def check_same_network(saved: Learnt, learnt: Learnt) -> None:
    """Raise unless the network that runs is the one whose state was loaded."""
    check_same(
        *(
            {"classes": known.settings.num_classes, "layers": known.selection.watched}
            for known in (saved, learnt)
        )
    )


def _check_resumable(store: Store, state: dict[str, Any], learnt: Learnt) -> None:
    """Raise unless the state is of these layers and classes, and rows to come are kept as those before."""
    selection, settings = learnt.selection, store.settings
    watched = selection.watched
    counted = {saved["layer"]: saved["tensors"]["shift"].shape[1] for saved in state["layers"]}
    layers = saved_layers(state.get("watched"), counted, watched)
    check_same(
        {"classes": state["num_classes"], "layers": layers},
        {"classes": settings.num_classes, "layers": watched},
    )
    widths = {name: layer.width for (name, _), layer in store.layers.items()}
    head_width = learnt.head_width()
    if selection.head is not None and head_width is not None:
        widths.setdefault(selection.head, head_width)
    check_widths(counted, widths)
    saved_sizes = {len(saved["ids"]) - 1 for saved in state["predictions"]}
    saved_sizes |= {len(saved["tensors"]["sample_ids"]) - 1 for saved in state["layers"]}
    if not saved_sizes <= store.sample_sizes:
        raise ValueError(
            f"the state keeps samples of {sorted(saved_sizes)} rows, this meter of "
            f"{sorted(store.sample_sizes)}: pass the same sample_rows="
        )
    for saved in state["layers"]:
        if saved["kind"] == "sketch":
            _check_sketch(saved, settings)


def _check_sketch(saved: dict[str, Any], settings: Settings) -> None:
    """Raise unless the rows to come are sketched as those before."""
    saved_options = {"sketch_rows": len(saved["tensors"]["sketch"]), "seed": saved["seed"]}
    for option, value in saved_options.items():
        of_meter = getattr(settings, option)
        if value != of_meter:
            raise ValueError(
                f"the state keeps sketches of {option}={value}, this meter of {of_meter}: pass {option}={value}"
            )
