"""Ways down: gradient descent on all samples, and L-BFGS and Newton steps on class means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]

from .network import (
    Variables,
    class_averages,
    class_columns,
    column_loss_and_gradient,
    fit_and_slope,
    forward,
    sample_columns,
)
from .problem import FloatArray, Problem

BLOWN_UP = 1e6  # a run that ends so many times above its start has diverged: others rise by factors


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The course of a gradient descent, one row per record.

    Attributes
    ----------
    step : ndarray of int, shape (T,)
        Steps taken before the record.
    loss, fit, gradient_norm : ndarray, shape (T,)
        The objective, its data term and the norm of its gradient.
    singular_values : ndarray, shape (T, L + 1, K)
        Of the class means of layers 1 to L + 1, zeros where a layer is narrower.
    within : ndarray, shape (T, L + 1)
        Within-class over between-class trace of every layer.
    """

    step: NDArray[np.int64]
    loss: FloatArray
    fit: FloatArray
    gradient_norm: FloatArray
    singular_values: FloatArray
    within: FloatArray


def gradient_descent(
    problem: Problem, start: Variables, learning_rate: float, steps: int, records: int = 100
) -> tuple[Variables, float, Trajectory]:
    """Full-batch gradient descent with a fixed step on the objective as written.

    Parameters
    ----------
    problem : DUFM
    start : Variables
        Sample-level start, features (d_1, N).
    learning_rate : float
        The step.
    steps, records : int
        Number of steps, and of rows of the trajectory, evenly spaced.

    Returns
    -------
    Variables, float, Trajectory
        The last point and its loss; an infinite loss if the run diverged: the loss overflowed, or
        ended a million times above where it began.
    """
    columns, shape = sample_columns(problem), (problem.depth + 1, problem.num_classes)
    recorded = np.unique(np.linspace(0, steps, max(2, records)).astype(np.int64))
    losses, fits, norms = np.empty((3, recorded.size))
    spectra, within = np.zeros((recorded.size, *shape)), np.empty((recorded.size, shape[0]))
    point, loss, row = start, np.inf, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            loss, gradient = column_loss_and_gradient(problem, point, columns)
            if not np.isfinite(loss):
                break
            if step == recorded[row]:
                layers = forward(problem, point)[1]
                losses[row] = loss
                fits[row] = fit_and_slope(problem.loss, layers[-1], columns)[0]
                norms[row] = gradient.norm
                _record_layers(problem, layers, spectra[row], within[row])
                row += 1
            if step < steps:
                pairs = zip(point.arrays, gradient.arrays, strict=True)
                point = point.with_arrays(x - learning_rate * slope for x, slope in pairs)
    arrays = (losses, fits, norms, spectra, within)
    if not loss <= BLOWN_UP * max(float(losses[0]), 1.0):
        loss = np.inf
    return point, float(loss), Trajectory(recorded[:row], *(array[:row] for array in arrays))


def _record_layers(
    problem: Problem, layers: list[FloatArray], spectra: FloatArray, within: FloatArray
) -> None:
    """Singular values of the class means, and within over between trace, of every layer."""
    for index, layer in enumerate(layers):
        means = class_averages(problem, layer)
        spectrum = np.linalg.svd(means, compute_uv=False)
        spectra[index, : spectrum.size] = spectrum
        spread = float(np.sum((layer - np.repeat(means, problem.counts, axis=1)) ** 2))
        centre = layer.mean(axis=1, keepdims=True)
        between = float(np.sum(problem.counts * np.sum((means - centre) ** 2, axis=0)))
        within[index] = spread / between if between > 0 else np.nan


def flatten(point: Variables) -> FloatArray:
    """All variables of a point as one vector."""
    return np.concatenate([array.ravel() for array in point.arrays])


def unflatten(shaped: Variables, vector: FloatArray) -> Variables:
    """The variables in a vector, as views of it, in the shapes of a point."""
    arrays, begin = [], 0
    for array in shaped.arrays:
        arrays.append(vector[begin : begin + array.size].reshape(array.shape))
        begin += array.size
    return shaped.with_arrays(arrays)


def flat_objective(
    problem: Problem, shaped: Variables, decay_scale: float = 1.0, smoothing: float = 0.0
) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """The class-level loss and gradient as a function of one vector."""
    columns = class_columns(problem)

    def evaluate(vector: FloatArray) -> tuple[float, FloatArray]:
        point = unflatten(shaped, vector)
        loss, gradient = column_loss_and_gradient(problem, point, columns, decay_scale, smoothing)
        return loss, flatten(gradient)

    return evaluate


def lbfgs(
    problem: Problem, start: Variables, steps: int, tolerance: float = 1e-10, **changes: float
) -> tuple[float, Variables]:
    """Minimise with L-BFGS, with the changes that `flat_objective` takes: the loss and the point."""
    options: dict[str, Any] = {
        "maxiter": steps,
        "maxfun": 2 * steps,
        "maxcor": 30,
        "ftol": 1e-16,  # stop on the gradient, not on a flat stretch near a saddle
        "gtol": tolerance,
    }
    function = flat_objective(problem, start, **changes)
    end = optimize.minimize(function, flatten(start), jac=True, method="L-BFGS-B", options=options)
    return float(end.fun), unflatten(start, np.asarray(end.x, dtype=np.float64))


def newton_polish(problem: Problem, start: Variables, rounds: int = 3) -> Variables:
    """Newton steps by central differences: L-BFGS stops at half the digits of the point."""
    function, point, step = flat_objective(problem, start), flatten(start), 1e-5
    slope = function(point)[1]
    for _ in range(rounds):
        shifts = step * np.eye(point.size)
        hessian = np.array([function(point + x)[1] - function(point - x)[1] for x in shifts])
        hessian = (hessian + hessian.T) / (4 * step)
        moved = point - np.linalg.lstsq(hessian, slope, rcond=1e-8)[0]  # none in flat directions
        moved_slope = function(moved)[1]
        if not np.linalg.norm(moved_slope) < np.linalg.norm(slope):
            break
        point, slope = moved, moved_slope
    return unflatten(start, point)
