"""How stationary a point is: its gradient, corners of the ReLU included, and exact identities."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # type: ignore[import-untyped, unused-ignore]

from .network import (
    Columns,
    Variables,
    backpropagate,
    class_columns,
    class_loss_and_gradient,
    fit_and_slope,
    forward,
    relu_slope,
)
from .problem import FloatArray, Problem

CORNER = 1e-3  # pre-activations below this fraction of the largest of a layer count as zero
SWEEPS = 3  # how often all layers are improved in turn; more gains little
LARGEST_SYSTEM = 20_000_000  # entries of a least squares matrix; beyond, neurons stay separate


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


def stationarity(problem: Problem, point: Variables, corner: float = CORNER) -> Stationarity:
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
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> stationarity(problem, problem.optimum().variables).generalised < 1e-12
    True
    """
    plain = class_loss_and_gradient(problem, point)[1].norm
    if not problem.rectified:
        return Stationarity(plain, plain, 0)
    pre, post = forward(problem, point)
    free = [np.abs(x) <= corner * float(np.max(np.abs(x))) for x in pre[1:-1]]
    corners, slopes = _Corners(problem, point, post, free), [relu_slope(x) for x in pre[1:-1]]
    _separate_neurons(corners, slopes)
    least = min(plain, corners.backward(slopes)[0].norm)
    for _ in range(SWEEPS):
        for layer in range(problem.depth - 1, 0, -1):
            _improve_layer(corners, slopes, layer)
        least = min(least, corners.backward(slopes)[0].norm)
    return Stationarity(plain, least, int(sum(layer.sum() for layer in free)))


@dataclass(frozen=True)
class _Corners:
    """A point, its layers, and the entries of layers 2 to L whose slope is free."""

    problem: Problem
    point: Variables
    post: list[FloatArray]
    free: list[NDArray[np.bool_]]

    def backward(self, slopes: list[FloatArray]) -> tuple[Variables, list[FloatArray]]:
        """The gradient with these slopes, and the derivatives in the layers."""
        columns = class_columns(self.problem)
        slope = fit_and_slope(self.problem.loss, self.post[-1], columns)[1]
        return backpropagate(self.problem, self.point, self.post, slope, slopes, columns)

    def moving(self, slopes: list[FloatArray], layer: int) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Derivatives after the ReLU that feeds a weight, and the free slopes that matter there."""
        delta = self.point.weights[layer].T @ self.backward(slopes)[1][layer + 1]
        return delta, np.logical_and(self.free[layer - 1], delta != 0)


def _separate_neurons(corners: _Corners, slopes: list[FloatArray]) -> None:
    """Set slopes from the output down, each neuron for the gradient of its own weights."""
    for layer in range(len(slopes), 0, -1):
        below = corners.post[layer - 1]
        delta, moving = corners.moving(slopes, layer)
        decayed = corners.problem.decays[layer - 1] * corners.point.weights[layer - 1]
        for j in np.flatnonzero(moving.any(axis=1)):
            fixed = np.where(moving[j], 0.0, slopes[layer - 1][j]) * delta[j]
            matrix = below[:, moving[j]] * delta[j, moving[j]]
            best = _slopes_between(matrix, -(below @ fixed + decayed[j]))
            slopes[layer - 1][j, moving[j]] = best


def _improve_layer(corners: _Corners, slopes: list[FloatArray], layer: int) -> None:
    """Set all slopes of a layer together: the gradient below is affine in them, and made least."""
    moving = corners.moving(slopes, layer)[1]
    weights = corners.point.weights[:layer]
    count, size = int(moving.sum()), sum(weight.size for weight in weights)
    if not 0 < count * (size + corners.point.features.size) <= LARGEST_SYSTEM:
        return

    def below(values: FloatArray) -> FloatArray:
        slopes[layer - 1][moving] = values
        gradient = corners.backward(slopes)[0]
        parts = (gradient.features, *gradient.weights[:layer])
        return np.concatenate([part.ravel() for part in parts])

    constant = below(np.zeros(count))
    matrix = np.array([below(unit) - constant for unit in np.eye(count)]).T
    basis, triangle = np.linalg.qr(matrix)
    slopes[layer - 1][moving] = _slopes_between(triangle, -basis.T @ constant)


def _slopes_between(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """The `x` in [0, 1] that minimises ``||matrix @ x - target||``."""
    least = optimize.lsq_linear(matrix, target, bounds=(0.0, 1.0), tol=1e-12)
    return np.asarray(least.x, dtype=np.float64)


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


def stationarity_identities(problem: Problem, point: Variables, columns: Columns) -> Identities:
    """Evaluate every identity at a point, features (d_1, m); all residuals vanish at a smooth optimum.

    `columns` says what the m columns are: ``sample_columns(problem)`` or
    ``class_columns(problem)``.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
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
    unbalanced = [
        a * np.sum(incoming**2, axis=1) - b * np.sum(outgoing**2, axis=0)
        for (a, incoming), (b, outgoing) in pairwise(weights)
    ]
    return Identities(
        power=power,
        norms=norms,
        norm_spread=float(np.max(np.abs(norms - power))),
        neuron_balance=max((float(np.max(np.abs(x))) for x in unbalanced), default=0.0),
        first_layer=float(np.max(np.abs(first))),
        loss=abs(loss - (fit + 0.5 * (problem.depth + 1) * power + penalties)),
    )
