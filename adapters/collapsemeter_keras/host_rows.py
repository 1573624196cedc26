"""Rows that wait on a device are added on the host, when someone looks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from collapsemeter.adapter.settings import Settings
from collapsemeter.adapter.waiting_on_host import add_waiting
from collapsemeter.stats.sums import Sums

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
    size = len(sample.rows) - 1
    sums, numbers, slots = add_waiting(sums, rows, labels, start, settings, size)
    sample = HostSample(*(part.copy() for part in sample))
    sample.rows[slots] = rows
    sample.ids[slots] = numbers + 1
    sample.labels[slots] = labels.clip(0)
    sample.decided[slots] = decided + 1
    return sums, sample
