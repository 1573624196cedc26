"""Deep networks with cross-entropy: opposite pairs and polygons beside collapse."""

import math
from collections.abc import Callable
from functools import partial as bind

import numpy as np

from ...metrics.frames import centring
from ..chain import Chain, balance, paired_signs, require_widths, split_linear
from ..optimum import Optimum, structure
from ..problem import FloatArray, Problem
from ..refusals import DoesNotApply, require_problem, require_survival
from ..registry import closed_form
from ..scalar import least_margin_loss

SOURCE = "Garrod & Keating 2024, arXiv 2410.23169"


@closed_form("collapsed", place=5)
def linear_ce_dnc(problem: Problem) -> Optimum:
    r"""Collapse in the deep linear model with cross-entropy: stationary, not optimal.

    .. math:: Z = a (I - J/K), \qquad
              \log(1 + (K-1) e^{-a}) + \tfrac{L+1}{2} c (K-1) a^{2/(L+1)}

    For balanced classes and depth 2 or more, as `linear_ce_pairs` and `linear_ce_polygon`.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> decays = {"feature_decay": 3e-3, "weight_decay": 3e-3}
    >>> problem = DUFM(6, 1, 3, **decays, loss="ce", activation="linear")
    >>> round(linear_ce_dnc(problem).loss, 7)
    0.0837794
    """
    _require_linear_ce(problem, "linear_ce_dnc", 2)
    classes = problem.num_classes
    group = (classes, ((classes - 1.0, 1.0),), problem.canonical_decay * (classes - 1))
    return _linear_ce(problem, "linear_ce_dnc", classes - 1, centring, group)


@closed_form("low rank", place=9)
def linear_ce_pairs(problem: Problem) -> Optimum:
    r"""Classes in opposite pairs: about half the rank of collapse, and a lower loss; K >= 3.

    .. math:: Z = b\,\mathrm{blockdiag}\begin{pmatrix}1&-1\\-1&1\end{pmatrix}, \qquad
              \log(1 + e^{-2b} + (K-2)e^{-b}) + \tfrac{L+1}{2} c \tfrac K2 (2b)^{2/(L+1)}

    An odd class out gets an axis of its own.
    """
    _require_linear_ce(problem, "linear_ce_pairs", 3)
    classes, depth, decay = problem.num_classes, problem.depth, problem.canonical_decay
    pairs, single = divmod(classes, 2)
    # Each class pays 1/K of the fit, so the strength per pair is multiplied by K / 2.
    strength = decay * classes / 2 * 2 ** (2 / (depth + 1))
    paired = (2 * pairs, ((1.0, 2.0), (classes - 2.0, 1.0)), strength)
    alone = (single, ((classes - 1.0, 1.0),), decay * classes)
    return _linear_ce(problem, "linear_ce_pairs", pairs + single, paired_signs, paired, alone)


@closed_form("low rank", place=10)
def linear_ce_polygon(problem: Problem) -> Optimum:
    r"""Classes on a circle: rank two whatever their number, for great depth; K >= 3.

    .. math:: Z_{ij} = b \cos(2\pi(i-j)/K), \qquad
              \log \sum_j e^{b(\cos(2\pi j/K) - 1)} + (L+1)\,c\,(bK/2)^{2/(L+1)}
    """
    _require_linear_ce(problem, "linear_ce_polygon", 3)
    classes, depth = problem.num_classes, problem.depth
    offsets = tuple((1.0, float(1 - cosine)) for cosine in _polygon(classes)[0, 1:])
    strength = 2 * problem.canonical_decay * (classes / 2) ** (2 / (depth + 1))
    return _linear_ce(problem, "linear_ce_polygon", 2, _polygon, (classes, offsets, strength))


def _polygon(num_classes: int) -> FloatArray:
    """Cosines of the angles between the corners of a regular polygon."""
    angles = 2 * np.pi * np.arange(num_classes) / num_classes
    return np.asarray(np.cos(angles[:, None] - angles[None, :]))


def _require_linear_ce(problem: Problem, name: str, least_classes: int) -> None:
    require_problem(problem, name, activation="linear", loss="ce", balanced=True)
    if problem.depth == 1:
        raise DoesNotApply(f"{name} needs depth 2 or more, got 1: ufm_ce is optimal there.")
    if problem.num_classes < least_classes:
        raise DoesNotApply(
            f"{name} needs {least_classes} classes or more, got {problem.num_classes}: "
            "use linear_ce_dnc."
        )


def _linear_ce(
    problem: Problem, name: str, rank: int, pattern: Callable[[int], FloatArray],
    *groups: tuple[int, tuple[tuple[float, float], ...], float],
) -> Optimum:  # fmt: skip
    """A pattern of outputs, each group of classes at its margin: their number, offsets, strength."""
    least = [least_margin_loss(*group[1:], problem.depth) for group in groups]
    counts = [group[0] for group in groups]
    margins = np.repeat([margin for margin, _ in least], counts)
    loss = sum(n * each for n, (_, each) in zip(counts, least, strict=True)) / sum(counts)
    require_survival(name, [margins[0]])
    require_widths(problem, (rank,) * problem.depth, name)
    chain = bind(_linear_chain, pattern, margins, problem.depth)
    words = "upper bound: one of the structures compared in the source"
    return structure(problem, name, loss, chain, words, SOURCE, {"margin": float(margins[0])})


def _linear_chain(pattern: Callable[[int], FloatArray], margins: FloatArray, depth: int) -> Chain:
    return split_linear(pattern(margins.size) * margins, depth)


@closed_form("low rank", place=8)
def pairs(problem: Problem) -> Optimum:
    r"""Classes in opposite pairs through ReLU layers, for cross-entropy and an even K >= 4.

    With X the signs of the pairs, blocks [[1, -1], [-1, 1]], the layers hold
    :math:`X + J \ge 0`, hidden weights are multiples of :math:`X + 2J/K`, and

    .. math:: Z = b X, \qquad \log(1 + e^{-2b} + (K-2)e^{-b})
              + \tfrac{L+1}{2}\,c\,\Big(2K^3 \big(\tfrac{K+2}{2}\big)^{L-2}
              \Big)^{1/(L+1)} b^{2/(L+1)}

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(16, 1, 4, feature_decay=1e-3, weight_decay=1e-3, loss="ce")
    >>> problem.optimum().name
    'pairs'
    """
    require_problem(problem, "pairs", loss="ce", balanced=True, activation="relu")
    classes, depth = problem.num_classes, problem.depth
    if depth == 1:
        raise DoesNotApply("pairs with loss 'ce' needs depth 2 or more, got 1: use ufm_ce.")
    if classes < 4 or classes % 2:
        raise DoesNotApply(
            f"pairs needs an even number of 4 classes or more, got {classes}: use dnc."
        )
    logs = math.log(2 * classes**3) + (depth - 2) * math.log((classes + 2) / 2)
    effective = math.exp(logs / (depth + 1))
    strength = problem.canonical_decay * effective
    margin, loss = least_margin_loss(((1.0, 2.0), (classes - 2.0, 1.0)), strength, depth)
    require_survival("pairs", [margin])
    require_widths(problem, (classes // 2 + 1, *(classes,) * (depth - 1)), "pairs")
    chain = bind(_pairs_chain, problem, math.sqrt(effective) * margin ** (1 / (depth + 1)))
    words = "upper bound: a feasible structure of the ReLU network, no proof"
    parameters = {"margin": margin, "effective_classes": effective}
    return structure(problem, "pairs", loss, chain, words, SOURCE, parameters)


def _pairs_chain(problem: Problem, norm: float) -> Chain:
    signs = paired_signs(problem.num_classes)
    hidden = (signs + 2 / problem.num_classes,) * (problem.depth - 2)
    return balance((*split_linear(signs + 1.0, 1), *hidden, signs), norm)
