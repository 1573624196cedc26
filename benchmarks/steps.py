"""What `step_costs.py` times of any framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Steps:
    """The calls of a round, by what they time: plain, products, minimal, watched and, of PyTorch and Flax, groups=0.

    A call of PyTorch is a whole round, and its products are alone; of other frameworks a call is one step, and
    the products are part of it. ``flushes`` add the rows that still wait after the last round.
    """

    rows: int  # of a batch
    steps: int  # of a round
    rounds: int
    calls: Calls
    flushes: Calls = field(default_factory=dict)
    whole_rounds: bool = True
