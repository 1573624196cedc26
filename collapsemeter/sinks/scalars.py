"""The scalars of one sink, whose curves must not mix."""

from __future__ import annotations

from ..report.report import CollapseReport
from ..report.tags import Tags
from ..system.warning import warn


class Scalars(Tags):
    """The tags of one sink."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self._owner = owner  # as a warning names it
        self._phase = ""
        self._mixed = False

    def of(self, report: CollapseReport) -> dict[str, float]:
        """Return the values by tag, and warn where a curve would mix two quantities."""
        phase = report.phase
        self._phase = self._phase or phase
        if phase != self._phase and not self._mixed:
            self._mixed = True
            warn(
                f"{self._owner} got a {phase} report after {self._phase} ones: these are different "
                "quantities, and its curves now mix them; give each phase a sink of its own",
                stacklevel=4,
            )
        return super().of(report)
