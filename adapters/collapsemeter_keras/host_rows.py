"""Rows that wait on a device are added on the host, when someone looks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.namespace import Numpy
from collapsemeter.stats.sampling import dealt_groups, low_32_bits, reservoir_slots
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.stats.sums import Sums, update

Array = npt.NDArray[Any]


class HostSample(NamedTuple):
    """Rows kept for NC4, with numbers and decisions one up; the last slot is the bin."""

    rows: Array
    ids: Array
    labels: Array
    decided: Array


def add_on_host(
    sums: Sums,
    sample: HostSample,
    rows: Array,
    labels: Array,
    decided: Array,
    start: int,
    settings: Settings,
) -> tuple[Sums, HostSample]:
    """Return sums and sample of a layer with rows that waited, of which the first usable one is number ``start``."""
    usable = (labels >= 0) & (labels < settings.num_classes) & (labels != settings.ignore_index)
    numbers = start + np.cumsum(usable) - usable
    hashes = groups = None
    if sums.sketch is not None:
        hashes = row_hashes(numbers.astype(np.uint32), len(sums.sketch), settings.seed)
    if sums.groups:
        groups = dealt_groups(numbers, sums.groups, low_32_bits)
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
    size = len(sample.rows) - 1
    slots = reservoir_slots(np.where(usable, numbers, -1), size, settings.seed)
    sample = HostSample(*(part.copy() for part in sample))
    sample.rows[slots] = rows
    sample.ids[slots] = numbers + 1
    sample.labels[slots] = np.maximum(labels, 0)
    sample.decided[slots] = decided + 1
    return sums, sample
