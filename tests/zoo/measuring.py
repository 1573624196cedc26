"""What a meter says of one network of the zoo, and what brute force says of the network's own scores."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from collapsemeter import CollapseReport

Array = npt.NDArray[Any]


# Said are three digits, without counters and one more slot in each sample; layers may share the labels of theirs, which are much beside few features.
_UNSAID, _SHARED = 2**15, 0.5


def row(meter: Any, live: CollapseReport, frozen: CollapseReport, held: int) -> dict[str, Any]:
    """Return what is reviewed of a network: layers in their order, head or why there is none, classes, MiB, of which it holds so many bytes."""
    selection, message = meter.selection, meter.describe()
    memory = re.search(r"memory: ([\d.e+]+) MiB", message)
    if memory is not None:
        assert held <= 1.005 * float(memory[1]) * 2**20 + _UNSAID, message
        assert held >= (1 - _SHARED) * float(memory[1]) * 2**20 - _UNSAID, message
    lines = message.splitlines()
    for report in (live, frozen):
        for name, layer in report.items():
            assert math.isfinite(layer["nc1_trace_ratio"]), (name, layer.reasons, report.warnings)
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100
    return {
        "layers": list(selection.layers),
        "head": selection.head or f"none: {selection.no_head}",
        "classes": live.provenance["classes"],
        "MiB": None if memory is None else float(memory[1]),
    }


def mismatch(rows: Array, labels: Array, scores: Array, threshold: float = 0.0) -> float:
    """Return the share of rows that the scores decide otherwise than the nearest class mean does."""
    rows = np.asarray(rows, np.float64)
    means = np.array([rows[labels == c].mean(axis=0) for c in range(int(labels.max()) + 1)])
    distances = ((rows[:, None] - means[None]) ** 2).sum(axis=2)
    decided = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > threshold).astype(int)
    return float((decided != distances.argmin(axis=1)).mean())


def pooled(output: Array, labels: Array, width: int, mask: Array | None = None) -> Array:
    """Return one row for each label of an output of any layout, in the plainest way."""
    output = np.asarray(output, np.float64)
    if output.ndim == 2:
        return output
    if output.shape[-1] != width:  # channels first
        output = np.moveaxis(output, 1, -1)
    if output.shape[:-1] == labels.shape:
        return output.reshape(-1, width)
    if mask is not None and output.ndim == 3:
        return (output * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return output.reshape(len(output), -1, width).mean(axis=1)


def differences(found: Mapping[str, Any], reviewed: Mapping[str, Any]) -> list[str]:
    """Return in words what differs from a reviewed row of what was found."""
    return [
        f"{key}: {value!r}, reviewed: {reviewed.get(key)!r}"
        for key, value in found.items()
        if reviewed.get(key) != value
    ]
