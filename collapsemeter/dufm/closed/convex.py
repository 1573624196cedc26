"""One layer is convex in its outputs: the exact optimum, with a dual certificate."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from .._scipy import lbfgs, newton_polish
from ..applies import DoesNotApply
from ..arrays import FloatArray
from ..factors import check_widths, split_linear, widths_of
from ..flat import Layout, objective
from ..network import class_columns, fit_and_slope
from ..optimum import Optimum
from ..problem import DUFM
from ..reductions import canonical

GAP_TOLERANCE = 1e-7
"""Relative duality gap up to which a solution is called certified."""

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


def _conjugate(problem: DUFM, slope: FloatArray) -> float:
    """The value of the dual at a slope in the outputs, one column per class."""
    columns = class_columns(problem)
    per_class = slope / columns.fit
    labels = np.arange(problem.num_classes)
    if problem.loss == "mse":
        terms = 0.5 * np.sum(per_class**2, axis=0) + per_class[labels, labels]
        return -float(np.sum(columns.fit * terms))
    chances = np.maximum(per_class + np.eye(problem.num_classes), 0.0)
    logs = np.log(np.where(chances > 0, chances, 1.0))
    return -float(np.sum(columns.fit * np.sum(chances * logs, axis=0)))


def certify(problem: DUFM, outputs: FloatArray, bias: FloatArray | None) -> ConvexValue:
    r"""Bound the optimal loss from below, by the dual at a given point.

    .. math:: \max_G -\mathrm{fit}^*(G) - \tfrac{1}{2\lambda_b}\|G 1\|^2
              \quad\text{s.t.}\quad \|G D^{-1/2}\|_\mathrm{op} \le \sqrt{\lambda_W \lambda_H}

    The slope of the fit is shrunk until it is feasible; at the optimum it is so
    already, with operator norm equal to the bound.

    Parameters
    ----------
    problem : DUFM
        One layer.
    outputs : ndarray, shape (K, K)
        Outputs of the classes, in columns, without the bias.
    bias : ndarray, shape (K,), optional
        The bias.

    Returns
    -------
    ConvexValue
        With the loss of the point and the bound; they agree at the optimum.

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


@lru_cache(maxsize=64)  # the zero reference, the bound and `convex` all need it
def convex_value(problem: DUFM, steps: int = 20000) -> ConvexValue:
    """Solve the one-layer problem and certify the result; see `convex`."""
    if problem.depth != 1:
        raise DoesNotApply(f"convex needs depth 1, got {problem.depth}: deeper is not convex.")
    # With K neurons the factorised problem has no bad local minima, only saddles,
    # which a random start avoids.
    small = replace(canonical(problem), widths=problem.num_classes)
    layout, function = Layout.of(small), objective(small)
    size = sum(math.prod(shape) for shape in layout.shapes)
    vector = 0.5 * np.random.default_rng(0).standard_normal(size)
    for _ in range(2):  # restarting L-BFGS drops stale curvature near the end
        vector, _, _ = lbfgs(function, vector, steps, 1e-14)
    if size <= NEWTON_SIZE:
        vector = newton_polish(function, vector)
    point = layout.unpack(vector)
    bias = point.bias
    if bias is not None and problem.loss == "ce":
        bias = bias - bias.mean()  # the softmax does not see it, the penalty only dislikes it
    return certify(problem, point.weights[0] @ point.features, bias)


def convex(problem: DUFM) -> Optimum:
    r"""The exact optimum of one layer, for any class sizes, with a certificate.

    .. math:: \min_Z \sum_k \frac{n_k}{N} \mathrm{loss}(z_k, k)
              + \sqrt{\lambda_W\lambda_H}\,\|Z D^{1/2}\|_*, \qquad D = \mathrm{diag}(n_k)

    Parameters
    ----------
    problem : DUFM
        One layer, any loss, counts and bias.

    Returns
    -------
    Optimum
        Status "theorem" if the duality gap closes to 1e-7 of the loss;
        ``parameters`` hold the dual value, "lower", and "operator_ratio", 1 at the
        optimum.

    Raises
    ------
    DoesNotApply
        If the depth is not 1 or the layer is too narrow for the rank found.

    References
    ----------
    Thrampoulidis et al. 2022; Zhu et al. 2021.

    Examples
    --------
    >>> problem = DUFM(3, [20, 5, 2], 1, feature_decay=1e-3, weight_decay=1e-3, loss="ce")
    >>> best = convex(problem)
    >>> best.status, best.loss - best.parameters["lower"] < 1e-8
    ('theorem', True)
    """
    value = convex_value(problem)
    roots = np.sqrt(problem.counts / problem.counts.mean())
    features, weight = split_linear(value.outputs * roots, 1)
    chain = (features / roots, weight)
    check_widths(problem, widths_of(chain), "convex")
    certified = value.loss - value.lower <= GAP_TOLERANCE * value.loss
    return Optimum(
        problem=problem,
        name="convex",
        loss=value.loss,
        chain=chain,
        status="theorem" if certified else "upper bound",
        holds_for=(
            "theorem: global optimum, certified by the dual"
            if certified
            else "upper bound: the duality gap did not close"
        ),
        source="Thrampoulidis et al. 2022; Zhu et al. 2021",
        bias=value.bias,
        parameters={
            "lower": value.lower,
            "gap": value.loss - value.lower,
            "operator_ratio": value.operator_ratio,
        },
    )
