"""A run over time: when the training error first was zero, and how fast each metric falls from there on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..metrics.catalogue import METRICS
from ..metrics.line_fit import FEWEST, Line, fit_line
from ..system.escaping import printable
from ..system.suggest import listed
from .training_error import RECORDED_ERROR, checked_error, is_error

if TYPE_CHECKING:
    from .report import CollapseReport

FALLING = tuple(name for name, metric in METRICS.items() if metric.range[0] >= 0)
"""Metrics that have a logarithm."""

_UNRECORDED = "no training error is recorded: write report.with_training_error(error), or pass errors={epoch: error}"


class Onset(NamedTuple):
    """Where the terminal phase of training begins: the first epoch at zero training error."""

    step: int | None
    words: str
    """The evidence for the step, or the reason that there is none."""


class Trend(NamedTuple):
    """The slope of the logarithm of a metric against steps, by least squares, with its 95 % interval."""

    slope: float
    low: float
    high: float
    r: float
    points: int
    left_out: int
    """Reports in which the metric is zero, or has no value."""
    why: str
    """Why there is no slope; empty where there is one."""


def terminal_phase(
    entries: Iterable[tuple[int, CollapseReport]], errors: Mapping[int, float] | None = None
) -> Onset:
    """Return the first step at zero training error, of what is recorded or given; nothing is guessed from the metrics."""
    if errors is None:
        recorded = [(step, report.provenance.get(RECORDED_ERROR)) for step, report in entries]
        errors = {step: error for step, error in recorded if is_error(error)}
    known = sorted((int(step), checked_error(error)) for step, error in errors.items())
    if not known:
        return Onset(None, _UNRECORDED)
    zero = [step for step, error in known if error == 0]
    if not zero:
        step, least = min(known, key=lambda point: point[1])
        return Onset(
            None,
            f"the training error never was zero: the lowest is {_percent(least)}, of epoch {step}",
        )
    first = zero[0]
    words = f"epoch {first} is the first at zero training error"
    before = [(step, error) for step, error in known if step < first]
    if before:
        words += (
            f"; epoch {before[-1][0]}, the last known one before it, had {_percent(before[-1][1])}"
        )
    else:
        words += ", and the first that is known: the phase may have begun before"
    again = [step for step, error in known if step > first and error > 0]
    if again:
        words += f"; above zero again at {listed(map(str, again), 3)}"
    return Onset(first, words)


def trends(
    entries: Sequence[tuple[int, CollapseReport]],
    since: int | None = None,
    metrics: Sequence[str] = FALLING,
    layers: Sequence[str] | None = None,
) -> dict[str, dict[str, Trend]]:
    """Return the trend of every metric of every layer over the steps of one run, from a step on."""
    points = [(step, report) for step, report in entries if since is None or step >= since]
    names = list(dict.fromkeys(name for _, report in points for name in report))
    return {
        name: {
            metric: _trend(measured)
            for metric in metrics
            if (measured := _values(points, name, metric))
        }
        for name in names
        if layers is None or name in layers
    }


def trend_words(metric: str, trend: Trend) -> str:
    """Return a trend in one line."""
    if trend.why:
        return f"{metric}: no slope: {trend.why}"
    words = (
        f"{metric}: {trend.slope:.3g} (95 % interval {trend.low:.3g} to {trend.high:.3g}), "
        f"r = {trend.r:.3f}, {trend.points} reports"
    )
    return words + (f", {trend.left_out} without a logarithm left out" if trend.left_out else "")


def began(onset: Onset) -> str:
    """Return in words since when trends are taken."""
    since = "all epochs" if onset.step is None else f"epoch {onset.step} on"
    return printable(f"{since} ({onset.words})")


def _values(
    points: Sequence[tuple[int, CollapseReport]], name: str, metric: str
) -> list[tuple[int, float]]:
    layers = [(step, report[name]) for step, report in points if name in report]
    return [(step, layer[metric]) for step, layer in layers if metric in layer]


def _trend(measured: Sequence[tuple[int, float]]) -> Trend:
    known = [(step, math.log(value)) for step, value in measured if 0 < value < math.inf]
    left_out = len(measured) - len(known)
    if len(known) < FEWEST:
        why = f"it needs {FEWEST} reports with a positive value, there are {len(known)}"
        nothing = Line(math.nan, math.nan, math.nan, math.nan, len(known))
        return Trend(*nothing, left_out, why)
    steps, logs = np.array(known, float).T
    line = fit_line(steps, logs, correlated=True)
    return Trend(*line, left_out, "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
