r"""The update on the host: the sums of `sums.update`, added in place for rows in NumPy.

Rows are taken in the order of their classes, in tiles that stay in a core's cache. Of a tile the sums of its classes
are one small product, and :math:`R^\top R` is NumPy's symmetric product over a block of tiles. Only classes that are
present are touched, so that 50,000 classes cost what 100 do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .linalg import LARGEST, Floats, add_product
from .plain import widened
from .sums import IGNORE_INDEX, MIXED, UNLABELLED, Sums

SORTED_ENTRIES = 2**24  # of rows that are sorted at once
BLOCK_ENTRIES = 2**19  # residuals of a block, 4 MB, or as many rows as four times the features:
MOST_BLOCK_ENTRIES = 2**22  # up to 32 MB, so that adding up d x d products costs little
TILE_ENTRIES = 2**16  # residuals of a tile: 512 kB, with rows and shifts beside them in a cache
TILE_RUNS = 16  # classes of a tile, on average: with more the small product would cost as much as the large one
LEAST_TILE = 64  # rows
MEAN_SHIFTS = 256  # features times classes of several rows, over the rows: from here shifts that are means pay

Ints = npt.NDArray[np.int64]
Tile = tuple[slice, Ints, Floats, Floats]


def add_rows(
    sums: Sums,
    rows: npt.NDArray[Any],
    labels: Ints,
    *,
    ignore_index: int = IGNORE_INDEX,
    propagate: bool = False,
    hashes: tuple[Ints, npt.NDArray[np.bool_]] | None = None,
) -> None:
    """Add rows of any dtype to float64 sums, in place; labels and hashes as for `sums.update`."""
    count = max(1, SORTED_ENTRIES // max(rows.shape[1], 1))
    for start in range(0, len(rows), count):
        part = slice(start, start + count)
        some = None if hashes is None else (hashes[0][part], hashes[1][part])
        with np.errstate(over="ignore", invalid="ignore"):  # squares beyond 1e308 read Inf
            _add_sorted(sums, rows[part], labels[part], ignore_index, propagate, some)


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
    hashes: tuple[Ints, npt.NDArray[np.bool_]] | None,
) -> None:
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
    width = rows.shape[1]
    tile_rows = max(TILE_RUNS * len(places) // max(len(starts), 1), LEAST_TILE)
    tile_rows = max(1, min(tile_rows, TILE_ENTRIES // max(width, 1)))
    by_class = sums.scatter is not None and sums.scatter.ndim == 3
    blocks = list(_blocks(len(places), block_rows_of(width), starts if by_class else None))
    residuals = np.empty((max((part.stop - part.start for part in blocks), default=0), width))

    def tiles_of(part: slice) -> Iterator[Tile]:
        return _tiles(sums.shift, rows, places[part], labels[part], residuals, tile_rows)

    _set_shifts(sums, rows, places, labels, starts[new])
    if new.all() and np.count_nonzero(sizes > 1) * width > MEAN_SHIFTS * len(places):
        _move_shifts_to_means(
            sums, itertools.chain.from_iterable(map(tiles_of, blocks)), present, sizes
        )
    untouched = not sums.counts.any()
    sums.counts[present] += sizes
    fresh = set(present[new].tolist())
    for part in blocks:
        block = residuals[: part.stop - part.start]
        counted = _add_block(sums, rows, places[part], labels[part], tiles_of(part), propagate)
        if sums.sketch is not None:
            assert hashes is not None
            of_rows = hashes[0][places[part]], hashes[1][places[part]]
            _add_sketch(sums, block, labels[part], counted, *of_rows)
        elif sums.scatter is not None and by_class:
            for label, run in _runs(labels[part]):
                add_product(sums.scatter[label], block[run], fresh=label in fresh)
                fresh.discard(label)
        elif sums.scatter is not None:
            add_product(sums.scatter, block, fresh=untouched and part.start == 0)


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


def _tiles(
    shift: Floats,
    rows: npt.NDArray[Any],
    places: Ints,
    labels: Ints,
    residuals: Floats,
    tile_rows: int,
) -> Iterator[Tile]:
    """Write the residuals of rows tile by tile; yield where each is, its classes, and an indicator of them."""
    ones = np.ones((1, tile_rows))
    for start in range(0, len(places), tile_rows):
        part = slice(start, min(start + tile_rows, len(places)))
        tile, of = residuals[part], labels[part]
        _take(rows, places[part], tile)
        if of[0] == of[-1]:
            present, indicator = of[:1], ones[:, : len(of)]
            tile -= shift[of[0]]
        else:
            present = of[_starts(of)]
            indicator = (present[:, None] == of).astype(np.float64)
            tile -= np.take(shift, of, axis=0)
        yield part, present, indicator, tile


def _take(rows: npt.NDArray[Any], places: Ints, out: Floats) -> None:
    """Copy rows of any dtype; those of float64 without an array between."""
    if rows.dtype == out.dtype:
        np.take(rows, places, axis=0, out=out, mode="clip")
    else:
        out[...] = widened(np.take(rows, places, axis=0))


def _set_shifts(
    sums: Sums, rows: npt.NDArray[Any], places: Ints, labels: Ints, new: npt.NDArray[np.intp]
) -> None:
    """Give every class whose rows start there its first finite row as its shift; the mean of all if that is vast."""
    shifts = rows[places[new]].astype(np.float64)
    sums.shift[labels[new]] = shifts
    # Differences of vast rows would add up to Inf about any row, and about their mean they cancel.
    for start in new[~(np.abs(shifts) <= LARGEST).all(axis=1)].tolist():
        label = labels[start]
        run = places[start : np.searchsorted(labels, label, side="right")]
        finite = run[_finite(rows[run])]
        shift = rows[finite[:1]].astype(np.float64)
        if not (np.abs(shift) <= LARGEST).all():
            shift = rows[finite].astype(np.float64)
        sums.shift[label] = (shift / max(len(shift), 1)).sum(axis=0)


def _move_shifts_to_means(
    sums: Sums, tiles: Iterable[Tile], present: Ints, sizes: npt.NDArray[np.intp]
) -> None:
    """Make shifts the means of the rows of their classes, where finite: the scatter then needs no correction."""
    for _, classes, indicator, tile in tiles:
        sums.sums[classes] += indicator @ tile
    count = max(1, TILE_ENTRIES // max(sums.sums.shape[1], 1))
    for start in range(0, len(present), count):
        classes = present[start : start + count]
        steps = sums.sums[classes] / sizes[start : start + count, None]
        steps[~np.isfinite(steps.sum(axis=1))] = 0.0
        sums.shift[classes] += steps
        sums.sums[classes] = 0.0


def _add_block(
    sums: Sums,
    rows: npt.NDArray[Any],
    places: Ints,
    labels: Ints,
    tiles: Iterable[Tile],
    propagate: bool,
) -> npt.NDArray[np.bool_]:
    """Add the class sums of a block; leave zeros for rows that do not count, and say which do."""
    counted = np.ones(len(places), bool)
    for part, classes, indicator, tile in tiles:
        norms = np.vecdot(tile, tile)
        if np.isfinite(norms.sum()):
            sums.sums[classes] += indicator @ tile
            sums.squares[classes] += indicator @ norms
        else:  # a value is not finite, or only a square is not
            counted[part] = _finite(rows[places[part]])
            _add_carefully(sums, tile, labels[part], norms, counted[part], propagate)
    return counted


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
    buckets: Ints,
    negative: npt.NDArray[np.bool_],
) -> None:
    assert sums.sketch is not None
    assert sums.signs is not None
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
