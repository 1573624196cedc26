"""Least losses as numbers: what theorems give, and what no network can beat."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..problem import DUFM, FloatArray
from ..scalar import ell, least_margin_loss
from .dual import convex_value


@dataclass(frozen=True)
class OneLayerFit:
    """Output ``fit * P + mean * J / K`` without the bias, and the bias ``bias / K``."""

    loss: float
    fit: float
    mean: float
    bias: float


def one_layer_mse(problem: DUFM) -> OneLayerFit:
    """The least squared loss of one layer with balanced classes, see `ufm_mse`."""
    classes = problem.num_classes
    g = classes * problem.canonical_decay
    t = max(0.0, 1.0 - g)
    per_direction = (1 - t) ** 2 / (2 * classes) + g / classes * t
    centred = (classes - 1) * per_direction
    if not problem.bias:
        return OneLayerFit(classes * per_direction, t, t, 0.0)
    decay = problem.bias_decay
    if decay == 0:
        return OneLayerFit(centred, t, 0.0, 1.0)
    if decay / (1 + decay) <= g:
        left = decay / (2 * classes * (1 + decay))
        return OneLayerFit(centred + left, t, 0.0, 1 / (1 + decay))
    mean = 1 - g - g / decay
    rest = g**2 / (2 * classes) * (1 + 1 / decay) + g / classes * mean
    return OneLayerFit(centred + rest, t, mean, g / decay)


def one_layer_ce(problem: DUFM) -> tuple[float, float]:
    """Margin and least cross-entropy of one layer; the margin is 0 beyond the threshold."""
    classes, c = problem.num_classes, problem.canonical_decay
    if c >= 1 / classes:
        return 0.0, math.log(classes)
    margin = math.log(1 / c - classes + 1)
    return margin, math.log1p((classes - 1) * math.exp(-margin)) + c * (classes - 1) * margin


def class_strengths(problem: DUFM) -> FloatArray:
    r"""The strength of every class, :math:`g_k = \frac{N}{n_k}(\Lambda n_k)^{1/(L+1)}`.

    :math:`\Lambda = \lambda_H \prod_l \lambda_l`. With balanced classes all equal cK.
    """
    counts = problem.counts.astype(np.float64)
    shares = counts / counts.mean()
    decays = problem.canonical_decay * shares ** (1 / (problem.depth + 1))
    return np.asarray(problem.num_samples / counts * decays)


def left_out(problem: DUFM) -> NDArray[np.intp]:
    """The smallest classes, for which the narrowest layer has no neuron."""
    largest_first = np.argsort(-problem.counts, kind="stable")
    return largest_first[min(problem.layer_widths) :]


def nuclear_bound(problem: DUFM) -> float:
    r"""The lower bound that holds at any depth, with or without ReLU: tight for one layer, else loose.

    .. math:: \ell\big(c K^{2/(L+1)}, L\big)

    for the squared loss, from :math:`\|Z\|_* \le \|W_L\|_F \cdots \|H_1\|_F` and the
    inequality of the means; for cross-entropy the same with the margin of a simplex
    ETF. A bias is counted as free. Unequal classes are reduced to the smallest.

    Examples
    --------
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


def lower_bound(problem: DUFM) -> float:
    """The best proven lower bound: no network of this problem has a lower loss.

    The optimal value itself where a theorem gives it: one layer, two balanced
    classes with squared loss, or the linear model with squared loss. Otherwise
    `nuclear_bound`, which is far from tight.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> round(lower_bound(problem), 12)
    0.070487054295
    """
    classes, depth = problem.num_classes, problem.depth
    plain = problem.loss == "mse" and not problem.bias
    if plain and not problem.rectified:
        losses = np.array([ell(float(g), depth) for g in class_strengths(problem)])
        losses[left_out(problem)] = 0.5
        return float(problem.counts / problem.num_samples @ losses)
    strength = classes * problem.canonical_decay
    if plain and problem.balanced and classes == 2:
        return ell(strength, depth)
    if depth == 1:
        if not problem.balanced:
            return convex_value(problem).lower
        return one_layer_mse(problem).loss if problem.loss == "mse" else one_layer_ce(problem)[1]
    free = problem.bias and problem.bias_decay == 0
    if problem.loss == "mse" and free and problem.balanced and not problem.rectified:
        return (classes - 1) / classes * ell(strength, depth)
    return nuclear_bound(problem)
