r"""Conditions that moments of any data satisfy: a state that does not was altered, whatever its checksum says.

Rounding breaks each law by a little. Sums of n rows about a shift that is off by D lose :math:`\epsilon n^{3/2} D^2`; the
shift is a mean of rows, so :math:`D^2` is at most the trace (or :math:`\epsilon^2 |\mu|^2`). That is the tolerance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .linalg import Floats, row_blocks
from .plain import plain
from .sums import ARRAYS, LEFT_OUT, scatter_shape

if TYPE_CHECKING:
    from .fields import MomentFields

MOST_ROWS = 2**53  # of a class: beyond, float64 does not count them
_BLOCK = 2**20  # entries that are compared at once
_UNLIKELY = 40.0  # an honest sketch is refused with probability exp(-40)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise unless arrays hold real numbers, and the numbers and names beside them are such."""
    for name in ARRAYS:
        value = fields.get(name)
        if value is None:
            continue
        array = plain(value, name)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} have dtype {array.dtype}: pass real numbers")
        if name == "counts" and array.dtype.kind == "f" and (array != np.floor(array)).any():
            raise ValueError(f"{name} have dtype {array.dtype}: pass whole numbers")
    for name in LEFT_OUT:
        if not _natural(fields.get(name, 0)):
            raise ValueError(f"{name}={fields[name]!r} is no number of rows")
    if not isinstance(fields.get("feature_dtype", ""), str):
        raise ValueError(f"feature_dtype={fields['feature_dtype']!r} is not the name of a dtype")
    if not all(isinstance(shard, str) for shard in fields.get("shards", ())):
        raise ValueError(f"shards={str(fields['shards'])[:100]}: a shard is named by a text")
    if not all(_natural(abs(seed)) for seed in fields.get("seeds", ())):
        raise ValueError(f"seeds={str(fields['seeds'])[:100]}: a seed is a whole number")


def _natural(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)


def check_shapes(moments: MomentFields) -> None:
    """Raise unless the arrays are of one layer, with a scatter, a sketch, or neither."""
    counts, means, traces, scatter = moments.counts, moments.means, moments.traces, moments.scatter
    if means.ndim != 2 or not (
        counts.shape == traces.shape == means.shape[:1]
        and moments.means_low.shape == means.shape
        and (scatter is None or scatter.shape == scatter_shape(moments.kind, *means.shape))
    ):
        shape = None if scatter is None else scatter.shape
        raise ValueError(
            f"counts {counts.shape}, means {means.shape}, scatter {shape}, traces {traces.shape}: "
            "expected (C,), (C, d), (d, d) or (C, d, d) or None, and (C,)"
        )
    sketch, signs = (
        None if part is None else part.shape for part in (moments.sketch, moments.signs)
    )
    size = sketch[0] if sketch else 0
    expected = ((size, means.shape[1]), (size, means.shape[0])) if size else (None, None)
    if (sketch, signs) != expected or (size and scatter is not None):
        raise ValueError(
            f"sketch {sketch}, signs {signs}, means {means.shape}: expected (k, d), (k, C) "
            "and (C, d), and no scatter besides"
        )


def check_consistent(moments: MomentFields, dtype: type[np.floating[Any]] = np.float32) -> None:
    """Raise unless some data have these moments, to the rounding of sums in ``dtype``."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        _check_classes(moments)
        error = _rounding(moments, dtype)
        alone = (moments.counts == 1) & (moments.traces > error)
        if alone.any():
            c = _first(alone)
            _refuse(f"class {c} has 1 row and a sum of squares of {moments.traces[c]:g} about it")
        if moments.scatter is not None:
            _check_scatter(moments, moments.scatter, error, float(np.finfo(dtype).max))
        if moments.sketch is not None and moments.signs is not None:
            _check_sketch(moments, moments.sketch, moments.signs, float(error.sum()))


def _refuse(what: str) -> None:
    raise ValueError(f"no data have such moments: {what}")


def _first(flags: Any) -> int:
    return int(np.argmax(flags))


def _check_classes(moments: MomentFields) -> None:
    """Check what concerns each class by itself: counts, traces, means."""
    counts, traces, means, low = moments.counts, moments.traces, moments.means, moments.means_low
    for flags, what in (
        ((counts < 0) | (counts > MOST_ROWS), "{n} rows"),
        (traces < 0, "a sum of squares of {t:g}"),
        ((counts == 0) & (traces != 0), "no row and a sum of squares of {t:g}"),
    ):
        if flags.any():
            c = _first(flags)
            _refuse(f"class {c} has " + what.format(n=counts[c], t=traces[c]))
    for part in row_blocks(*means.shape):
        absent = np.flatnonzero(
            (counts[part] == 0) & (_not_blank(means[part]) | _not_blank(low[part]))
        )
        for c in (absent + part.start).tolist():
            if means[c].any() or low[c].any():  # a negative zero is no blank
                _refuse(f"class {c} has no row and a mean that is not 0")
    measured = np.flatnonzero((counts > 0) & np.isfinite(traces))
    for part in row_blocks(len(measured), moments.width, _BLOCK):
        _check_means(means, low, measured[part])


def _not_blank(rows: Floats) -> npt.NDArray[np.bool_]:
    """Say which rows have a bit that is set: faster than comparing numbers, most of which are of absent classes."""
    blank: npt.NDArray[np.bool_] = np.bitwise_or.reduce(rows.view(np.uint64), axis=1) == 0
    return ~blank


def _check_means(means: Floats, low: Floats, classes: npt.NDArray[np.intp]) -> None:
    """Check the means of classes whose sum of squares is finite."""
    means, low = means[classes], low[classes]
    infinite = ~np.isfinite(means + low).all(axis=1)
    coarse = (np.abs(low) > 2.0**-52 * np.abs(means)).any(axis=1)
    for flags, what in (
        (infinite, "a mean that is not finite and a finite sum of squares"),
        (coarse, "means_low beyond the rounding of its mean"),
    ):
        if flags.any():
            _refuse(f"class {classes[_first(flags)]} has {what}")


def _rounding(moments: MomentFields, dtype: type[np.floating[Any]]) -> Floats:
    """(C,): what rounding may add to or take from the trace of each class's scatter."""
    info, n = np.finfo(dtype), moments.counts.astype(np.float64)
    relative = float(info.eps) * (moments.width + 4.0 * n**1.5)
    largest = moments.traces
    if moments.kind == "class":
        assert moments.scatter is not None
        largest = np.fmax(largest, np.trace(moments.scatter, axis1=1, axis2=2))
    norms = np.vecdot(moments.means, moments.means)
    error = relative * (largest + n * float(info.eps) ** 2 * norms)
    error += n * moments.width * float(info.tiny)
    return np.where(np.isfinite(error), error, np.inf)  # a square overflows: nothing can be told


def _check_scatter(moments: MomentFields, scatter: Floats, error: Floats, largest: float) -> None:
    """Check a scatter against the traces; squares whose sum passes ``largest`` may have overflowed."""
    near = moments.traces.max(initial=0.0) > largest / max(moments.rows * moments.num_classes, 1)
    if near and not np.isfinite(scatter).all():
        return
    if scatter.ndim == 2:
        if not np.isfinite(moments.traces).all():
            return
        each, traces = scatter[None], np.asarray([moments.traces.sum()])
        error = np.asarray([error.sum()])
        of = ["the pooled scatter"]
    else:
        finite = np.flatnonzero(np.isfinite(moments.traces))
        each, traces, error = scatter[finite], moments.traces[finite], error[finite]
        of = [f"the scatter of class {c}" for c in finite.tolist()]
    if not np.isfinite(traces).all():  # the sum overflows
        return
    diagonal_sums = np.trace(each, axis1=1, axis2=2)
    apart = ~(np.abs(diagonal_sums - traces) <= 2 * error)
    if apart.any():
        c = _first(apart)
        _refuse(
            f"{of[c]} has trace {diagonal_sums[c]:g}, and the sums of squares are {traces[c]:g}"
        )
    diagonal = np.diagonal(each, axis1=1, axis2=2)
    if (diagonal < -error[:, None]).any():
        c = _first((diagonal < -error[:, None]).any(axis=1))
        _refuse(f"{of[c]} has {diagonal[c].min():g} on its diagonal")
    roots = np.sqrt(np.maximum(diagonal, 0.0) + error[:, None])
    for part, rows in _blocks(each):
        block, slack = each[part, rows], 2 * error[part, None, None]
        wrong = ~(np.abs(block) <= roots[part, rows, None] * roots[part, None, :] + slack)
        turned = each[part, :, rows].swapaxes(1, 2)
        if not np.array_equal(block, turned):
            wrong |= ~(np.abs(block - turned) <= slack)
        if wrong.any():
            name = of[part.start + _first(wrong.any(axis=(1, 2)))]
            _refuse(
                f"{name} is no scatter: not symmetric, not finite, or an entry is larger than its "
                "diagonal allows"
            )


def _blocks(each: Floats) -> Iterator[tuple[slice, slice]]:
    """Cut (m, d, d) along the first two axes."""
    m, d, _ = each.shape
    return itertools.product(row_blocks(m, d * d, _BLOCK), row_blocks(d, d, _BLOCK))


def _check_sketch(moments: MomentFields, sketch: Floats, signs: Floats, error: float) -> None:
    """Check the signs, of which every row has one, and the sum of squares."""
    finite = np.isfinite(moments.traces)
    if not (signs == np.rint(signs)).all():
        _refuse("a sum of signs is not a whole number")
    total = np.abs(signs).sum(axis=0)
    odd = finite & (total % 2 != moments.counts % 2)
    wrong = (total > moments.counts) | odd
    if wrong.any():
        c = _first(wrong)
        _refuse(f"class {c} has {moments.counts[c]} rows and signs of {total[c]:g} in its sketch")
    if not finite.all():
        return
    # Some rows of most of the squares may share a bucket: m of k with probability k^(1-m).
    k, traces, squares = len(sketch), float(moments.traces.sum()), float(np.vdot(sketch, sketch))
    most = 2 + 2 * math.sqrt(_UNLIKELY / k) + _UNLIKELY * (2 / k + 1 / math.log(max(k, 2)))
    if not squares <= most * (traces + 2 * error) and math.isfinite(most * traces):
        _refuse(f"the sketch has squares of {squares:g}, and the sums of squares are {traces:g}")
