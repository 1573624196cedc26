"""How stationary a point is, corners of the ReLU included."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsemeter.dufm._scipy import bounded_least_squares
from collapsemeter.dufm.arrays import FloatArray
from collapsemeter.dufm.network import (
    Variables,
    class_columns,
    class_loss_and_gradient,
    fit_and_slope,
    forward,
)
from collapsemeter.dufm.problem import DUFM

CORNER = 1e-3
"""Pre-activations below this fraction of the largest of a layer count as zero."""


@dataclass(frozen=True)
class Stationarity:
    """Norms of the gradient at a class-level point.

    Parameters
    ----------
    plain : float
        With slope zero of the ReLU at zero; not small where neurons sit on corners.
    generalised : float
        With the slopes at corners chosen in [0, 1], layer by layer, to make it small.
    corners : int
        Pre-activations that sit on a corner.
    """

    plain: float
    generalised: float
    corners: int


def _neuron_slopes(
    delta: FloatArray,
    inputs: FloatArray,
    decayed: FloatArray,
    free: NDArray[np.bool_],
    fixed: FloatArray,
) -> FloatArray:
    """Slopes at the corners of one neuron that make the gradient of its weights small."""
    slopes = fixed.copy()
    moving = np.logical_and(free, delta != 0)
    if np.any(moving):
        target = -(inputs @ (np.where(moving, 0.0, fixed) * delta) + decayed)
        slopes[moving] = bounded_least_squares(inputs[:, moving] * delta[moving], target)
    return slopes


def stationarity(problem: DUFM, point: Variables, corner: float = CORNER) -> Stationarity:
    r"""The gradient norm, plain and generalised.

    A low-rank solution sits on corners of the ReLU, where the gradient jumps and
    does not vanish although the point cannot be improved. Some element of the
    generalised gradient does; it is sought from the output down, one bounded least
    squares problem per neuron.

    Parameters
    ----------
    problem : DUFM
        The objective.
    point : Variables
        Class-level point, features (d_1, K).
    corner : float
        Pre-activations up to this fraction of the largest one are taken as zero.

    Returns
    -------
    Stationarity
        `generalised` bounds the least norm from above.

    Raises
    ------
    ValueError
        If the shapes do not belong to the problem.

    References
    ----------
    Clarke 1990, Optimization and Nonsmooth Analysis.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> stationarity(problem, problem.optimum().variables).generalised < 1e-12
    True
    """
    _, gradient = class_loss_and_gradient(problem, point)
    parts = [gradient.features, *gradient.weights]
    if gradient.bias is not None:
        parts.append(gradient.bias)
    plain = float(np.sqrt(sum(float(np.sum(part**2)) for part in parts)))
    if not problem.rectified:
        return Stationarity(plain, plain, 0)
    pre, post = forward(problem, point)
    columns = class_columns(problem)
    delta = fit_and_slope(problem.loss, post[-1], columns)[1]
    squares = 0.0 if gradient.bias is None else float(np.sum(gradient.bias**2))
    corners = 0
    for number in range(problem.depth, 0, -1):
        weight, decay = point.weights[number - 1], problem.decays[number - 1]
        squares += float(np.sum((delta @ post[number - 1].T + decay * weight) ** 2))
        delta = weight.T @ delta
        if number == 1:
            break
        layer = pre[number - 1]
        free = np.abs(layer) <= corner * float(np.max(np.abs(layer)))
        fixed = (layer > 0).astype(np.float64)
        decayed = problem.decays[number - 2] * point.weights[number - 2]
        below = post[number - 2]
        corners += int(free.sum())
        for j in range(layer.shape[0]):
            delta[j] *= _neuron_slopes(delta[j], below, decayed[j], free[j], fixed[j])
    squares += float(np.sum((delta + columns.decay * point.features) ** 2))
    return Stationarity(plain, min(plain, float(np.sqrt(squares))), corners)
