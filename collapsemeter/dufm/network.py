"""The actual network: its loss and gradient. Columns are samples, as in the papers."""

from dataclasses import dataclass

import numpy as np

from .arrays import FloatArray
from .problem import DUFM


@dataclass(frozen=True)
class Variables:
    """The free features and the weights, at one point.

    Parameters
    ----------
    features : ndarray, shape (d_1, m)
        One column per sample, class-major, or one per class.
    weights : tuple of ndarray
        ``weights[l - 1]`` is W_l, shape (d_{l+1}, d_l); the last has K rows.
    bias : ndarray, shape (K,), optional
        Bias of the last layer.

    Examples
    --------
    >>> point = Variables(np.eye(2), (np.eye(2),))
    >>> point.features.shape
    (2, 2)
    """

    features: FloatArray
    weights: tuple[FloatArray, ...]
    bias: FloatArray | None = None


@dataclass(frozen=True)
class Columns:
    """What the columns of the features stand for.

    Parameters
    ----------
    labels : ndarray of int, shape (m,)
        Class of each column.
    fit : ndarray, shape (m,)
        Weight of each column in the fit; they sum to one.
    decay : ndarray, shape (m,)
        Feature decay of each column.
    """

    labels: np.ndarray[tuple[int], np.dtype[np.int64]]
    fit: FloatArray
    decay: FloatArray


def sample_columns(problem: DUFM) -> Columns:
    """One column per sample, class-major, as the objective is written.

    Examples
    --------
    >>> problem = DUFM(2, [1, 2], 1, feature_decay=0.1, weight_decay=0.1)
    >>> sample_columns(problem).labels.tolist()
    [0, 1, 1]
    """
    count = problem.num_samples
    labels = np.repeat(np.arange(problem.num_classes), problem.counts)
    return Columns(labels, np.full(count, 1 / count), np.full(count, problem.feature_decay))


def class_columns(problem: DUFM) -> Columns:
    """One column per class, which carries the weight of all its samples.

    Examples
    --------
    >>> problem = DUFM(2, [1, 3], 1, feature_decay=0.1, weight_decay=0.1)
    >>> class_columns(problem).fit.tolist()
    [0.25, 0.75]
    """
    counts = problem.counts.astype(np.float64)
    labels = np.arange(problem.num_classes)
    return Columns(labels, counts / counts.sum(), counts * problem.feature_decay)


def forward(problem: DUFM, point: Variables) -> tuple[list[FloatArray], list[FloatArray]]:
    """All layers of the network.

    Parameters
    ----------
    problem : DUFM
        Fixes the activation.
    point : Variables
        Features with any number of columns, m.

    Returns
    -------
    pre, post : list of ndarray, shape (d_l, m)
        Layers 1 to L + 1 before and after the activation. The last is the output.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 1, 2, 2, feature_decay=0.1, weight_decay=0.1)
    >>> point = Variables(np.array([[1.0, -1.0], [-2.0, 2.0]]), (np.eye(2), np.eye(2)))
    >>> forward(problem, point)[1][-1].tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    pre = [point.features]
    post = [point.features]
    for number, weight in enumerate(point.weights, start=2):
        pre.append(weight @ post[-1])
        hidden = number <= problem.depth and problem.rectified
        post.append(np.maximum(pre[-1], 0.0) if hidden else pre[-1])
    if point.bias is not None:
        pre[-1] = pre[-1] + point.bias[:, None]
        post[-1] = pre[-1]
    return pre, post


def fit_and_slope(loss: str, outputs: FloatArray, columns: Columns) -> tuple[float, FloatArray]:
    """The data term of the objective and its derivative in the outputs.

    Parameters
    ----------
    loss : {"mse", "ce"}
        Half the squared error, or softmax cross-entropy.
    outputs : ndarray, shape (K, m)
        Output of the network.
    columns : Columns
        Labels and weights of the m columns.

    Returns
    -------
    float, ndarray of shape (K, m)

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, feature_decay=0.1, weight_decay=0.1)
    >>> fit_and_slope("mse", np.zeros((2, 2)), class_columns(problem))[0]
    0.5
    """
    picked = (columns.labels, np.arange(outputs.shape[1]))
    if loss == "mse":
        error = outputs.copy()
        error[picked] -= 1.0
        return float(0.5 * np.sum(columns.fit * np.sum(error**2, axis=0))), error * columns.fit
    shifted = outputs - outputs.max(axis=0)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=0)
    value = float(np.sum(columns.fit * (np.log(total) - shifted[picked])))
    error = exponentials / total
    error[picked] -= 1.0
    return value, error * columns.fit


def column_loss_and_gradient(
    problem: DUFM, point: Variables, columns: Columns
) -> tuple[float, Variables]:
    """`loss_and_gradient` for any meaning of the columns."""
    pre, post = forward(problem, point)
    value, delta = fit_and_slope(problem.loss, post[-1], columns)
    value += 0.5 * float(np.sum(columns.decay * np.sum(point.features**2, axis=0)))
    bias = None
    if point.bias is not None:
        value += 0.5 * problem.bias_decay * float(np.sum(point.bias**2))
        bias = delta.sum(axis=1) + problem.bias_decay * point.bias
    slopes: list[FloatArray] = []
    for number in range(problem.depth, 0, -1):
        weight, decay = point.weights[number - 1], problem.decays[number - 1]
        value += 0.5 * decay * float(np.sum(weight**2))
        slopes.append(delta @ post[number - 1].T + decay * weight)
        delta = weight.T @ delta
        if number > 1 and problem.rectified:
            delta = delta * (pre[number - 1] > 0)
    return value, Variables(delta + columns.decay * point.features, tuple(slopes[::-1]), bias)


def loss_and_gradient(problem: DUFM, point: Variables) -> tuple[float, Variables]:
    """The objective and its gradient at a sample-level point.

    Backpropagation, with derivative zero of the ReLU at zero.

    Parameters
    ----------
    problem : DUFM
        The objective.
    point : Variables
        Features of shape (d_1, N), class-major columns.

    Returns
    -------
    float, Variables
        The loss, and its derivative in every variable.

    Raises
    ------
    ValueError
        If the shapes do not belong to the problem.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.1)
    >>> loss, gradient = loss_and_gradient(problem, Variables(np.eye(2), (np.eye(2),)))
    >>> round(loss, 12), gradient.features.tolist()
    (0.2, [[0.1, 0.0], [0.0, 0.1]])
    """
    check_shapes(problem, point, problem.num_samples)
    return column_loss_and_gradient(problem, point, sample_columns(problem))


def class_loss_and_gradient(problem: DUFM, point: Variables) -> tuple[float, Variables]:
    """The objective and gradient with all samples of a class in one column.

    Parameters
    ----------
    problem : DUFM
        The objective.
    point : Variables
        Features of shape (d_1, K).

    Returns
    -------
    float, Variables
        The loss equals that of the repeated columns.

    Raises
    ------
    ValueError
        If the shapes do not belong to the problem.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 9, 1, 2, feature_decay=0.1, weight_decay=0.1)
    >>> round(class_loss_and_gradient(problem, Variables(np.eye(2), (np.eye(2),)))[0], 12)
    1.0
    """
    check_shapes(problem, point, problem.num_classes)
    return column_loss_and_gradient(problem, point, class_columns(problem))


def check_shapes(problem: DUFM, point: Variables, columns: int) -> None:
    """Refuse a point whose arrays are not those of the problem."""
    widths = (*problem.layer_widths, problem.num_classes)
    wanted = [(widths[0], columns)]
    wanted += [(widths[i + 1], widths[i]) for i in range(problem.depth)]
    found = [point.features.shape, *(w.shape for w in point.weights)]
    if found != wanted:
        raise ValueError(
            f"features and weights have shapes {found}, the problem needs {wanted}: "
            "pass features of shape (d_1, columns) and one W_l of shape (d_{l+1}, d_l) per layer."
        )
    shape = None if point.bias is None else point.bias.shape
    if (shape is not None) != problem.bias or shape not in (None, (problem.num_classes,)):
        needed = f"shape ({problem.num_classes},)" if problem.bias else "no bias"
        raise ValueError(f"bias has shape {shape}, the problem needs {needed}: pass that.")
