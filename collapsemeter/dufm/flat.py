"""The class-level objective on one flat vector, fast enough to be called often."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import FloatArray
from .network import Columns, Variables, class_columns, fit_and_slope
from .problem import DUFM


@dataclass(frozen=True)
class Layout:
    """Shapes of the arrays inside the vector: features, weights, then the bias."""

    shapes: tuple[tuple[int, ...], ...]
    bias: bool

    @classmethod
    def of(cls, problem: DUFM) -> "Layout":
        """The layout of the class-level variables of a problem."""
        widths = (*problem.layer_widths, problem.num_classes)
        shapes: list[tuple[int, ...]] = [(widths[0], problem.num_classes)]
        shapes += [(widths[i + 1], widths[i]) for i in range(problem.depth)]
        if problem.bias:
            shapes.append((problem.num_classes,))
        return cls(tuple(shapes), problem.bias)

    def pack(self, point: Variables) -> FloatArray:
        """All variables as one vector."""
        parts = [point.features, *point.weights]
        if point.bias is not None:
            parts.append(point.bias)
        return np.concatenate([part.ravel() for part in parts])

    def split(self, vector: FloatArray) -> list[FloatArray]:
        """Views of the arrays in the vector."""
        parts, start = [], 0
        for shape in self.shapes:
            end = start + int(np.prod(shape))
            parts.append(vector[start:end].reshape(shape))
            start = end
        return parts

    def unpack(self, vector: FloatArray) -> Variables:
        """The variables in the vector, copied."""
        features, *weights = (part.copy() for part in self.split(vector))
        bias = weights.pop() if self.bias else None
        return Variables(features, tuple(weights), bias)


def rectifier(
    smoothing: float,
) -> Callable[[FloatArray], tuple[FloatArray, FloatArray]]:
    """The ReLU and its slope; smoothed to a parabola on [0, smoothing] if positive."""

    def sharp(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        return np.maximum(x, 0.0), (x > 0).astype(np.float64)

    def smooth(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        slope = np.clip(x / smoothing, 0.0, 1.0)
        return slope * (x - 0.5 * smoothing * slope), slope

    return smooth if smoothing > 0 else sharp


def objective(
    problem: DUFM, decay_scale: float = 1.0, smoothing: float = 0.0
) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """The class-level loss and gradient as a function of one vector.

    Parameters
    ----------
    problem : DUFM
        The objective.
    decay_scale : float
        Multiplies the decays of features and weights, for homotopy.
    smoothing : float
        Width of the smoothed corner of the ReLU; 0 for the ReLU itself.

    Returns
    -------
    callable
        From a vector of `Layout` to the loss and the gradient.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165, for the objective.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.1)
    >>> objective(problem)(np.zeros(8))[0]
    0.5
    """
    layout, columns = Layout.of(problem), class_columns(problem)
    scaled = Columns(columns.labels, columns.fit, decay_scale * columns.decay)
    decays = [decay_scale * decay for decay in problem.decays]
    activation = rectifier(smoothing)

    def evaluate(vector: FloatArray) -> tuple[float, FloatArray]:
        arrays = layout.split(vector)
        weights = arrays[1 : problem.depth + 1]
        post, masks = [arrays[0]], []
        for weight in weights[:-1]:
            layer = weight @ post[-1]
            if problem.rectified:
                layer, mask = activation(layer)
                masks.append(mask)
            post.append(layer)
        outputs = weights[-1] @ post[-1]
        if layout.bias:
            outputs = outputs + arrays[-1][:, None]
        value, delta = fit_and_slope(problem.loss, outputs, scaled)
        gradient = np.empty_like(vector)
        slopes = layout.split(gradient)
        if layout.bias:
            slopes[-1][:] = delta.sum(axis=1) + problem.bias_decay * arrays[-1]
            value += 0.5 * problem.bias_decay * float(arrays[-1] @ arrays[-1])
        for index in range(problem.depth - 1, -1, -1):
            np.matmul(delta, post[index].T, out=slopes[index + 1])
            slopes[index + 1] += decays[index] * weights[index]
            value += 0.5 * decays[index] * float(np.vdot(weights[index], weights[index]))
            delta = weights[index].T @ delta
            if index and problem.rectified:
                delta = delta * masks[index - 1]
        decayed = scaled.decay * arrays[0]
        slopes[0][:] = delta + decayed
        return value + 0.5 * float(np.vdot(decayed, arrays[0])), gradient

    return evaluate
