"""How stationary a point is: its gradient, corners of the ReLU included, and exact identities."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]

from .network import Columns, Variables, check_shapes, class_columns, fit_and_slope, forward
from .problem import DUFM, FloatArray

CORNER = 1e-3
"""Pre-activations below this fraction of the largest of a layer count as zero."""

SWEEPS = 3
"""How often all layers are improved in turn; more gains little."""

LARGEST_SYSTEM = 20_000_000
"""Entries of the largest least squares matrix; beyond, neurons stay separate."""


@dataclass(frozen=True)
class Stationarity:
    """Norms of the gradient at a class-level point, see `stationarity`.

    Attributes
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
        deltas = [fit_and_slope(self.problem.loss, self.post[-1], columns)[1]]
        for index in range(self.problem.depth - 1, -1, -1):
            deltas.append((self.point.weights[index].T @ deltas[-1]) * slopes[index])
        return deltas[::-1]

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

    def norm(self, slopes: list[FloatArray]) -> float:
        """Norm of the gradient."""
        return float(np.sqrt(sum(float(np.sum(part**2)) for part in self.gradient(slopes))))


def _find_corners(problem: DUFM, point: Variables, corner: float) -> _Corners:
    pre, post = forward(problem, point)
    sharp = [np.ones_like(pre[0])]
    free = [np.zeros(pre[0].shape, dtype=np.bool_)]
    for layer in pre[1:-1]:
        sharp.append((layer > 0).astype(np.float64) if problem.rectified else np.ones_like(layer))
        free.append(np.abs(layer) <= corner * float(np.max(np.abs(layer))))
    return _Corners(problem, point, post, sharp, free)


def _slopes_between(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """The `x` in [0, 1] that minimises ``||matrix @ x - target||``."""
    least = optimize.lsq_linear(matrix, target, bounds=(0.0, 1.0), tol=1e-12)
    return np.asarray(least.x, dtype=np.float64)


def _by_neuron(corners: _Corners) -> list[FloatArray]:
    """Slopes from the output down, each neuron for the gradient of its own weights."""
    slopes = [slope.copy() for slope in corners.sharp]
    for layer in range(len(slopes) - 1, 0, -1):
        weights, below = corners.point.weights, corners.post[layer - 1]
        delta = weights[layer].T @ corners.deltas(slopes)[layer + 1]
        decayed = corners.problem.decays[layer - 1] * weights[layer - 1]
        moving = np.logical_and(corners.free[layer], delta != 0)
        for j in np.flatnonzero(moving.any(axis=1)):
            fixed = np.where(moving[j], 0.0, slopes[layer][j]) * delta[j]
            matrix = below[:, moving[j]] * delta[j, moving[j]]
            slopes[layer][j, moving[j]] = _slopes_between(matrix, -(below @ fixed + decayed[j]))
    return slopes


def _influence(
    corners: _Corners,
    slopes: list[FloatArray],
    layer: int,
    rows: FloatArray,
    columns: NDArray[np.intp],
) -> FloatArray:
    """What each free slope of a layer adds to the gradient below it, one row each.

    `rows` are derivatives in the layer, one per slope, each in the column that `columns` names.
    """
    parts = []
    count = len(columns)
    for index in range(layer, 0, -1):
        inputs = corners.post[index - 1][:, columns].T
        parts.append((rows[:, :, None] * inputs[:, None, :]).reshape(count, -1))
        rows = (rows @ corners.point.weights[index - 1]) * slopes[index - 1][:, columns].T
    features = np.zeros((count, rows.shape[1], corners.problem.num_classes))
    features[np.arange(count), :, columns] = rows
    return np.concatenate([*parts, features.reshape(count, -1)], axis=1)


def _by_layer(corners: _Corners, slopes: list[FloatArray], layer: int) -> list[FloatArray]:
    """Improve all slopes of one layer together, for the whole gradient below it."""
    delta = corners.point.weights[layer].T @ corners.deltas(slopes)[layer + 1]
    neurons, columns = np.nonzero(np.logical_and(corners.free[layer], delta != 0))
    count = len(columns)
    size = sum(weight.size for weight in corners.point.weights[:layer]) + corners.post[0].size
    if not 0 < count * size <= LARGEST_SYSTEM:
        return slopes
    rows = np.zeros((count, delta.shape[0]))
    rows[np.arange(count), neurons] = delta[neurons, columns]
    matrix = _influence(corners, slopes, layer, rows, columns).T
    fixed = [slope.copy() for slope in slopes]
    fixed[layer][neurons, columns] = 0.0
    features, *weights = corners.gradient(fixed)
    below = [part.ravel() for part in (*weights[:layer][::-1], features)]
    basis, triangle = np.linalg.qr(matrix)
    fixed[layer][neurons, columns] = _slopes_between(triangle, -basis.T @ np.concatenate(below))
    return fixed


def stationarity(problem: DUFM, point: Variables, corner: float = CORNER) -> Stationarity:
    """The gradient norm at a class-level point, plain and generalised.

    A low-rank solution sits on corners of the ReLU, where the gradient jumps and
    does not vanish although the point cannot be improved. Some element of the
    generalised gradient (Clarke 1990) does; it is sought by bounded least squares over
    the slopes at the corners, neuron by neuron, then layer by layer, so the norm found is an
    upper bound of the least.

    Parameters
    ----------
    problem : DUFM
    point : Variables
        Features (d_1, K).
    corner : float
        Pre-activations up to this fraction of the largest one are taken as zero.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> stationarity(problem, problem.optimum().variables).generalised < 1e-12
    True
    """
    check_shapes(problem, point, problem.num_classes)
    corners = _find_corners(problem, point, corner)
    plain = corners.norm(corners.sharp)
    if not problem.rectified:
        return Stationarity(plain, plain, 0)
    slopes = _by_neuron(corners)
    least = min(plain, corners.norm(slopes))
    for _ in range(SWEEPS):
        for layer in range(problem.depth - 1, 0, -1):
            slopes = _by_layer(corners, slopes, layer)
        least = min(least, corners.norm(slopes))
    return Stationarity(plain, least, int(sum(free.sum() for free in corners.free)))


@dataclass(frozen=True)
class Identities:
    r"""How far a point is from the identities of stationarity; all zero at one.

    Attributes
    ----------
    power : float
        :math:`q = -\langle W_L A_L, \partial\,\mathrm{fit}/\partial Z\rangle`, which is
        :math:`\langle Z, Y - Z\rangle/N` for the squared loss without bias.
    norms : ndarray, shape (L + 1,)
        :math:`\lambda_H\|H_1\|^2, \lambda_1\|W_1\|^2, \ldots`: each equals `power`.
    norm_spread : float
        Largest distance of `norms` from `power`.
    neuron_balance : float
        Largest difference of decayed incoming and outgoing weight of a hidden neuron.
    first_layer : float
        Largest entry of :math:`\lambda_1 W_1^T W_1 - H_1 \Lambda_H H_1^T`.
    loss : float
        Distance of the loss from
        :math:`\mathrm{fit} + \frac{L+1}{2} q + \frac{\lambda_b}{2}\|b\|^2`.
    """

    power: float
    norms: FloatArray
    norm_spread: float
    neuron_balance: float
    first_layer: float
    loss: float

    @property
    def worst(self) -> float:
        """The largest of the residuals."""
        return max(self.norm_spread, self.neuron_balance, self.first_layer, self.loss)


def stationarity_identities(problem: DUFM, point: Variables, columns: Columns) -> Identities:
    """Evaluate every identity at a point, features (d_1, m); all residuals vanish at a smooth optimum.

    `columns` says what the m columns are: ``sample_columns(problem)`` or
    ``class_columns(problem)``.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> best = problem.optimum()
    >>> stationarity_identities(problem, best.variables, class_columns(problem)).worst < 1e-12
    True
    """
    outputs = forward(problem, point)[1][-1]
    fit, slope = fit_and_slope(problem.loss, outputs, columns)
    shift = np.zeros(problem.num_classes) if point.bias is None else point.bias
    power = -float(np.sum((outputs - shift[:, None]) * slope))
    features = (point.features * columns.decay) @ point.features.T
    weights = list(zip(problem.decays, point.weights, strict=True))
    norms = np.array([np.trace(features), *(decay * np.sum(w**2) for decay, w in weights)])
    penalties = 0.5 * problem.bias_decay * float(np.sum(shift**2))
    first = problem.decays[0] * point.weights[0].T @ point.weights[0] - features
    loss = fit + 0.5 * float(norms.sum()) + penalties
    return Identities(
        power=power,
        norms=norms,
        norm_spread=float(np.max(np.abs(norms - power))),
        neuron_balance=max((_imbalance(*pair) for pair in pairwise(weights)), default=0.0),
        first_layer=float(np.max(np.abs(first))),
        loss=abs(loss - (fit + 0.5 * (problem.depth + 1) * power + penalties)),
    )


def _imbalance(incoming: tuple[float, FloatArray], outgoing: tuple[float, FloatArray]) -> float:
    """The largest difference of decayed incoming and outgoing weight of a neuron."""
    into = incoming[0] * np.sum(incoming[1] ** 2, axis=1)
    out = outgoing[0] * np.sum(outgoing[1] ** 2, axis=0)
    return float(np.max(np.abs(into - out)))
