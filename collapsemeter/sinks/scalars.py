"""The scalars of one sink, whose curves do not mix phases."""

from ..report.report import CollapseReport
from ..report.tags import Tags, of_phase
from ..system.warning import warn


class Scalars(Tags):
    """The tags of one sink: under a prefix, plain those of the phase that comes first, and with their phase those of others."""

    def __init__(self, owner: str, intervals: bool = False) -> None:
        super().__init__(intervals=intervals)
        self._owner = owner  # as a warning names it
        self._phases: dict[str, list[str]] = {}  # by prefix

    def of_report(self, report: CollapseReport, prefix: str = "") -> dict[str, float]:
        """Return the values by tag: ``nc1_pinv/fc``, or ``nc1_pinv/frozen-eval/fc`` beside a live curve."""
        scalars, phase = self.of(report), report.phase
        phases = self._phases.setdefault(prefix, [])
        if phase not in phases:
            phases.append(phase)
            if len(phases) == 2:
                warn(
                    f"{self._owner} got a {phase} report after {phases[0]} ones: these are different "
                    f"quantities, and their curves are {prefix}nc1_pinv/{phase}/... and so on",
                    stacklevel=4,
                )
        if phase != phases[0]:
            scalars = of_phase(scalars, phase)
        return {prefix + tag: value for tag, value in scalars.items()}
