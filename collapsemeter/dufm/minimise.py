"""Minimise a smooth function of a vector: L-BFGS, and Newton steps for its last digits."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]

from .problem import FloatArray

Objective = Callable[[FloatArray], tuple[float, FloatArray]]
"""From a point to the value and the gradient."""


def lbfgs(
    function: Objective, start: FloatArray, steps: int, tolerance: float = 1e-10
) -> tuple[FloatArray, float]:
    """Minimise with L-BFGS: the point and its value."""
    options: dict[str, Any] = {
        "maxiter": steps,
        "maxfun": 2 * steps,
        "maxcor": 30,
        "ftol": 1e-16,  # stop on the gradient, not on a flat stretch near a saddle
        "gtol": tolerance,
    }
    end = optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(end.x, dtype=np.float64), float(end.fun)


def newton_polish(function: Objective, start: FloatArray, rounds: int = 3) -> FloatArray:
    """Newton steps with a Hessian by central differences, for a few hundred variables.

    L-BFGS stops where the value no longer changes, at half the digits of the point; the gradient
    still carries the others. Flat directions, such as rotations, get no step.
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
        moved = point - np.linalg.lstsq(hessian, slope, rcond=1e-8)[0]
        moved_slope = function(moved)[1]
        if not np.linalg.norm(moved_slope) < np.linalg.norm(slope):
            break
        point, slope = moved, moved_slope
    return point
