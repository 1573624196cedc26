"""One problem at many values of one of its numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .overview import Overview, overview
from .problem import DUFM, default_width
from .solution import Solution

MOST_POINTS = 10_000
"""Values of one sweep."""

WHOLE = ("classes", "depth")
SWEPT = ("weight_decay", "feature_decay", *WHOLE)


@dataclass(frozen=True)
class Sweep:
    """What is swept, and over which values."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Point:
    """A swept value, what is known there, and what was found if it was solved."""

    value: float
    known: Overview
    solution: Solution | None


def parse_sweep(text: str) -> Sweep:
    """Read ``name=LOW:HIGH:COUNT``, e.g. ``weight_decay=1e-4:1e-2:9``.

    Decays are spaced evenly in their logarithm, classes and depth in themselves,
    rounded to whole numbers.

    Parameters
    ----------
    text : str

    Returns
    -------
    Sweep

    Raises
    ------
    ValueError
        If the text does not read so, with what is wrong.

    Examples
    --------
    >>> parse_sweep("depth=2:4:3").values
    (2.0, 3.0, 4.0)
    """
    name, _, rest = text.partition("=")
    if name not in SWEPT:
        raise ValueError(f"--sweep {text}: sweep one of {', '.join(SWEPT)}")
    parts = rest.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        count = int(parts[2]) if len(parts) == 3 else 0
    except (ValueError, IndexError):
        count = 0
    if not 2 <= count <= MOST_POINTS or not 0 < low < high < math.inf:
        raise ValueError(
            f"--sweep {text}: write {name}=LOW:HIGH:COUNT with 0 < LOW < HIGH "
            f"and COUNT from 2 to {MOST_POINTS}"
        )
    whole = name in WHOLE
    values = (
        np.unique(np.round(np.linspace(low, high, count)))
        if whole
        else np.geomspace(low, high, count)
    )
    return Sweep(name, tuple(float(value) for value in values))


def problem_at(problem: DUFM, name: str, value: float) -> DUFM:
    """The problem with one number replaced.

    Sweeping the weight decay gives every layer the same; sweeping the classes or the
    depth keeps what belongs to one class or one layer, so those must be alike. Default
    widths follow the number of classes.
    """
    if name == "feature_decay":
        return replace(problem, feature_decay=value)
    if name == "weight_decay":
        return replace(problem, weight_decay=value)
    same = {len(set(problem.counts.tolist())), len(set(problem.decays))}
    if same != {1}:
        raise ValueError(
            f"a sweep of {name} needs one --per-class and one --weight-decay for all: pass one each"
        )
    widths = problem.layer_widths
    if name == "depth" and len(set(widths)) > 1:
        raise ValueError(f"a sweep of depth needs one --width for all, got {widths}: pass one")
    default = set(widths) == {default_width(problem.num_classes)}
    return replace(
        problem,
        num_classes=int(value) if name == "classes" else problem.num_classes,
        depth=int(value) if name == "depth" else problem.depth,
        per_class=int(problem.counts[0]),
        weight_decay=problem.decays[0],
        widths=None if default else widths if name == "classes" else widths[0],
    )


def run_sweep(
    problem: DUFM, sweep: Sweep, solver: Callable[[DUFM], Solution] | None = None
) -> list[Point]:
    """Collect what is known at every value, and solve there if asked."""
    points = []
    for value in sweep.values:
        here = problem_at(problem, sweep.name, value)
        points.append(Point(value, overview(here), None if solver is None else solver(here)))
    return points
