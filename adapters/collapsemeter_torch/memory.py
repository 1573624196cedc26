"""Plan the memory of all layers' statistics within the bound that a person accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from collapsemeter.adapter.costs import product_operations, products_note
from collapsemeter.adapter.memory import MIB, Holding, Memory, MemoryPlan, budget_of, memory_plan
from collapsemeter.adapter.settings import Settings

from .namespace import class_products, device_of, has_float64
from .waiting import FEWEST_ROWS, most_rows

if TYPE_CHECKING:
    from .study import Study


@dataclass(frozen=True)
class Plan:
    """The statistics that every layer keeps."""

    widths: Mapping[str, int] = field(default_factory=dict)
    holdings: Mapping[str, Holding] = field(default_factory=dict)
    waiting_rows: int | None = None  # of a layer's block; None for as many as are of use
    share: Memory = None  # MiB for a layer whose width only its batches tell

    def holding(self, layer: str, width: int, settings: Settings, device: torch.device) -> Holding:
        """Return what a layer of rows of this width keeps."""
        if self.widths.get(layer) == width:
            return self.holdings[layer]
        held, sizes = self._alone(width, settings, device).holdings[""], self.sample_sizes(settings)
        rows = max([min(sizes), *(size for size in sizes if size <= held.sample_rows)])
        return replace(held, sample_rows=rows)

    def room(self, layer: str, width: int, settings: Settings, device: torch.device) -> int:
        """Return how many rows of a layer make a block."""
        if self.widths.get(layer) == width and self.waiting_rows is not None:
            return self.waiting_rows
        return self._alone(width, settings, device).waiting_rows

    def _alone(self, width: int, settings: Settings, device: torch.device) -> MemoryPlan:
        return memory_plan(
            {"": width},
            settings,
            memory=self.share,
            class_products=class_products(device, settings.num_classes),
        ).with_waiting(4 * width, most_rows=most_rows(width, device), fewest_rows=FEWEST_ROWS)

    def sample_sizes(self, settings: Settings) -> set[int]:
        """Return how many rows a layer may keep for NC4: few sizes, as each costs a compiled graph slots for every row."""
        planned = {held.sample_rows for held in self.holdings.values()}
        return {*settings.sample_sizes, *planned}

    def saved(self) -> dict[str, Any]:
        """Return what `restored_plan` needs, as plain values."""
        return {
            "holdings": {
                name: [self.widths[name], held.kind, held.sample_rows, held.groups]
                for name, held in self.holdings.items()
            },
            "waiting_rows": self.waiting_rows,
            "share": self.share,
        }


UNPLANNED = Plan()


def restored_plan(saved: Mapping[str, Any], settings: Settings) -> Plan:
    """Return the plan of an earlier meter, of which older ones saved less."""
    held = saved.get("holdings", {})
    return Plan(
        {name: width for name, (width, *_) in held.items()},
        {
            name: Holding(kind, rows, *groups or [settings.afforded_groups(width)])
            for name, (width, kind, rows, *groups) in held.items()
        },
        saved.get("waiting_rows"),
        saved.get("share"),
    )


def plan_of(
    widths: Mapping[str, int],
    unknown: Sequence[str],
    settings: Settings,
    memory: Memory,
    model: nn.Module,
    told: Study,
    *,
    wide_sums: bool,
) -> tuple[Plan, tuple[str, ...]]:
    """Choose what layers keep, some of widths that are unknown yet; and say what memory and time that takes."""
    device, parameters = device_of(model), list(model.parameters())
    nbytes = sum(part.nbytes for part in parameters)
    itemsize = 8 if any(part.dtype == torch.float64 for part in parameters) else 4
    budget = budget_of(memory, nbytes)
    layers = max(1, len(widths) + len(unknown))
    share = None if math.isinf(budget) else budget / MIB / layers
    if not widths:
        return Plan(share=share), ()
    if share and unknown:
        memory = share * len(widths)
    times = class_products(device, settings.num_classes)
    chosen = memory_plan(
        widths,
        settings,
        parameter_bytes=nbytes,
        memory=memory,
        calls=told.runs,
        copies=itemsize // 4,
        sum_bytes=8 if wide_sums and itemsize == 4 and has_float64(device) else 4,
        class_products=times,
    ).with_waiting(
        itemsize * sum(told.runs[name] * width for name, width in widths.items()),
        most_rows=most_rows(max(widths.values()), device),
        fewest_rows=FEWEST_ROWS,
    )
    plan = Plan(widths, chosen.holdings, chosen.waiting_rows, share)
    calls = [
        (width, chosen.holdings[name])
        for name, width in widths.items()
        for _ in range(told.runs[name])
    ]
    products = product_operations(calls, told.rows, class_products=times)
    note, time = str(chosen), products_note(told.operations, products, "every={}")
    if unknown:
        most = "" if share is None else f", about {share:.3g} MiB each"
        note += f"; not of {', '.join(unknown)}, whose width the first batch tells{most}"
    return plan, (note, time) if time else (note,)
