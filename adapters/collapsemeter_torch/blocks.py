"""A block of rows: what its labels and row numbers say, which is the same for every layer that saw them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from collapsemeter.stats.sampling import (
    GROUPS,
    dealt_groups,
    dealt_range,
    low_32_bits,
    reservoir_rows,
)
from collapsemeter.stats.sums import MIXED, UNLABELLED

RowNumbers = range | npt.NDArray[np.int64]  # as the sample counts them
Integers = npt.NDArray[np.int64]
Waiting = Sequence[tuple[Tensor, RowNumbers]]  # labels and row numbers of some batches


@dataclass(frozen=True)
class Cells:
    """Where the rows of a block count that have a class: by class, or each class in its own place one after the other.

    A cell is a group of a class, or where no groups are kept the class.
    """

    rows: Tensor | None  # which rows of the block, in this order; None for all as they are
    classes: Tensor
    cells: Tensor
    counts: Tensor  # of classes
    cell_counts: Tensor
    left_out: dict[str, int] = field(default_factory=dict)  # rows without a class, by cause

    @cached_property
    def seen(self) -> Integers:
        """The classes that are there."""
        return np.flatnonzero(self.counts.numpy())


class Block:
    """Labels and row numbers of a block."""

    def __init__(self, batches: Waiting) -> None:
        labels, numbers = zip(*batches, strict=True)
        # Held, and no list that grows: while they are there no others have their identities.
        self.batches = tuple(batches)
        self.labels: Tensor = labels[0] if len(labels) == 1 else torch.cat(labels)
        self.numbers = joined(numbers)
        self._groups: dict[int, Tensor] = {}
        self._picked: dict[tuple[int, int], tuple[Tensor, ...] | None] = {}
        self._cells: dict[tuple[int, int, int, bool], Cells] = {}

    def groups(self, count: int) -> Tensor:
        """Return the group of each row, on its device."""
        if count not in self._groups:
            groups = torch.from_numpy(dealt(self.numbers) % np.uint8(count))
            self._groups[count] = to_device(groups, self.labels.device)
        return self._groups[count]

    def sampled(self, seed: int, sample_ids: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return which rows go into a sample, into which slots, and their numbers, if any do.

        A row whose slot a later one took while it waited goes to the bin, the last of ``sample_ids``.
        """
        size = len(sample_ids) - 1
        if (size, seed) not in self._picked:
            picked = _picked(self.numbers.tobytes(), size, seed)
            here = to_device(torch.from_numpy(picked), sample_ids.device)
            self._picked[size, seed] = here.unbind() if picked.size else None
        known = self._picked[size, seed]
        if known is None:
            return None
        places, slots_of, ids = known
        if sample_ids.device.type == "cpu":
            newest = ids.numpy() > sample_ids.numpy()[slots_of.numpy()]
            if newest.all():  # the rule, found by what costs a tenth of PyTorch's operations
                return places, slots_of, ids
        later = ids > sample_ids.index_select(0, slots_of)
        return places, torch.where(later, slots_of, size), ids

    def cells(self, num_classes: int, ignore_index: int, groups: int, *, by_class: bool) -> Cells:
        """Return where rows count, on a host."""
        key = num_classes, ignore_index, groups, by_class
        if key not in self._cells:
            self._cells[key] = self._cells_of(*key)
        return self._cells[key]

    def _cells_of(self, num_classes: int, ignore_index: int, groups: int, by_class: bool) -> Cells:
        labels = self.labels.numpy()
        ignored = labels == ignore_index
        known = (labels >= 0) & (labels < num_classes) & ~ignored
        rows: Integers | None = None
        left_out = {}
        if not known.all():
            rows = np.flatnonzero(known)
            left_out = {
                "ignored": ignored,
                "unlabelled": labels == UNLABELLED,
                "mixed": labels == MIXED,
            }
            left_out["invalid"] = ~(known | np.logical_or.reduce(list(left_out.values())))
        classes = labels if rows is None else labels[rows]
        if by_class:
            few = classes.astype(np.int16) if num_classes < 2**15 else classes
            order = np.argsort(few, kind="stable")
            rows, classes = order if rows is None else rows[order], classes[order]
        cells = classes
        if groups:
            group = self.groups(groups).numpy()
            cells = classes * groups + (group if rows is None else group[rows])
        counts, cell_counts = (
            torch.from_numpy(np.bincount(numbers, minlength=length))
            for numbers, length in ((classes, num_classes), (cells, num_classes * max(groups, 1)))
        )
        return Cells(
            None if rows is None else torch.from_numpy(rows),
            torch.from_numpy(classes),
            torch.from_numpy(cells),
            counts,
            cell_counts,
            {cause: int(flags.sum()) for cause, flags in left_out.items()},
        )


@functools.lru_cache(maxsize=1)  # layers ask, and so do decisions
def _picked(numbers: bytes, size: int, seed: int) -> Integers:
    """Return rows, slots and numbers of those that have a slot."""
    plain = np.frombuffer(numbers, np.int64)
    rows, slots = reservoir_rows(plain, size, seed)
    return np.stack([rows, slots, plain[rows]])


_last: Block | None = None


def block_of(batches: Waiting) -> Block:
    """Return the block of some batches, which must be some: layers that saw the same have the same one."""
    global _last  # one assignment: a thread that is late only makes it again
    last = _last
    if last is None or not _same(last.batches, batches):
        _last = last = Block(batches)
    return last


def forget_block() -> None:
    """Let go of the block that layers share."""
    global _last
    _last = None


def _same(left: Waiting, right: Waiting) -> bool:
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(a is c and b is d for (a, b), (c, d) in pairs)


def joined(numbers: Sequence[RowNumbers]) -> Integers:
    """Return row numbers of several batches as one array."""
    first, last = numbers[0], numbers[-1]
    if isinstance(first, range) and isinstance(last, range) and _follow(numbers):
        return np.arange(first.start, last.stop)  # the rule, in a process that is alone
    return np.concatenate(
        [np.arange(n.start, n.stop, n.step) if isinstance(n, range) else n for n in numbers]
    )


def _follow(numbers: Sequence[RowNumbers]) -> bool:
    stop = None
    for part in numbers:
        if not isinstance(part, range) or part.step != 1 or stop not in (None, part.start):
            return False
        stop = part.stop
    return True


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for what it still has to do, which takes pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def dealt(numbers: Integers) -> npt.NDArray[np.uint8]:
    """Return the group of each row among 16; of a row without a number any."""
    first = int(numbers.min(initial=2**62, where=numbers >= 0))
    count = int(numbers.max(initial=-1)) - first + 1
    if 0 < count <= GROUPS * len(numbers):  # else those of one process among very many
        of_range = dealt_range(first, count, GROUPS).astype(np.uint8)
        groups: npt.NDArray[np.uint8] = of_range[np.maximum(numbers - first, 0)]
        return groups
    return np.asarray(dealt_groups(numbers, GROUPS, low_32_bits), np.uint8)
