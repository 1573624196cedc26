"""Points that are feasible everywhere: nothing learned, and closed forms of a simpler problem."""

from dataclasses import replace

import numpy as np

from ..network import class_columns, column_loss_and_gradient, fit_and_slope
from ..optimum import Optimum, structure
from ..problem import FloatArray, Problem
from ..reductions import canonical
from ..refusals import DoesNotApply, TooNarrow, TooStrong
from ..registry import closed_form, survey
from .bounds import lower_bound

NO_BIAS = "without a bias, feasible with a bias of zero"


@closed_form("other", place=13)
def zero(problem: Problem) -> Optimum:
    r"""No features and no weights; a bias, if there is one, learns the class sizes.

    .. math:: b = \pi / (1 + \lambda_b) \quad\text{or}\quad
              \mathrm{softmax}(b) + \lambda_b b = \pi, \qquad \pi_k = n_k / N

    A local minimum at every depth above one, optimal where the decays are strong enough.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> zero(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01)).loss
    0.5
    >>> zero(DUFM(2, 10, 3, feature_decay=1.0, weight_decay=1.0)).status
    'theorem'
    """
    classes = problem.num_classes
    bias = _best_bias(problem) if problem.bias else np.zeros(classes)
    outputs = np.repeat(bias[:, None], classes, axis=1)
    loss = fit_and_slope(problem.loss, outputs, class_columns(problem))[0]
    loss += 0.5 * problem.bias_decay * float(np.sum(bias**2))
    words = "upper bound: nothing learned, stationary at any decay"
    if lower_bound(problem) >= loss * (1 - 1e-14):
        words = "theorem: the lower bound shows that nothing is better at these decays"
    hidden = (np.zeros((1, 1)),) * (problem.depth - 1)
    chain = (np.zeros((1, classes)), *hidden, np.zeros((classes, 1)))
    source = "Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165"
    shift = bias if problem.bias else None
    return structure(problem, "zero", loss, chain, words, source, {}, shift)


def _best_bias(problem: Problem) -> FloatArray:
    """The bias of a network that outputs nothing else."""
    shares = problem.counts / problem.num_samples
    if problem.loss == "mse":
        return np.asarray(shares / (1 + problem.bias_decay))
    if problem.balanced:
        return np.zeros(problem.num_classes)
    if problem.bias_decay == 0:
        return np.asarray(np.log(shares) - float(np.mean(np.log(shares))))
    return _decayed_log_odds(shares, problem.bias_decay)


def _decayed_log_odds(shares: FloatArray, decay: float) -> FloatArray:
    """The bias b that minimises cross-entropy with decay, by Newton steps that never climb."""

    def loss(bias: FloatArray) -> float:
        shifted = bias - bias.max()
        fit = np.log(np.sum(np.exp(shifted))) - shares @ shifted
        return float(fit + 0.5 * decay * (bias @ bias))

    bias = np.zeros(shares.size)
    for _ in range(100):
        weights = np.exp(bias - bias.max())
        weights /= weights.sum()
        slope = weights - shares + decay * bias
        if np.max(np.abs(slope)) < 1e-15:
            break
        curvature = np.diag(weights + decay) - np.outer(weights, weights)
        step = np.linalg.solve(curvature, slope)
        size, reached = 1.0, loss(bias) * (1 + 1e-15)  # near the end rounding hides the descent
        while size > 1e-10 and loss(bias - size * step) > reached - 0.1 * size * (slope @ step):
            size /= 2
        bias = bias - size * step
    return np.asarray(bias)


@closed_form("last resort", place=16)
def simpler(problem: Problem) -> list[Optimum]:
    """Closed forms of the simpler problem; of partial ones the lowest."""
    if problem.bias:
        plain, why = _without_bias(problem), NO_BIAS
    elif not problem.balanced:
        mean = problem.num_samples / problem.num_classes
        plain = replace(problem, per_class=1, feature_decay=mean * problem.feature_decay)
        why = "with equal classes, feasible with these"
    else:
        return []
    optima = [optimum for optimum in survey(plain).optima if optimum.name != "zero"]
    partial = [optimum for optimum in optima if "learned" in optimum.parameters]
    return [_lift(problem, optimum, why) for optimum in optima if optimum not in partial[1:]]


def collapsed(problem: Problem) -> Optimum:
    """The collapsed network; `TooNarrow` or `TooStrong` say what alone forbids it."""
    known = survey(problem, "collapsed")
    if known.optima:
        return known.optima[0]
    for reason in known.refused.values():
        if isinstance(reason, TooNarrow | TooStrong):
            raise reason
    if problem.bias:
        return _lift(problem, collapsed(_without_bias(problem)), NO_BIAS)
    raise DoesNotApply(f"no collapsed network is known here: {known.refused['dnc']}")


def _without_bias(problem: Problem) -> Problem:
    return replace(problem, bias=False, bias_decay=0.0)


def _lift(problem: Problem, optimum: Optimum, why: str) -> Optimum:
    """The same features and weights in a problem with a bias, or with unequal classes."""
    loss = optimum.loss
    if not problem.bias:
        small = canonical(problem)
        point = optimum.canonical_point
        loss = column_loss_and_gradient(small, point, class_columns(small))[0]
    words = f"upper bound: closed form of the problem {why}"
    return replace(optimum, problem=problem, loss=loss, status="upper bound", holds_for=words)
