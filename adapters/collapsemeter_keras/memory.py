"""What the statistics of all layers take, within the memory that a person accepts."""

from collections.abc import Mapping
from typing import NamedTuple

from collapsemeter.adapter.costs import product_operations, products_note
from collapsemeter.adapter.memory import MIB, Memory, MemoryPlan, budget_of, memory_plan
from collapsemeter.adapter.settings import Settings

from .namespace import class_products
from .waiting import waiting_bytes

_STREAMS = 2  # training and validation


class Plan(NamedTuple):
    """What every layer keeps, and how many bytes a stream has left for batches that wait."""

    widths: Mapping[str, int]
    num_classes: int
    memory: MemoryPlan
    waiting_bytes: float

    def notes(self, forward: int, rows: int) -> list[str]:
        """Say what memory and time counting takes, beside the operations of a forward with so many rows of scores."""
        memory = str(self.memory)
        waiting = _STREAMS * waiting_bytes(sum(self.widths.values()), self.waiting_bytes)
        if waiting:
            memory += f"; batches that wait take {waiting / MIB:.2g} MiB more"
        products = product_operations(
            [(self.widths[name], held) for name, held in self.memory.holdings.items()],
            rows,
            class_products=class_products(self.num_classes),
        )
        time = products_note(forward, products, "every_batch={}")
        return [memory, time] if time else [memory]


def plan_of(
    widths: Mapping[str, int], settings: Settings, parameter_bytes: int, memory: Memory
) -> Plan:
    """Choose what layers of these widths keep."""
    plan = memory_plan(
        widths,
        settings,
        parameter_bytes=parameter_bytes,
        memory=memory,
        copies=_STREAMS,
        class_products=class_products(settings.num_classes),
    )
    left = max(0.0, budget_of(memory, parameter_bytes) - plan.nbytes) / _STREAMS
    return Plan(widths, settings.num_classes, plan, left)
