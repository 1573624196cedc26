"""One layer: the classical unconstrained features model."""

import math
from functools import partial as bind

import numpy as np

from ...metrics.frames import centring
from ...metrics.imbalance import root_of_laplacian
from ..chain import Chain, require_widths, split_by_size, split_linear, widths_of
from ..optimum import Optimum, structure
from ..problem import FloatArray, Problem
from ..refusals import require_problem, require_survival
from ..registry import closed_form
from .bounds import convex_value, one_layer_ce, one_layer_mse

GAP_TOLERANCE = 1e-7  # relative duality gap up to which a solution is called certified


def _simplex_chain(classes: int, fit: float, mean: float) -> Chain:
    return split_linear(fit * centring(classes) + mean / classes, 1)


@closed_form("collapsed", place=1)
def ufm_mse(problem: Problem) -> Optimum:
    r"""The optimum of one layer with squared loss and balanced classes, with any bias or none.

    .. math:: g = K\sqrt{n\lambda_W\lambda_H}, \quad t = \max(0, 1-g), \quad
              Z = t I \text{ (no bias)}, \quad Z = t (I - J/K) + J/K \text{ (free bias)}

    An orthogonal frame without bias, a simplex ETF with a free one. A decayed bias
    keeps a part of the mean in the features while its decay is large.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> best = ufm_mse(DUFM(4, 1, 1, feature_decay=0.1, weight_decay=0.1))
    >>> round(best.loss, 12), round(best.parameters["t"], 12)
    (0.32, 0.6)
    """
    require_problem(problem, "ufm_mse", depth=1, loss="mse", balanced=True)
    loss, fit, mean, shift = one_layer_mse(problem)
    require_survival("ufm_mse", [fit, mean])
    classes = problem.num_classes
    require_widths(problem, (classes if mean else classes - 1,), "ufm_mse")
    chain = bind(_simplex_chain, classes, fit, mean)
    words = "theorem: global optimum for one layer, squared loss, balanced classes"
    source = "Tirer & Bruna 2022; Zhou et al. 2022"
    parameters = {"t": fit, "mean": mean, "bias": shift}
    bias = np.full(classes, shift / classes) if problem.bias else None
    return structure(problem, "ufm_mse", loss, chain, words, source, parameters, bias)


@closed_form("collapsed", place=2)
def ufm_ce(problem: Problem) -> Optimum:
    r"""The optimum of one layer with cross-entropy and balanced classes: a simplex ETF, bias zero.

    .. math:: Z = \alpha (I - J/K), \quad \alpha = \log(1/c - K + 1), \quad
              c = \sqrt{n \lambda_W \lambda_H} < 1/K

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> best = ufm_ce(DUFM(10, 2, 1, feature_decay=5e-4, weight_decay=5e-3, loss="ce"))
    >>> round(best.loss, 10)
    0.1427419763
    """
    require_problem(problem, "ufm_ce", depth=1, loss="ce", balanced=True)
    margin, loss = one_layer_ce(problem)
    require_survival("ufm_ce", [margin])
    require_widths(problem, (problem.num_classes - 1,), "ufm_ce")
    chain = bind(_simplex_chain, problem.num_classes, margin, 0.0)
    words = "theorem: global optimum for one layer, cross-entropy, balanced classes"
    source, parameters = "Zhu et al. 2021", {"margin": margin}
    return structure(problem, "ufm_ce", loss, chain, words, source, parameters)


def seli_grams(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Gram matrices, (K, K), of classifier and class means of `seli` (Thrampoulidis et al. 2022).

    .. math:: W W^T \propto (P D P)^{1/2}, \qquad M^T M \propto ((P D P)^+)^{1/2},
              \qquad D = \mathrm{diag}(n_k)

    Parameters
    ----------
    counts : ndarray, shape (K,)
        Samples of each class.

    Examples
    --------
    >>> classifier, means = seli_grams(np.array([4.0, 4.0]))
    >>> classifier.round(6).tolist(), means.round(6).tolist()
    ([[1.0, -1.0], [-1.0, 1.0]], [[0.25, -0.25], [-0.25, 0.25]])
    """
    return root_of_laplacian(counts), root_of_laplacian(counts, inverse=True)


@closed_form("other", place=12)
def seli(problem: Problem) -> Optimum:
    r"""Simplex-encoded labels: one layer, cross-entropy, skewed classes, no bias, vanishing ridge.

    .. math:: Z = s (I - J/K), \qquad s = \log\Big(\frac{K-1}{g} - K + 1\Big), \qquad
              g = \sqrt{\lambda_W\lambda_H}\;\mathrm{tr}\,(P D P)^{1/2}

    Its geometry is exact only in the limit, or for two classes; at a finite ridge it
    is one feasible point, taken here at its best scale. `convex` gives the optimum.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(3, [20, 5, 2], 1, feature_decay=1e-4, weight_decay=1e-4, loss="ce")
    >>> seli(problem).loss > problem.optimum().loss
    True
    """
    require_problem(problem, "seli", depth=1, loss="ce", bias=False, balanced=False)
    classes = problem.num_classes
    counts = problem.counts.astype(np.float64)
    ridge = math.sqrt(problem.decays[0] * problem.feature_decay)
    strength = ridge * float(np.trace(root_of_laplacian(counts)))
    require_survival("seli", [(classes - 1) / classes - strength])
    scale = math.log((classes - 1) / strength - classes + 1)
    chain = split_by_size(scale * centring(classes), problem)
    require_widths(problem, widths_of(chain), "seli")
    loss = math.log1p((classes - 1) * math.exp(-scale)) + strength * scale
    words = "upper bound: optimal only as the decays go to zero; see convex"
    source = "Thrampoulidis et al. 2022"
    return structure(problem, "seli", loss, chain, words, source, {"scale": scale})


@closed_form("last resort", place=15)
def convex(problem: Problem) -> Optimum:
    r"""The exact optimum of one layer, for any loss, class sizes and bias, with a certificate.

    .. math:: \min_Z \sum_k \frac{n_k}{N} \mathrm{loss}(z_k, k)
              + \sqrt{\lambda_W\lambda_H}\,\|Z D^{1/2}\|_*, \qquad D = \mathrm{diag}(n_k)

    Its status is "theorem" if the duality gap closes to 1e-7 of the loss; ``parameters``
    hold the dual value, "lower", and "operator_ratio", 1 at the optimum.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(3, [20, 5, 2], 1, feature_decay=1e-3, weight_decay=1e-3, loss="ce")
    >>> best = convex(problem)
    >>> best.status, best.loss - best.parameters["lower"] < 1e-8
    ('theorem', True)
    """
    value = convex_value(problem)
    chain = split_by_size(value.outputs, problem)
    require_widths(problem, widths_of(chain), "convex")
    gap = value.loss - value.lower
    words = "upper bound: the duality gap did not close"
    if gap <= GAP_TOLERANCE * value.loss:
        words = "theorem: global optimum, certified by the dual"
    source = "Thrampoulidis et al. 2022; Zhu et al. 2021"
    parameters = {"lower": value.lower, "gap": gap, "operator_ratio": value.operator_ratio}
    return structure(problem, "convex", value.loss, chain, words, source, parameters, value.bias)
