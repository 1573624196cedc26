"""From the device's sums to a report: copy, check that nothing was missed, measure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from collapsemeter import CollapseReport, Head, LayerReport
from collapsemeter.adapter.layer_report import Tally, layer_report
from collapsemeter.adapter.resuming import check_same, check_widths, not_a_state
from collapsemeter.metrics.measure import undefined_report
from collapsemeter.stats.moments import Phase
from collapsemeter.stats.sums import COUNTERS

from . import compiled
from .device import LayerState, device_of
from .layers import Selection
from .sampling import PredictionState
from .scope import HEAD_OUTPUT, Store

if TYPE_CHECKING:
    from .meter import CollapseMeter

STATE_VERSION = 1
ADDED = ("unlabelled", "mixed")  # counters that older states lack


def report(
    meter: CollapseMeter, store: Store, phase: Phase, more: dict[str, Any]
) -> CollapseReport:
    """Measure every watched layer and say what went wrong with any."""
    # All before the first is measured: threads of BLAS look for more work by spinning, and PyTorch's
    # operations between would wait for them.
    store.flush()
    head = head_of(meter.selection)
    layers: dict[str, LayerReport] = {}
    warnings = [
        f"{name} failed and was left out: {error}"
        for name, error in store.degraded.items()
        if name not in meter.selection.watched
    ]
    for name in meter.selection.watched:
        is_head = name == meter.selection.head
        states = _states_of(store, name)
        for call, state in states.items():
            shown = name if len(states) == 1 else f"{name}#{call}"
            if name in store.degraded:
                layers[shown] = undefined_report("degraded", is_head)
                warnings.append(f"layer {shown!r} failed: {store.degraded[name]}")
                continue
            layers[shown], notes = layer_report(
                shown,
                None if state is None else _tally(store, name, call, state),
                meter.settings,
                phase=phase,
                due=store.expected + store.partial.get((name, call), 0),
                is_head=is_head,
                head=head if is_head else None,
                cause=partial(_cause, meter),
            )
            warnings += notes + _missing_rows(meter, layers[shown], shown)
    if store.partial:
        warnings.append(
            "a batch was interrupted: some layers counted it and others did not, so their row "
            "counts differ"
        )
    return CollapseReport(
        layers=layers,
        phase=phase,
        skipped=meter.skipped,
        warnings=tuple(warnings),
        provenance={
            "framework": f"torch {torch.__version__}",
            "classes": meter.num_classes,
            "rows": store.expected,
            "batches": store.batches,
            "convention": meter.settings.named_convention.name,
            **more,
        },
    )


def _states_of(store: Store, name: str) -> dict[int, LayerState | None]:
    """States of a layer by call; a layer that never fired has one that is None."""
    states: dict[int, LayerState | None] = {}
    for call in itertools.count():
        state = store.layers.get((name, call))
        if state is None or (call > 0 and _is_empty(state)):
            break
        states[call] = state
    return states or {0: None}


def _is_empty(state: LayerState) -> bool:
    sums = state.sums
    return not int(sums.counts.sum() + sum(getattr(sums, cause) for cause in COUNTERS))


def _tally(store: Store, name: str, call: int, state: LayerState) -> Tally:
    rows, labels, ids = _kept_rows(store, name, call, state)
    return Tally(
        state.host_sums(),
        state.feature_dtype,
        rows,
        labels,
        ids,
        _kept_predictions(store, call, state),
        state.seed,
    )


def _missing_rows(meter: CollapseMeter, layer: LayerReport, name: str) -> list[str]:
    decided, rows = layer.provenance.get("nc4_rows"), layer.provenance.get("rows")
    if not meter.exact or decided is None or decided == rows:
        return []
    return [
        f"layer {name!r} has NC4 of {decided} of {rows} rows though exact=True: rows and decisions "
        "are not kept under torch.compile"
    ]


def _cause(meter: CollapseMeter, code: str) -> str:
    if code == "never_fired":
        cause = (
            "its module was not called inside `with meter.batch(labels)` (its weights are used "
            "directly, another copy of the model ran, or the forward ran in another thread)"
        )
    elif code == "rows_missing":
        cause = (
            "some forwards did not pass through it (stochastic depth, early exit, a replica, a block "
            "in which the model did not run)"
        )
    else:
        cause = (
            "it fired more than once for a batch (activation checkpointing around a compiled block)"
        )
    if code != "rows_counted_twice" and (
        compiled.is_compiled(meter._model) or compiled.anything_compiled()
    ):
        cause += (
            "; or torch.compile made a graph of it before the meter was attached: attach first, or "
            "call torch.compiler.reset()"
        )
    return cause


def head_of(selection: Selection) -> Head | None:
    """Return the head's weights on the host; of one logit, as a head of two classes."""
    module = selection.head_module
    if module is None:
        return None
    weight = _host(module.weight)
    bias = None if module.bias is None else _host(module.bias)
    if len(weight) == 1:
        return Head.from_single_logit(weight[0], 0.0 if bias is None else bias)
    return Head(weight, bias)


def _host(parameter: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = parameter.detach().to("cpu", torch.float64).numpy()
    return array


def _kept_rows(
    store: Store, name: str, call: int, state: LayerState
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    kept = store.kept.get((name, call))
    if kept:
        rows, labels, ids = (torch.cat(part) for part in zip(*kept, strict=True))
        return rows.double().numpy(), labels.numpy(), ids.numpy()
    # By NumPy, which takes them in one thread: PyTorch's would wait for the threads of BLAS.
    sample = (state.sample_rows, state.sample_labels, state.sample_ids)
    of_slots = [part[:-1].cpu().numpy() for part in sample]
    filled = of_slots[2] >= 0
    return of_slots[0][filled], of_slots[1][filled], of_slots[2][filled]


def _kept_predictions(
    store: Store, call: int, state: LayerState
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """The network's decisions by row number; of its first call where the layer is called more often."""
    for which in (call, 0):
        kept = store.kept.get((HEAD_OUTPUT, which))
        if kept:
            decided, _, ids = (torch.cat(part) for part in zip(*kept, strict=True))
            return ids.numpy(), decided.numpy()
        found = store.predictions.get((which, state.sample_rows.shape[0] - 1))
        if found is not None:
            numbers, classes = found.ids[:-1].cpu().numpy(), found.predictions[:-1].cpu().numpy()
            return numbers[numbers >= 0], classes[numbers >= 0]
    return None


def _waiting(state: LayerState) -> list[Tensor]:
    if not state.gathered.count:
        return []
    rows, labels, numbers = state.gathered.held()
    return [rows.cpu().clone(), labels.cpu(), torch.from_numpy(numbers)]


def state_dict(
    store: Store, steps: list[int], num_classes: int, watched: list[str]
) -> dict[str, Any]:
    """Return a store as tensors and plain values, which ``torch.load(weights_only=True)`` reads."""
    store.flush_decisions()
    return {
        "version": STATE_VERSION,
        "num_classes": num_classes,
        "watched": list(watched),
        "expected": store.expected,
        "batches": store.batches,
        "next_row": store.next_row,
        "steps": list(steps),
        "degraded": dict(store.degraded),
        "partial": [[*key, rows] for key, rows in store.partial.items()],
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
                "ids": state.ids.cpu().clone(),
                "predictions": state.predictions.cpu().clone(),
            }
            for (call, _), state in store.predictions.items()
        ],
        "kept": [
            [*key, *(torch.cat(part) for part in zip(*batches, strict=True))]
            for key, batches in store.kept.items()
        ],
    }


def load_state(meter: CollapseMeter, store: Store, state: dict[str, Any]) -> list[int]:
    """Fill a store from `state_dict`, or leave it as it is where the state is another's; return the steps."""
    if not isinstance(state, Mapping) or not {"version", "num_classes", "layers"} <= state.keys():
        raise not_a_state(state)
    version = state["version"]
    if version != STATE_VERSION:
        raise ValueError(
            f"the state has version {version}, this collapsemeter reads {STATE_VERSION}: "
            "upgrade collapsemeter, or start from reset()"
        )
    _check_same(meter, store, state)
    device = device_of(meter._root)
    layers = {
        (saved["layer"], saved["call"]): _loaded(meter, saved, device) for saved in state["layers"]
    }
    store.clear()
    store.layers |= layers
    for saved in state["predictions"]:
        decisions = PredictionState(device, len(saved["ids"]) - 1)
        decisions.ids.copy_(saved["ids"])
        decisions.predictions.copy_(saved["predictions"])
        store.predictions[saved["call"], len(saved["ids"]) - 1] = decisions
    for layer, call, rows, labels, ids in state["kept"]:
        store.kept[layer, call] = [(rows, labels, ids)]
    store.expected, store.batches = state["expected"], state["batches"]
    store.next_row, store.degraded = state["next_row"], dict(state["degraded"])
    store.partial = {(layer, call): rows for layer, call, rows in state["partial"]}
    return list(state["steps"])


def _loaded(meter: CollapseMeter, saved: dict[str, Any], device: torch.device) -> LayerState:
    """Make the state of a layer from what was saved of it."""
    tensors: dict[str, Tensor] = saved["tensors"]
    shift, settings = tensors["shift"], meter.settings
    layer = LayerState(
        torch.empty(0, shift.shape[1], dtype=shift.dtype, device=device),
        meter.num_classes,
        saved["kind"],
        tensors["sample_rows"].shape[0] - 1,
        sketch_rows=settings.sketch_rows,
        seed=settings.seed,
        ignore_index=settings.ignore_index,
        propagate=settings.propagate,
    )
    if saved["waiting"]:
        rows, labels, numbers = saved["waiting"]
        layer.gathered.put(rows.to(device), labels.to(device, copy=True), numbers.clone().numpy())
    layer.feature_dtype = saved["feature_dtype"]
    for name, tensor in layer.tensors().items():
        if name in tensors or name not in ADDED:
            tensor.copy_(tensors[name])
    return layer


def _check_same(meter: CollapseMeter, store: Store, state: dict[str, Any]) -> None:
    """Raise unless the state is of these layers and classes, and rows to come are kept as those before."""
    watched, widths = meter.selection.watched, {}
    counted = {saved["layer"]: saved["tensors"]["shift"].shape[1] for saved in state["layers"]}
    before = set(counted) <= set(watched)  # states did not always say what was watched
    layers = state.get("watched", watched if before else list(counted))
    check_same(
        {"classes": state["num_classes"], "layers": layers},
        {"classes": meter.num_classes, "layers": watched},
    )
    if meter.selection.head is not None and meter.selection.head_module is not None:
        widths[meter.selection.head] = meter.selection.head_module.in_features
    widths |= {name: layer.width for (name, _), layer in store.layers.items()}
    check_widths(counted, widths)
    due = meter.settings.sample_sizes
    sizes = {len(saved["ids"]) - 1 for saved in state["predictions"]}
    sizes |= {len(saved["tensors"]["sample_ids"]) - 1 for saved in state["layers"]}
    if not sizes <= set(due):
        raise ValueError(
            f"the state keeps samples of {sorted(sizes)} rows, this meter of {sorted(due)}: "
            "pass the same sample_rows="
        )
    _check_sketches(meter, state["layers"])


def _check_sketches(meter: CollapseMeter, layers: list[dict[str, Any]]) -> None:
    """Raise unless the rows to come are sketched as those before."""
    for saved in layers:
        if saved["kind"] != "sketch":
            continue
        found = {"sketch_rows": len(saved["tensors"]["sketch"]), "seed": saved["seed"]}
        for option, value in found.items():
            due = getattr(meter.settings, option)
            if value != due:
                raise ValueError(
                    f"the state keeps sketches of {option}={value}, this meter of {due}: pass {option}={value}"
                )
