"""Plain gradient descent on all samples, for those who study its dynamics."""

from dataclasses import dataclass

import numpy as np

from .arrays import FloatArray
from .network import Variables, column_loss_and_gradient, fit_and_slope, forward, sample_columns
from .problem import DUFM
from .solution import Trajectory

_BLOWN_UP = 1e6


@dataclass
class _Records:
    """Rows of a trajectory while it grows."""

    rows: list[tuple[int, float, float, float, FloatArray, FloatArray]]

    def finish(self) -> Trajectory:
        step, loss, fit, norm, values, within = zip(*self.rows, strict=True)
        return Trajectory(
            np.array(step, dtype=np.int64),
            np.array(loss),
            np.array(fit),
            np.array(norm),
            np.array(values),
            np.array(within),
        )


def _layer_records(problem: DUFM, layers: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Singular values of the class means, and within over between trace, per layer."""
    labels, counts = sample_columns(problem).labels, problem.counts
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    values = np.zeros((len(layers), problem.num_classes))
    within = np.empty(len(layers))
    for index, layer in enumerate(layers):
        means = np.add.reduceat(layer, starts, axis=1) / counts
        found = np.linalg.svd(means, compute_uv=False)
        values[index, : found.size] = found
        spread = float(np.sum((layer - means[:, labels]) ** 2))
        centre = layer.mean(axis=1, keepdims=True)
        between = float(np.sum(counts * np.sum((means - centre) ** 2, axis=0)))
        within[index] = spread / between if between > 0 else np.nan
    return values, within


def _norm(gradient: Variables) -> float:
    parts = [gradient.features, *gradient.weights]
    if gradient.bias is not None:
        parts.append(gradient.bias)
    return float(np.sqrt(sum(float(np.vdot(part, part)) for part in parts)))


def gradient_descent(
    problem: DUFM, start: Variables, learning_rate: float, steps: int, records: int = 100
) -> tuple[Variables, float, Trajectory]:
    r"""Full-batch gradient descent with a fixed step on the objective as written.

    .. math:: x \leftarrow x - \eta \nabla f(x)

    Parameters
    ----------
    problem : DUFM
        The objective.
    start : Variables
        Sample-level start, features (d_1, N).
    learning_rate : float
        The step :math:`\eta`.
    steps : int
        Number of steps.
    records : int
        Rows of the trajectory, evenly spaced, the last point included.

    Returns
    -------
    Variables, float, Trajectory
        The last point and its loss; an infinite loss if the run diverged: the loss overflowed, or
        ended a million times above where it began.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> from collapsemeter.dufm.seeds import gaussian_start
    >>> problem = DUFM(2, 3, 2, 8, feature_decay=0.01, weight_decay=0.01)
    >>> start = gaussian_start(problem, np.random.default_rng(0))
    >>> _, loss, path = gradient_descent(problem, start, 0.5, 200, records=5)
    >>> path.step.tolist(), bool(path.loss[-1] < path.loss[0])
    ([0, 50, 100, 150, 200], True)
    """
    columns = sample_columns(problem)
    due = set(np.linspace(0, steps, max(2, records)).astype(int).tolist())
    point, kept = start, _Records([])
    loss = np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(steps + 1):
            loss, gradient = column_loss_and_gradient(problem, point, columns)
            if not np.isfinite(loss):
                return point, float("inf"), kept.finish() if kept.rows else _empty(problem)
            if step in due:
                layers = forward(problem, point)[1]
                fit = fit_and_slope(problem.loss, layers[-1], columns)[0]
                row = (step, loss, fit, _norm(gradient), *_layer_records(problem, layers))
                kept.rows.append(row)
            if step < steps:
                point = _step(point, gradient, learning_rate)
    trajectory = kept.finish()
    # A run may blow up and then creep along a plateau of huge, finite losses. Losses also rise on the
    # way to a minimum, at the edge of stability, but by factors, not by orders of magnitude.
    diverged = loss > _BLOWN_UP * max(float(trajectory.loss[0]), 1.0)
    return point, float("inf") if diverged else float(loss), trajectory


def _empty(problem: DUFM) -> Trajectory:
    none = np.empty(0)
    layers = problem.depth + 1
    values = np.empty((0, layers, problem.num_classes))
    return Trajectory(np.empty(0, dtype=np.int64), none, none, none, values, np.empty((0, layers)))


def _step(point: Variables, gradient: Variables, rate: float) -> Variables:
    weights = tuple(w - rate * g for w, g in zip(point.weights, gradient.weights, strict=True))
    bias = point.bias
    if bias is not None and gradient.bias is not None:
        bias = bias - rate * gradient.bias
    return Variables(point.features - rate * gradient.features, weights, bias)
