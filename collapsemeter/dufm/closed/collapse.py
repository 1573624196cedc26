"""Nothing learned, part of it, or all: zero, partial and full neural collapse."""

import math
from functools import partial as bind

import numpy as np

from ..applies import DoesNotApply, TooNarrow, require, require_survival
from ..arrays import FloatArray
from ..factors import Chain, balance, check_widths, collapsed_widths, unit_first_layer
from ..network import class_columns, fit_and_slope
from ..optimum import Optimum, Status
from ..problem import DUFM
from ..scalar import ell, ell_minimiser
from .blocks import Block, compose, require_collapsible
from .bounds import lower_bound
from .cross_entropy import centred_classes, dnc_ce, simplex_chain, simplex_margin

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
    if problem.balanced:
        return np.zeros(problem.num_classes)
    bias = np.log(shares) - float(np.mean(np.log(shares)))
    if problem.bias_decay == 0:
        return np.asarray(bias)
    return _decayed_log_odds(shares, problem.bias_decay)


def _decayed_log_odds(shares: FloatArray, decay: float) -> FloatArray:
    """The bias b that minimises cross-entropy with decay, by Newton steps that never climb."""

    def loss(bias: FloatArray) -> float:
        shifted = bias - bias.max()
        fit = np.log(np.sum(np.exp(shifted))) - shares @ shifted
        return float(fit + 0.5 * decay * (bias @ bias))

    bias = np.zeros(shares.size)
    for _ in range(100):
        weights = np.exp(bias - bias.max())
        weights /= weights.sum()
        slope = weights - shares + decay * bias
        if np.max(np.abs(slope)) < 1e-15:
            break
        curvature = np.diag(weights + decay) - np.outer(weights, weights)
        step = np.linalg.solve(curvature, slope)
        size, reached = 1.0, loss(bias) * (1 + 1e-15)  # near the end rounding hides the descent
        while size > 1e-10 and loss(bias - size * step) > reached - 0.1 * size * (slope @ step):
            size /= 2
        bias = bias - size * step
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


def dnc(problem: DUFM, first_layer: float | None = None) -> Optimum:
    r"""Deep neural collapse: every class has its own neurons, in every layer.

    .. math:: Z = t I, \qquad \ell(cK, L) = \tfrac12 (1-t)(1+Lt)

    or, for cross-entropy through ReLU layers,

    .. math:: Z = a (I - J/K), \qquad \log(1 + (K-1)e^{-a})
              + \tfrac{L+1}{2}\, c\, (K^L (K-1))^{1/(L+1)}\, a^{2/(L+1)}

    With a free bias and depth 2 or more the last layer drops the mean it supplies:

    .. math:: Z = t (I - J/K) + J/K, \qquad
              \tfrac{K-1}{K}\,\ell\Big(c\,\tfrac{K}{K-1}\,(K^L (K-1))^{1/(L+1)}, L\Big)

    From depth 2 on the first layer is free: its features may be anything from an
    orthogonal frame to a simplex ETF, and of a rank as low as K / 2, so it may be
    narrower than the layers after it, which need K neurons each.

    Parameters
    ----------
    problem : DUFM
        ReLU, balanced classes; squared loss without bias or, from depth 2 on, with a
        free one; or cross-entropy of depth 2 or more.
    first_layer : float, optional
        0 for the orthogonal frame, 1 for the simplex ETF in layer 1. By default the
        orthogonal frame, or opposite pairs where layer 1 is too narrow for it.

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
    check_widths(problem, collapsed_widths(problem, first_layer), "dnc")
    status, words = _trust_dnc(problem)
    norm = found.fits[0] ** (1 / (depth + 1)) * math.sqrt(classes)
    return Optimum(
        problem=problem,
        name="dnc",
        loss=found.loss,
        chain=bind(_dnc_chain, problem, first_layer, norm),
        status=status,
        holds_for=words,
        source=BINARY,
        parameters={"t": found.fits[0]},
        free_layers=(1,) if depth > 1 else (),
    )


def _dnc_chain(problem: DUFM, first_layer: float | None, norm: float) -> Chain:
    own = (np.eye(problem.num_classes),) * (problem.depth - 1)
    return balance((*unit_first_layer(problem, first_layer), *own), norm)


def _dnc_centred(problem: DUFM, first_layer: float | None) -> Optimum:
    """`dnc` for squared loss with a free bias: the last layer maps to a simplex."""
    require(problem, "dnc", balanced=True, activation="relu", bias_decay=0.0)
    classes, depth = problem.num_classes, problem.depth
    effective = centred_classes(classes, depth)
    strength = problem.canonical_decay * effective * classes / (classes - 1)
    fit = ell_minimiser(strength, depth)
    require_survival("dnc", [fit])
    check_widths(problem, collapsed_widths(problem, first_layer), "dnc")
    norm = math.sqrt(effective) * fit ** (1 / (depth + 1))
    return Optimum(
        problem=problem,
        name="dnc",
        loss=(classes - 1) / classes * ell(strength, depth),
        chain=bind(simplex_chain, problem, first_layer, norm),
        status="upper bound",
        holds_for="upper bound: descent finds lower, letting the bias carry a class",
        source=f"{BINARY}, for the structure",
        bias=np.full(classes, 1 / classes),
        parameters={"t": fit, "effective_classes": effective},
        free_layers=(1,),
    )


def partial(problem: DUFM, learned: int) -> Optimum:
    r"""Collapse of some classes while the others are not learned: a bad local minimum.

    .. math:: \frac{K-k}{K}\,f_0 + \frac kK\,f_{\mathrm{DNC}}

    where :math:`f_0` is the loss of no output, 1/2 or log K, and
    :math:`f_{\mathrm{DNC}}` that of `dnc`.

    Parameters
    ----------
    problem : DUFM
        Balanced classes, no bias. ReLU and squared loss, else only
        as many learned classes as the narrowest layer holds.
    learned : int
        Number k of learned classes, 1 to K - 1.

    Returns
    -------
    Optimum
        Named "partial(k)". Status "theorem" for squared loss where no ReLU acts and
        a layer has no more than k neurons, else "upper bound".

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
    require(problem, "partial", balanced=True, bias=False)
    classes, depth, room = problem.num_classes, problem.depth, min(problem.layer_widths)
    if learned > room:
        raise TooNarrow(
            f"partial needs width {learned}, got {problem.layer_widths}: widen the layers."
        )
    if (problem.loss, problem.activation) != ("mse", "relu") and learned != room:
        raise DoesNotApply(
            f"partial needs {room} learned classes here, as many as the narrowest layer holds, "
            f"got {learned}: others are no local minimum."
        )
    fit, nothing, whole, norm = _fit_of_learned(problem)
    require_survival("partial", [fit])
    status, words = _trust_partial(problem, learned)
    return Optimum(
        problem=problem,
        name=f"partial({learned})",
        loss=(classes - learned) / classes * nothing + learned / classes * whole,
        chain=bind(_partial_chain, problem, learned, norm),
        status=status,
        holds_for=words,
        source=f"{BINARY}, for the model",
        parameters={"t" if problem.loss == "mse" else "margin": fit, "learned": learned},
        free_layers=(1,) if depth > 1 and problem.rectified else (),
    )


def _fit_of_learned(problem: DUFM) -> tuple[float, float, float, float]:
    """Fit, loss of a class that is not learned and of one that is, norm of a factor per class."""
    classes, depth = problem.num_classes, problem.depth
    if problem.loss == "ce":
        margin, loss = simplex_margin(problem)
        norm = math.sqrt(centred_classes(classes, depth) / classes) * margin ** (1 / (depth + 1))
        return margin, math.log(classes), loss, norm
    strength = classes * problem.canonical_decay
    fit = ell_minimiser(strength, depth)
    return fit, 0.5, ell(strength, depth), fit ** (1 / (depth + 1))


def _partial_chain(problem: DUFM, learned: int, norm: float) -> Chain:
    """The first classes of a collapsed network; the columns of every factor have one norm."""
    classes, depth = problem.num_classes, problem.depth
    axes = np.eye(classes)[:, :learned]
    outputs = axes if problem.loss == "mse" else axes - 1 / classes
    chain = (axes.T, *(np.eye(learned),) * (depth - 1), outputs)
    return balance(chain, norm * math.sqrt(learned))


def _trust_partial(problem: DUFM, learned: int) -> tuple[Status, str]:
    if problem.loss == "mse" and not problem.rectified and learned == min(problem.layer_widths):
        return "theorem", f"theorem: global optimum for width {learned} and no ReLU"
    if problem.rectified:
        return "upper bound", "upper bound: a local minimum, where descent gets stuck"
    if problem.loss == "mse":
        return "upper bound", "upper bound: a saddle, which descent leaves"
    return "upper bound", "upper bound: a feasible point of narrow layers, not stationary"
