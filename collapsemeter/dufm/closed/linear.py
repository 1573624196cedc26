"""Deep linear optima. They are not optima, nor lower bounds, of the ReLU network."""

import math

import numpy as np

from ...metrics.frames import centring
from ..chain import check_widths, split_diagonal, split_linear, widths_of
from ..optimum import Optimum
from ..problem import DUFM, closed_form, require, require_survival
from ..scalar import ell, ell_minimiser
from .bounds import class_strengths, left_out


@closed_form("collapsed", place=3)
def linear(problem: DUFM) -> Optimum:
    r"""The optimum of the deep linear model: squared loss, balanced classes, no bias or a free one.

    .. math:: Z = t I,\ \ell(cK, L) \qquad\text{or, with a free bias,}\qquad
              Z = t P + J/K,\ \tfrac{K-1}{K}\,\ell(cK, L)

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


def minority_threshold(problem: DUFM) -> float:
    r"""The class size up to which `gof` does not learn a class; of the counts only N matters.

    .. math:: n_k > \frac{N^{(L+1)/L}\,\Lambda^{1/L}\,L^2}{(L-1)^{(L-1)/L}}, \qquad
              \Lambda = \lambda_H \prod_l \lambda_l

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


@closed_form("other", place=11)
def gof(problem: DUFM) -> Optimum:
    r"""A general orthogonal frame, for squared loss, unequal classes and no bias.

    .. math:: Z = \mathrm{diag}(t_k), \qquad
              \sum_k \frac{n_k}{N}\,\ell(g_k, L), \qquad
              g_k = \frac{N}{n_k}(\Lambda n_k)^{1/(L+1)}

    Small classes have :math:`t_k = 0`: minority collapse. A layer of d neurons holds
    the d largest classes. The frame is non-negative, so it also passes through a ReLU,
    where it is only one good point; in the linear or one-layer model it is optimal.

    Examples
    --------
    >>> problem = DUFM(4, [8, 4, 2, 1], 2, feature_decay=0.008, weight_decay=0.008)
    >>> round(gof(problem).loss, 10)
    0.0687255921
    """
    require(problem, "gof", loss="mse", bias=False, balanced=False)
    depth = problem.depth
    strengths = [float(g) for g in class_strengths(problem)]
    fits = np.array([ell_minimiser(g, depth) for g in strengths])
    fits[left_out(problem)] = 0.0
    require_survival("gof", fits.tolist())
    roots = np.sqrt(problem.counts / problem.counts.mean())
    features, *weights = split_diagonal(fits * roots, depth)
    losses = np.where(fits > 0, [ell(g, depth) for g in strengths], 0.5)
    words = (
        "upper bound: optimal for the linear model, feasible for the ReLU network"
        if problem.rectified
        else "theorem: global optimum without activation, any class sizes and widths"
    )
    return Optimum(
        problem=problem,
        name="gof",
        loss=float(np.sum(problem.counts * losses)) / problem.num_samples,
        chain=(features / roots, *weights),
        status="upper bound" if problem.rectified else "theorem",
        holds_for=words,
        source="Dang et al. 2023",
        parameters={f"t_{k}": float(t) for k, t in enumerate(fits)},
        free_layers=(1,) if problem.rectified else (),
    )
