"""Neural collapse of all classes, the proven optimum for two classes or one layer, or of some of them."""

import math
from contextlib import suppress
from functools import partial as bind

import numpy as np

from ...metrics.frames import centring
from ..chain import Chain, balance, paired_signs, require_widths, split_linear
from ..optimum import Optimum, structure
from ..problem import FloatArray, Problem
from ..refusals import DoesNotApply, TooNarrow, require_problem, require_survival
from ..registry import closed_form
from ..scalar import ell, ell_minimiser, least_margin_loss

BINARY = "Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165"


def orthogonal_frame(
    num_classes: int, width: int, rng: np.random.Generator | None = None
) -> FloatArray:
    """An orthogonal frame: K orthonormal rows, :math:`M M^T = I`, shape (K, d).

    Parameters
    ----------
    num_classes, width : int
        K, at least 2, and d, at least K; ValueError else.
    rng : numpy.random.Generator, optional
        Draws a random rotation; by default the first K axes, so that the frame is
        non-negative and passes through a ReLU unchanged.

    Examples
    --------
    >>> frame = orthogonal_frame(3, 5)
    >>> (frame @ frame.T).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}: pass more classes.")
    if width < num_classes:
        raise ValueError(
            f"an orthogonal frame of {num_classes} classes needs width {num_classes}, got {width}: "
            "widen the layer."
        )
    if rng is None:
        return np.eye(num_classes, width)
    axes = np.linalg.qr(rng.standard_normal((width, num_classes)))[0]
    return np.asarray(axes.T, dtype=np.float64)


@closed_form("collapsed", place=4)
def dnc(problem: Problem, first_layer: float | None = None) -> Optimum:
    r"""Deep neural collapse: every class has its own neurons, in every layer.

    .. math:: Z = t I, \qquad \ell(cK, L) = \tfrac12 (1-t)(1+Lt)

    or, for cross-entropy through two ReLU layers or more,

    .. math:: Z = a (I - J/K), \qquad \log(1 + (K-1)e^{-a})
              + \tfrac{L+1}{2}\, c\, (K^L (K-1))^{1/(L+1)}\, a^{2/(L+1)}

    With a free bias and depth 2 or more the last layer drops the mean it supplies:

    .. math:: Z = t (I - J/K) + J/K, \qquad
              \tfrac{K-1}{K}\,\ell\Big(c\,\tfrac{K}{K-1}\,(K^L (K-1))^{1/(L+1)}, L\Big)

    Parameters
    ----------
    problem : DUFM
        ReLU, balanced classes, no bias or, with squared loss, a free one.
    first_layer : float, optional
        From depth 2 on the features are free: 0 for an orthogonal frame, 1 for a simplex
        ETF. By default the frame, or opposite pairs where layer 1 is too narrow for it.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(10, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> round(dnc(problem).loss, 12)
    0.049797543943
    """
    require_problem(problem, "dnc", balanced=True, activation="relu")
    classes, depth, squared = problem.num_classes, problem.depth, problem.loss == "mse"
    if squared:
        require_problem(problem, "dnc", **({"bias_decay": 0.0} if depth > 1 else {"bias": False}))
    elif depth == 1:
        raise DoesNotApply("dnc with loss 'ce' needs depth 2 or more, got 1: use ufm_ce.")
    fit, loss, effective = _wide_fit(problem)
    require_survival("dnc", [fit])
    first = _first_width(problem, first_layer)
    require_widths(problem, (first, *(classes,) * (depth - 1)), "dnc")
    parameters = {"t" if squared else "margin": fit}
    if _centred(problem):
        parameters["effective_classes"] = effective
    chain = bind(_dnc_chain, problem, first_layer, fit, effective)
    words, source = _trust_dnc(problem)
    mean = np.full(classes, 1 / classes) if problem.bias and squared else None
    free = (1,) if depth > 1 else ()
    return structure(problem, "dnc", loss, chain, words, source, parameters, mean, free)


def _centred(problem: Problem) -> bool:
    """Whether the last layer maps to a simplex ETF: the loss or the bias supplies the mean."""
    return problem.loss == "ce" or problem.bias


def _wide_fit(problem: Problem) -> tuple[float, float, float]:
    """Fit, loss and effective class count of collapse in wide layers."""
    classes, depth = problem.num_classes, problem.depth
    effective = float(classes)
    if _centred(problem):  # every other layer still needs K directions: a ReLU keeps no simplex
        effective = math.exp((depth * math.log(classes) + math.log(classes - 1)) / (depth + 1))
    strength = problem.canonical_decay * effective
    if problem.loss == "ce":
        return (*least_margin_loss(((classes - 1.0, 1.0),), strength, depth), effective)
    share = (classes - 1) / classes if problem.bias else 1.0
    fit, loss = ell_minimiser(strength / share, depth), ell(strength / share, depth)
    return fit, share * loss, effective


def _trust_dnc(problem: Problem) -> tuple[str, str]:
    """How sure it is, in words, and the source."""
    classes, depth = problem.num_classes, problem.depth
    if problem.loss == "ce":
        words = "upper bound: a feasible structure of the ReLU network, no proof"
        return words, "Garrod & Keating 2024, arXiv 2410.23169"
    if problem.bias:
        words = "upper bound: descent finds lower, letting the bias carry a class"
        return words, f"{BINARY}, for the structure"
    if min(depth, classes - 1) == 1:
        return f"theorem: global optimum for {'one layer' if depth == 1 else 'two classes'}", BINARY
    if depth == 2 or (depth == 3 and classes <= 6):
        return "best known: nothing lower has been found, no proof", BINARY
    return "upper bound: lower losses of lower rank exist or are found by descent", BINARY


def _first_width(problem: Problem, tilt: float | None) -> int:
    """Width that the free first layer needs: K, or K / 2 with opposite pairs of the same loss."""
    classes, depth = problem.num_classes, problem.depth
    if tilt is not None and not 0.0 <= tilt <= 1.0:
        raise ValueError(
            f"first_layer must be between 0 (orthogonal) and 1 (simplex ETF), got {tilt}: "
            "only these have the same loss."
        )
    if tilt and depth == 1:
        raise ValueError(
            f"first_layer must be 0 at depth 1, got {tilt}: without a ReLU the frame is fixed."
        )
    if tilt is None and depth > 1 and problem.layer_widths[0] < classes:
        return (classes + 1) // 2
    return classes - (tilt == 1)


def _dnc_chain(problem: Problem, tilt: float | None, fit: float, effective: float) -> Chain:
    classes, depth = problem.num_classes, problem.depth
    # H_2 = I - N up to the ReLU costs the same for every non-negative symmetric N with zero
    # diagonal and eigenvalues of at most 1: none, (J - I) / (K - 1), or a swap of pairs.
    if tilt is None and _first_width(problem, tilt) < classes:
        second = paired_signs(classes)
    else:
        second = np.eye(classes) - (tilt or 0.0) / (classes - 1) * (1 - np.eye(classes))
    factors = [*split_linear(second, 1), *(np.eye(classes),) * (depth - 1)]
    if _centred(problem):
        factors[-1] = centring(classes)
    return balance(tuple(factors), math.sqrt(effective) * fit ** (1 / (depth + 1)))


def partial(problem: Problem, learned: int) -> Optimum:
    r"""Collapse of some classes while the others are not learned: a bad local minimum.

    .. math:: \frac{K-k}{K}\,f_0 + \frac kK\,f_{\mathrm{DNC}}

    where :math:`f_0` is the loss of no output, 1/2 or log K, and
    :math:`f_{\mathrm{DNC}}` that of `dnc`. It is optimal for squared loss where no ReLU acts
    and a layer has no more than k neurons.

    Parameters
    ----------
    problem : DUFM
        Balanced classes, no bias.
    learned : int
        Number k of learned classes, 1 to K - 1; as many as the narrowest layer holds, unless
        the loss is squared and the activation a ReLU.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)
    >>> round(partial(problem, 1).loss, 9)
    0.285243527
    """
    if not 1 <= learned < problem.num_classes:
        raise ValueError(
            f"learned must be 1 to {problem.num_classes - 1}, got {learned}: "
            "use zero or dnc for none or all."
        )
    require_problem(problem, "partial", balanced=True, bias=False)
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
    fit, collapsed, effective = _wide_fit(problem)
    require_survival("partial", [fit])
    nothing, fit_name = (0.5, "t") if problem.loss == "mse" else (math.log(classes), "margin")
    loss = ((classes - learned) * nothing + learned * collapsed) / classes
    norm = math.sqrt(effective * learned / classes) * fit ** (1 / (depth + 1))
    words, source = _trust_partial(problem, learned), f"{BINARY}, for the model"
    return structure(
        problem, f"partial({learned})", loss, bind(_partial_chain, problem, learned, norm), words,
        source, {fit_name: fit, "learned": learned}, free_layers=(1,) if problem.rectified else (),
    )  # fmt: skip


@closed_form("other", place=14)
def partials(problem: Problem) -> list[Optimum]:
    """`partial` with every number of learned classes for which it applies."""
    optima = []
    for learned in range(1, min(problem.num_classes, min(problem.layer_widths) + 1)):
        with suppress(DoesNotApply):
            optima.append(partial(problem, learned))
    return optima


def _partial_chain(problem: Problem, learned: int, norm: float) -> Chain:
    classes, depth = problem.num_classes, problem.depth
    axes = np.eye(classes)[:, :learned]
    outputs = axes if problem.loss == "mse" else axes - 1 / classes
    return balance((axes.T, *(np.eye(learned),) * (depth - 1), outputs), norm)


def _trust_partial(problem: Problem, learned: int) -> str:
    if problem.rectified:
        return "upper bound: a local minimum, where descent gets stuck"
    if problem.loss == "ce":
        return "upper bound: a feasible point of narrow layers, not stationary"
    if learned == min(problem.layer_widths):
        return f"theorem: global optimum for width {learned} and no ReLU"
    return "upper bound: a saddle, which descent leaves"
