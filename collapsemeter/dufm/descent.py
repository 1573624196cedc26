"""Plain gradient descent on all samples, for those who study its dynamics."""

from dataclasses import dataclass, fields

import numpy as np

from .network import (
    Variables,
    class_averages,
    column_loss_and_gradient,
    fit_and_slope,
    forward,
    sample_columns,
)
from .problem import DUFM, FloatArray

BLOWN_UP = 1e6
"""A run that ends so many times above its start has diverged.

Losses also rise on the way to a minimum, at the edge of stability, but by factors.
"""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What gradient descent passed through, one row per record.

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

    step: np.ndarray[tuple[int], np.dtype[np.int64]]
    loss: FloatArray
    fit: FloatArray
    gradient_norm: FloatArray
    singular_values: FloatArray
    within: FloatArray

    @classmethod
    def empty(cls, problem: DUFM, step: np.ndarray[tuple[int], np.dtype[np.int64]]) -> "Trajectory":
        """Room for a record after each of these steps."""
        rows, layers = step.size, problem.depth + 1
        loss, fit, norm = np.empty((3, rows))
        spectra = np.empty((rows, layers, problem.num_classes))
        return cls(step, loss, fit, norm, spectra, np.empty((rows, layers)))

    def until(self, rows: int) -> "Trajectory":
        """The first records."""
        return Trajectory(*(getattr(self, field.name)[:rows] for field in fields(self)))


def _layer_records(problem: DUFM, layers: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Singular values of the class means, and within over between trace, per layer."""
    labels = sample_columns(problem).labels
    values = np.zeros((len(layers), problem.num_classes))
    within = np.empty(len(layers))
    for index, layer in enumerate(layers):
        means = class_averages(problem, layer)
        spectrum = np.linalg.svd(means, compute_uv=False)
        values[index, : spectrum.size] = spectrum
        spread = float(np.sum((layer - means[:, labels]) ** 2))
        centre = layer.mean(axis=1, keepdims=True)
        between = float(np.sum(problem.counts * np.sum((means - centre) ** 2, axis=0)))
        within[index] = spread / between if between > 0 else np.nan
    return values, within


def gradient_descent(
    problem: DUFM, start: Variables, learning_rate: float, steps: int, records: int = 100
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
    columns = sample_columns(problem)
    recorded = np.unique(np.linspace(0, steps, max(2, records)).astype(np.int64))
    path = Trajectory.empty(problem, recorded)
    point, loss, row = start, np.inf, 0
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            loss, gradient = column_loss_and_gradient(problem, point, columns)
            if not np.isfinite(loss):
                return point, float("inf"), path.until(row)
            if step == recorded[row]:
                layers = forward(problem, point)[1]
                path.loss[row] = loss
                path.fit[row] = fit_and_slope(problem.loss, layers[-1], columns)[0]
                path.gradient_norm[row] = np.sqrt(sum(np.vdot(x, x) for x in gradient.arrays))
                path.singular_values[row], path.within[row] = _layer_records(problem, layers)
                row += 1
            if step < steps:
                point = _step(point, gradient, learning_rate)
    diverged = loss > BLOWN_UP * max(float(path.loss[0]), 1.0)
    return point, float("inf") if diverged else float(loss), path


def _step(point: Variables, gradient: Variables, rate: float) -> Variables:
    features, *weights = (
        x - rate * slope for x, slope in zip(point.arrays, gradient.arrays, strict=True)
    )
    bias = None if point.bias is None else weights.pop()
    return Variables(features, tuple(weights), bias)
