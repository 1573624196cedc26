"""Nothing learned: a local minimum at every depth above one, optimal at strong decays."""

import numpy as np

from ..network import class_columns, fit_and_slope
from ..optimum import Optimum
from ..problem import DUFM, FloatArray, closed_form
from .bounds import lower_bound


@closed_form("other", place=13)
def zero(problem: DUFM) -> Optimum:
    r"""No features and no weights; a bias, if there is one, learns the class sizes.

    .. math:: b = \pi / (1 + \lambda_b) \quad\text{or}\quad
              \mathrm{softmax}(b) + \lambda_b b = \pi, \qquad \pi_k = n_k / N

    A local minimum at every depth above one, optimal where the decays are strong enough.

    Examples
    --------
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
    proven = lower_bound(problem) >= loss * (1 - 1e-14)
    hidden = (np.zeros((1, 1)),) * (problem.depth - 1)
    return Optimum(
        problem=problem,
        name="zero",
        loss=loss,
        chain=(np.zeros((1, classes)), *hidden, np.zeros((classes, 1))),
        status="theorem" if proven else "upper bound",
        holds_for=(
            "theorem: the lower bound shows that nothing is better at these decays"
            if proven
            else "upper bound: nothing learned, stationary at any decay"
        ),
        source="Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165",
        bias=bias if problem.bias else None,
    )


def _best_bias(problem: DUFM) -> FloatArray:
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
