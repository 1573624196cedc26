"""Least losses as numbers: what theorems give, what a dual certifies, what no network can beat."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special  # type: ignore[import-untyped, unused-ignore]

from ..descent import flatten, lbfgs, newton_polish, unflatten
from ..network import class_columns, fit_and_slope, zero_variables
from ..problem import FloatArray, Problem
from ..reductions import canonical
from ..refusals import DoesNotApply
from ..scalar import ell, ell_minimiser, least_margin_loss

NEWTON_SIZE = 900  # variables up to which Newton steps finish the solution, some 20 classes


def one_layer_mse(problem: Problem) -> tuple[float, float, float, float]:
    """Least squared loss of one layer, output ``fit * P + mean * J / K`` beside ``bias / K``."""
    classes = problem.num_classes
    g = classes * problem.canonical_decay
    t = max(0.0, 1.0 - g)
    per_direction = (1 - t) ** 2 / (2 * classes) + g / classes * t
    centred = (classes - 1) * per_direction
    if not problem.bias:
        return (classes * per_direction, t, t, 0.0)
    decay = problem.bias_decay
    if decay == 0:
        return (centred, t, 0.0, 1.0)
    if decay / (1 + decay) <= g:
        left = decay / (2 * classes * (1 + decay))
        return (centred + left, t, 0.0, 1 / (1 + decay))
    mean = 1 - g - g / decay
    offset = g**2 / (2 * classes) * (1 + 1 / decay) + g / classes * mean
    return (centred + offset, t, mean, g / decay)


def one_layer_ce(problem: Problem) -> tuple[float, float]:
    """Margin and least cross-entropy of one layer; the margin is 0 beyond the threshold."""
    classes, c = problem.num_classes, problem.canonical_decay
    if c >= 1 / classes:
        return 0.0, math.log(classes)
    margin = math.log(1 / c - classes + 1)
    return margin, math.log1p((classes - 1) * math.exp(-margin)) + c * (classes - 1) * margin


def class_strengths(problem: Problem) -> FloatArray:
    """The strength g_k of every class, see `gof`; with balanced classes all equal cK."""
    counts = problem.counts.astype(np.float64)
    shares = counts / counts.mean()
    decays = problem.canonical_decay * shares ** (1 / (problem.depth + 1))
    return np.asarray(problem.num_samples / counts * decays)


def class_fits(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Fit and loss of every class, see `gof`; the smallest get no neuron of a narrow layer."""
    strengths = [float(g) for g in class_strengths(problem)]
    fits = np.array([ell_minimiser(g, problem.depth) for g in strengths])
    losses = np.array([ell(g, problem.depth) for g in strengths])
    left_out = np.argsort(-problem.counts, kind="stable")[min(problem.layer_widths) :]
    fits[left_out], losses[left_out] = 0.0, 0.5
    return fits, losses


def nuclear_bound(problem: Problem) -> float:
    r"""The lower bound that holds at any depth, with or without ReLU: tight for one layer, else loose.

    .. math:: \ell\big(c K^{2/(L+1)}, L\big)

    for the squared loss, from :math:`\|Z\|_* \le \|W_L\|_F \cdots \|H_1\|_F` and the
    inequality of the means; for cross-entropy the same with the margin of a simplex
    ETF. A bias is counted as free. Unequal classes are reduced to the smallest.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(10, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> round(nuclear_bound(problem), 6), round(problem.optimum().loss, 6)
    (0.012547, 0.040706)
    """
    classes, depth = problem.num_classes, problem.depth
    # Every class has at least the fit, and the decay, of the smallest one.
    counts = problem.counts
    share = float(counts.min() * classes / counts.sum())
    shrink = float(counts.min() / counts.mean()) ** (1 / (depth + 1))
    decay = problem.canonical_decay * shrink / share
    power = 2 / (depth + 1)
    if problem.loss == "ce":
        strength = decay * (classes - 1) ** power
        return share * least_margin_loss(((classes - 1.0, 1.0),), strength, depth)[1]
    if problem.bias:
        centred = (classes - 1) / classes
        return share * centred * ell(decay * (classes - 1) ** power / centred, depth)
    return share * ell(decay * classes**power, depth)


def lower_bound(problem: Problem) -> float:
    """The best proven lower bound: no network of this problem has a lower loss.

    The optimal value itself where a theorem gives it: one layer, two balanced
    classes with squared loss, or the linear model with squared loss. Otherwise
    `nuclear_bound`, which is far from tight.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> round(lower_bound(problem), 12)
    0.070487054295
    """
    classes, depth = problem.num_classes, problem.depth
    plain = problem.loss == "mse" and not problem.bias
    if plain and not problem.rectified:
        return float(problem.counts / problem.num_samples @ class_fits(problem)[1])
    strength = classes * problem.canonical_decay
    if plain and problem.balanced and classes == 2:
        return ell(strength, depth)
    if depth == 1:
        if not problem.balanced:
            return convex_value(problem).lower
        return one_layer_mse(problem)[0] if problem.loss == "mse" else one_layer_ce(problem)[1]
    free = problem.bias and problem.bias_decay == 0
    if problem.loss == "mse" and free and problem.balanced and not problem.rectified:
        return (classes - 1) / classes * ell(strength, depth)
    return nuclear_bound(problem)


@dataclass(frozen=True)
class ConvexValue:
    """A primal point, its loss, and a dual bound that no point can beat."""

    outputs: FloatArray
    bias: FloatArray | None
    loss: float
    lower: float
    operator_ratio: float


def certify(problem: Problem, outputs: FloatArray, bias: FloatArray | None) -> ConvexValue:
    r"""Bound the optimal loss of one layer from below, by the dual at a given point.

    .. math:: \max_G -\mathrm{fit}^*(G) - \tfrac{1}{2\lambda_b}\|G 1\|^2
              \quad\text{s.t.}\quad \|G D^{-1/2}\|_\mathrm{op} \le \sqrt{\lambda_W \lambda_H}

    The slope of the fit is shrunk until it is feasible. The result has the ``loss`` of the
    point and the bound ``lower``; they agree at the optimum (Thrampoulidis et al. 2022).

    Parameters
    ----------
    problem : DUFM
        One layer.
    outputs : ndarray, shape (K, K)
        Outputs of the classes, in columns, without the bias.
    bias : ndarray, shape (K,), optional

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
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
    per_class = slope / columns.fit
    if problem.loss == "mse":
        conjugates = 0.5 * np.sum(per_class**2, axis=0) + per_class.diagonal()
    else:
        chances = np.maximum(per_class + np.eye(problem.num_classes), 0.0)
        conjugates = np.sum(special.xlogy(chances, chances), axis=0)
    lower = -float(np.sum(columns.fit * conjugates))
    if problem.bias_decay:
        lower -= float(np.sum(slope.sum(axis=1) ** 2)) / (2 * problem.bias_decay)
    return ConvexValue(outputs, bias, loss, lower, ratio)


@lru_cache(maxsize=64)  # the zero network, the bound and `convex` all need it
def convex_value(problem: Problem) -> ConvexValue:
    """Solve the one-layer problem and certify the result."""
    if problem.depth != 1:
        raise DoesNotApply(f"convex needs depth 1, got {problem.depth}: deeper is not convex.")
    # With K neurons the factorised problem has no bad local minima, only saddles,
    # which a random start avoids.
    small = replace(canonical(problem), widths=problem.num_classes)
    blank = zero_variables(small, problem.num_classes)
    size = flatten(blank).size
    point = unflatten(blank, 0.5 * np.random.default_rng(0).standard_normal(size))
    for _ in range(2):  # restarting L-BFGS drops stale curvature near the end
        point = lbfgs(small, point, 20_000, 1e-14)[1]
    if size <= NEWTON_SIZE:
        point = newton_polish(small, point)
    bias = point.bias
    if bias is not None and problem.loss == "ce":
        bias = bias - bias.mean()  # the softmax does not see it, the penalty only dislikes it
    return certify(problem, point.weights[0] @ point.features, bias)
