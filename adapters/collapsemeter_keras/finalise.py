"""From the step's variables to a report: copy, check that nothing was missed, measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from collapsemeter import CollapseReport, Head, LayerReport
from collapsemeter.adapter.layer_report import layer_report
from collapsemeter.adapter.settings import Settings
from collapsemeter.metrics.measure import undefined_report
from collapsemeter.stats.moments import Phase
from collapsemeter.system.warning import warn

from .layers import Selection
from .operations import BACKEND
from .statistics import StreamSums

_CAUSES = {
    "never_fired": "it was not called in the model's forward (its weights are used directly, or a branch left it out)",
    "rows_missing": "some forwards did not pass through it (a branch, or a step traced without it)",
    "rows_counted_twice": "it was called more than once for a batch",
}


def report(
    selection: Selection,
    settings: Settings,
    sums: StreamSums,
    degraded: Mapping[str, str],
    *,
    phase: Phase,
    warnings: Iterable[str],
    provenance: Mapping[str, Any],
) -> CollapseReport:
    """Measure every watched layer and say what went wrong with any."""
    head = head_of(selection)
    batches, expected_rows = sums.batches_seen(), sums.expected_rows()
    layers: dict[str, LayerReport] = {}
    said = [
        f"{part} failed and was left out: {error}"
        for part, error in degraded.items()
        if part not in selection.watched
    ]
    said += warnings
    for watched in selection.watched:
        is_head = watched == selection.head
        seen = sorted(call for layer, call in sums.layers if layer == watched)
        calls: list[int | None] = [*seen] or [None]
        for call in calls:
            shown = watched if len(calls) == 1 else f"{watched}#{call}"
            if watched in degraded:
                layers[shown] = undefined_report("degraded", is_head)
                said.append(f"layer {shown!r} failed: {degraded[watched]}")
            elif not batches:
                layers[shown] = undefined_report("never_fired", is_head)
            else:
                layers[shown], notes = layer_report(
                    shown,
                    None if call is None else sums.tally((watched, call)),
                    settings,
                    phase=phase,
                    expected_rows=expected_rows,
                    is_head=is_head,
                    head=head if is_head else None,
                    causes=_CAUSES,
                )
                said += notes
    for message in said:
        warn(message)
    return CollapseReport(
        layers=layers,
        phase=phase,
        skipped=dict(selection.skipped),
        warnings=tuple(said),
        provenance={
            "framework": f"keras {keras.__version__} ({BACKEND})",
            "classes": settings.num_classes,
            "rows": expected_rows,
            "batches": batches,
            "convention": settings.named_convention.name,
            **provenance,
        },
    )


def head_of(selection: Selection) -> Head | None:
    """Return the head's weights on the host."""
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
