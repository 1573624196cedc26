"""Nothing learned, part of it, or all: zero, partial and full neural collapse."""

import math
from functools import partial as bind

import numpy as np

from collapsemeter.dufm.applies import DoesNotApply, require, require_survival
from collapsemeter.dufm.arrays import FloatArray
from collapsemeter.dufm.blocks import (
    Block,
    compose,
    require_collapsible,
)
from collapsemeter.dufm.bounds import lower_bound
from collapsemeter.dufm.deep_ce import centred_classes, dnc_ce
from collapsemeter.dufm.factors import (
    Chain,
    balance,
    check_widths,
    unit_first_layer,
)
from collapsemeter.dufm.network import class_columns, fit_and_slope
from collapsemeter.dufm.optimum import Optimum, Status
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.scalar import ell, ell_minimiser
from collapsemeter.frames import centring

BINARY = "Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165"


def best_bias(problem: DUFM) -> FloatArray:
    r"""The bias of a network that outputs nothing else.

    .. math:: b = \pi / (1 + \lambda_b) \quad\text{or}\quad
              \mathrm{softmax}(b) + \lambda_b b = \pi, \qquad \pi_k = n_k / N

    Parameters
    ----------
    problem : DUFM
        Gives loss, counts and bias decay.

    Returns
    -------
    ndarray, shape (K,)

    References
    ----------
    Tirer & Bruna 2022 for the squared loss.

    Examples
    --------
    >>> problem = DUFM(2, [1, 3], 1, feature_decay=1.0, weight_decay=1.0, bias=True)
    >>> best_bias(problem).tolist()
    [0.25, 0.75]
    """
    shares = problem.counts / problem.num_samples
    if problem.loss == "mse":
        return np.asarray(shares / (1 + problem.bias_decay))
    bias = np.log(shares) - float(np.mean(np.log(shares)))
    if problem.bias_decay == 0:
        return np.asarray(bias)
    bias = np.zeros(problem.num_classes)
    for _ in range(60):  # Newton: the objective is smooth and strongly convex
        weights = np.exp(bias - bias.max())
        weights /= weights.sum()
        slope = weights - shares + problem.bias_decay * bias
        curvature = np.diag(weights + problem.bias_decay) - np.outer(weights, weights)
        bias = bias - np.linalg.solve(curvature, slope)
    return np.asarray(bias)


def zero(problem: DUFM) -> Optimum:
    r"""No features and no weights; a bias, if there is one, learns the class sizes.

    It is a local minimum at every depth above one.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    Optimum
        Status "theorem" where the decays are so strong that nothing is better.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> zero(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)).loss
    0.5
    >>> zero(DUFM(2, 10, 3, feature_decay=1.0, weight_decay=1.0)).status
    'theorem'
    """
    classes = problem.num_classes
    bias = best_bias(problem) if problem.bias else np.zeros(classes)
    outputs = np.repeat(bias[:, None], classes, axis=1)
    loss = fit_and_slope(problem.loss, outputs, class_columns(problem))[0]
    loss += 0.5 * problem.bias_decay * float(np.sum(bias**2))
    proven = lower_bound(problem) >= loss * (1 - 1e-14)
    chain = (np.zeros((1, classes)), *(np.zeros((1, 1)),) * (problem.depth - 1))
    return Optimum(
        problem=problem,
        name="zero",
        loss=loss,
        chain=(*chain, np.zeros((classes, 1))),
        status="theorem" if proven else "upper bound",
        holds_for=(
            "theorem: the lower bound shows that nothing is better at these decays"
            if proven
            else "upper bound: nothing learned, stationary at any decay"
        ),
        source=BINARY,
        bias=bias if problem.bias else None,
    )


def _trust_dnc(problem: DUFM) -> tuple[Status, str]:
    classes, depth = problem.num_classes, problem.depth
    if depth == 1:
        return "theorem", "theorem: global optimum for one layer"
    if classes == 2:
        return "theorem", "theorem: global optimum for two classes"
    if depth == 2 or (depth == 3 and classes <= 6):
        return "best known", "best known: nothing lower has been found, no proof"
    return "upper bound", "upper bound: lower losses of lower rank exist or are found by descent"


def dnc(problem: DUFM, first_layer: float = 0.0) -> Optimum:
    r"""Deep neural collapse: every class has its own neurons, in every layer.

    .. math:: Z = t I, \qquad \ell(cK, L) = \tfrac12 (1-t)(1+Lt)

    or, for cross-entropy through ReLU layers,

    .. math:: Z = a (I - J/K), \qquad \log(1 + (K-1)e^{-a})
              + \tfrac{L+1}{2}\, c\, (K^L (K-1))^{1/(L+1)}\, a^{2/(L+1)}

    With a free bias and depth 2 or more the last layer drops the mean it supplies:

    .. math:: Z = t (I - J/K) + J/K, \qquad
              \tfrac{K-1}{K}\,\ell\Big(c\,\tfrac{K}{K-1}\,(K^L (K-1))^{1/(L+1)}, L\Big)

    From depth 2 on the first layer is free: its features may be anything from an
    orthogonal frame to a simplex ETF.

    Parameters
    ----------
    problem : DUFM
        ReLU, balanced classes; squared loss without bias or, from depth 2 on, with a
        free one; or cross-entropy of depth 2 or more.
    first_layer : float
        0 for the orthogonal frame, 1 for the simplex ETF in layer 1.

    Returns
    -------
    Optimum
        Status "theorem" for squared loss with two classes or one layer.

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.
    ValueError
        If `first_layer` is not between 0 and 1, or not 0 at depth 1.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165; Garrod & Keating 2024,
    arXiv 2410.23169.

    Examples
    --------
    >>> problem = DUFM(10, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> round(dnc(problem).loss, 12)
    0.049797543943
    """
    if problem.loss == "ce":
        return dnc_ce(problem, first_layer)
    if problem.bias and problem.depth > 1:
        return _dnc_centred(problem, first_layer)
    require_collapsible(problem, "dnc")
    classes, depth = problem.num_classes, problem.depth
    found = compose(problem, [Block(classes)])
    require_survival("dnc", found.fits)
    first = unit_first_layer(classes, first_layer, depth)
    chain = (*first, *(np.eye(classes),) * (depth - 1))
    chain = balance(chain, float(np.linalg.norm(found.chain[0])))
    check_widths(problem, chain, "dnc")
    status, words = _trust_dnc(problem)
    return Optimum(
        problem=problem,
        name="dnc",
        loss=found.loss,
        chain=chain,
        status=status,
        holds_for=words,
        source=BINARY,
        parameters={"t": found.fits[0], "first_layer": first_layer},
        free_layers=(1,) if depth > 1 else (),
    )


def _dnc_centred(problem: DUFM, first_layer: float) -> Optimum:
    """`dnc` for squared loss with a free bias: the last layer maps to a simplex."""
    require(problem, "dnc", balanced=True, activation="relu", bias_decay=0.0)
    classes, depth = problem.num_classes, problem.depth
    effective = centred_classes(classes, depth)
    strength = problem.canonical_decay * effective * classes / (classes - 1)
    fit = ell_minimiser(strength, depth)
    require_survival("dnc", [fit])
    first = unit_first_layer(classes, first_layer, depth)
    chain = (*first, *(np.eye(classes),) * (depth - 2), centring(classes))
    chain = balance(chain, math.sqrt(effective) * fit ** (1 / (depth + 1)))
    check_widths(problem, chain, "dnc")
    return Optimum(
        problem=problem,
        name="dnc",
        loss=(classes - 1) / classes * ell(strength, depth),
        chain=chain,
        status="upper bound",
        holds_for="upper bound: descent finds lower, letting the bias carry a class",
        source=f"{BINARY}, for the structure",
        bias=np.full(classes, 1 / classes),
        parameters={"t": fit, "first_layer": first_layer, "effective_classes": effective},
        free_layers=(1,),
    )


def _partial_chain(problem: DUFM, learned: int) -> Chain:
    return compose(problem, [Block(learned)]).chain


def partial(problem: DUFM, learned: int) -> Optimum:
    r"""Collapse of some classes while the others are not learned: a bad local minimum.

    .. math:: \frac{K-k}{2K} + \frac kK\,\ell(cK, L)

    Parameters
    ----------
    problem : DUFM
        ReLU, squared loss, balanced classes, no bias.
    learned : int
        Number k of learned classes, 1 to K - 1.

    Returns
    -------
    Optimum
        Named "partial(k)", status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.
    ValueError
        If `learned` is out of range.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165, for the model.

    Examples
    --------
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> round(partial(problem, 1).loss, 9)
    0.285243527
    """
    if not 1 <= learned < problem.num_classes:
        raise ValueError(
            f"learned must be 1 to {problem.num_classes - 1}, got {learned}: "
            "use zero or dnc for none or all."
        )
    require_collapsible(problem, "partial")
    classes = problem.num_classes
    strength = classes * problem.canonical_decay
    fit = ell_minimiser(strength, problem.depth)
    require_survival("partial", [fit])
    if learned > min(problem.layer_widths):
        raise DoesNotApply(
            f"partial needs width {learned}, got {problem.layer_widths}: widen the layers."
        )
    return Optimum(
        problem=problem,
        name=f"partial({learned})",
        loss=(classes - learned) / (2 * classes) + learned / classes * ell(strength, problem.depth),
        chain=bind(_partial_chain, problem, learned),
        status="upper bound",
        holds_for=(
            "upper bound: a local minimum, where descent gets stuck"
            if problem.depth > 1
            else "upper bound: a saddle, which descent leaves"
        ),
        source=f"{BINARY}, for the model",
        parameters={"t": fit, "learned": learned},
        free_layers=(1,) if problem.depth > 1 else (),
    )
