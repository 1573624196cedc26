r"""The update on the host: the sums of `sums.update`, added in place for rows in NumPy.

Rows are taken in the order of their classes, in tiles that stay in a core's cache; :math:`R^\top R` is NumPy's symmetric
product over a block of tiles. Only classes that are present are touched.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .groups import GROUPS, affordable_groups
from .linalg import LARGEST, Floats, Products, bounded, row_blocks, spaced_zeros
from .plain import widened
from .sampling import dealt_range, low_32_bits, row_hashes
from .sums import (
    HOST_CLASS_SCATTER_ENTRIES,
    IGNORE_INDEX,
    MIXED,
    UNLABELLED,
    ScatterKind,
    Sums,
    check_num_classes,
    check_whole,
    init,
    scatter_kind,
)

# New classes times features, over the rows: from here shifts that are means pay, by the axes of the scatter.
MEAN_SHIFTS = {2: 64.0, 3: 0.5}
SORTED_ENTRIES = 2**24  # of rows that are sorted at once
BLOCK_ENTRIES = 2**19  # residuals of a block, 4 MB, or as many rows as four times the features:
MOST_BLOCK_ENTRIES = 2**22  # up to 32 MB, so that adding up d x d products costs little
TILE_ENTRIES = 2**16  # residuals of a tile: 512 kB, with rows and shifts beside them in a cache
TILE_RUNS = 16  # classes of a tile, on average: with more the small product would cost as much as the large one
LEAST_TILE = 64  # rows
LEAST_RUN = 32  # rows of a class, on average, from which on a tile has one class
MOST_INDICATORS = 16  # cells of a tile whose sums are one product
WIDE_ROW = 512  # features, from which on each cell is summed by itself
SHORT_RUN = 8  # rows, up to which the first of all cells are added at once, then the second
LONG_CELL = 2**13  # values of a cell, on average, from which on it is a part of a tile

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Runs = list[tuple[int, slice]]  # the label and place of each run of equal labels


def add_rows(
    sums: Sums,
    rows: npt.NDArray[Any],
    labels: Ints,
    *,
    ignore_index: int = IGNORE_INDEX,
    propagate: bool = False,
    seed: int = 0,
    first_row: int,
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
    num_classes: int,
    width: int,
    scatter: ScatterKind | Literal["auto"],
    sketch_rows: int,
    groups: int = GROUPS,
) -> Sums:
    """Return sums of no rows; ``auto``: with the finest scatter that the host affords."""
    num_classes, width = check_num_classes(num_classes), check_whole("width", width, least=1)
    check_whole("sketch_rows", sketch_rows, least=2)
    if scatter == "auto":
        scatter = scatter_kind(num_classes, width, HOST_CLASS_SCATTER_ENTRIES)
    afforded = affordable_groups(num_classes, width, groups)
    sums = init(num_classes, width, scatter, sketch_rows=sketch_rows, groups=afforded)
    if sums.scatter is not None:
        sums.scatter = spaced_zeros(sums.scatter.shape)
    return sums


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
    used = _counted(sums, labels, ignore_index)
    labels = labels if used is None else labels[used]
    cells = labels
    if sums.groups:
        cells = labels * sums.groups + dealt_range(first_row, len(labels), sums.groups)
    narrow = cells.astype(np.uint16) if len(sums.squares) <= 2**16 else cells  # sorted by radix
    order = np.argsort(narrow, kind="stable")
    places = order if used is None else used[order]
    in_order = narrow[order]
    starts = _starts_of(in_order)
    sizes, bins = np.diff(starts, append=len(order)), in_order[starts].astype(np.int64)
    cells = np.repeat(bins, sizes)
    if sums.group_counts is not None:
        sums.group_counts[bins] += sizes
        bins //= sums.groups
        first = _starts_of(bins)
        starts, bins = starts[first], bins[first]
        sizes = np.diff(starts, append=len(cells))
    present = bins
    labels = np.repeat(present, sizes)
    new = sums.counts[present] == 0
    untouched = not sums.counts.any()
    sums.counts[present] += sizes
    fresh = set(present[new].tolist())
    width = rows.shape[1]
    # About means a scatter needs no correction, which costs the more the more classes are new.
    share = math.inf if sums.scatter is None else MEAN_SHIFTS[sums.scatter.ndim]
    by_row = new & ((sizes == 1) | (len(fresh) * width <= share * len(labels)))
    by_row[by_row] = _set_first_rows(sums, rows, places[starts[by_row]], present[by_row])
    unset = set(present[new & ~by_row].tolist())
    alone = by_row & (sizes == 1)
    if sums.sketch is None and alone.any():  # nothing is left of a row that is its class's shift
        rest = np.repeat(~alone, sizes)
        places, labels, cells = places[rest], labels[rest], cells[rest]
        starts = _starts_of(labels)
    tile_sums = _TileSums(sums, rows, unset, propagate=propagate)
    products = Products(width)
    parts = list(_whole_classes(len(places), block_rows_of(width), starts))
    residuals = np.empty((max((part.stop - part.start for part in parts), default=0), width))
    for part in parts:
        block, of = residuals[: part.stop - part.start], labels[part]
        runs, counted = _runs_of(of), np.ones(len(of), bool)
        for tile in _tiles_of(runs, width):
            of_tile = places[part][tile], of[tile], cells[part][tile]
            tile_sums.add(*of_tile, block[tile], counted[tile])
        if sums.sketch is not None:
            _add_sketch(sums, block, of, counted, first_row + order[part], seed)
        elif sums.scatter is not None and sums.scatter.ndim == 3:
            for label, run in runs:
                products.add(sums.scatter[label], block[run], fresh=label in fresh)
                fresh.discard(label)
        elif sums.scatter is not None:
            products.add(sums.scatter, block, fresh=untouched and part.start == 0)
    return len(order)


def _counted(sums: Sums, labels: Ints, ignore_index: int) -> npt.NDArray[np.intp] | None:
    """Count the rows that are left out; return the others, None where these are all."""
    known = (labels >= 0) & (labels != ignore_index)
    if known.all():
        return None
    sums.ignored += np.count_nonzero(labels == ignore_index)
    sums.unlabelled += np.count_nonzero(labels == UNLABELLED)
    sums.mixed += np.count_nonzero(labels == MIXED)
    return np.flatnonzero(known)


def _set_first_rows(sums: Sums, rows: npt.NDArray[Any], places: Ints, classes: Ints) -> Bools:
    """Give new classes a row each as the shift; say which are fit for one."""
    moderate = np.empty(len(classes), bool)
    for part in row_blocks(len(classes), rows.shape[1]):
        shifts = rows[places[part]].astype(np.float64, copy=False)
        sums.shift[classes[part]] = shifts
        moderate[part] = (np.abs(shifts) <= LARGEST).all(axis=1)
    return moderate


def _add_sketch(
    sums: Sums,
    residuals: Floats,
    labels: Ints,
    counted: Bools,
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


class _TileSums:
    """Adds tiles to sums: ``unset`` are the new classes whose shift is still to be their mean."""

    def __init__(
        self, sums: Sums, rows: npt.NDArray[Any], unset: set[int], *, propagate: bool
    ) -> None:
        self._sums, self._rows, self._unset, self._propagate = sums, rows, unset, propagate
        # `take` copies rows that are not contiguous as a whole, and converts to no other dtype.
        self._direct = rows.flags.c_contiguous and rows.dtype == np.float64
        staged = rows.flags.c_contiguous and not self._direct
        part = max(1, TILE_ENTRIES // max(rows.shape[1], 1)), rows.shape[1]
        self._staged = np.empty(part, rows.dtype) if staged else None

    def add(self, places: Ints, labels: Ints, cells: Ints, tile: Floats, counted: Bools) -> None:
        """Write the residuals of a tile and add the sums of its cells; rows that do not count are left zero, and out of ``counted``."""
        parts = list(_parts(cells, tile.shape[1]))
        gathered, single = bool(self._unset), labels[0] == labels[-1]
        if gathered:
            self._set_means(places, labels, tile, parts)
        for part in parts:
            residuals = tile[part]
            if not gathered:
                self._take(places[part], residuals)
            shift = self._sums.shift
            residuals -= shift[labels[0]] if single else np.take(shift, labels[part], axis=0)
            of_part = places[part], labels[part], cells[part], counted[part]
            self._add_part(residuals, *of_part)

    def _add_part(
        self, residuals: Floats, places: Ints, labels: Ints, cells: Ints, counted: Bools
    ) -> None:
        sums = self._sums
        norms = np.vecdot(residuals, residuals)
        square, cell = float(norms.sum()), cells[0]
        if not math.isfinite(square):  # a value is not finite, or only a square is not
            counted[...] = _finite_rows(self._rows[places])
            _add_carefully(sums, residuals, labels, cells, norms, counted, self._propagate)
        elif cell == cells[-1]:
            sums.squares[cell] += square
            sums.sums[cell] += _sum(residuals)
        else:
            _add_cells(sums, residuals, norms, cells)

    def _set_means(self, places: Ints, labels: Ints, tile: Floats, parts: list[slice]) -> None:
        """Copy the rows of a tile; let the means of those classes that have no shift yet be the shifts."""
        single = labels[0] == labels[-1]
        total = np.zeros(tile.shape[1])
        for part in parts:
            self._take(places[part], tile[part])
            if single:  # while the rows are in the cache
                total += _sum(tile[part])
        for label, run in _runs_of(labels):
            if label in self._unset:
                mean = (total if single else _sum(tile[run])) / (run.stop - run.start)
                if not bounded(mean):
                    finite = tile[run][_finite_rows(tile[run])]
                    if not len(finite):
                        self._sums.shift[label] = 0.0
                        continue  # rows that do not count say nothing of where the others are
                    mean = (finite / len(finite)).sum(axis=0)  # their sum may overflow
                self._unset.discard(label)
                self._sums.shift[label] = mean

    def _take(self, places: Ints, out: Floats) -> None:
        """Copy rows of any dtype, by way of an array that is there already."""
        if self._direct:
            self._rows.take(places, axis=0, out=out, mode="clip")
        elif self._staged is None:
            out[...] = widened(self._rows[places])
        else:
            staged = self._staged[: len(places)]
            self._rows.take(places, axis=0, out=staged, mode="clip")
            out[...] = widened(staged)


def _tiles_of(runs: Runs, width: int) -> Iterator[slice]:
    """Cut sorted rows into tiles of whole classes: of one each where classes have many rows."""
    count = runs[-1][1].stop
    rows_per_class = count // len(runs)
    if rows_per_class >= LEAST_RUN:
        yield from (run for _, run in runs)
        return
    most = max(1, min(max(TILE_RUNS * rows_per_class, LEAST_TILE), TILE_ENTRIES // max(width, 1)))
    yield from _whole_classes(count, most, np.array([run.start for _, run in runs]))


def _whole_classes(count: int, size: int, starts: npt.NDArray[np.intp]) -> Iterator[slice]:
    """Cut sorted rows of classes that start there into parts of so many rows, of whole classes where these fit."""
    start = 0
    while start < count:
        stop = min(start + size, count)
        if stop < count:
            last = int(starts[np.searchsorted(starts, stop, side="right") - 1])
            stop = last if last > start else stop
        yield slice(start, stop)
        start = stop


def _starts_of(labels: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.intp]:
    """Return where each run of equal labels starts."""
    changes = np.ones(len(labels), bool)
    np.not_equal(labels[1:], labels[:-1], out=changes[1:])
    return np.flatnonzero(changes)


def _runs_of(labels: Ints) -> Runs:
    """Return the label and place of each run of equal labels."""
    starts = _starts_of(labels)
    bounds = [*starts.tolist(), len(labels)]
    parts = itertools.starmap(slice, itertools.pairwise(bounds))
    return list(zip(labels[starts].tolist(), parts, strict=True))


def _finite_rows(rows: npt.NDArray[Any]) -> Bools:
    """(N, d) -> (N,): no NaN or Inf in the row."""
    finite: Bools = np.isfinite(widened(rows)).all(axis=1)
    return finite


def _parts(cells: Ints, width: int) -> Iterator[slice]:
    """Cut a tile into parts that stay in a cache: of one cell each where cells have many rows."""
    starts = _starts_of(cells)
    if len(cells) * width < LONG_CELL * len(starts):
        yield from row_blocks(len(cells), width, TILE_ENTRIES)
        return
    for start, stop in itertools.pairwise([*starts.tolist(), len(cells)]):
        for part in row_blocks(stop - start, width, TILE_ENTRIES):
            yield slice(start + part.start, start + part.stop)


def _sum(rows: Floats, out: Floats | None = None) -> Floats:
    # Not by a product: BLAS would wake its threads for each of many small ones.
    if rows.shape[1] >= WIDE_ROW:
        total: Floats = np.add.reduce(rows, axis=0, out=out)
        return total
    total = np.einsum("ij->j", rows, out=out)
    return total


def _add_cells(sums: Sums, rows: Floats, norms: Floats, cells: Ints) -> None:
    """Add rows that are sorted by cell: of few cells by a product, wide ones cell by cell, narrow ones together."""
    first, last = int(cells[0]), int(cells[-1])
    if last - first < MOST_INDICATORS:
        indicator = (np.arange(first, last + 1)[:, None] == cells).astype(np.float64)
        sums.squares[first : last + 1] += indicator @ norms
        sums.sums[first : last + 1] += indicator @ rows
        return
    starts = _starts_of(cells)
    bins, sizes = cells[starts], np.diff(starts, append=len(cells))
    sums.squares[bins] += np.add.reduceat(norms, starts)
    if rows.shape[1] >= WIDE_ROW:
        counts = sums.counts if sums.group_counts is None else sums.group_counts
        runs = np.stack([bins, starts, sizes, sizes == counts[bins]], 1)
        for cell, start, size, whole in runs.tolist():
            run = rows[start : start + size]
            if whole:  # no other row of the cell was added: its memory is new, and need not be read
                _sum(run, out=sums.sums[cell])
            else:
                sums.sums[cell] += _sum(run)
        return
    if sizes.max() > SHORT_RUN:
        total = np.add.reduceat(rows, starts, axis=0)
    else:
        total = rows[starts]
        for place in range(1, int(sizes.max())):
            longer = np.flatnonzero(sizes > place)
            total[longer] += rows[starts[longer] + place]
    sums.sums[bins] += total


def _add_carefully(
    sums: Sums,
    residuals: Floats,
    labels: Ints,
    cells: Ints,
    norms: Floats,
    counted: Bools,
    propagate: bool,
) -> None:
    """Add the class sums of a tile where some are not finite, so that each row concerns its own class alone."""
    residuals[~counted] = 0
    norms[~counted] = 0
    np.add.at(sums.sums, cells, residuals)
    np.add.at(sums.squares, cells, norms)
    stray = cells[~counted]
    sums.nonfinite += np.int64(len(stray))
    if propagate:
        sums.sums[stray] = np.nan
        sums.squares[stray] = np.nan
        return
    np.subtract.at(sums.counts, labels[~counted], 1)
    if sums.group_counts is not None:
        np.subtract.at(sums.group_counts, stray, 1)
