"""Bound what a meter holds on the device by a budget that a person accepts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from ..stats.sums import ScatterKind, scatter_shape, sketch_shapes
from .settings import Settings

MIB = 2**20
LEAST = 64 * MIB  # what any model affords
Memory = Literal["auto"] | float | None

_LESS: Mapping[ScatterKind, ScatterKind] = MappingProxyType(
    {"class": "pooled", "pooled": "sketch", "sketch": "trace"}
)


@dataclass(frozen=True)
class Holding:
    """The statistics of one layer: its scatter, how many rows for NC4, and how many groups of rows for intervals."""

    kind: ScatterKind
    sample_rows: int
    groups: int = 0

    @classmethod
    def most(cls, width: int, settings: Settings, class_products: int = 1) -> Holding:
        """Return the most that is of use in a layer of this width."""
        kind = settings.kind(width, class_products)
        return cls(kind, settings.sample_size(width), settings.afforded_groups(width))

    def nbytes(self, width: int, settings: Settings, sum_bytes: int = 4) -> int:
        """Bytes of the sums, the scatter and the sampled rows of a layer of this width; a number of a row has four."""
        classes = settings.num_classes
        cells = classes * max(self.groups, 1)
        shapes = [
            (classes + cells, width),  # shift; sums
            (4 * cells,),  # counts and squares
            scatter_shape(self.kind, classes, width) or (0,),
            *sketch_shapes(self.kind, classes, width, settings.sketch_rows).values(),
        ]
        sampled = self.sample_rows * (width + 4)  # rows; labels and numbers
        return sum_bytes * sum(math.prod(shape) for shape in shapes) + 4 * sampled


@dataclass(frozen=True)
class MemoryPlan:
    """The statistics of every layer, the bytes that they take, and the bytes that they should take at most."""

    holdings: Mapping[str, Holding]
    nbytes: int
    budget: float
    parameter_bytes: int
    ungrouped: int = 0  # layers that do not afford the groups that were asked for
    waiting_rows: int = 0  # of a block in which small batches wait

    def with_waiting(
        self, row_bytes: int, *, most_rows: int, fewest_rows: int, step: int = 1
    ) -> MemoryPlan:
        """Let as many rows of all layers wait for each other as the budget has left, in steps, if these are worth the wait."""
        left = max(0, self.budget - self.nbytes)
        rows = int(min(most_rows * row_bytes, left)) // row_bytes // step * step
        rows = rows if rows >= fewest_rows else 0
        return replace(self, nbytes=self.nbytes + rows * row_bytes, waiting_rows=rows)

    def __str__(self) -> str:
        text = (
            f"memory: {self.nbytes / MIB:.3g} MiB, beside {self.parameter_bytes / MIB:.3g} MiB of "
            "parameters"
        )
        if self.nbytes > self.budget:
            text += (
                f"; more than memory={self.budget / MIB:.4g}: watch fewer layers with max_layers="
            )
        if self.ungrouped:
            text += (
                f"; no intervals for {self.ungrouped} of {len(self.holdings)} layers, whose groups of rows would "
                "take too much"
            )
        return text


def memory_plan(
    widths: Mapping[str, int],
    settings: Settings,
    *,
    parameter_bytes: int = 0,
    memory: Memory = "auto",
    calls: Mapping[str, int] = MappingProxyType({}),
    copies: int = 1,
    sum_bytes: int = 4,
    class_products: int = 1,
) -> MemoryPlan:
    """Choose what every layer keeps.

    As long as it takes too much, hidden layers keep fewer rows for NC4, then no groups for intervals, then
    still fewer rows and narrower scatters, and the last layer follows. A scatter that was asked for by name stays.

    Parameters
    ----------
    widths : mapping from layer to int
        Features after the reduction, in the order of the data.
    settings : Settings
    parameter_bytes : int
        Of the model.
    memory : "auto", float or None
        MiB for all layers together. ``auto``: the larger of 64 and half of the parameters; None: any.
    calls : mapping from layer to int
        How often a forward runs a layer, where it is not once: every call has statistics of its own.
    copies : int
        Streams that each keep as much.
    sum_bytes : int
        Of a number in the sums, where one of a sampled row has four.
    class_products : int
        How many pooled products the scatters of single classes cost, see `Settings.kind`.

    Raises
    ------
    ValueError
        If the memory is not positive.
    """
    budget = budget_of(memory, parameter_bytes)
    for holdings in _ever_less(widths, settings, class_products):
        nbytes = copies * sum(
            calls.get(name, 1) * holding.nbytes(widths[name], settings, sum_bytes)
            for name, holding in holdings.items()
        )
        if nbytes <= budget:
            break
    ungrouped = sum(not holding.groups for holding in holdings.values()) if settings.groups else 0
    return MemoryPlan(holdings, nbytes, budget, parameter_bytes, ungrouped)


def budget_of(memory: Memory, parameter_bytes: int = 0) -> float:
    """Return a budget in bytes, or raise ValueError where it is none."""
    if memory is None:
        return math.inf
    if memory == "auto":
        return float(max(LEAST, parameter_bytes // 2))
    if isinstance(memory, str | bool) or not memory > 0:
        raise ValueError(f"memory={memory!r}: pass MiB, 'auto' or None")
    return memory * MIB


def _ever_less(
    widths: Mapping[str, int], settings: Settings, class_products: int
) -> Iterator[dict[str, Holding]]:
    """Yield what every layer may keep, from the most that is of use to the least."""
    holdings = {
        name: Holding.most(width, settings, class_products) for name, width in widths.items()
    }
    yield dict(holdings)
    *hidden, last = holdings
    for layers, kind, share, grouped in (
        (hidden, None, 4, True),
        (hidden, None, 4, False),
        (hidden, None, 16, False),
        (hidden, "class", 16, False),
        ([last], "class", 1, True),
        ([last], None, 4, True),
        ([last], None, 4, False),
        (hidden, "pooled", 16, False),
        ([last], "pooled", 16, False),
        (hidden, "sketch", 64, False),
    ):
        for name in layers:
            width, held = widths[name], holdings[name]
            rows = max(1, min(held.sample_rows, settings.sample_size(width) // share))
            smaller = _LESS[held.kind] if held.kind == kind else held.kind
            if settings.scatter != "auto" or (
                smaller == "sketch" and settings.sketch_rows >= width
            ):
                smaller = held.kind
            holdings[name] = Holding(smaller, rows, held.groups if grouped else 0)
        yield dict(holdings)
