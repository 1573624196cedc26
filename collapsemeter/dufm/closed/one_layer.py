"""One layer: the classical unconstrained features model, solved in closed form."""

import math
from dataclasses import dataclass
from functools import partial as bind

import numpy as np

from ...metrics.frames import centring
from ..applies import require, require_survival
from ..arrays import FloatArray
from ..factors import Chain, check_widths, split_linear, widths_of
from ..optimum import Optimum
from ..problem import DUFM


@dataclass(frozen=True)
class ShallowFit:
    """Output ``fit * P + mean * J / K`` without the bias, and the bias ``bias / K``."""

    loss: float
    fit: float
    mean: float
    bias: float


def shallow_mse(problem: DUFM) -> ShallowFit:
    """The closed form of `ufm_mse`: balanced classes, one layer, squared loss."""
    classes = problem.num_classes
    g = classes * problem.canonical_decay
    t = max(0.0, 1.0 - g)
    per_direction = (1 - t) ** 2 / (2 * classes) + g / classes * t
    centred = (classes - 1) * per_direction
    if not problem.bias:
        return ShallowFit(classes * per_direction, t, t, 0.0)
    decay = problem.bias_decay
    if decay == 0:
        return ShallowFit(centred, t, 0.0, 1.0)
    if decay / (1 + decay) <= g:
        left = decay / (2 * classes * (1 + decay))
        return ShallowFit(centred + left, t, 0.0, 1 / (1 + decay))
    mean = 1 - g - g / decay
    rest = g**2 / (2 * classes) * (1 + 1 / decay) + g / classes * mean
    return ShallowFit(centred + rest, t, mean, g / decay)


def _simplex_chain(classes: int, fit: float, mean: float) -> Chain:
    return split_linear(fit * centring(classes) + mean / classes, 1)


def ufm_mse(problem: DUFM) -> Optimum:
    r"""The optimum of the one-layer model with squared loss.

    .. math:: g = K\sqrt{n\lambda_W\lambda_H}, \quad t = \max(0, 1-g), \quad
              Z = t I \text{ (no bias)}, \quad Z = t (I - J/K) + J/K \text{ (free bias)}

    An orthogonal frame without bias, a simplex ETF with a free one. A decayed bias
    keeps a part of the mean in the features while its decay is large.

    Parameters
    ----------
    problem : DUFM
        One layer, squared loss, balanced classes, any bias.

    Returns
    -------
    Optimum
        Status "theorem".

    Raises
    ------
    DoesNotApply
        If the problem is another one, or the layer too narrow.

    References
    ----------
    Tirer & Bruna 2022; Zhou et al. 2022.

    Examples
    --------
    >>> best = ufm_mse(DUFM(4, 1, 1, feature_decay=0.1, weight_decay=0.1))
    >>> round(best.loss, 12), round(best.parameters["t"], 12)
    (0.32, 0.6)
    """
    require(problem, "ufm_mse", depth=1, loss="mse", balanced=True)
    found = shallow_mse(problem)
    require_survival("ufm_mse", [found.fit, found.mean])
    classes = problem.num_classes
    check_widths(problem, (classes if found.mean else classes - 1,), "ufm_mse")
    return Optimum(
        problem=problem,
        name="ufm_mse",
        loss=found.loss,
        chain=bind(_simplex_chain, classes, found.fit, found.mean),
        status="theorem",
        holds_for="theorem: global optimum for one layer, squared loss, balanced classes",
        source="Tirer & Bruna 2022; Zhou et al. 2022",
        bias=np.full(classes, found.bias / classes) if problem.bias else None,
        parameters={"t": found.fit, "mean": found.mean, "bias": found.bias},
    )


def shallow_ce(problem: DUFM) -> tuple[float, float]:
    """Margin and loss of `ufm_ce`; the margin is 0 beyond the threshold."""
    classes, c = problem.num_classes, problem.canonical_decay
    if c >= 1 / classes:
        return 0.0, math.log(classes)
    margin = math.log(1 / c - classes + 1)
    return margin, math.log1p((classes - 1) * math.exp(-margin)) + c * (classes - 1) * margin


def ufm_ce(problem: DUFM) -> Optimum:
    r"""The optimum of the one-layer model with cross-entropy: a simplex ETF.

    .. math:: Z = \alpha (I - J/K), \quad \alpha = \log(1/c - K + 1), \quad
              c = \sqrt{n \lambda_W \lambda_H} < 1/K

    Parameters
    ----------
    problem : DUFM
        One layer, cross-entropy, balanced classes, with or without bias.

    Returns
    -------
    Optimum
        Status "theorem"; the bias is zero.

    Raises
    ------
    DoesNotApply
        If the problem is another one, the layer too narrow or the decays too strong.

    References
    ----------
    Zhu et al. 2021.

    Examples
    --------
    >>> best = ufm_ce(DUFM(10, 2, 1, feature_decay=5e-4, weight_decay=5e-3, loss="ce"))
    >>> round(best.loss, 10)
    0.1427419763
    """
    require(problem, "ufm_ce", depth=1, loss="ce", balanced=True)
    margin, loss = shallow_ce(problem)
    require_survival("ufm_ce", [margin])
    check_widths(problem, (problem.num_classes - 1,), "ufm_ce")
    return Optimum(
        problem=problem,
        name="ufm_ce",
        loss=loss,
        chain=bind(_simplex_chain, problem.num_classes, margin, 0.0),
        status="theorem",
        holds_for="theorem: global optimum for one layer, cross-entropy, balanced classes",
        source="Zhu et al. 2021",
        parameters={"margin": margin},
    )


def _root_of_laplacian(counts: FloatArray) -> FloatArray:
    """The square root of P D P, whose trace is the nuclear norm of P D^(1/2)."""
    projection = centring(counts.size)
    values, vectors = np.linalg.eigh(projection @ np.diag(counts) @ projection)
    values[0] = 0.0  # exactly, on the constant vector: its root would magnify the rounding
    return np.asarray((vectors * np.sqrt(values)) @ vectors.T)


def seli_grams(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    r"""Gram matrices of the classifier and of the class means for skewed classes.

    .. math:: W W^T \propto (P D P)^{1/2}, \qquad M^T M \propto ((P D P)^+)^{1/2},
              \qquad D = \mathrm{diag}(n_k)

    Parameters
    ----------
    counts : ndarray, shape (K,)
        Samples of each class.

    Returns
    -------
    tuple of ndarray, shape (K, K)
        Classifier, then class means; their directions are those of vanishing ridge.

    References
    ----------
    Thrampoulidis et al. 2022.

    Examples
    --------
    >>> classifier, means = seli_grams(np.array([4.0, 4.0]))
    >>> classifier.round(6).tolist(), means.round(6).tolist()
    ([[1.0, -1.0], [-1.0, 1.0]], [[0.25, -0.25], [-0.25, 0.25]])
    """
    classifier = _root_of_laplacian(np.asarray(counts, dtype=np.float64))
    return classifier, np.asarray(np.linalg.pinv(classifier, rcond=1e-12, hermitian=True))


def seli(problem: DUFM) -> Optimum:
    r"""Simplex-encoded labels: cross-entropy with skewed classes as the ridge vanishes.

    .. math:: Z = s (I - J/K), \qquad s = \log\Big(\frac{K-1}{g} - K + 1\Big), \qquad
              g = \sqrt{\lambda_W\lambda_H}\;\mathrm{tr}\,(P D P)^{1/2}

    Its geometry is exact only in the limit, or for two classes; at a finite ridge it
    is one feasible point, taken here at its best scale. `convex` gives the optimum.

    Parameters
    ----------
    problem : DUFM
        One layer, cross-entropy, unequal classes, no bias.

    Returns
    -------
    Optimum
        Status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, the layer too narrow or the decays too strong.

    References
    ----------
    Thrampoulidis et al. 2022.

    Examples
    --------
    >>> problem = DUFM(3, [20, 5, 2], 1, feature_decay=1e-4, weight_decay=1e-4, loss="ce")
    >>> seli(problem).loss > problem.optimum().loss
    True
    """
    require(problem, "seli", depth=1, loss="ce", bias=False, balanced=False)
    classes = problem.num_classes
    counts = problem.counts.astype(np.float64)
    ridge = math.sqrt(problem.decays[0] * problem.feature_decay)
    strength = ridge * float(np.trace(_root_of_laplacian(counts)))
    require_survival("seli", [(classes - 1) / classes - strength])
    scale = math.log((classes - 1) / strength - classes + 1)
    roots = np.sqrt(counts / counts.mean())
    features, weight = split_linear(scale * centring(classes) * roots, 1)
    chain = (features / roots, weight)
    check_widths(problem, widths_of(chain), "seli")
    return Optimum(
        problem=problem,
        name="seli",
        loss=math.log1p((classes - 1) * math.exp(-scale)) + strength * scale,
        chain=chain,
        status="upper bound",
        holds_for="upper bound: optimal only as the decays go to zero; see convex",
        source="Thrampoulidis et al. 2022",
        parameters={"scale": scale},
    )
