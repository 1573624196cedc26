"""A line's slope against NumPy's, its interval against matrices written out, and how often that covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from collapsemeter.metrics.line_fit import fit_line

STEPS = {
    "even": np.arange(9.0),
    "rare": np.array([0.0, 1, 2, 3, 5, 8, 13, 21, 34, 55]),
    "offset": 1e6 + 50 * np.arange(12.0),
}


def autoregressive(count: int, correlation: float, runs: int) -> np.ndarray:
    """Stationary series of unit innovations, (runs, count)."""
    values = np.random.default_rng(count).normal(size=(runs, count))
    values[:, 0] /= math.sqrt(1 - correlation**2)
    for i in range(1, count):
        values[:, i] += correlation * values[:, i - 1]
    return values


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("correlated", [False, True])
def test_slope_and_r_are_those_of_least_squares(steps, correlated):
    y = 3 - 0.2 * steps + np.random.default_rng(0).normal(size=len(steps))
    line = fit_line(steps, y, correlated)
    np.testing.assert_allclose(line.slope, np.polyfit(steps - steps.mean(), y, 1)[0], rtol=1e-9)
    np.testing.assert_allclose(line.r, np.corrcoef(steps, y)[0, 1], rtol=1e-9)
    assert line.points == len(steps)
    assert line.low < line.slope < line.high


@pytest.mark.parametrize("count", [4, 5, 6, 9, 30, 150])
def test_the_interval_of_independent_points_is_that_of_t(count):
    x = np.arange(float(count))
    line = fit_line(x, np.random.default_rng(1).normal(size=count), correlated=False)
    reference = stats.linregress(x, np.random.default_rng(1).normal(size=count))
    half = stats.t.ppf(0.975, count - 2) * reference.stderr
    # Degrees of freedom stop at 100, where t is 0.6 % from its value at 148.
    np.testing.assert_allclose(line.high - line.slope, half, rtol=1e-4 if count < 100 else 1e-2)


@pytest.mark.parametrize("steps", [STEPS["even"], STEPS["rare"]], ids=["even", "rare"])
@pytest.mark.parametrize(("count", "rtol"), [(40, 1e-4), (1000, 0.02)], ids=["sum", "integral"])
def test_the_interval_of_correlated_points_is_the_average_over_correlations(steps, count, rtol):
    """Restricted likelihood of an AR(1) process with the prior 1/sqrt(1 - rho^2), with whole matrices; 40 rho are taken."""
    points = len(steps)
    y = autoregressive(points, 0.6, 1)[0]
    x = np.c_[np.ones(points), steps - steps.mean()]
    lags = np.abs(np.subtract.outer(steps, steps)) / np.median(np.diff(steps))
    held = np.linalg.pinv(x)[1]  # the slope is this times y
    slope = held @ y

    def at(rho: float) -> tuple[float, float]:
        inverse = np.linalg.inv(correlation := rho**lags)
        information = x.T @ inverse @ x
        left = y - x @ np.linalg.solve(information, x.T @ inverse @ y)
        squares = left @ inverse @ left
        dets = np.linalg.slogdet(correlation)[1] + np.linalg.slogdet(information)[1]
        likelihood = math.exp(-dets / 2) * squares ** (-(points - 2) / 2)
        return likelihood, math.sqrt(held @ correlation @ held * squares / (points - 2))

    angles = (np.arange(count) + 0.5) / count * math.pi / 2
    weights, errors = np.transpose([at(rho) for rho in np.sin(angles)])

    def share(half: float) -> float:
        return weights @ (2 * stats.t.cdf(half / errors, points - 2) - 1) / weights.sum()

    half = optimize.brentq(lambda h: share(h) - 0.95, 1e-3, 1e3, rtol=1e-8)
    line = fit_line(steps, y, correlated=True)
    np.testing.assert_allclose([line.low, line.high], [slope - half, slope + half], rtol=rtol)


# Of 400 series; two standard errors of a coverage of 0.95 are 0.022. At 0.95, where neighbours are nearly the same
# point, short series do not show it, and the interval covers less: 0.86 to 0.92 of 8 to 16 points.
@pytest.mark.parametrize(
    ("correlation", "least"), [(0, 0.94), (0.5, 0.94), (0.8, 0.91), (0.95, 0.82)]
)
@pytest.mark.parametrize("count", [5, 10, 30])
def test_how_often_the_interval_covers(count, correlation, least):
    x = np.arange(float(count))
    lines = [fit_line(x, y - 0.3 * x, True) for y in autoregressive(count, correlation, 400)]
    assert np.mean([line.low <= -0.3 <= line.high for line in lines]) >= least


def test_a_plain_interval_would_not_cover():
    x = np.arange(30.0)
    lines = [fit_line(x, y, correlated=False) for y in autoregressive(30, 0.8, 400)]
    assert np.mean([line.low <= 0 <= line.high for line in lines]) < 0.6


def test_what_has_no_line():
    nothing = fit_line(np.array([1.0]), np.array([2.0]), True)
    assert nothing.points == 1
    assert math.isnan(nothing.slope)
    assert math.isnan(fit_line(np.array([3.0, 3.0]), np.array([1.0, 2.0]), True).slope)
    two = fit_line(np.array([0.0, 2.0]), np.array([1.0, 2.0]), True)
    assert two.slope == 0.5
    assert math.isnan(two.r)
    three = fit_line(np.arange(3.0), np.array([1.0, 2.0, 4.0]), True)
    assert three.r > 0.9
    assert math.isnan(three.low)


def test_exact_points_have_an_interval_of_no_width():
    line = fit_line(np.arange(6.0), -20 - 3 * np.arange(6.0), True)
    assert line.low == line.slope == line.high
    np.testing.assert_allclose([line.slope, line.r], [-3, -1], rtol=1e-12)
    flat = fit_line(np.arange(6.0), np.full(6, 0.1), True)
    assert abs(flat.slope) < 1e-15
    assert math.isnan(flat.r)
