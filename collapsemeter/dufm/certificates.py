"""How stationary a point is, corners of the ReLU included."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._scipy import bounded_least_squares
from .arrays import FloatArray
from .network import Variables, check_shapes, class_columns, fit_and_slope, forward
from .problem import DUFM

CORNER = 1e-3
"""Pre-activations below this fraction of the largest of a layer count as zero."""

SWEEPS = 3
"""How often all layers are improved in turn; more gains little."""

LARGEST_SYSTEM = 20_000_000
"""Entries of the largest least squares matrix; beyond, neurons stay separate."""


@dataclass(frozen=True)
class Stationarity:
    """Norms of the gradient at a class-level point.

    Parameters
    ----------
    plain : float
        With slope zero of the ReLU at zero; not small where neurons sit on corners.
    generalised : float
        With the slopes at corners chosen in [0, 1] to make it small.
    corners : int
        Pre-activations that sit on a corner.
    """

    plain: float
    generalised: float
    corners: int


@dataclass(frozen=True)
class _Corners:
    """A point with its layers, and the entries whose slope is free."""

    problem: DUFM
    point: Variables
    post: list[FloatArray]
    sharp: list[FloatArray]
    free: list[NDArray[np.bool_]]

    def deltas(self, slopes: list[FloatArray]) -> list[FloatArray]:
        """Derivatives in the layers, after the slopes; index as in `post`."""
        columns = class_columns(self.problem)
        found = [fit_and_slope(self.problem.loss, self.post[-1], columns)[1]]
        for index in range(self.problem.depth - 1, -1, -1):
            found.append((self.point.weights[index].T @ found[-1]) * slopes[index])
        return found[::-1]

    def gradient(self, slopes: list[FloatArray]) -> list[FloatArray]:
        """Derivatives in the features, the weights and the bias."""
        deltas, problem = self.deltas(slopes), self.problem
        parts = [deltas[0] + class_columns(problem).decay * self.point.features]
        for index, decay in enumerate(problem.decays):
            fit = deltas[index + 1] @ self.post[index].T
            parts.append(fit + decay * self.point.weights[index])
        if self.point.bias is not None:
            parts.append(deltas[-1].sum(axis=1) + problem.bias_decay * self.point.bias)
        return parts


def _norm(parts: list[FloatArray]) -> float:
    return float(np.sqrt(sum(float(np.sum(part**2)) for part in parts)))


def _find_corners(problem: DUFM, point: Variables, corner: float) -> _Corners:
    pre, post = forward(problem, point)
    sharp = [np.ones_like(pre[0])] + [(x > 0).astype(np.float64) for x in pre[1:-1]]
    free = [np.zeros(pre[0].shape, dtype=np.bool_)]
    free += [np.abs(x) <= corner * float(np.max(np.abs(x))) for x in pre[1:-1]]
    return _Corners(problem, point, post, sharp, free)


def _by_neuron(found: _Corners) -> list[FloatArray]:
    """Slopes from the output down, each neuron for the gradient of its own weights."""
    slopes = [slope.copy() for slope in found.sharp]
    for layer in range(len(slopes) - 1, 0, -1):
        weights, below = found.point.weights, found.post[layer - 1]
        delta = weights[layer].T @ found.deltas(slopes)[layer + 1]
        decayed = found.problem.decays[layer - 1] * weights[layer - 1]
        moving = np.logical_and(found.free[layer], delta != 0)
        for j in np.flatnonzero(moving.any(axis=1)):
            fixed = np.where(moving[j], 0.0, slopes[layer][j]) * delta[j]
            matrix = below[:, moving[j]] * delta[j, moving[j]]
            slopes[layer][j, moving[j]] = bounded_least_squares(
                matrix, -(below @ fixed + decayed[j])
            )
    return slopes


def _influence(
    found: _Corners, slopes: list[FloatArray], layer: int, rows: FloatArray, at: NDArray[np.intp]
) -> FloatArray:
    """What each free slope of a layer adds to the gradient below it, one row each.

    ``rows`` are derivatives in the layer, one per slope, each in one column ``at``.
    """
    parts = []
    for index in range(layer, 0, -1):
        inputs = found.post[index - 1][:, at].T
        parts.append((rows[:, :, None] * inputs[:, None, :]).reshape(len(at), -1))
        rows = (rows @ found.point.weights[index - 1]) * slopes[index - 1][:, at].T
    classes = found.problem.num_classes
    features = np.zeros((len(at), rows.shape[1], classes))
    features[np.arange(len(at)), :, at] = rows
    return np.concatenate([*parts, features.reshape(len(at), -1)], axis=1)


def _by_layer(found: _Corners, slopes: list[FloatArray], layer: int) -> list[FloatArray]:
    """Improve all slopes of one layer together, for the whole gradient below it."""
    delta = found.point.weights[layer].T @ found.deltas(slopes)[layer + 1]
    neurons, at = np.nonzero(np.logical_and(found.free[layer], delta != 0))
    size = sum(weight.size for weight in found.point.weights[:layer]) + found.post[0].size
    if not 0 < len(at) * size <= LARGEST_SYSTEM:
        return slopes
    rows = np.zeros((len(at), delta.shape[0]))
    rows[np.arange(len(at)), neurons] = delta[neurons, at]
    matrix = _influence(found, slopes, layer, rows, at).T
    fixed = [slope.copy() for slope in slopes]
    fixed[layer][neurons, at] = 0.0
    features, *weights = found.gradient(fixed)
    below = [part.ravel() for part in (*weights[:layer][::-1], features)]
    basis, triangle = np.linalg.qr(matrix)
    fixed[layer][neurons, at] = bounded_least_squares(triangle, -basis.T @ np.concatenate(below))
    return fixed


def stationarity(problem: DUFM, point: Variables, corner: float = CORNER) -> Stationarity:
    r"""The gradient norm, plain and generalised.

    A low-rank solution sits on corners of the ReLU, where the gradient jumps and
    does not vanish although the point cannot be improved. Some element of the
    generalised gradient does; it is sought by bounded least squares over the slopes
    at the corners, neuron by neuron, then layer by layer.

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
    check_shapes(problem, point, problem.num_classes)
    found = _find_corners(problem, point, corner)
    if not problem.rectified:
        smooth = _norm(found.gradient([np.ones_like(x) for x in found.sharp]))
        return Stationarity(smooth, smooth, 0)
    plain = _norm(found.gradient(found.sharp))
    slopes = _by_neuron(found)
    least = min(plain, _norm(found.gradient(slopes)))
    for _ in range(SWEEPS):
        for layer in range(problem.depth - 1, 0, -1):
            slopes = _by_layer(found, slopes, layer)
        least = min(least, _norm(found.gradient(slopes)))
    return Stationarity(plain, least, int(sum(free.sum() for free in found.free)))
