"""Thresholds for continuous integration: ``fc:NC1>10%`` or ``fc:nc1_pinv>0.1`` fails the audit."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..metrics.catalogue import METRICS
from ..report.criteria import PROPERTIES, Criteria
from ..report.report import CollapseReport
from ..stats.undefined import REASONS
from ..system.escaping import printable
from ..system.suggest import did_you_mean

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(
    r"(?:(?P<layer>.+):)?(?P<metric>\w+)\s*(?P<sign>[<>]=?)\s*(?P<limit>\S+)", re.DOTALL
)


@dataclass(frozen=True)
class Threshold:
    """A condition under which an audit fails.

    Parameters
    ----------
    text : str
        As it was given.
    layer : str or None
        Name or shell pattern; the final layer if None.
    metric : str
        A metric, or a property from NC1 to NC4: its share as `Criteria` judges it.
    sign : str
    limit : float

    Examples
    --------
    >>> Threshold.parse("fc:nc1_pinv > 0.1").limit, Threshold.parse("NC1>10%").limit
    (0.1, 0.1)
    """

    text: str
    layer: str | None
    metric: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read a condition ``LAYER:METRIC>NUMBER``, also in percent; without a layer the final one is meant.

        Raises
        ------
        ValueError
            If it has another form, or the metric is unknown.
        """
        found = _FORM.fullmatch(text.strip())
        try:
            limit = math.nan if found is None else _number(found["limit"])
        except ValueError:
            limit = math.nan
        if found is None or math.isnan(limit):
            raise ValueError(
                f"--fail-if {text!r}: write LAYER:METRIC>NUMBER, such as 'fc:nc1_pinv>0.1'"
            )
        if found["metric"] not in (*PROPERTIES, *METRICS):
            raise ValueError(
                f"--fail-if {text!r}: no metric is named {found['metric']!r}; there are "
                f"{', '.join((*PROPERTIES, *METRICS))}"
                + did_you_mean(found["metric"], (*PROPERTIES, *METRICS))
            )
        return cls(text, found["layer"], found["metric"], found["sign"], limit)

    def failures(self, report: CollapseReport) -> list[str]:
        """Return one sentence for every layer that fails; one without a value does.

        Raises
        ------
        ValueError
            If no layer has the name.
        """
        return [
            words for name in self.chosen(list(report)) if (words := self._failure(report, name))
        ]

    def chosen(self, layers: Sequence[str]) -> list[str]:
        """Return the layers that are meant.

        Raises
        ------
        ValueError
            If no layer has the name.
        """
        if self.layer is None:
            return list(layers[-1:])
        names = [name for name in layers if name == self.layer or fnmatchcase(name, self.layer)]
        if not names:
            raise ValueError(
                f"--fail-if {self.text!r}: no layer is named {self.layer!r}; there are {', '.join(layers)}"
                + did_you_mean(self.layer, layers)
            )
        return names

    def _failure(self, report: CollapseReport, name: str) -> str | None:
        layer, shown = report[name], printable(name)
        if self.metric in PROPERTIES:
            judgement = Criteria().judge(layer)[self.metric]
            failed = math.isnan(judgement.share) or self._holds(judgement.share)
            return f"layer {shown!r}: {judgement}: --fail-if {self.text!r}" if failed else None
        value = layer.get(self.metric, math.nan)
        if math.isnan(value):
            code = layer.reason(self.metric)
            why = REASONS.get(code, code) if code is not None else "it was not measured"
            return (
                f"layer {shown!r} has no {self.metric} to compare ({why}): --fail-if {self.text!r}"
            )
        if self._holds(value):
            return f"layer {shown!r} has {self.metric} = {value:.6g}: --fail-if {self.text!r}"
        return None

    def _holds(self, value: float) -> bool:
        return _COMPARISONS[self.sign](value, self.limit)


def _number(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)
