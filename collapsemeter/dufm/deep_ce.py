"""Depth and cross-entropy: collapse, opposite pairs and polygons."""

import math

import numpy as np

from collapsemeter.dufm.applies import DoesNotApply, require, require_survival
from collapsemeter.dufm.arrays import FloatArray
from collapsemeter.dufm.factors import (
    Chain,
    balance,
    check_widths,
    split_first,
    split_linear,
    unit_first_layer,
)
from collapsemeter.dufm.optimum import Optimum
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.scalar import least_margin_loss, softmax_margin
from collapsemeter.frames import centring

SOURCE = "Garrod & Keating 2024, arXiv 2410.23169"


def _linear_ce(
    problem: DUFM, name: str, outputs: FloatArray, loss: float, parameters: dict[str, float]
) -> Optimum:
    chain = split_linear(outputs, problem.depth)
    check_widths(problem, chain, name)
    return Optimum(
        problem=problem,
        name=name,
        loss=loss,
        chain=chain,
        status="upper bound",
        holds_for="upper bound: one of the structures compared in the source",
        source=SOURCE,
        parameters=parameters,
    )


def _require_linear_ce(problem: DUFM, name: str) -> None:
    require(problem, name, activation="linear", loss="ce", balanced=True)
    if problem.depth == 1:
        raise DoesNotApply(f"{name} needs depth 2 or more, got 1: ufm_ce is optimal there.")


def linear_ce_dnc(problem: DUFM) -> Optimum:
    r"""Collapse in the deep linear model with cross-entropy: stationary, not optimal.

    .. math:: Z = a (I - J/K), \qquad
              \log(1 + (K-1) e^{-a}) + \tfrac{L+1}{2} c (K-1) a^{2/(L+1)}

    Parameters
    ----------
    problem : DUFM
        Linear activation, cross-entropy, balanced classes, depth 2 or more.

    Returns
    -------
    Optimum
        Status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Garrod & Keating 2024, arXiv 2410.23169.

    Examples
    --------
    >>> problem = DUFM(6, 1, 3, feature_decay=3e-3, weight_decay=3e-3, loss="ce",
    ...                activation="linear")
    >>> round(linear_ce_dnc(problem).loss, 7)
    0.0837794
    """
    name = "linear_ce_dnc"
    _require_linear_ce(problem, name)
    classes = problem.num_classes
    strength = problem.canonical_decay * (classes - 1)
    margin, loss = least_margin_loss(
        *softmax_margin(((classes - 1.0, 1.0),)), strength, problem.depth
    )
    require_survival(name, [margin])
    outputs = margin * centring(classes)
    return _linear_ce(problem, name, outputs, loss, {"margin": margin})


def paired_signs(num_classes: int) -> FloatArray:
    """Pairs of opposite classes: blocks [[1, -1], [-1, 1]], and 1 for an odd class out.

    Examples
    --------
    >>> paired_signs(3).tolist()
    [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    signs = np.eye(num_classes)
    for first in range(0, num_classes - 1, 2):
        signs[first, first + 1] = signs[first + 1, first] = -1.0
    return signs


def linear_ce_pairs(problem: DUFM) -> Optimum:
    r"""Classes in opposite pairs: about half the rank of collapse, and a lower loss.

    .. math:: Z = b\,\mathrm{blockdiag}\begin{pmatrix}1&-1\\-1&1\end{pmatrix}, \qquad
              \log(1 + e^{-2b} + (K-2)e^{-b}) + \tfrac{L+1}{2} c \tfrac K2 (2b)^{2/(L+1)}

    An odd class out gets an axis of its own.

    Parameters
    ----------
    problem : DUFM
        Linear activation, cross-entropy, balanced classes, K >= 3, depth 2 or more.

    Returns
    -------
    Optimum
        Status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Garrod & Keating 2024, arXiv 2410.23169.

    Examples
    --------
    >>> problem = DUFM(6, 1, 3, feature_decay=3e-3, weight_decay=3e-3, loss="ce",
    ...                activation="linear")
    >>> round(linear_ce_pairs(problem).loss, 7)
    0.0708039
    """
    name = "linear_ce_pairs"
    _require_linear_ce(problem, name)
    classes, depth, decay = problem.num_classes, problem.depth, problem.canonical_decay
    if classes < 3:
        raise DoesNotApply(f"{name} needs 3 classes or more, got {classes}: use linear_ce_dnc.")
    pairs, single = divmod(classes, 2)
    power = 2 / (depth + 1)
    fit, slope = softmax_margin(((1.0, 2.0), (classes - 2.0, 1.0)))
    # Each class pays 1/K of the fit, so the strength per pair is multiplied by K / 2.
    margin, loss = least_margin_loss(fit, slope, decay * classes / 2 * 2**power, depth)
    require_survival(name, [margin])
    scales = np.full(classes, margin)
    loss *= 2 * pairs / classes
    if single:
        alone = least_margin_loss(*softmax_margin(((classes - 1.0, 1.0),)), decay * classes, depth)
        scales[-1] = alone[0]
        loss += alone[1] / classes
    return _linear_ce(problem, name, paired_signs(classes) * scales, loss, {"margin": margin})


def linear_ce_polygon(problem: DUFM) -> Optimum:
    r"""Classes on a circle: rank two whatever their number, for great depth.

    .. math:: Z_{ij} = b \cos(2\pi(i-j)/K), \qquad
              \log \sum_j e^{b(\cos(2\pi j/K) - 1)} + (L+1)\,c\,(bK/2)^{2/(L+1)}

    Parameters
    ----------
    problem : DUFM
        Linear activation, cross-entropy, balanced classes, K >= 3, depth 2 or more.

    Returns
    -------
    Optimum
        Status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Garrod & Keating 2024, arXiv 2410.23169.

    Examples
    --------
    >>> problem = DUFM(6, 1, 3, feature_decay=3e-3, weight_decay=3e-3, loss="ce",
    ...                activation="linear")
    >>> round(linear_ce_polygon(problem).loss, 7)
    0.0768261
    """
    name = "linear_ce_polygon"
    _require_linear_ce(problem, name)
    classes, depth = problem.num_classes, problem.depth
    if classes < 3:
        raise DoesNotApply(f"{name} needs 3 classes or more, got {classes}: use linear_ce_dnc.")
    angles = 2 * np.pi * np.arange(classes) / classes
    offsets = tuple((1.0, float(1 - np.cos(a))) for a in angles[1:])
    fit, slope = softmax_margin(offsets)
    strength = 2 * problem.canonical_decay * (classes / 2) ** (2 / (depth + 1))
    margin, loss = least_margin_loss(fit, slope, strength, depth)
    require_survival(name, [margin])
    outputs = margin * np.cos(angles[:, None] - angles[None, :])
    return _linear_ce(problem, name, outputs, loss, {"margin": margin})


def _require_deep_ce(problem: DUFM, name: str) -> None:
    require(problem, name, loss="ce", balanced=True, activation="relu")
    if problem.depth == 1:
        raise DoesNotApply(f"{name} with loss 'ce' needs depth 2 or more, got 1: use ufm_ce.")


Offsets = tuple[tuple[float, float], ...]
"""Number of logits at each distance below the label."""


def _deep_ce(problem: DUFM, name: str, chain: Chain, effective: float, offsets: Offsets) -> Optimum:
    strength = problem.canonical_decay * effective
    margin, loss = least_margin_loss(*softmax_margin(offsets), strength, problem.depth)
    require_survival(name, [margin])
    power = 1 / (problem.depth + 1)
    chain = balance(chain, math.sqrt(effective) * margin**power)
    check_widths(problem, chain, name)
    return Optimum(
        problem=problem,
        name=name,
        loss=loss,
        chain=chain,
        status="upper bound",
        holds_for="upper bound: a feasible structure of the ReLU network, no proof",
        source=SOURCE,
        parameters={"margin": margin, "effective_classes": effective},
        free_layers=(1,) if name == "dnc" else (),
    )


def centred_classes(classes: int, depth: int) -> float:
    """Effective class count of collapse whose last layer maps to a simplex ETF.

    Every other layer needs K directions, since a ReLU keeps no simplex.
    """
    return math.exp((depth * math.log(classes) + math.log(classes - 1)) / (depth + 1))


def dnc_ce(problem: DUFM, first_layer: float = 0.0) -> Optimum:
    """`dnc` for cross-entropy."""
    _require_deep_ce(problem, "dnc")
    classes, depth = problem.num_classes, problem.depth
    first = unit_first_layer(classes, first_layer, depth)
    chain = (*first, *(np.eye(classes),) * (depth - 2), centring(classes))
    effective = centred_classes(classes, depth)
    return _deep_ce(problem, "dnc", chain, effective, ((classes - 1.0, 1.0),))


def pairs(problem: DUFM) -> Optimum:
    r"""Classes in opposite pairs through ReLU layers, for cross-entropy.

    With X the signs of the pairs (see `paired_signs`), the layers hold
    :math:`X + J \ge 0`, hidden weights are multiples of :math:`X + 2J/K`, and

    .. math:: Z = b X, \qquad \log(1 + e^{-2b} + (K-2)e^{-b})
              + \tfrac{L+1}{2}\,c\,\Big(2K^3 \big(\tfrac{K+2}{2}\big)^{L-2}
              \Big)^{1/(L+1)} b^{2/(L+1)}

    Parameters
    ----------
    problem : DUFM
        ReLU, cross-entropy, balanced, K even and at least 4, depth 2 or more.

    Returns
    -------
    Optimum
        Status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Garrod & Keating 2024, arXiv 2410.23169.

    Examples
    --------
    >>> problem = DUFM(16, 1, 4, feature_decay=1e-3, weight_decay=1e-3, loss="ce")
    >>> problem.optimum().name
    'pairs'
    """
    _require_deep_ce(problem, "pairs")
    classes, depth = problem.num_classes, problem.depth
    if classes < 4 or classes % 2:
        raise DoesNotApply(f"pairs needs an even number of 4 classes or more, got {classes}: "
                           "use dnc.")  # fmt: skip
    signs = paired_signs(classes)
    hidden = signs + 2 / classes
    chain = (*split_first(signs + 1.0), *(hidden,) * (depth - 2), signs)
    logs = math.log(2 * classes**3) + (depth - 2) * math.log((classes + 2) / 2)
    margins = ((1.0, 2.0), (classes - 2.0, 1.0))
    return _deep_ce(problem, "pairs", chain, math.exp(logs / (depth + 1)), margins)
