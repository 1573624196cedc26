"""Deep linear optima. They are not optima, nor lower bounds, of the ReLU network."""

import math
from collections.abc import Callable

import numpy as np

from collapsemeter.dufm.arrays import FloatArray
from collapsemeter.dufm.factors import (
    Chain,
    DoesNotApply,
    check_widths,
    split_diagonal,
    split_linear,
)
from collapsemeter.dufm.frames import centring
from collapsemeter.dufm.optimum import Optimum, Status
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.scalar import ell, ell_minimiser, least_margin_loss, softmax_margin
from collapsemeter.dufm.shallow import require


def linear(problem: DUFM) -> Optimum:
    r"""The optimum of the deep linear model with balanced classes.

    .. math:: Z = t I,\ \ell(cK, L) \qquad\text{or, with a free bias,}\qquad
              Z = t P + J/K,\ \tfrac{K-1}{K}\,\ell(cK, L)

    Parameters
    ----------
    problem : DUFM
        Linear activation, squared loss, balanced classes, no bias or a free one.

    Returns
    -------
    Optimum
        Status "theorem".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Dang et al. 2023.

    Examples
    --------
    >>> problem = DUFM(3, 5, 2, feature_decay=0.02, weight_decay=0.02, activation="linear")
    >>> round(linear(problem).loss, 12)
    0.148438469384
    """
    require(problem, "linear", activation="linear", loss="mse", balanced=True, bias_decay=0.0)
    classes, depth = problem.num_classes, problem.depth
    strength = classes * problem.canonical_decay
    fit = _positive(ell_minimiser(strength, depth), "linear")
    chain: Chain
    if problem.bias:
        chain = split_linear(fit * centring(classes), depth)
        share = (classes - 1) / classes
    else:
        chain, share = split_diagonal(np.full(classes, fit), depth), 1.0
    check_widths(problem, chain, "linear")
    return Optimum(
        problem=problem,
        name="linear",
        loss=share * ell(strength, depth),
        chain=chain,
        status="theorem",
        holds_for="theorem: global optimum of the deep linear model, balanced classes",
        source="Dang et al. 2023",
        bias=np.full(classes, 1 / classes) if problem.bias else None,
        parameters={"t": fit},
    )


def _positive(value: float, name: str) -> float:
    if value <= 0.0:
        raise DoesNotApply(
            f"{name} does not exist at these decays, they are too strong: "
            "lower them, only the zero network is left."
        )
    return value


def imbalanced_strengths(problem: DUFM) -> FloatArray:
    r"""The strength of every class, :math:`g_k = \frac{N}{n_k}(\Lambda n_k)^{1/(L+1)}`.

    :math:`\Lambda = \lambda_H \prod_l \lambda_l`. With balanced classes all equal cK.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, feature_decay=0.01, weight_decay=0.01)
    >>> imbalanced_strengths(problem).round(12).tolist()
    [0.02, 0.02]
    """
    counts = problem.counts.astype(np.float64)
    total = problem.num_samples
    mean = total / problem.num_classes
    strengths = (total / counts) * problem.canonical_decay * (counts / mean) ** (
        1 / (problem.depth + 1)
    )
    return np.asarray(strengths)


def minority_threshold(problem: DUFM) -> float:
    r"""The class size below which a class is not learned at all.

    .. math:: n_k > \frac{N^{(L+1)/L}\,\Lambda^{1/L}\,L^2}{(L-1)^{(L-1)/L}}, \qquad
              \Lambda = \lambda_H \prod_l \lambda_l

    Parameters
    ----------
    problem : DUFM
        Squared loss without bias; its counts fix only N.

    Returns
    -------
    float
        Classes above it are learned by `gof`.

    References
    ----------
    Dang et al. 2023.

    Examples
    --------
    >>> problem = DUFM(4, [8, 4, 2, 1], 2, feature_decay=0.008, weight_decay=0.008)
    >>> round(minority_threshold(problem), 6)
    0.16628
    """
    depth, total = problem.depth, problem.num_samples
    logs = math.fsum(math.log(x) for x in (problem.feature_decay, *problem.decays))
    scale = math.exp((math.log(total) * (depth + 1) + logs) / depth)
    return float(scale * depth**2 / (depth - 1) ** ((depth - 1) / depth))


def gof(problem: DUFM) -> Optimum:
    r"""A general orthogonal frame: every class on its own axis, of its own length.

    .. math:: Z = \mathrm{diag}(t_k), \qquad
              \sum_k \frac{n_k}{N}\,\ell(g_k, L), \qquad
              g_k = \frac{N}{n_k}(\Lambda n_k)^{1/(L+1)}

    Small classes have :math:`t_k = 0`: minority collapse. The frame is
    non-negative, so it also passes through a ReLU, where it is only one good point.

    Parameters
    ----------
    problem : DUFM
        Squared loss, unequal classes, no bias.

    Returns
    -------
    Optimum
        Status "theorem" for the linear or one-layer model, else "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Dang et al. 2023.

    Examples
    --------
    >>> problem = DUFM(4, [8, 4, 2, 1], 2, feature_decay=0.008, weight_decay=0.008)
    >>> round(gof(problem).loss, 10)
    0.0687255921
    """
    require(problem, "gof", loss="mse", bias=False, balanced=False)
    depth = problem.depth
    strengths = [float(g) for g in imbalanced_strengths(problem)]
    fits = np.array([ell_minimiser(g, depth) for g in strengths])
    _positive(float(fits.max()), "gof")
    roots = np.sqrt(problem.counts / problem.counts.mean())
    features, *weights = split_diagonal(fits * roots, depth)
    chain = (features / roots, *weights)
    check_widths(problem, chain, "gof")
    losses = np.array([ell(g, depth) for g in strengths])
    status: Status = "upper bound" if problem.rectified else "theorem"
    words = (
        "upper bound: optimal for the linear model, feasible for the ReLU network"
        if problem.rectified
        else "theorem: global optimum without activation, any class sizes"
    )
    return Optimum(
        problem=problem,
        name="gof",
        loss=float(np.sum(problem.counts * losses)) / problem.num_samples,
        chain=chain,
        status=status,
        holds_for=words,
        source="Dang et al. 2023",
        parameters={f"t_{k}": float(t) for k, t in enumerate(fits)},
    )


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
        source="Garrod & Keating 2024, arXiv 2410.23169",
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
    outputs = _positive(margin, name) * centring(classes)
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
    scales = np.repeat([_positive(margin, name)], classes)
    loss *= 2 * pairs / classes
    if single:
        alone = least_margin_loss(
            *softmax_margin(((classes - 1.0, 1.0),)), decay * classes, depth
        )
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
    0.0768269
    """
    name = "linear_ce_polygon"
    _require_linear_ce(problem, name)
    classes, depth = problem.num_classes, problem.depth
    if classes < 3:
        raise DoesNotApply(f"{name} needs 3 classes or more, got {classes}: use linear_ce_dnc.")
    angles = 2 * np.pi * np.arange(classes) / classes
    offsets = tuple((1.0, float(1 - np.cos(a))) for a in angles[1:])
    fit: Callable[[float], float]
    fit, slope = softmax_margin(offsets)
    strength = 2 * problem.canonical_decay * (classes / 2) ** (2 / (depth + 1))
    margin, loss = least_margin_loss(fit, slope, strength, depth)
    outputs = _positive(margin, name) * np.cos(angles[:, None] - angles[None, :])
    return _linear_ce(problem, name, outputs, loss, {"margin": margin})
