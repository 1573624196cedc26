"""Depth and cross-entropy: collapse, opposite pairs and polygons."""

import math
from collections.abc import Callable, Sequence
from functools import partial as bind

import numpy as np

from ...metrics.frames import centring
from ..applies import DoesNotApply, require, require_survival
from ..arrays import FloatArray
from ..factors import (
    Chain,
    balance,
    check_widths,
    collapsed_widths,
    paired_signs,
    split_first,
    split_linear,
    unit_first_layer,
)
from ..optimum import Optimum
from ..problem import DUFM
from ..scalar import least_margin_loss, softmax_margin

SOURCE = "Garrod & Keating 2024, arXiv 2410.23169"


def _linear_chain(pattern: Callable[[int], FloatArray], scales: FloatArray, depth: int) -> Chain:
    return split_linear(pattern(scales.size) * scales, depth)


def _linear_ce(
    problem: DUFM, name: str, rank: int, pattern: Callable[[int], FloatArray], scales: FloatArray,
    loss: float,
) -> Optimum:  # fmt: skip
    """A pattern of outputs, scaled class by class."""
    check_widths(problem, (rank,) * problem.depth, name)
    return Optimum(
        problem=problem,
        name=name,
        loss=loss,
        chain=bind(_linear_chain, pattern, scales, problem.depth),
        status="upper bound",
        holds_for="upper bound: one of the structures compared in the source",
        source=SOURCE,
        parameters={"margin": float(scales[0])},
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
    return _linear_ce(problem, name, classes - 1, centring, np.full(classes, margin), loss)


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
    return _linear_ce(problem, name, pairs + single, paired_signs, scales, loss)


def _polygon(num_classes: int) -> FloatArray:
    """Cosines of the angles between the corners of a regular polygon."""
    angles = 2 * np.pi * np.arange(num_classes) / num_classes
    return np.asarray(np.cos(angles[:, None] - angles[None, :]))


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
    return _linear_ce(problem, name, 2, _polygon, np.full(classes, margin), loss)


def _require_deep_ce(problem: DUFM, name: str) -> None:
    require(problem, name, loss="ce", balanced=True, activation="relu")
    if problem.depth == 1:
        raise DoesNotApply(f"{name} with loss 'ce' needs depth 2 or more, got 1: use ufm_ce.")


Offsets = tuple[tuple[float, float], ...]
"""Number of logits at each distance below the label."""


def _deep_ce(
    problem: DUFM, name: str, widths: Sequence[int], chain: Callable[[float], Chain],
    effective: float, offsets: Offsets,
) -> Optimum:  # fmt: skip
    """A structure at its best scale; `chain` builds it with factors of a given norm."""
    strength = problem.canonical_decay * effective
    margin, loss = least_margin_loss(*softmax_margin(offsets), strength, problem.depth)
    require_survival(name, [margin])
    check_widths(problem, widths, name)
    norm = math.sqrt(effective) * margin ** (1 / (problem.depth + 1))
    return Optimum(
        problem=problem,
        name=name,
        loss=loss,
        chain=bind(chain, norm),
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


def simplex_margin(problem: DUFM) -> tuple[float, float]:
    """Margin and loss of `dnc_ce`; the margin is 0 beyond the threshold."""
    classes, depth = problem.num_classes, problem.depth
    strength = problem.canonical_decay * centred_classes(classes, depth)
    return least_margin_loss(*softmax_margin(((classes - 1.0, 1.0),)), strength, depth)


def simplex_chain(problem: DUFM, first_layer: float | None, norm: float) -> Chain:
    """Collapse whose last layer maps to a simplex ETF."""
    own = (np.eye(problem.num_classes),) * (problem.depth - 2)
    chain = (*unit_first_layer(problem, first_layer), *own, centring(problem.num_classes))
    return balance(chain, norm)


def dnc_ce(problem: DUFM, first_layer: float | None) -> Optimum:
    """`dnc` for cross-entropy."""
    _require_deep_ce(problem, "dnc")
    classes = problem.num_classes
    return _deep_ce(
        problem, "dnc", collapsed_widths(problem, first_layer),
        bind(simplex_chain, problem, first_layer), centred_classes(classes, problem.depth),
        ((classes - 1.0, 1.0),),
    )  # fmt: skip


def _pairs_chain(problem: DUFM, norm: float) -> Chain:
    classes = problem.num_classes
    signs = paired_signs(classes)
    hidden = (signs + 2 / classes,) * (problem.depth - 2)
    return balance((*split_first(signs + 1.0), *hidden, signs), norm)


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
    logs = math.log(2 * classes**3) + (depth - 2) * math.log((classes + 2) / 2)
    margins = ((1.0, 2.0), (classes - 2.0, 1.0))
    return _deep_ce(
        problem, "pairs", (classes // 2 + 1, *(classes,) * (depth - 1)),
        bind(_pairs_chain, problem), math.exp(logs / (depth + 1)), margins,
    )  # fmt: skip
