"""The actual network: its loss and gradient. Columns are samples, as in the papers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .problem import FloatArray, Problem


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

    @property
    def norm(self) -> float:
        """Root of the sum of all squares."""
        return math.sqrt(sum(float(np.vdot(array, array)) for array in self.arrays))

    def with_arrays(self, arrays: Iterable[FloatArray]) -> "Variables":
        """Another point, from arrays in the order of `arrays`."""
        features, *weights = arrays
        bias = None if self.bias is None else weights.pop()
        return Variables(features, tuple(weights), bias)


@dataclass(frozen=True)
class Columns:
    """Class, weight in the fit (they sum to one) and feature decay of every column, shape (m,)."""

    labels: NDArray[np.int64]
    fit: FloatArray
    decay: FloatArray


def sample_columns(problem: Problem) -> Columns:
    """One column per sample, class-major, as the objective is written."""
    count = problem.num_samples
    labels = np.repeat(np.arange(problem.num_classes), problem.counts)
    return Columns(labels, np.full(count, 1 / count), np.full(count, problem.feature_decay))


def class_columns(problem: Problem) -> Columns:
    """One column per class, which carries the weight of all its samples."""
    counts = problem.counts.astype(np.float64)
    labels = np.arange(problem.num_classes)
    return Columns(labels, counts / counts.sum(), counts * problem.feature_decay)


def class_averages(problem: Problem, samples: FloatArray) -> FloatArray:
    """Means over the class-major columns of every class, shape (d, K)."""
    starts = np.cumsum(problem.counts) - problem.counts
    return np.asarray(np.add.reduceat(samples, starts, axis=1) / problem.counts)


def relu_slope(x: FloatArray, smoothing: float = 0.0) -> FloatArray:
    """Slope of the ReLU, whose corner is a parabola on [0, smoothing] if that is positive."""
    if smoothing == 0:
        return (x > 0).astype(np.float64)
    return np.clip(x / smoothing, 0.0, 1.0)


def _relu(x: FloatArray, smoothing: float) -> FloatArray:
    if smoothing == 0:
        return np.maximum(x, 0.0)
    slope = relu_slope(x, smoothing)
    return slope * (x - 0.5 * smoothing * slope)


def forward(
    problem: Problem, point: Variables, smoothing: float = 0.0
) -> tuple[list[FloatArray], list[FloatArray]]:
    """All layers of the network, at features with any number of columns, m.

    Returns
    -------
    pre, post : list of ndarray, shape (d_l, m)
        Layers 1 to L + 1 before and after the activation. The last is the output.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
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


def fits_and_slopes(
    loss: str, outputs: FloatArray, labels: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """The loss of every column, shape (m,), and its derivative in the outputs."""
    picked = (labels, np.arange(outputs.shape[1]))
    if loss == "mse":
        error = outputs.copy()
        error[picked] -= 1.0
        return 0.5 * np.sum(error**2, axis=0), error
    shifted = outputs - outputs.max(axis=0)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=0)
    error = exponentials / total
    error[picked] -= 1.0
    return np.log(total) - shifted[picked], error


def fit_and_slope(loss: str, outputs: FloatArray, columns: Columns) -> tuple[float, FloatArray]:
    """The data term of the objective and its derivative in the outputs."""
    fits, slopes = fits_and_slopes(loss, outputs, columns.labels)
    return float(np.sum(columns.fit * fits)), slopes * columns.fit


def backpropagate(
    problem: Problem, point: Variables, post: list[FloatArray], output_slope: FloatArray,
    slopes: list[FloatArray], columns: Columns, decay_scale: float = 1.0,
) -> tuple[Variables, list[FloatArray]]:  # fmt: skip
    """The gradient of the objective, given the slopes in 2 to L, and that of the fit in all layers."""
    deltas = [output_slope]
    for weight, slope in zip(point.weights[:0:-1], slopes[::-1], strict=True):
        deltas.append((weight.T @ deltas[-1]) * slope)
    deltas = [point.weights[0].T @ deltas[-1], *deltas[::-1]]
    parts = [deltas[0] + decay_scale * columns.decay * point.features]
    for index, weight in enumerate(point.weights):
        decay = decay_scale * problem.decays[index]
        parts.append(deltas[index + 1] @ post[index].T + decay * weight)
    if point.bias is not None:
        parts.append(deltas[-1].sum(axis=1) + problem.bias_decay * point.bias)
    return point.with_arrays(parts), deltas


def column_loss_and_gradient(
    problem: Problem, point: Variables, columns: Columns, decay_scale: float = 1.0,
    smoothing: float = 0.0,
) -> tuple[float, Variables]:  # fmt: skip
    """`loss_and_gradient` for any meaning of the columns, with decays scaled and the ReLU smoothed."""
    pre, post = forward(problem, point, smoothing)
    value, output_slope = fit_and_slope(problem.loss, post[-1], columns)
    if point.bias is not None:
        value += 0.5 * problem.bias_decay * float(point.bias @ point.bias)
    for weight, decay in zip(point.weights[::-1], problem.decays[::-1], strict=True):
        value += 0.5 * decay_scale * decay * float(np.vdot(weight, weight))
    decayed = decay_scale * columns.decay * point.features
    value += 0.5 * float(np.vdot(decayed, point.features))
    slopes = [relu_slope(x, smoothing) if problem.rectified else np.ones(1) for x in pre[1:-1]]
    back = backpropagate(problem, point, post, output_slope, slopes, columns, decay_scale)
    return value, back[0]


def loss_and_gradient(problem: Problem, point: Variables) -> tuple[float, Variables]:
    """The objective and its gradient, by backpropagation, at features (d_1, N) in class-major columns.

    The ReLU has slope zero at zero. Other shapes than those of the problem raise ValueError.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.1)
    >>> loss, gradient = loss_and_gradient(problem, Variables(np.eye(2), (np.eye(2),)))
    >>> round(loss, 12), gradient.features.tolist()
    (0.2, [[0.1, 0.0], [0.0, 0.1]])
    """
    check_variables(problem, point, problem.num_samples)
    return column_loss_and_gradient(problem, point, sample_columns(problem))


def class_loss_and_gradient(problem: Problem, point: Variables) -> tuple[float, Variables]:
    """`loss_and_gradient` with all samples of a class in one column, features (d_1, K)."""
    check_variables(problem, point, problem.num_classes)
    return column_loss_and_gradient(problem, point, class_columns(problem))


def variable_shapes(problem: Problem, columns: int) -> list[tuple[int, ...]]:
    """Shapes of the features, with so many columns, and of the weights."""
    widths = (*problem.layer_widths, problem.num_classes)
    weights = [(widths[i + 1], widths[i]) for i in range(problem.depth)]
    return [(widths[0], columns), *weights]


def zero_variables(problem: Problem, columns: int) -> Variables:
    """A point of nothing but zeros."""
    features, *weights = map(np.zeros, variable_shapes(problem, columns))
    bias = np.zeros(problem.num_classes) if problem.bias else None
    return Variables(features, tuple(weights), bias)


def check_variables(problem: Problem, point: Variables, columns: int) -> None:
    """Refuse a point whose arrays are not those of the problem."""
    needed = variable_shapes(problem, columns)
    shapes = [point.features.shape, *(weight.shape for weight in point.weights)]
    if shapes != needed:
        raise ValueError(
            f"features and weights have shapes {shapes}, the problem needs {needed}: "
            "pass features of shape (d_1, columns) and one W_l of shape (d_{l+1}, d_l) per layer."
        )
    shape = None if point.bias is None else point.bias.shape
    if (shape is not None) != problem.bias or shape not in (None, (problem.num_classes,)):
        right = f"shape ({problem.num_classes},)" if problem.bias else "no bias"
        raise ValueError(f"bias has shape {shape}, the problem needs {right}: pass that.")
