"""The actual network: its loss and gradient. Columns are samples, as in the papers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .problem import DUFM, FloatArray


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
    """

    features: FloatArray
    weights: tuple[FloatArray, ...]
    bias: FloatArray | None = None

    @property
    def arrays(self) -> list[FloatArray]:
        """Features, weights and, if there is one, the bias."""
        return [self.features, *self.weights, *([] if self.bias is None else [self.bias])]


@dataclass(frozen=True)
class Columns:
    """Class, weight in the fit (they sum to one) and feature decay of every column, shape (m,)."""

    labels: np.ndarray[tuple[int], np.dtype[np.int64]]
    fit: FloatArray
    decay: FloatArray


def sample_columns(problem: DUFM) -> Columns:
    """One column per sample, class-major, as the objective is written."""
    count = problem.num_samples
    labels = np.repeat(np.arange(problem.num_classes), problem.counts)
    return Columns(labels, np.full(count, 1 / count), np.full(count, problem.feature_decay))


def class_columns(problem: DUFM) -> Columns:
    """One column per class, which carries the weight of all its samples."""
    counts = problem.counts.astype(np.float64)
    labels = np.arange(problem.num_classes)
    return Columns(labels, counts / counts.sum(), counts * problem.feature_decay)


def class_averages(problem: DUFM, samples: FloatArray) -> FloatArray:
    """Means over the class-major columns of every class, shape (d, K)."""
    starts = np.cumsum(problem.counts) - problem.counts
    return np.asarray(np.add.reduceat(samples, starts, axis=1) / problem.counts)


def _relu_slope(x: FloatArray, smoothing: float) -> FloatArray:
    """Slope of the ReLU, whose corner is a parabola on [0, smoothing] if that is positive."""
    if smoothing == 0:
        return (x > 0).astype(np.float64)
    return np.clip(x / smoothing, 0.0, 1.0)


def _relu(x: FloatArray, smoothing: float) -> FloatArray:
    if smoothing == 0:
        return np.maximum(x, 0.0)
    slope = _relu_slope(x, smoothing)
    return slope * (x - 0.5 * smoothing * slope)


def forward(
    problem: DUFM, point: Variables, smoothing: float = 0.0
) -> tuple[list[FloatArray], list[FloatArray]]:
    """All layers of the network, at features with any number of columns, m.

    Returns
    -------
    pre, post : list of ndarray, shape (d_l, m)
        Layers 1 to L + 1 before and after the activation. The last is the output.

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
        post.append(_relu(pre[-1], smoothing) if hidden else pre[-1])
    if point.bias is not None:
        pre[-1] = pre[-1] + point.bias[:, None]
        post[-1] = pre[-1]
    return pre, post


def fit_and_slope(loss: str, outputs: FloatArray, columns: Columns) -> tuple[float, FloatArray]:
    """The data term of the objective and its derivative in the outputs."""
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
    problem: DUFM,
    point: Variables,
    columns: Columns,
    decay_scale: float = 1.0,
    smoothing: float = 0.0,
) -> tuple[float, Variables]:
    """`loss_and_gradient` for any meaning of the columns, with decays scaled and the ReLU smoothed."""
    pre, post = forward(problem, point, smoothing)
    value, delta = fit_and_slope(problem.loss, post[-1], columns)
    bias = None
    if point.bias is not None:
        value += 0.5 * problem.bias_decay * float(point.bias @ point.bias)
        bias = delta.sum(axis=1) + problem.bias_decay * point.bias
    slopes: list[FloatArray] = []
    for index in range(problem.depth - 1, -1, -1):
        weight, decay = point.weights[index], decay_scale * problem.decays[index]
        value += 0.5 * decay * float(np.vdot(weight, weight))
        slopes.append(delta @ post[index].T + decay * weight)
        delta = weight.T @ delta
        if index and problem.rectified:
            delta = delta * _relu_slope(pre[index], smoothing)
    decayed = decay_scale * columns.decay * point.features
    value += 0.5 * float(np.vdot(decayed, point.features))
    return value, Variables(delta + decayed, tuple(slopes[::-1]), bias)


def loss_and_gradient(problem: DUFM, point: Variables) -> tuple[float, Variables]:
    """The objective and its gradient, by backpropagation, at features (d_1, N) in class-major columns.

    The ReLU has slope zero at zero. Other shapes than those of the problem raise ValueError.

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
    """`loss_and_gradient` with all samples of a class in one column, features (d_1, K)."""
    check_shapes(problem, point, problem.num_classes)
    return column_loss_and_gradient(problem, point, class_columns(problem))


def array_shapes(problem: DUFM, columns: int) -> list[tuple[int, ...]]:
    """Shapes of the features, with so many columns, and of the weights."""
    widths = (*problem.layer_widths, problem.num_classes)
    weights = [(widths[i + 1], widths[i]) for i in range(problem.depth)]
    return [(widths[0], columns), *weights]


def check_shapes(problem: DUFM, point: Variables, columns: int) -> None:
    """Refuse a point whose arrays are not those of the problem."""
    needed = array_shapes(problem, columns)
    given = [point.features.shape, *(weight.shape for weight in point.weights)]
    if given != needed:
        raise ValueError(
            f"features and weights have shapes {given}, the problem needs {needed}: "
            "pass features of shape (d_1, columns) and one W_l of shape (d_{l+1}, d_l) per layer."
        )
    shape = None if point.bias is None else point.bias.shape
    if (shape is not None) != problem.bias or shape not in (None, (problem.num_classes,)):
        right = f"shape ({problem.num_classes},)" if problem.bias else "no bias"
        raise ValueError(f"bias has shape {shape}, the problem needs {right}: pass that.")


@dataclass(frozen=True)
class FlatLayout:
    """Where features, weights and bias of a class-level point lie in one vector."""

    shapes: tuple[tuple[int, ...], ...]
    bias: bool

    @classmethod
    def of(cls, problem: DUFM) -> "FlatLayout":
        shapes = array_shapes(problem, problem.num_classes)
        bias = [(problem.num_classes,)] if problem.bias else []
        return cls((*shapes, *bias), problem.bias)

    def pack(self, point: Variables) -> FloatArray:
        """All variables as one vector."""
        return np.concatenate([array.ravel() for array in point.arrays])

    def unpack(self, vector: FloatArray) -> Variables:
        """The variables in the vector, as views of it."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = np.split(vector, ends[:-1])
        features, *weights = (x.reshape(s) for x, s in zip(parts, self.shapes, strict=True))
        bias = weights.pop() if self.bias else None
        return Variables(features, tuple(weights), bias)


def flat_objective(
    problem: DUFM, decay_scale: float = 1.0, smoothing: float = 0.0
) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """The class-level loss and gradient as a function of one vector of `FlatLayout`."""
    layout, columns = FlatLayout.of(problem), class_columns(problem)

    def evaluate(vector: FloatArray) -> tuple[float, FloatArray]:
        loss, gradient = column_loss_and_gradient(
            problem, layout.unpack(vector), columns, decay_scale, smoothing
        )
        return loss, layout.pack(gradient)

    return evaluate
