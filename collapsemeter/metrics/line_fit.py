"""A straight line through points, with an interval for its slope.

Points in order, such as epochs, deviate from a line together: the interval then averages over how much they do. Deviations are
taken for a first-order autoregressive process, of correlation rho between points that lie one median step apart, and rho has
the prior 1/sqrt(1 - rho^2) on [0, 1); its likelihood is the restricted one, of what no line explains.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ..stats.linalg import Floats

FEWEST = 4  # points for an interval
COVERED = 0.95
_CORRELATIONS = np.sin((np.arange(40) + 0.5) / 40 * np.pi / 2)  # of equal prior weight
_MOST_FREE = 100  # degrees of freedom: with more, t is within 1 % of this
_EXACT = 1e-12  # deviations of this share of the values are rounding


class Line(NamedTuple):
    """Slope by least squares, its 95 % interval, the correlation coefficient and the points; NaN where there is none."""

    slope: float
    low: float
    high: float
    r: float
    points: int


def fit_line(x: Floats, y: Floats, correlated: bool) -> Line:
    """Fit y = a + slope x; ``correlated`` says that deviations of neighbouring points may be alike.

    Two points have a slope, three a correlation, and four an interval.
    """
    count = len(x)
    if count < 2 or not float(np.ptp(x)) > 0:
        return Line(math.nan, math.nan, math.nan, math.nan, count)
    along, heights = x - x.mean(), y - y.mean()
    spread = float(along @ along)
    slope = float(along @ heights) / spread
    if count < 3:
        return Line(slope, math.nan, math.nan, math.nan, count)
    rounding = _EXACT * float(np.abs(y).max())
    flat = float(np.abs(heights).max()) <= rounding
    r = math.nan if flat else slope * math.sqrt(spread / float(heights @ heights))
    if count < FEWEST:
        return Line(slope, math.nan, math.nan, r, count)
    deviations = heights - slope * along
    if float(np.abs(deviations).max()) <= rounding:
        return Line(slope, slope, slope, r, count)
    if correlated:
        errors, weights = _correlated_errors(along, deviations)
    else:
        errors = np.array([math.sqrt(float(deviations @ deviations) / (count - 2) / spread)])
        weights = np.ones(1)
    half = _half_width(errors, weights, count - 2)
    return Line(slope, slope - half, slope + half, r, count)


def _correlated_errors(along: Floats, deviations: Floats) -> tuple[Floats, Floats]:
    """Return the standard error of the slope for each correlation, and how likely that is."""
    gaps = np.diff(along)
    decay = _CORRELATIONS[:, None] ** (gaps / np.median(gaps))
    fresh = 1 - decay**2  # the share of a deviation that its neighbour does not explain
    level, slanted, deviation = (
        _whitened(a, decay, fresh) for a in (np.ones_like(along), along, deviations)
    )
    aa, ab, bb = (
        (p * q).sum(axis=1) for p, q in ((level, level), (level, slanted), (slanted, slanted))
    )
    ay, by = (level * deviation).sum(axis=1), (slanted * deviation).sum(axis=1)
    determinant = aa * bb - ab**2
    intercept, tilt = (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant
    left = deviation - intercept[:, None] * level - tilt[:, None] * slanted
    squares = (left**2).sum(axis=1)
    free = len(along) - 2
    logs = -0.5 * (np.log(fresh).sum(axis=1) + np.log(determinant) + free * np.log(squares))
    weights = np.exp(logs - logs.max())
    variance = _quadratic(along, decay) / float(along @ along) ** 2
    return np.sqrt(squares / free * variance), weights / weights.sum()


def _whitened(values: Floats, decay: Floats, fresh: Floats) -> Floats:
    """Return (correlations, points): what is new at each point, at unit variance."""
    new = (values[1:] - decay * values[:-1]) / np.sqrt(fresh)
    return np.concatenate([np.full((len(decay), 1), values[0]), new], axis=1)


def _quadratic(values: Floats, decay: Floats) -> Floats:
    """Return v' R v for the correlation matrix R of each correlation."""
    carried, total = np.zeros(len(decay)), float(values @ values)
    crossed = np.zeros(len(decay))
    for i in range(1, len(values)):
        carried = decay[:, i - 1] * (carried + values[i - 1])
        crossed += values[i] * carried
    quadratic: Floats = total + 2 * crossed
    return quadratic


def _half_width(errors: Floats, weights: Floats, free: int) -> float:
    """Return where the mixture of t distributions of these scales holds 95 %."""
    low, high = 1.9 * float(errors.min()), 13.0 * float(errors.max())
    for _ in range(4):
        widths = np.geomspace(low, high, 33)
        held = _share_within(widths[:, None] / errors, free) @ weights
        place = min(max(int(np.searchsorted(held, COVERED)), 1), len(widths) - 1)
        low, high = widths[place - 1], widths[place]
    return math.sqrt(low * high)


def _share_within(bound: Floats, free: int) -> Floats:
    """Return P(|T| <= bound) of Student's t, in closed form for whole degrees of freedom."""
    free = min(free, _MOST_FREE)
    angle = np.arctan(bound / math.sqrt(free))
    square, odd = np.cos(angle) ** 2, free % 2
    term = np.cos(angle) if odd else np.ones_like(angle)
    total = np.zeros_like(angle)
    for k in range(free // 2):
        total += term
        term = term * square * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    share: Floats = np.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share
