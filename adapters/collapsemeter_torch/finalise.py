"""From the device's sums to a report: copy, check that nothing was missed, measure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from collapsemeter import (
    ClassMoments,
    CollapseReport,
    Decisions,
    Head,
    LayerReport,
    decide,
    measure,
)
from collapsemeter.measure import undefined_report
from collapsemeter.moments import Phase

from . import compiled
from .device import LayerState, PredictionState
from .hooks import HEAD_OUTPUT
from .layers import Selection
from .scope import Store

if TYPE_CHECKING:
    from .meter import CollapseMeter

STATE_VERSION = 1


def description(selection: Selection, num_classes: int) -> str:
    """Return in words what is watched, and why every other module is not.

    Examples
    --------
    >>> print(description(Selection(head="fc", skipped={"drop": "passes its input on"}), 10))
    collapsemeter watches 10 classes in: fc (input of the head)
      not drop: passes its input on
    """
    names = [
        f"{name} (input of the head)" if name == selection.head else name
        for name in selection.watched
    ]
    lines = [f"collapsemeter watches {num_classes} classes in: {', '.join(names)}"]
    if selection.head is None:
        lines.append(
            f"  no head, which would be an nn.Linear with {num_classes} outputs: NC3 and NC4 are not "
            "measured; name it with head="
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in selection.skipped.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [f"  not {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return "\n".join(lines)


def report(
    meter: CollapseMeter, store: Store, phase: Phase, steps: dict[str, int]
) -> CollapseReport:
    """Measure every watched layer and say what went wrong with any."""
    head = _head(meter.selection)
    layers: dict[str, LayerReport] = {}
    warnings = [
        f"{name} failed and was left out: {error}"
        for name, error in store.degraded.items()
        if name not in meter.selection.watched
    ]
    for name in meter.selection.watched:
        is_head = name == meter.selection.head
        states = _states_of(store, name, meter.nonfinite == "propagate")
        for call, state in states.items():
            shown = name if len(states) == 1 else f"{name}#{call}"
            layer, notes = _layer(meter, store, name, call, state, phase, head if is_head else None)
            layers[shown] = layer
            warnings += [f"layer {shown!r} {note}" for note in notes]
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
            "convention": meter.convention.name,
            **steps,
        },
    )


def _states_of(store: Store, name: str, propagate: bool) -> dict[int, LayerState | None]:
    """States of a layer by call; a layer that never fired has one that is None."""
    states: dict[int, LayerState | None] = {}
    for call in itertools.count():
        state = store.layers.get((name, call))
        if state is None or (call > 0 and _seen(state, propagate) == 0):
            break
        states[call] = state
    return states or {0: None}


def _seen(state: LayerState, propagate: bool) -> int:
    """Label rows that came by; a propagated row that is not finite is among the counts."""
    sums = state.sums
    left_out = sums.ignored + sums.invalid + (0 if propagate else sums.nonfinite)
    return int(sums.counts.sum() + left_out)


def _layer(
    meter: CollapseMeter,
    store: Store,
    name: str,
    call: int,
    state: LayerState | None,
    phase: Phase,
    head: Head | None,
) -> tuple[LayerReport, list[str]]:
    """Measure one layer, unless its numbers would not be right; return what to warn of as well."""
    is_head = name == meter.selection.head
    if name in store.degraded:
        return undefined_report("degraded", is_head), [f"failed: {store.degraded[name]}"]
    seen = 0 if state is None else _seen(state, meter.nonfinite == "propagate")
    due = store.expected + store.partial.get((name, call), 0)
    if state is None or seen != due:
        code = (
            "never_fired" if seen == 0 else "rows_missing" if seen < due else "rows_counted_twice"
        )
        cause = _cause(code, meter)
        blank = undefined_report(code, is_head)
        return blank, [f"saw {seen} of {due} label rows, so it is not measured: {cause}"]

    sums = state.host_sums()
    notes = []
    if sums.invalid:
        notes.append(
            f"got {int(sums.invalid)} labels outside 0..{meter.num_classes - 1} that are not "
            f"ignore_index={meter.ignore_index}: their rows were left out"
        )
    if sums.nonfinite and meter.nonfinite == "raise":
        raise ValueError(
            f"layer {name!r} gave {int(sums.nonfinite)} rows that hold NaN or Inf: pass "
            "nonfinite='skip' to leave such rows out"
        )
    if state.kind == "trace" and meter.scatter == "auto":
        notes.append(
            f"is too wide for a scatter ({state.width} features): only traces were kept, so "
            "nc1_pinv, nc1_fuzziness, nc1_vci and features_effective_rank have no value; a "
            "narrower reduction such as 'mean' gives them"
        )
    moments = ClassMoments.from_sums(sums, state.feature_dtype, phase)
    fits = head is None or head.weight.shape == moments.means.shape
    if not fits:
        notes.append("is not what the head reads: NC3 is not measured")
    decisions = _decisions(store, name, call, state, moments)
    if meter.exact and decisions.rows.sum() < moments.rows:
        notes.append(
            f"has NC4 of {decisions.rows.sum()} of {moments.rows} rows though exact=True: rows and "
            "decisions are not kept under torch.compile"
        )
    layer = measure(
        moments,
        head=head if fits else None,
        decisions=decisions,
        convention=meter.convention,
    )
    return layer, notes


def _cause(code: str, meter: CollapseMeter) -> str:
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


def _head(selection: Selection) -> Head | None:
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


def _decisions(
    store: Store, name: str, call: int, state: LayerState, moments: ClassMoments
) -> Decisions:
    rows, labels, ids = _kept_rows(store, name, call, state)
    decided = _kept_predictions(store, call, state)
    usable = (labels >= 0) & (labels < moments.num_classes)
    if decided:
        usable &= np.isin(ids, list(decided))
    rows, labels, ids = rows[usable], labels[usable], ids[usable]
    predictions = (
        np.array([decided[number] for number in ids.tolist()], np.int64) if decided else None
    )
    return decide(moments, rows, labels, predictions=predictions)


def _kept_rows(
    store: Store, name: str, call: int, state: LayerState
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    kept = store.kept.get((name, call))
    if kept:
        rows, labels, ids = (torch.cat(part) for part in zip(*kept, strict=True))
        return rows.double().numpy(), labels.numpy(), ids.numpy()
    ids = state.sample_ids[:-1].cpu()
    filled = ids >= 0
    rows, labels = state.sample_rows[:-1].cpu()[filled], state.sample_labels[:-1].cpu()[filled]
    return rows.numpy(), labels.numpy(), ids[filled].numpy()


def _kept_predictions(store: Store, call: int, state: LayerState) -> dict[int, int]:
    """The network's decision by row number; of its first call where the layer is called more often."""
    for which in (call, 0):
        kept = store.kept.get((HEAD_OUTPUT, which))
        if kept:
            decided, _, ids = (torch.cat(part) for part in zip(*kept, strict=True))
            return dict(zip(ids.tolist(), decided.tolist(), strict=True))
        found = store.predictions.get((which, state.sample_rows.shape[0] - 1))
        if found is not None:
            pairs = zip(found.ids[:-1].tolist(), found.predictions[:-1].tolist(), strict=True)
            return {number: decision for number, decision in pairs if number >= 0}
    return {}


def state_dict(store: Store, steps: list[int], num_classes: int) -> dict[str, Any]:
    """Return a store as tensors and plain values, which ``torch.load(weights_only=True)`` reads."""
    return {
        "version": STATE_VERSION,
        "num_classes": num_classes,
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
                "feature_dtype": state.feature_dtype,
                "tensors": {name: t.detach().cpu().clone() for name, t in state.tensors().items()},
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
    """Fill a store from `state_dict`; return the steps."""
    version = state.get("version")
    if version != STATE_VERSION:
        raise ValueError(
            f"the state has version {version}, this collapsemeter reads {STATE_VERSION}: "
            "upgrade collapsemeter, or start from reset()"
        )
    if state["num_classes"] != meter.num_classes:
        raise ValueError(
            f"the state counts {state['num_classes']} classes, this meter {meter.num_classes}"
        )
    sizes, due = {len(saved["ids"]) - 1 for saved in state["predictions"]}, meter._sample_sizes()
    sizes |= {len(saved["tensors"]["sample_ids"]) - 1 for saved in state["layers"]}
    if not sizes <= set(due):
        raise ValueError(
            f"the state keeps samples of {sorted(sizes)} rows, this meter of {sorted(due)}: "
            "pass the same sample_rows="
        )
    store.clear()
    device = _device(meter._root)
    for saved in state["layers"]:
        tensors: dict[str, Tensor] = saved["tensors"]
        rows = torch.empty(
            0, tensors["shift"].shape[1], dtype=tensors["shift"].dtype, device=device
        )
        size = tensors["sample_rows"].shape[0] - 1
        layer = LayerState(rows, meter.num_classes, saved["kind"], size)
        layer.feature_dtype = saved["feature_dtype"]
        for name, tensor in layer.tensors().items():
            tensor.copy_(tensors[name])
        store.layers[saved["layer"], saved["call"]] = layer
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


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
