"""The streams of a fit, and a report of one of them."""

from typing import NamedTuple

from collapsemeter import CollapseReport
from collapsemeter.stats.fields import Phase

STREAMS = ("train", "validation", "probe")
PHASES: dict[str, Phase] = {"train": "live", "validation": "frozen-eval", "probe": "frozen-train"}


class Entry(NamedTuple):
    """A report and the epoch it is of."""

    epoch: int
    report: CollapseReport
