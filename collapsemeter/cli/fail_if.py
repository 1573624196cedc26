"""Conditions of failure for continuous integration: ``fc:NC1>10%`` or ``fc:nc1_pinv>0.1`` fails the audit."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..metrics.catalogue import METRICS
from ..metrics.layer import LayerReport
from ..report.criteria import PROPERTIES, Criteria
from ..report.report import CollapseReport
from ..report.trust_notes import no_part
from ..report.trust_words import PARTS, trust
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
    r"(?:(?P<layer>.+):)?(?P<metric>\w+)(?:\.(?P<part>\w+))?\s*(?P<sign>[<>]=?)\s*(?P<limit>\S+)",
    re.DOTALL,
)


@dataclass(frozen=True)
class FailureCondition:
    """A condition under which an audit fails, of a metric or of a property from NC1 to NC4."""

    text: str  # as it was given
    layer: str | None  # name or shell pattern; the final layer if None
    metric: str
    part: str  # low, high or estimate; empty for the value
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> FailureCondition:
        """Read a condition ``LAYER:METRIC>NUMBER``, also in percent; without a layer the final one is meant."""
        match = _FORM.fullmatch(text.strip())
        limit = math.nan if match is None else _number(match["limit"])
        if match is None or math.isnan(limit):
            raise ValueError(
                f"--fail-if {text!r}: write LAYER:METRIC>NUMBER, such as 'fc:nc1_pinv>0.1'"
            )
        known = (*PROPERTIES, *METRICS)
        if match["metric"] not in known:
            raise ValueError(
                f"--fail-if {text!r}: no metric is named {match['metric']!r}; there are "
                f"{', '.join(known)}{did_you_mean(match['metric'], known)}"
            )
        part = match["part"] or ""
        if part and (part not in PARTS or match["metric"] in PROPERTIES):
            raise ValueError(
                f"--fail-if {text!r}: after a metric write .{', .'.join(PARTS)} or nothing, such as "
                "'fc:nc1_trace_ratio.low>0.5'"
            )
        return cls(text, match["layer"], match["metric"], part, match["sign"], limit)

    def failures(self, report: CollapseReport) -> list[str]:
        """Return one sentence for every layer that fails; one without a value does."""
        sentences = (self._failure(report[name], name) for name in self.chosen(list(report)))
        return [f"{words}: --fail-if {self.text!r}" for words in sentences if words]

    def chosen(self, layers: Sequence[str]) -> list[str]:
        """Return the layers that are meant; raise ValueError if there is none."""
        if self.layer is None:
            return list(layers[-1:])
        names = [name for name in layers if name == self.layer or fnmatchcase(name, self.layer)]
        if not names:
            raise ValueError(
                f"--fail-if {self.text!r}: no layer is named {self.layer!r}; there are {', '.join(layers)}"
                + did_you_mean(self.layer, layers)
            )
        return names

    def _failure(self, layer: LayerReport, name: str) -> str:
        """Say how a layer fails; nothing where it does not."""
        words = f"layer {printable(name)!r}"
        if self.metric in PROPERTIES:
            judgement = Criteria().judge(layer)[self.metric]
            value, words = judgement.share, f"{words}: {judgement}"
        else:
            value, why = self._value(layer)
            name = f"{self.metric}.{self.part}".removesuffix(".")
            missing = f"no {name} to compare ({why})"
            words += f" has {missing if math.isnan(value) else f'{name} = {value:.6g}'}"
        failed = math.isnan(value) or _COMPARISONS[self.sign](value, self.limit)
        return words if failed else ""

    def _value(self, layer: LayerReport) -> tuple[float, str]:
        """Return the number that is compared, and why there is none."""
        if self.part:
            value = getattr(trust(layer, self.metric), self.part)
            return value, no_part(layer, self.metric, self.part)
        code = layer.reason(self.metric)
        why = "it was not measured" if code is None else REASONS.get(code, code)
        return layer.get(self.metric, math.nan), why


def _number(text: str) -> float:
    """Read a number or a share in percent; NaN where it is none."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return math.nan
