"""What no network can beat."""

import numpy as np

from ..problem import DUFM
from ..scalar import ell, least_margin_loss, softmax_margin
from .convex import convex_value
from .linear import imbalanced_strengths, left_out
from .one_layer import shallow_ce, shallow_mse


def nuclear_bound(problem: DUFM) -> float:
    r"""The lower bound that holds at any depth, with or without ReLU.

    .. math:: \ell\big(c K^{2/(L+1)}, L\big)

    for the squared loss, from :math:`\|Z\|_* \le \|W_L\|_F \cdots \|H_1\|_F` and the
    inequality of the means; for cross-entropy the same with the margin of a simplex
    ETF. A bias is counted as free. Unequal classes are reduced to the smallest.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    float
        At most the optimal loss; tight at depth 1, loose at depth.

    References
    ----------
    The argument is that of Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

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
        fit, slope = softmax_margin(((classes - 1.0, 1.0),))
        strength = decay * (classes - 1) ** power
        return share * least_margin_loss(fit, slope, strength, depth)[1]
    if problem.bias:
        kept = (classes - 1) / classes
        return share * kept * ell(decay * (classes - 1) ** power / kept, depth)
    return share * ell(decay * classes**power, depth)


def lower_bound(problem: DUFM) -> float:
    r"""The best proven lower bound on the loss.

    The optimal value itself where a theorem gives it: one layer, two balanced
    classes with squared loss, or the linear model with squared loss. Otherwise
    `nuclear_bound`, which is far from tight.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    float
        No network has a lower loss; of wider layers neither, unless the model is linear.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165; Dang et al. 2023; Zhu et al.
    2021; Zhou et al. 2022.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> round(lower_bound(problem), 12)
    0.070487054295
    """
    classes, depth = problem.num_classes, problem.depth
    plain = problem.loss == "mse" and not problem.bias
    if plain and not problem.rectified:
        losses = np.array([ell(float(g), depth) for g in imbalanced_strengths(problem)])
        losses[left_out(problem)] = 0.5
        shares = problem.counts / problem.num_samples
        return float(sum(share * loss for share, loss in zip(shares, losses, strict=True)))
    strength = classes * problem.canonical_decay
    if plain and problem.balanced and classes == 2:
        return ell(strength, depth)
    if depth == 1:
        if not problem.balanced:
            return convex_value(problem).lower
        return shallow_mse(problem).loss if problem.loss == "mse" else shallow_ce(problem)[1]
    free = problem.bias and problem.bias_decay == 0
    if problem.loss == "mse" and free and problem.balanced and not problem.rectified:
        return (classes - 1) / classes * ell(strength, depth)
    return nuclear_bound(problem)
