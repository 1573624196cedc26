"""Deep linear optima. They are not optima, nor lower bounds, of the ReLU network."""

import math

import numpy as np

from ...metrics.frames import centring
from ..chain import require_widths, split_diagonal, split_linear, widths_of
from ..optimum import Optimum, structure
from ..problem import Problem
from ..refusals import require_problem, require_survival
from ..registry import closed_form
from ..scalar import ell, ell_minimiser
from .bounds import class_fits


@closed_form("collapsed", place=3)
def linear(problem: Problem) -> Optimum:
    r"""The optimum of the deep linear model: squared loss, balanced classes, no bias or a free one.

    .. math:: Z = t I,\ \ell(cK, L) \qquad\text{or, with a free bias,}\qquad
              Z = t P + J/K,\ \tfrac{K-1}{K}\,\ell(cK, L)

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(3, 5, 2, feature_decay=0.02, weight_decay=0.02, activation="linear")
    >>> round(linear(problem).loss, 12)
    0.148438469384
    """
    require_problem(
        problem, "linear", activation="linear", loss="mse", balanced=True, bias_decay=0.0
    )
    classes, depth = problem.num_classes, problem.depth
    strength = classes * problem.canonical_decay
    fit, loss = ell_minimiser(strength, depth), ell(strength, depth)
    require_survival("linear", [fit])
    chain, mean = split_diagonal(np.full(classes, fit), depth), None
    if problem.bias:
        chain, mean = split_linear(fit * centring(classes), depth), np.full(classes, 1 / classes)
        loss *= (classes - 1) / classes
    require_widths(problem, widths_of(chain), "linear")
    words = "theorem: global optimum of the deep linear model, balanced classes"
    return structure(problem, "linear", loss, chain, words, "Dang et al. 2023", {"t": fit}, mean)


def minority_threshold(problem: Problem) -> float:
    r"""The class size up to which `gof` does not learn a class (Dang et al. 2023).

    .. math:: n_k > \frac{N^{(L+1)/L}\,\Lambda^{1/L}\,L^2}{(L-1)^{(L-1)/L}}, \qquad
              \Lambda = \lambda_H \prod_l \lambda_l

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(4, [8, 4, 2, 1], 2, feature_decay=0.008, weight_decay=0.008)
    >>> round(minority_threshold(problem), 6)
    0.166277
    """
    depth, total = problem.depth, problem.num_samples
    logs = math.fsum(math.log(x) for x in (problem.feature_decay, *problem.decays))
    scale = math.exp((math.log(total) * (depth + 1) + logs) / depth)
    return float(scale * depth**2 / (depth - 1) ** ((depth - 1) / depth))


@closed_form("other", place=11)
def gof(problem: Problem) -> Optimum:
    r"""A general orthogonal frame, for squared loss, unequal classes and no bias.

    .. math:: Z = \mathrm{diag}(t_k), \qquad
              \sum_k \frac{n_k}{N}\,\ell(g_k, L), \qquad
              g_k = \frac{N}{n_k}(\Lambda n_k)^{1/(L+1)}

    Small classes have :math:`t_k = 0`: minority collapse. A layer of d neurons holds
    the d largest classes. The frame is non-negative, so it also passes through a ReLU,
    where it is only one good point; in the linear or one-layer model it is optimal.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(4, [8, 4, 2, 1], 2, feature_decay=0.008, weight_decay=0.008)
    >>> round(gof(problem).loss, 10)
    0.0687255921
    """
    require_problem(problem, "gof", loss="mse", bias=False, balanced=False)
    fits, losses = class_fits(problem)
    require_survival("gof", fits.tolist())
    roots = np.sqrt(problem.counts / problem.counts.mean())
    features, *weights = split_diagonal(fits * roots, problem.depth)
    words = "theorem: global optimum without activation, any class sizes and widths"
    if problem.rectified:
        words = "upper bound: optimal for the linear model, feasible for the ReLU network"
    loss = float(np.sum(problem.counts * losses)) / problem.num_samples
    parameters = {f"t_{k}": float(t) for k, t in enumerate(fits)}
    return structure(
        problem, "gof", loss, (features / roots, *weights), words, "Dang et al. 2023", parameters,
        free_layers=(1,) if problem.rectified else (),
    )  # fmt: skip
