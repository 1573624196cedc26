"""The typed border to SciPy, which ships no type information.

Four routines cross it. Everything else in the package stays fully typed, and a
reader sees at a glance what SciPy is needed for.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]

from .arrays import FloatArray


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of `function` between `low` and `high`, to the last bits of float64."""
    return float(optimize.brentq(function, low, high, xtol=1e-300, rtol=8.9e-16, maxiter=500))


def lbfgs(
    function: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    steps: int,
    tolerance: float = 1e-10,
) -> tuple[FloatArray, float, int]:
    """Minimise with L-BFGS: the point, its value, and the iterations used."""
    options: dict[str, Any] = {
        "maxiter": steps,
        "maxfun": 2 * steps,
        "maxcor": 30,
        "ftol": 1e-16,  # stop on the gradient, not on a flat stretch near a saddle
        "gtol": tolerance,
    }
    found = optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64), float(found.fun), int(found.nit)


def bounded_least_squares(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """The `x` in [0, 1] that minimises ``||matrix @ x - target||``."""
    found = optimize.lsq_linear(matrix, target, bounds=(0.0, 1.0), tol=1e-12)
    return np.asarray(found.x, dtype=np.float64)


def newton_polish(
    function: Callable[[FloatArray], tuple[float, FloatArray]], start: FloatArray, rounds: int = 3
) -> FloatArray:
    """Newton steps with a Hessian by central differences, for a few hundred variables.

    L-BFGS stops where the value no longer changes, at half the digits of the point;
    the gradient still carries the others. Flat directions, such as rotations, get no
    step. A round that does not reduce the gradient is undone.
    """
    point = start
    slope = function(point)[1]
    step = 1e-5
    for _ in range(rounds):
        hessian = np.empty((point.size, point.size))
        for index in range(point.size):
            shift = np.zeros(point.size)
            shift[index] = step
            hessian[index] = function(point + shift)[1] - function(point - shift)[1]
        hessian = (hessian + hessian.T) / (4 * step)
        move = np.linalg.lstsq(hessian, slope, rcond=1e-8)[0]
        moved = point - move
        moved_slope = function(moved)[1]
        if not np.linalg.norm(moved_slope) < np.linalg.norm(slope):
            break
        point, slope = moved, moved_slope
    return point
