"""Sums about shifts become moments about means, and two sets of moments become one; absent classes are not touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .groups import Groups, merged_groups, moved_to, totals_of
from .linalg import CACHED_ENTRIES, EPS64, WHOLE_PRODUCT, Floats, add_product, mirror, row_blocks
from .rounding import Rounding, merged_rounding

if TYPE_CHECKING:
    from .fields import MomentFields
    from .sums import Sums

PRODUCT_ENTRIES = 2**22  # of a product: 32 MB


@np.errstate(over="ignore", invalid="ignore")  # squares beyond 1e308 read Inf or NaN
def centred(state: Sums, *, in_place: bool = False) -> dict[str, Any]:
    """Return the statistics of sums, see `ClassMoments.from_sums`; in place of sums that `host_sums.add_rows` has filled."""
    counts = np.array(state.counts, np.int64)  # a copy: the state may be updated in place
    state, groups = _grouped(state, counts, in_place)
    present = np.flatnonzero(counts)
    if in_place:  # the shift of a class of one row is that row
        present = present[(counts[present] > 1) | (state.squares[present] != 0)]
    width = state.sums.shape[1]
    scatter = sketch = signs = None
    if state.scatter is not None:
        scatter = np.array(state.scatter, np.float64, copy=None if in_place else True)
        _centre(scatter, state, counts, present)
        if not in_place or width > WHOLE_PRODUCT:  # else both triangles are there
            mirror(scatter)
    if state.sketch is not None:
        signs = np.array(state.signs, np.float64)
        sketch = np.array(state.sketch, np.float64)
        for classes in _parts(present, width, PRODUCT_ENTRIES):
            sketch -= signs[:, classes] @ _offsets(state, counts, classes)[1]
    traces = np.zeros(len(counts))
    means: Floats = state.shift if in_place else np.zeros(state.sums.shape)
    low: Floats = state.sums if in_place else np.zeros(state.sums.shape)
    for classes in _parts(present, width, CACHED_ENTRIES):
        total, offset = _offsets(state, counts, classes)
        squares = np.asarray(state.squares[classes], np.float64) - np.vecdot(total, offset)
        traces[classes] = np.maximum(squares, 0.0)  # rounding may leave it a hair below zero
        means[classes], low[classes] = two_sum(np.asarray(state.shift[classes], np.float64), offset)
    if _squares_are_lost(state):
        traces[counts > 1] = np.nan
    return {
        "counts": counts,
        "means": means,
        "means_low": low,
        "traces": traces,
        "scatter": scatter,
        "sketch": sketch,
        "signs": signs,
        "rounding": Rounding.of(state),
        "groups": groups,
    }


def _grouped(
    state: Sums, counts: npt.NDArray[np.int64], in_place: bool
) -> tuple[Sums, Groups | None]:
    """Return the sums of each class, and the groups about its mean, in one pass over the groups."""
    if not state.groups:
        return state, None
    shape = (len(counts), state.groups)
    dtype = np.asarray(state.sums).dtype  # of which the bounds of rounding speak
    rows = np.array(state.group_counts, np.int64).reshape(shape)
    sums = np.array(state.sums, np.float64, copy=None if in_place else True).reshape(*shape, -1)
    squares = np.asarray(state.squares, np.float64).reshape(shape)
    totals, moved = np.zeros(state.shift.shape, dtype), np.zeros(shape)
    for classes in row_blocks(len(counts), sums[0].size):
        if counts[classes].any():
            totals[classes] = totals_of(rows[classes], sums[classes])
            offsets = totals[classes].astype(np.float64) / np.maximum(counts[classes], 1)[:, None]
            part = rows[classes], sums[classes], squares[classes], offsets
            moved[classes] = moved_to(*part)
    by_class = squares.sum(axis=1).astype(dtype)
    groups = Groups(rows, sums, moved)
    return replace(state, sums=totals, squares=by_class, group_counts=None), groups


def _centre(scatter: Floats, state: Sums, counts: npt.NDArray[np.int64], present: Any) -> None:
    """Subtract what a scatter holds more about the shifts than about the means."""
    width = scatter.shape[-1]
    if scatter.ndim == 2:
        for classes in _parts(present, width, PRODUCT_ENTRIES):
            total = np.asarray(state.sums[classes], np.float64) / np.sqrt(counts[classes, None])
            if not (np.einsum("cj,cj->j", total, total) <= EPS64 / 4 * np.diagonal(scatter)).all():
                add_product(scatter, total[total.any(axis=1)], minus=True)
        return
    strips = list(row_blocks(width, width))
    small = width**2 <= CACHED_ENTRIES
    least = EPS64 / 4 * np.diagonal(scatter, axis1=1, axis2=2)
    for classes in _parts(present, width**2, CACHED_ENTRIES) if small else present.tolist():
        total, offset = _offsets(state, counts, classes)
        if not (total * offset <= least[classes]).all():  # or it is less than rounding has taken
            for strip in strips:
                scatter[classes, strip] -= total[..., strip, None] * offset[..., None, :]


def _offsets(state: Sums, counts: npt.NDArray[np.int64], classes: Any) -> tuple[Floats, Floats]:
    """Return the sums of some classes, and from their shifts to their means."""
    total = np.asarray(state.sums[classes], np.float64)
    return total, total / counts[classes, None]


def _parts(places: npt.NDArray[np.intp], width: int, entries: int) -> Iterator[Any]:
    """Cut places into parts of so many entries of rows of that width."""
    return (places[part] for part in row_blocks(len(places), width, entries))


def _squares_are_lost(state: Sums) -> bool:
    """Say whether float32 sums are of rows so small that rounding of them squared is zero, and no more is seen."""
    kind = np.finfo(state.squares.dtype)
    least = float(kind.smallest_normal) / float(kind.eps)
    if kind.bits >= 64 or float(state.squares.max(initial=0.0)) >= least:
        return False
    size = float(np.abs(state.shift).max(initial=0.0)) * float(kind.eps)
    return bool(0 < size < least**0.5)


@np.errstate(over="ignore", invalid="ignore")
def merged(a: MomentFields, b: MomentFields) -> dict[str, Any]:
    """Return the statistics of both sets of rows, whose scatters are of one kind, see `ClassMoments.merge`."""
    counts, traces = a.counts + b.counts, a.traces + b.traces
    width = a.means.shape[1]
    means, low = np.zeros(a.means.shape), np.zeros(a.means.shape)
    in_a, in_b = a.counts > 0, b.counts > 0
    for part, alone in ((a, in_a & ~in_b), (b, in_b & ~in_a)):
        for classes in _parts(np.flatnonzero(alone), width, CACHED_ENTRIES):
            means[classes], low[classes] = part.means[classes], part.means_low[classes]
    both = np.flatnonzero(in_a & in_b)
    scatter, sketch, signs = (
        None if getattr(a, name) is None else getattr(a, name) + getattr(b, name)
        for name in ("scatter", "sketch", "signs")
    )
    for classes in _parts(both, width, PRODUCT_ENTRIES):
        share = (b.counts[classes] / counts[classes])[:, None]
        delta = (b.means[classes] - a.means[classes]) + (
            b.means_low[classes] - a.means_low[classes]
        )
        high, low_part = two_sum(a.means[classes], delta * share)
        means[classes], low[classes] = two_sum(high, low_part + a.means_low[classes])
        steps = delta * np.sqrt(a.counts[classes, None] * share)  # n_a n_b / (n_a + n_b)
        traces[classes] += np.vecdot(steps, steps)
        if scatter is not None and scatter.ndim == 3:
            for c, step in zip(classes.tolist(), steps, strict=True):
                scatter[c] += step[:, None] * step
        elif scatter is not None:
            add_product(scatter, steps)
        if a.signs is not None and b.signs is not None:
            sketch -= a.signs[:, classes] @ (delta * share)
            sketch -= b.signs[:, classes] @ (delta * (share - 1))
    if scatter is not None and scatter.ndim == 2 and width > WHOLE_PRODUCT:
        mirror(scatter)
    return {
        "counts": counts,
        "means": means,
        "means_low": low,
        "traces": traces,
        "scatter": scatter,
        "sketch": sketch,
        "signs": signs,
        "rounding": merged_rounding(a.rounding, b.rounding, a.counts, b.counts),
        "groups": _joint_groups(a, b, means, low),
    }


def _joint_groups(a: MomentFields, b: MomentFields, means: Floats, low: Floats) -> Groups | None:
    """Return the groups of both; one without rows has none of its own to speak of."""
    if a.rows and not b.rows:
        return a.groups
    if not a.rows:
        return b.groups if b.rows or a.groups is None else a.groups
    if a.groups is None or b.groups is None:
        return None
    offsets = (
        (means - part.means + (low - part.means_low)) * (part.counts > 0)[:, None]
        for part in (a, b)
    )
    return merged_groups(a.groups, b.groups, *offsets)


def two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Return ``a + b`` and what rounding took from it, exactly (Knuth 1969)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)
