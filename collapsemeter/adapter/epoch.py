"""One epoch of the demo, as the training loop of every framework yields it."""

from typing import NamedTuple

from ..report.report import CollapseReport


class Epoch(NamedTuple):
    """One epoch: mean loss, share of misclassified images, and reports of the training stream (None before it) and of a frozen pass."""

    number: int
    loss: float
    error: float
    live: CollapseReport | None
    frozen: CollapseReport
