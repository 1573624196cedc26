"""What holds exactly at every smooth stationary point, whatever its loss."""

from dataclasses import dataclass

import numpy as np

from .arrays import FloatArray
from .network import Columns, Variables, fit_and_slope, forward
from .problem import DUFM


@dataclass(frozen=True)
class Identities:
    r"""How far a point is from the identities of stationarity; all zero at one.

    Parameters
    ----------
    power : float
        :math:`q = -\langle W_L A_L, \partial\,\mathrm{fit}/\partial Z\rangle`, which is
        :math:`\langle Z, Y - Z\rangle/N` for the squared loss without bias.
    norms : ndarray, shape (L + 1,)
        :math:`\lambda_H\|H_1\|^2, \lambda_1\|W_1\|^2, \ldots`: each equals `power`.
    norm_spread : float
        Largest distance of `norms` from `power`.
    neuron_balance : float
        Largest difference, over hidden neurons, of decay times squared norm between
        incoming and outgoing weights.
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


def decayed_norms(problem: DUFM, point: Variables, columns: Columns) -> FloatArray:
    r"""Decay times squared norm of the features and of every weight.

    Parameters
    ----------
    problem : DUFM
        Gives the decays.
    point : Variables
        A point, with features of shape (d_1, m).
    columns : Columns
        What the m columns stand for.

    Returns
    -------
    ndarray, shape (L + 1,)

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> from collapsemeter.dufm.network import class_columns
    >>> problem = DUFM(2, 1, 1, 2, feature_decay=0.5, weight_decay=0.25)
    >>> point = Variables(np.eye(2), (np.eye(2),))
    >>> decayed_norms(problem, point, class_columns(problem)).tolist()
    [1.0, 0.5]
    """
    first = float(np.sum(columns.decay * np.sum(point.features**2, axis=0)))
    pairs = zip(problem.decays, point.weights, strict=True)
    return np.array([first, *(decay * float(np.sum(w**2)) for decay, w in pairs)])


def neuron_imbalance(problem: DUFM, point: Variables) -> FloatArray:
    r"""Incoming minus outgoing weight of every hidden neuron.

    .. math:: \lambda_{l-1}\|\mathrm{row}_j W_{l-1}\|^2 - \lambda_l\|\mathrm{col}_j W_l\|^2

    Parameters
    ----------
    problem : DUFM
        Gives the decays.
    point : Variables
        A point.

    Returns
    -------
    ndarray, shape (d_2 + ... + d_L,)
        Zero at a stationary point; empty with one layer.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 1, 2, 2, feature_decay=0.5, weight_decay=0.25)
    >>> point = Variables(np.eye(2), (np.eye(2), 3 * np.eye(2)))
    >>> neuron_imbalance(problem, point).tolist()
    [-2.0, -2.0]
    """
    gaps = [
        problem.decays[i] * np.sum(point.weights[i] ** 2, axis=1)
        - problem.decays[i + 1] * np.sum(point.weights[i + 1] ** 2, axis=0)
        for i in range(problem.depth - 1)
    ]
    return np.concatenate(gaps) if gaps else np.empty(0)


def stationarity_identities(problem: DUFM, point: Variables, columns: Columns) -> Identities:
    """Evaluate every identity at a point.

    Parameters
    ----------
    problem : DUFM
        The objective.
    point : Variables
        A point, with features of shape (d_1, m).
    columns : Columns
        ``sample_columns(problem)`` or ``class_columns(problem)``.

    Returns
    -------
    Identities
        Residuals, all zero at a smooth stationary point.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> from collapsemeter.dufm.network import class_columns
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> best = problem.optimum()
    >>> stationarity_identities(problem, best.variables, class_columns(problem)).worst < 1e-12
    True
    """
    outputs = forward(problem, point)[1][-1]
    fit, slope = fit_and_slope(problem.loss, outputs, columns)
    shift = np.zeros(problem.num_classes) if point.bias is None else point.bias
    power = -float(np.sum((outputs - shift[:, None]) * slope))
    norms = decayed_norms(problem, point, columns)
    penalties = 0.5 * problem.bias_decay * float(np.sum(shift**2))
    features = (point.features * columns.decay) @ point.features.T
    first = problem.decays[0] * point.weights[0].T @ point.weights[0] - features
    balance = neuron_imbalance(problem, point)
    loss = fit + 0.5 * float(norms.sum()) + penalties
    return Identities(
        power=power,
        norms=norms,
        norm_spread=float(np.max(np.abs(norms - power))),
        neuron_balance=float(np.max(np.abs(balance), initial=0.0)),
        first_layer=float(np.max(np.abs(first))),
        loss=abs(loss - (fit + 0.5 * (problem.depth + 1) * power + penalties)),
    )
