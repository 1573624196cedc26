"""One layer is convex in its outputs: its least loss, with a dual certificate."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..minimise import lbfgs, newton_polish
from ..network import FlatLayout, class_columns, fit_and_slope, flat_objective
from ..problem import DUFM, DoesNotApply, FloatArray
from ..reductions import canonical

NEWTON_SIZE = 900
"""Variables up to which Newton steps finish the solution, some 20 classes."""


@dataclass(frozen=True)
class ConvexValue:
    """A primal point, its loss, and a dual bound that no point can beat."""

    outputs: FloatArray
    bias: FloatArray | None
    loss: float
    lower: float
    operator_ratio: float


def certify(problem: DUFM, outputs: FloatArray, bias: FloatArray | None) -> ConvexValue:
    r"""Bound the optimal loss of one layer from below, by the dual at a given point.

    .. math:: \max_G -\mathrm{fit}^*(G) - \tfrac{1}{2\lambda_b}\|G 1\|^2
              \quad\text{s.t.}\quad \|G D^{-1/2}\|_\mathrm{op} \le \sqrt{\lambda_W \lambda_H}

    The slope of the fit is shrunk until it is feasible. The result has the ``loss`` of the
    point and the bound ``lower``; they agree at the optimum.

    Parameters
    ----------
    problem : DUFM
        One layer.
    outputs : ndarray, shape (K, K)
        Outputs of the classes, in columns, without the bias.
    bias : ndarray, shape (K,), optional

    References
    ----------
    Thrampoulidis et al. 2022; Zhu et al. 2021.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, feature_decay=0.1, weight_decay=0.1)
    >>> value = certify(problem, 0.8 * np.eye(2), None)
    >>> round(value.loss, 12), round(value.lower, 12)
    (0.18, 0.18)
    """
    columns, roots = class_columns(problem), np.sqrt(problem.counts.astype(np.float64))
    ridge = math.sqrt(problem.decays[0] * problem.feature_decay)
    shift = np.zeros(problem.num_classes) if bias is None else bias
    fit, slope = fit_and_slope(problem.loss, outputs + shift[:, None], columns)
    nuclear = float(np.sum(np.linalg.svd(outputs * roots, compute_uv=False)))
    loss = fit + ridge * nuclear + 0.5 * problem.bias_decay * float(shift @ shift)
    if problem.bias and problem.bias_decay == 0:
        slope = slope - np.outer(slope.sum(axis=1), columns.fit)  # a free bias sums to zero
    ratio = float(np.linalg.norm(slope / roots, ord=2)) / ridge
    slope = slope / max(1.0, ratio)
    lower = _conjugate(problem, slope)
    if problem.bias_decay:
        lower -= float(np.sum(slope.sum(axis=1) ** 2)) / (2 * problem.bias_decay)
    return ConvexValue(outputs, bias, loss, lower, ratio)


def _conjugate(problem: DUFM, slope: FloatArray) -> float:
    """The value of the dual at a slope in the outputs, one column per class."""
    columns = class_columns(problem)
    per_class = slope / columns.fit
    if problem.loss == "mse":
        terms = 0.5 * np.sum(per_class**2, axis=0) + per_class.diagonal()
        return -float(np.sum(columns.fit * terms))
    chances = np.maximum(per_class + np.eye(problem.num_classes), 0.0)
    logs = np.log(np.where(chances > 0, chances, 1.0))
    return -float(np.sum(columns.fit * np.sum(chances * logs, axis=0)))


@lru_cache(maxsize=64)  # the zero network, the bound and `convex` all need it
def convex_value(problem: DUFM) -> ConvexValue:
    """Solve the one-layer problem and certify the result."""
    if problem.depth != 1:
        raise DoesNotApply(f"convex needs depth 1, got {problem.depth}: deeper is not convex.")
    # With K neurons the factorised problem has no bad local minima, only saddles,
    # which a random start avoids.
    small = replace(canonical(problem), widths=problem.num_classes)
    layout, function = FlatLayout.of(small), flat_objective(small)
    size = sum(math.prod(shape) for shape in layout.shapes)
    vector = 0.5 * np.random.default_rng(0).standard_normal(size)
    for _ in range(2):  # restarting L-BFGS drops stale curvature near the end
        vector, _ = lbfgs(function, vector, 20_000, 1e-14)
    if size <= NEWTON_SIZE:
        vector = newton_polish(function, vector)
    point = layout.unpack(vector)
    bias = point.bias
    if bias is not None and problem.loss == "ce":
        bias = bias - bias.mean()  # the softmax does not see it, the penalty only dislikes it
    return certify(problem, point.weights[0] @ point.features, bias)
