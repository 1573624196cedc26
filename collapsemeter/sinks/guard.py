"""What every sink shares: a failing destination never reaches the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from ..report.report import CollapseReport
from ..system.warning import warn


class Sink(Protocol):
    """Anything with ``write(step, report)``: what a meter, a callback or a loop hands reports to."""

    def write(self, step: int, report: CollapseReport) -> None:
        """Write one report."""


class GuardedSink(ABC):
    """A sink whose ``write`` never raises: the first failure warns, later ones are counted.

    A subclass has a ``_write`` that may raise, and a ``name`` by which the warning calls it.

    Attributes
    ----------
    failures : int
        Writes that did not arrive.

    Examples
    --------
    >>> class Memory(GuardedSink):
    ...     name = "Memory"
    ...     steps = []
    ...     def _write(self, step, report):
    ...         self.steps.append(step)
    >>> memory = Memory()
    >>> memory.write(3, CollapseReport({}))
    >>> memory.steps, memory.failures
    ([3], 0)
    """

    name: str
    failures: int = 0

    def write(self, step: int, report: CollapseReport) -> None:
        """Write one report; a failure is a `RuntimeWarning`, once, and never an exception.

        Parameters
        ----------
        step : int
            The user's own count of steps or epochs.
        report : CollapseReport
        """
        self._attempt(f"write step {step}", lambda: self._write(int(step), report))

    @abstractmethod
    def _write(self, step: int, report: CollapseReport) -> None:
        """Write one report, or raise."""

    def _attempt(self, doing: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                warn(
                    f"{self.name} could not {doing}: {_in_one_line(error)}. Training goes on and the "
                    "values remain in the report; later failures of this sink are counted in "
                    "its `failures`, not shown",
                    stacklevel=4,  # the user's line that writes
                )


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}".rstrip(".: ")
