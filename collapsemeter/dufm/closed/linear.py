"""Deep linear optima. They are not optima, nor lower bounds, of the ReLU network."""

import math

import numpy as np
from numpy.typing import NDArray

from ...metrics.frames import centring
from ..applies import require, require_survival
from ..arrays import FloatArray
from ..factors import Chain, check_widths, split_diagonal, split_linear, widths_of
from ..optimum import Optimum, Status
from ..problem import DUFM
from ..scalar import ell, ell_minimiser


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
    fit = ell_minimiser(strength, depth)
    require_survival("linear", [fit])
    chain: Chain
    if problem.bias:
        chain = split_linear(fit * centring(classes), depth)
        share = (classes - 1) / classes
    else:
        chain, share = split_diagonal(np.full(classes, fit), depth), 1.0
    check_widths(problem, widths_of(chain), "linear")
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
    strengths = (
        (total / counts) * problem.canonical_decay * (counts / mean) ** (1 / (problem.depth + 1))
    )
    return np.asarray(strengths)


def left_out(problem: DUFM) -> NDArray[np.intp]:
    """The smallest classes, for which the narrowest layer has no neuron.

    Examples
    --------
    >>> left_out(DUFM(3, [2, 9, 4], 1, 2, feature_decay=0.1, weight_decay=0.1)).tolist()
    [0]
    """
    largest_first = np.argsort(-problem.counts, kind="stable")
    return largest_first[min(problem.layer_widths) :]


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
    0.166277
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

    Small classes have :math:`t_k = 0`: minority collapse. A layer of d neurons holds
    the d largest classes. The frame is non-negative, so it also passes through a ReLU,
    where it is only one good point.

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
        If the problem is another one or the decays too strong.

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
    fits[left_out(problem)] = 0.0
    require_survival("gof", fits.tolist())
    roots = np.sqrt(problem.counts / problem.counts.mean())
    features, *weights = split_diagonal(fits * roots, depth)
    chain = (features / roots, *weights)
    losses = np.where(fits > 0, [ell(g, depth) for g in strengths], 0.5)
    status: Status = "upper bound" if problem.rectified else "theorem"
    words = (
        "upper bound: optimal for the linear model, feasible for the ReLU network"
        if problem.rectified
        else "theorem: global optimum without activation, any class sizes and widths"
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
        free_layers=(1,) if problem.rectified else (),
    )
