"""From the step's variables to a report: copy, check that nothing was missed, measure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from collapsemeter import CollapseReport, Head, LayerReport
from collapsemeter.adapter.layer_report import layer_report
from collapsemeter.adapter.resuming import check_same, check_widths, not_a_state
from collapsemeter.metrics.measure import undefined_report
from collapsemeter.stats.moments import Phase

from .layers import Selection
from .statistics import Key, Stream

if TYPE_CHECKING:
    from .meter import CollapseMeter


def report(meter: CollapseMeter, stream: Stream, name: str, phase: Phase) -> CollapseReport:
    """Measure every watched layer and say what went wrong with any."""
    head = _head(meter.selection)
    batches, due = stream.batches_seen(), stream.rows_due()
    layers: dict[str, LayerReport] = {}
    warnings = [
        f"{what} failed and was left out: {error}"
        for what, error in meter.degraded.items()
        if what not in meter.selection.watched
    ]
    if not batches:
        warnings.append(f"no batch of the {name} stream was counted: {why_nothing(meter, name)}")
    for watched in meter.selection.watched:
        is_head = watched == meter.selection.head
        made = sorted(call for layer, call in stream.layers if layer == watched)
        calls: list[int | None] = [*made] or [None]
        for call in calls:
            shown = watched if len(calls) == 1 else f"{watched}#{call}"
            if watched in meter.degraded:
                layers[shown] = undefined_report("degraded", is_head)
                warnings.append(f"layer {shown!r} failed: {meter.degraded[watched]}")
            elif not batches:
                layers[shown] = undefined_report("never_fired", is_head)
            else:
                layers[shown], notes = layer_report(
                    shown,
                    None if call is None else stream.tally((watched, call)),
                    meter.settings,
                    phase=phase,
                    due=due,
                    is_head=is_head,
                    head=head if is_head else None,
                    cause=partial(_cause, meter),
                )
                warnings += notes
    return CollapseReport(
        layers=layers,
        phase=phase,
        skipped=dict(meter.selection.skipped),
        warnings=tuple(warnings),
        provenance={
            "framework": f"keras {keras.__version__} ({keras.backend.backend()})",
            "classes": meter.settings.num_classes,
            "rows": due,
            "batches": batches,
            "stream": name,
            "epoch": meter._epoch,
            "convention": meter.settings.named_convention.name,
            **(_cost(meter, stream) if name == "train" else {}),
        },
    )


def _cost(meter: CollapseMeter, stream: Stream) -> dict[str, Any]:
    """What a live report says of the budget, and of the time that counting took."""
    backend = keras.backend.backend()
    clock = meter._clock
    # Elsewhere Python sees a step once, when it is compiled.
    clock.unseen = not (backend == "torch" or meter.model.run_eagerly)
    left_out, rows = stream.batches_left_out(), stream.rows_due()
    on_device = backend == "torch" and stream.given.value.device.type != "cpu"
    return {
        **meter.budget.provenance(left_out, rows),
        **clock.provenance(
            f"counting is part of the step that {backend} compiles, into which no clock looks",
            asynchronous=on_device,
        ),
    }


def why_nothing(meter: CollapseMeter, stream: str) -> str:
    """Return the likely cause of a stream in which nothing was counted."""
    step = "train_step" if stream == "train" else "test_step"
    for what in ("shapes", "batch"):
        if what in meter.degraded:
            return meter.degraded[what]
    listed = [metric for metric in meter.model.metrics if isinstance(metric, Stream)]
    if keras.backend.backend() == "jax" and not listed:
        return (
            f"{type(meter.model).__name__}.metrics leaves out the model's own metrics, and JAX "
            "throws away what a step writes elsewhere: add `super().metrics` to what it returns"
        )
    if stream in meter._bypassed:
        return (
            f"{type(meter.model).__name__}.{step} does not call `self.compute_loss(x=, y=, "
            "y_pred=)`, which is where labels and features meet: call it there, or measure with "
            "probe= or observe()"
        )
    return "no step ran since it began; run fit or evaluate with the meter among callbacks="


def _cause(meter: CollapseMeter, code: str) -> str:
    if code == "never_fired":
        return "it was not called in the model's forward (its weights are used directly, or a branch left it out)"
    if code == "rows_missing":
        return "some forwards did not pass through it (a branch, or a step traced without it)"
    return "it was called more than once for a batch"


def _head(selection: Selection) -> Head | None:
    layer = selection.head_layer
    if layer is None or not layer.built:
        return None
    weight = _host(_kernel(layer)).T
    bias = _host(layer.bias) if layer.use_bias else None
    if len(weight) == 1:
        return Head.from_single_logit(weight[0], 0.0 if bias is None else bias)
    return Head(weight, bias)


def _kernel(layer: keras.layers.Dense) -> Any:
    """Return a head's weight; of one that was quantized to 8 bits what its integers stand for."""
    if layer.quantization_mode == "int8":
        return ops.cast(layer.kernel, "float32") / ops.cast(layer.kernel_scale, "float32")
    return layer.kernel


def _host(variable: Any) -> np.ndarray[Any, Any]:
    if keras.backend.standardize_dtype(variable.dtype) != "float64":
        variable = ops.cast(variable, "float32")  # NumPy has no bfloat16
    array: np.ndarray[Any, Any] = ops.convert_to_numpy(variable)
    return array.astype(np.float64)


_OPTIONS = ("num_classes", "sample_rows", "sketch_rows", "seed")


def state_dict(meter: CollapseMeter) -> dict[str, np.ndarray[Any, Any]]:
    """Return the variables of the live streams by name, with what is needed to make them again."""
    state: dict[str, np.ndarray[Any, Any]] = {
        option: np.asarray(getattr(meter.settings, option)) for option in _OPTIONS
    }
    state["watched"] = np.asarray(meter.selection.watched)
    for name, stream in meter._streams.items():
        for number, (layer, call) in enumerate(stream.layers):
            made = stream.layers[layer, call]
            width = np.asarray(int(made.rows.shape[1]))
            state[f"{name}/{number}"] = np.asarray([layer, str(call), str(width), made.dtype])
        for variable in stream.variables:
            state[f"{name}/{variable.name}"] = ops.convert_to_numpy(variable.value).copy()
    return state


def load_state_dict(meter: CollapseMeter, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Fill the live streams from `state_dict`, or leave them as they are where the state is another's."""
    if not hasattr(state, "keys") or not set(_OPTIONS) <= set(state.keys()):
        raise not_a_state(state)
    keys = {name: list(_saved_layers(state, name)) for name in meter._streams}
    _check_same(meter, state, {key[0]: width for made in keys.values() for key, width, _ in made})
    for name, stream in meter._streams.items():
        for key, width, dtype in keys[name]:
            stream.allocate(key, width, dtype)
        stream.clear()
        for variable in stream.variables:
            if f"{name}/{variable.name}" in state:
                variable.assign(state[f"{name}/{variable.name}"])
        stream.resume()


def _saved_layers(
    state: Mapping[str, np.ndarray[Any, Any]], stream: str
) -> Iterator[tuple[Key, int, str]]:
    for number in itertools.count():
        if f"{stream}/{number}" not in state:
            return
        layer, call, width, dtype = state[f"{stream}/{number}"].tolist()
        yield (layer, int(call)), int(width), dtype


def _check_same(
    meter: CollapseMeter, state: Mapping[str, np.ndarray[Any, Any]], counted: dict[str, int]
) -> None:
    """Raise unless the state is of these layers and options."""
    watched = meter.selection.watched
    before = set(counted) <= set(watched)  # states did not always say what was watched
    layers = state["watched"].tolist() if "watched" in state else watched if before else [*counted]
    check_same(
        {option: int(state[option]) for option in _OPTIONS} | {"layers": layers},
        {option: getattr(meter.settings, option) for option in _OPTIONS} | {"layers": watched},
    )
    head, widths = meter.selection.head_layer, {}
    if meter.selection.head is not None and head is not None and head.built:
        widths[meter.selection.head] = int(head.input_spec.axes[-1])
    for stream in meter._streams.values():
        widths |= {layer: int(made.rows.shape[1]) for (layer, _), made in stream.layers.items()}
    check_widths(counted, widths)
