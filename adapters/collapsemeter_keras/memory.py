"""Plan the memory of all layers' statistics within the bound that a person accepts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from collapsemeter.adapter.costs import product_operations, products_note
from collapsemeter.adapter.memory import Memory, MemoryPlan, memory_plan
from collapsemeter.adapter.settings import Settings

from .namespace import class_products
from .operations import Key
from .waiting import FEWEST_ROWS, most_rows

_STREAMS = 2  # training and validation


class Plan(NamedTuple):
    """The statistics that every layer keeps, and how often a forward runs it."""

    widths: Mapping[str, int]
    calls: Mapping[str, int]
    num_classes: int
    memory: MemoryPlan

    def notes(self, forward: int, rows: int) -> list[str]:
        """Say what memory and time counting takes, beside the operations of a forward with so many rows of scores."""
        memory = str(self.memory)
        products = product_operations(
            [
                (self.widths[name], held)
                for name, held in self.memory.holdings.items()
                for _ in range(self.calls[name])
            ],
            rows,
            class_products=class_products(self.num_classes),
        )
        time = products_note(forward, products, "every_batch={}")
        return [memory, time] if time else [memory]


def plan_of(
    shapes: Mapping[Key, tuple[int, str]],
    watched: Sequence[str],
    settings: Settings,
    parameter_bytes: int,
    memory: Memory,
) -> Plan:
    """Choose what watched layers keep that give rows of these widths and dtypes."""
    of_layers = {name: width for (name, _), (width, _) in shapes.items()}
    widths = {name: of_layers[name] for name in watched if name in of_layers}
    calls = Counter(name for name, _ in shapes)
    itemsize = 8 if any(dtype == "float64" for _, dtype in shapes.values()) else 4
    width = sum(calls[name] * width for name, width in widths.items())
    chosen = memory_plan(
        widths,
        settings,
        parameter_bytes=parameter_bytes,
        memory=memory,
        calls=calls,
        copies=_STREAMS * itemsize // 4,
        class_products=class_products(settings.num_classes),
    ).with_waiting(
        _STREAMS * itemsize * width,
        most_rows=most_rows(width),
        fewest_rows=FEWEST_ROWS,
        step=FEWEST_ROWS,
    )
    return Plan(widths, calls, settings.num_classes, chosen)
