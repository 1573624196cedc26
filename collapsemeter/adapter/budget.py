"""The budget of live mode: which training batches are counted, and what share of the time that takes."""

import operator
from collections import deque
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

RECENT = 100  # steps whose median is taken: memory stays flat however long a run is


@dataclass(frozen=True)
class Budget:
    """Which training batches are counted since a reset: every k-th, each as a whole, and none once there are rows enough; ``name`` is what the adapter calls ``every``."""

    every: int = 1
    max_rows: int | None = None
    name: str = "every"

    def __post_init__(self) -> None:
        _check(self.name, self.every, "1 counts every batch, 10 every tenth")
        if self.max_rows is not None:
            _check("max_rows", self.max_rows, "or None for no limit")

    @property
    def limited(self) -> bool:
        """Whether any batch may be left out."""
        return self.every > 1 or self.max_rows is not None

    def takes(self, batch: Any, rows: Any) -> Any:
        """Whether to count a batch, of which there were so many, and rows, since the last reset; numbers may be integer scalars of a framework."""
        in_turn = batch % self.every == 0
        return in_turn if self.max_rows is None else in_turn & (rows < self.max_rows)

    def provenance(self, left_out: int, rows: int) -> dict[str, Any]:
        """Return what a report says of a budget; nothing where there is none."""
        if not self.limited:
            return {}
        said: dict[str, Any] = {self.name: self.every, "max_rows": self.max_rows}
        said["batches_left_out"] = left_out
        if self.max_rows is not None:
            said["max_rows_reached"] = rows >= self.max_rows
        return {"budget": said}


def _check(name: str, value: Any, meaning: str) -> None:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: pass a whole number from 1 up; {meaning}")


class Clock:
    """The share of training time that is the meter's own: its mean time in a step beside the median of the rest, which sees no pauses."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget every step."""
        self.unseen = False  # something was counted where the host's clock cannot look
        self._began: float | None = None
        self.spent = 0.0  # in the step under way
        self._steps, self._all_spent = 0, 0.0
        self._rest = deque[float](maxlen=RECENT)

    def begin(self, now: float) -> None:
        """Begin a step at ``now`` (seconds of `time.perf_counter`), and so end the one before."""
        if self._began is not None:
            self._steps += 1
            self._all_spent += self.spent
            self._rest.append(now - self._began - self.spent)
        self._began, self.spent = now, 0.0

    def spend_since(self, started: float) -> None:
        """Add the time since ``started`` to the step under way."""
        self.spent += perf_counter() - started

    def leave(self) -> None:
        """Take the batch that began last for none of a training step."""
        self._began = None

    def skip_since(self, started: float) -> None:
        """Leave the time since ``started`` out of the step under way: a report was made meanwhile."""
        if self._began is not None:
            self._began += perf_counter() - started

    def share(self) -> float | None:
        """Return the share, between 0 and 1; None before a first whole step."""
        if not self._steps:
            return None
        spent = self._all_spent / self._steps
        whole = spent + max(median(self._rest), 0.0)
        return spent / whole if whole > 0 else None

    def provenance(self, unseen: str, *, asynchronous: bool = False) -> dict[str, Any]:
        """Return ``overhead`` and where needed ``overhead_note``: ``unseen`` says why no clock sees the counting, ``asynchronous`` that a device works on."""
        share = None if self.unseen else self.share()
        if self.unseen:
            return {"overhead": None, "overhead_note": f"unknown: {unseen}"}
        if share is None:
            why = "a step lasts until the next batch begins, and none has"
            return {"overhead": None, "overhead_note": f"unknown: {why}"}
        note = "of the host's time: the device works on after the meter has handed over its work"
        return {"overhead": round(share, 4)} | ({"overhead_note": note} if asynchronous else {})
