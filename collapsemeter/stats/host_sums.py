r"""The update on the host: the sums of `sums.update`, added in place for rows in NumPy.

Rows are taken in the order of their classes, in tiles that stay in a core's cache; :math:`R^\top R` is NumPy's symmetric
product over a block of tiles. Only classes that are present are touched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .linalg import LARGEST, Floats, add_product, row_blocks
from .plain import widened
from .sampling import low_32_bits, row_hashes
from .sums import (
    HOST_CLASS_SCATTER_ENTRIES,
    IGNORE_INDEX,
    MIXED,
    UNLABELLED,
    ScatterKind,
    Sums,
    init,
    scatter_kind,
)

SORTED_ENTRIES = 2**24  # of rows that are sorted at once
BLOCK_ENTRIES = 2**17  # residuals of a block, 1 MB, or as many rows as four times the features:
MOST_BLOCK_ENTRIES = 2**22  # up to 32 MB, so that adding up d x d products costs little
TILE_ENTRIES = 2**16  # residuals of a tile: 512 kB, with rows and shifts beside them in a cache
TILE_RUNS = 16  # classes of a tile, on average: with more the small product would cost as much as the large one
LEAST_TILE = 64  # rows
LEAST_RUN = 32  # rows of a class, on average, from which on a tile has one class
# New classes times features, over the rows: from here shifts that are means pay, by the axes of the scatter.
MEAN_SHIFTS = {2: 64.0, 3: 0.5}

Ints = npt.NDArray[np.int64]


def add_rows(
    sums: Sums,
    rows: npt.NDArray[Any],
    labels: Ints,
    *,
    ignore_index: int = IGNORE_INDEX,
    propagate: bool = False,
    seed: int = 0,
    first_row: int = 0,
) -> int:
    """Add rows of any dtype to float64 sums, in place; return how many have a class, numbered from ``first_row`` on."""
    number = first_row
    for part in row_blocks(len(rows), rows.shape[1], SORTED_ENTRIES):
        with np.errstate(over="ignore", invalid="ignore"):  # squares beyond 1e308 read Inf
            number += _add_sorted(
                sums, rows[part], labels[part], ignore_index, propagate, seed, number
            )
    return number - first_row


def empty_sums(
    num_classes: int, width: int, scatter: ScatterKind | Literal["auto"], sketch_rows: int
) -> Sums:
    """Return sums of no rows; ``auto``: with the finest scatter that the host affords."""
    if scatter == "auto":
        scatter = scatter_kind(num_classes, width, HOST_CLASS_SCATTER_ENTRIES)
    return init(num_classes, width, scatter, sketch_rows=sketch_rows)


def block_rows_of(width: int) -> int:
    """Return how many rows a block has."""
    entries = max(BLOCK_ENTRIES, min(4 * width**2, MOST_BLOCK_ENTRIES))
    return max(1, entries // max(width, 1))


def _add_sorted(
    sums: Sums,
    rows: npt.NDArray[Any],
    labels: Ints,
    ignore_index: int,
    propagate: bool,
    seed: int,
    first_row: int,
) -> int:
    used = np.flatnonzero((labels >= 0) & (labels != ignore_index))
    if len(used) < len(labels):
        sums.ignored += np.count_nonzero(labels == ignore_index)
        sums.unlabelled += np.count_nonzero(labels == UNLABELLED)
        sums.mixed += np.count_nonzero(labels == MIXED)
    labels = labels[used]
    narrow = labels.astype(np.uint16) if len(sums.counts) <= 2**16 else labels  # sorted by radix
    order = np.argsort(narrow, kind="stable")
    places, labels = used[order], labels[order]
    starts = _starts(labels)
    present, sizes = labels[starts], np.diff(starts, append=len(labels))
    new = sums.counts[present] == 0
    untouched = not sums.counts.any()
    sums.counts[present] += sizes
    alone = np.zeros(len(present), bool)
    alone[new] = _set_shifts(sums.shift, rows, places, labels, starts[new]) & (sizes[new] == 1)
    if sums.sketch is None and alone.any():  # nothing is left of a row that is its class's shift
        rest = np.repeat(~alone, sizes)
        places, labels = places[rest], labels[rest]
        starts, present, sizes = _starts(labels), present[~alone], sizes[~alone]
        new = new[~alone]
    width = rows.shape[1]
    block_rows = block_rows_of(width)
    by_class = sums.scatter is not None and sums.scatter.ndim == 3
    # About means a scatter needs no correction, which costs the more the more classes are new.
    share = math.inf if sums.scatter is None else MEAN_SHIFTS[sums.scatter.ndim]
    about_means = bool(np.count_nonzero(new) * width > share * len(labels))
    blocks = list(_blocks(len(places), block_rows, starts if by_class or about_means else None))
    residuals = np.empty((max((part.stop - part.start for part in blocks), default=0), width))
    fresh = set(present[new].tolist())
    for part in blocks:
        block, of = residuals[: part.stop - part.start], labels[part]
        counted = _add_block(sums, rows, places[part], of, block, propagate)
        if about_means:
            _move_to_means(sums, block, of, present[new], sizes[new])
        if sums.sketch is not None:
            _add_sketch(sums, block, of, counted, first_row + order[part], seed)
        elif by_class and sums.scatter is not None:
            for label, run in _runs(of):
                add_product(sums.scatter[label], block[run], fresh=label in fresh)
                fresh.discard(label)
        elif sums.scatter is not None:
            add_product(sums.scatter, block, fresh=untouched and part.start == 0)
    return len(used)


def _blocks(count: int, size: int, starts: npt.NDArray[np.intp] | None) -> Iterator[slice]:
    """Cut sorted rows into blocks; those of classes that start there into whole classes, if these fit."""
    start = 0
    while start < count:
        stop = min(start + size, count)
        if starts is not None and stop < count:
            last = int(starts[np.searchsorted(starts, stop, side="right") - 1])
            stop = last if last > start else stop
        yield slice(start, stop)
        start = stop


def _set_shifts(
    shift: Floats,
    rows: npt.NDArray[Any],
    places: Ints,
    labels: Ints,
    starts: npt.NDArray[np.intp],
) -> npt.NDArray[np.bool_]:
    """Give classes whose rows start there their first finite row as the shift; say which have their first and no vast one."""
    moderate = np.empty(len(starts), bool)
    for part in row_blocks(len(starts), shift.shape[1]):
        firsts = rows[places[starts[part]]].astype(np.float64, copy=False)
        shift[labels[starts[part]]] = firsts
        moderate[part] = (np.abs(firsts) <= LARGEST).all(axis=1)
    # Differences of vast rows would add up to Inf about any row, and about their mean they cancel.
    for start in starts[~moderate].tolist():
        label = labels[start]
        run = places[start : np.searchsorted(labels, label, side="right")]
        finite = run[_finite(rows[run])]
        first = rows[finite[:1]].astype(np.float64)
        if not (np.abs(first) <= LARGEST).all():
            first = rows[finite].astype(np.float64)
        shift[label] = (first / max(len(first), 1)).sum(axis=0)
    return moderate


def _add_block(
    sums: Sums,
    rows: npt.NDArray[Any],
    places: Ints,
    labels: Ints,
    block: Floats,
    propagate: bool,
) -> npt.NDArray[np.bool_]:
    """Write the residuals of a block and add its class sums; leave zeros for rows that do not count, and say which do."""
    counted = np.ones(len(places), bool)
    for part in _tiles(labels, block.shape[1]):
        tile, of = block[part], labels[part]
        _take(rows, places[part], tile)
        if of[0] == of[-1]:
            classes, indicator = of[:1], np.ones((1, len(of)))
            tile -= sums.shift[of[0]]
        else:
            classes = of[_starts(of)]
            indicator = (classes[:, None] == of).astype(np.float64)
            tile -= np.take(sums.shift, of, axis=0)
        norms = np.vecdot(tile, tile)
        if np.isfinite(norms.sum()):
            sums.sums[classes] += indicator @ tile
            sums.squares[classes] += indicator @ norms
        else:  # a value is not finite, or only a square is not
            counted[part] = _finite(rows[places[part]])
            _add_carefully(sums, tile, of, norms, counted[part], propagate)
    return counted


def _tiles(labels: Ints, width: int) -> Iterator[slice]:
    """Cut sorted rows into tiles, of one class each where classes have many rows."""
    most = max(1, TILE_ENTRIES // max(width, 1))
    starts = _starts(labels)
    rows_per_class = len(labels) // max(len(starts), 1)
    if rows_per_class < LEAST_RUN:
        starts, most = starts[:1], min(max(TILE_RUNS * rows_per_class, LEAST_TILE), most)
    for start, stop in itertools.pairwise([*starts.tolist(), len(labels)]):
        for first in range(start, stop, most):
            yield slice(first, min(first + most, stop))


def _take(rows: npt.NDArray[Any], places: Ints, out: Floats) -> None:
    """Copy rows of any dtype; those of float64 without an array between."""
    if rows.dtype == out.dtype:
        np.take(rows, places, axis=0, out=out, mode="clip")
    else:
        out[...] = widened(np.take(rows, places, axis=0))


def _move_to_means(
    sums: Sums, block: Floats, labels: Ints, new: Ints, sizes: npt.NDArray[np.intp]
) -> None:
    """Move residuals, sums and shifts of new classes that are whole in a block to their means, where these are finite."""
    starts = _starts(labels)
    present, counts = labels[starts], np.diff(starts, append=len(labels))
    index = np.minimum(np.searchsorted(new, present), len(new) - 1)
    whole = (new[index] == present) & (sizes[index] == counts) & (counts == sums.counts[present])
    if not whole.any():
        return
    moved, counts = present[whole], counts[whole, None]
    shifts, totals = sums.shift[moved], sums.sums[moved]
    steps = (shifts + totals / counts) - shifts
    finite = np.isfinite(steps.sum(axis=1) + sums.squares[moved])
    moved, steps, totals = moved[finite], steps[finite], totals[finite]
    left = totals - counts[finite] * steps
    sums.shift[moved] += steps
    sums.sums[moved] = left
    sums.squares[moved] -= np.vecdot(steps, totals + left)
    step_of = np.zeros_like(block, shape=(len(present), block.shape[1]))
    step_of[np.searchsorted(present, moved)] = steps
    if len(labels) >= LEAST_RUN * len(present):
        for step, (_, run) in zip(step_of, _runs(labels), strict=True):
            block[run] -= step
    else:
        of = np.searchsorted(present, labels)
        for part in row_blocks(*block.shape):
            block[part] -= step_of[of[part]]


def _add_carefully(
    sums: Sums,
    residuals: Floats,
    labels: Ints,
    norms: Floats,
    counted: npt.NDArray[np.bool_],
    propagate: bool,
) -> None:
    """Add the class sums of a tile where some are not finite, so that each row concerns its own class alone."""
    residuals[~counted] = 0
    norms[~counted] = 0
    np.add.at(sums.sums, labels, residuals)
    np.add.at(sums.squares, labels, norms)
    stray = labels[~counted]
    sums.nonfinite += np.int64(len(stray))
    if propagate:
        sums.sums[stray] = np.nan
        sums.squares[stray] = np.nan
    else:
        np.subtract.at(sums.counts, stray, 1)


def _add_sketch(
    sums: Sums,
    residuals: Floats,
    labels: Ints,
    counted: npt.NDArray[np.bool_],
    numbers: Ints,
    seed: int,
) -> None:
    assert sums.sketch is not None
    assert sums.signs is not None
    buckets, negative = row_hashes(numbers, len(sums.sketch), seed, low_32_bits)
    signs = np.where(negative, -1.0, 1.0)
    for bucket, sign, row in zip(buckets.tolist(), signs.tolist(), residuals, strict=True):
        sums.sketch[bucket] += sign * row
    np.add.at(sums.signs, (buckets, labels), signs * counted)


def _starts(labels: Ints) -> npt.NDArray[np.intp]:
    """Return where each run of equal labels starts."""
    changes = np.ones(len(labels), bool)
    np.not_equal(labels[1:], labels[:-1], out=changes[1:])
    return np.flatnonzero(changes)


def _runs(labels: Ints) -> list[tuple[int, slice]]:
    """Return the label and place of each run of equal labels."""
    starts = _starts(labels)
    bounds = [*starts.tolist(), len(labels)]
    return list(
        zip(
            labels[starts].tolist(),
            itertools.starmap(slice, itertools.pairwise(bounds)),
            strict=True,
        )
    )


def _finite(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N, d) -> (N,): no NaN or Inf in the row."""
    finite: npt.NDArray[np.bool_] = np.isfinite(widened(rows)).all(axis=1)
    return finite
