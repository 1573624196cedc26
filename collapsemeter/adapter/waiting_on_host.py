"""Rows that wait on a device until they make a block are added on the host, when someone looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..stats.namespace import Numpy
from ..stats.sampling import dealt_groups, low_32_bits, reservoir_slots
from ..stats.sketch import row_hashes
from ..stats.sums import Sums, update
from .settings import Settings

Host = npt.NDArray[Any]


def usable(labels: Any, settings: Settings) -> Any:
    """Return which labels, in an array of any framework, are classes: their rows are numbered and may go into the sample."""
    known = (labels >= 0) & (labels < settings.num_classes)
    return known & (labels != settings.ignore_index)


def add_waiting(
    sums: Sums, rows: Host, labels: Host, first: int, settings: Settings, sample_rows: int
) -> tuple[Sums, Host, Host]:
    """Return a layer's sums with rows that waited, and the number and the slot of each row.

    The first row that may be kept is number ``first``; slot ``sample_rows`` is the bin of the others.
    """
    known = usable(labels, settings)
    numbers = first + np.cumsum(known) - known
    hashes = groups = None
    if sums.sketch is not None:
        hashes = row_hashes(numbers.astype(np.uint32), len(sums.sketch), settings.seed)
    if sums.groups:
        groups = dealt_groups(numbers, sums.groups, low_32_bits)
    with np.errstate(over="ignore", invalid="ignore"):  # a device says nothing of it
        sums = update(
            sums,
            rows,
            labels,
            Numpy(sums.sums.dtype.type),
            ignore_index=settings.ignore_index,
            propagate=settings.propagate,
            hashes=hashes,
            groups=groups,
        )
    slots = reservoir_slots(np.where(known, numbers, -1), sample_rows, settings.seed)
    return sums, numbers, slots
