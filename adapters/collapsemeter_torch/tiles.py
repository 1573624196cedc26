"""The update of `collapsemeter.stats.sums` for a block on a CPU whose classes have their shifts, in tiles that stay in its caches.

Amid a training step an operation takes ten microseconds even to make a view: here are few.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from torch import Tensor

from collapsemeter.stats.namespace import block_rows
from collapsemeter.stats.sums import Sums

from .blocks import Cells
from .namespace import TorchNamespace

LEAST_ROWS = 512  # products of fewer take longer
TILE_ENTRIES = 2**18  # of rows, and as many residuals
_HELD_ENTRIES = 2**20  # for residuals of a tile, until the next one


class Residuals:
    """Memory for the residuals of a tile, and the factors of their product's lower triangle by blocks."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        blocks = block_rows(memory.shape[1])
        self.factors = [(memory[:, block].t(), memory[:, : block.stop]) for block in blocks]


class _Workspace(threading.local):
    """The memory of a thread: new memory costs a CPU more than the arithmetic of a tile."""

    def __init__(self) -> None:
        self._last: dict[torch.dtype, Residuals] = {}

    def residuals(self, rows: Tensor, dtype: torch.dtype) -> Residuals:
        """Return memory for the residuals of as many rows, which the next call writes into."""
        last = self._last.get(dtype)
        if last is None or last.memory.shape != rows.shape:
            last = Residuals(torch.empty(rows.shape, dtype=dtype))
            if rows.numel() <= _HELD_ENTRIES:
                self._last[dtype] = last
        return last


_WORKSPACE = _Workspace()


def tile_rows(width: int) -> int:
    """Return the rows of a tile."""
    return max(LEAST_ROWS, TILE_ENTRIES // width)


class Tiles:
    """Adds blocks to the sums of one layer."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        self._size = tile_rows(sums.shift.shape[1])
        self._lower: list[Tensor] = []  # blocks of a pooled scatter; of the upper triangle none
        self._of_classes: list[Tensor] = []
        if sums.scatter is None:
            return
        blocks = block_rows(sums.scatter.shape[-1])
        if sums.scatter.ndim == 2:
            self._lower = [sums.scatter[block, : block.stop] for block in blocks]
        else:
            self._of_classes = list(sums.scatter)
        self._narrow = len(blocks) == 1

    def know(self, cells: Cells) -> bool:
        """Whether every class of a block has its shift."""
        return bool(self.sums.counts.numpy()[cells.seen].all())

    def add(self, rows: Tensor, cells: Cells, xp: TorchNamespace) -> list[Tensor]:
        """Add a block but for the tiles that hold a row of NaN, Inf or too large numbers; return which rows those are."""
        sums, left = self.sums, []
        if cells.rows is not None:
            rows = rows.index_select(0, cells.rows)
        tiles = [(rows, cells.classes, cells.cells)]
        if len(rows) > self._size:
            parts = (part.split(self._size) for part in tiles[0])
            tiles = list(zip(*parts, strict=True))
        counts, cell_counts = cells.counts, cells.cell_counts
        for number, tile in enumerate(tiles):
            if not self._add_tile(*tile, xp):
                _, classes, of_cells = tile
                start = number * self._size
                left.append(torch.arange(start, start + len(classes)))
                counts = counts - classes.bincount(minlength=len(counts))
                cell_counts = cell_counts - of_cells.bincount(minlength=len(cell_counts))
        sums.counts.add_(counts)
        if sums.group_counts is not None:
            sums.group_counts.add_(cell_counts)
        for cause, count in cells.left_out.items():
            getattr(sums, cause).add_(count)
        return left if cells.rows is None else [cells.rows[part] for part in left]

    def _add_tile(self, rows: Tensor, classes: Tensor, cells: Tensor, xp: TorchNamespace) -> bool:
        sums, residuals = self.sums, _WORKSPACE.residuals(rows, xp.dtype)
        left = torch.index_select(sums.shift, 0, classes, out=residuals.memory)
        torch.sub(rows, left, out=left)
        squares = xp.square_norms(left)
        if not math.isfinite(squares.sum()):
            return False
        sums.sums.index_add_(0, cells, left)
        sums.squares.index_add_(0, cells, squares)
        for total, factors in zip(self._lower, residuals.factors, strict=False):
            xp.accumulate(total, *factors)
        if self._of_classes:
            self._add_class_products(left, classes, xp)
        return True

    def _add_class_products(self, left: Tensor, classes: Tensor, xp: TorchNamespace) -> None:
        lengths = np.bincount(classes.numpy(), minlength=len(self._of_classes)).tolist()
        add = xp.add_whole_product if self._narrow else xp.add_product
        for total, of_class in zip(self._of_classes, left.split(lengths), strict=True):
            if len(of_class):
                add(total, of_class)
