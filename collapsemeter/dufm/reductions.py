"""Two exact reductions: one sample per class, and one decay for all."""

import math
from dataclasses import replace

import numpy as np

from .network import Columns, Variables, fit_and_slope, forward, sample_columns
from .problem import DUFM, FloatArray


def one_per_class(problem: DUFM) -> DUFM:
    r"""Reduction A: the same optimal loss with fewer samples, one per class if they are balanced.

    .. math:: n \to 1, \qquad \lambda_H \to n \lambda_H

    Given the weights the samples decouple, so every sample of a class may use the
    cheapest features of that class. Imbalanced counts are divided by their greatest
    common divisor, for the same reason.

    Examples
    --------
    >>> small = one_per_class(DUFM(2, 10, 1, feature_decay=0.01, weight_decay=0.1))
    >>> small.per_class, round(small.feature_decay, 12)
    ((1, 1), 0.1)
    """
    divisor = math.gcd(*(int(n) for n in problem.counts))
    counts = tuple(int(n) // divisor for n in problem.counts)
    return replace(problem, per_class=counts, feature_decay=divisor * problem.feature_decay)


def cheapest_samples(problem: DUFM, point: Variables) -> Variables:
    """The class-level point, of no higher loss, that keeps the cheapest sample of each class.

    From features of shape (d_1, N) to (d_1, K).

    Examples
    --------
    >>> problem = DUFM(2, 2, 1, 1, feature_decay=0.1, weight_decay=0.1)
    >>> point = Variables(np.array([[1.0, 3.0, -1.0, 9.0]]), (np.array([[1.0], [-1.0]]),))
    >>> cheapest_samples(problem, point).features.tolist()
    [[1.0, -1.0]]
    """
    columns = sample_columns(problem)
    outputs = forward(problem, point)[1][-1]
    costs = 0.5 * columns.decay * np.sum(point.features**2, axis=0)
    for i, label in enumerate(columns.labels):
        alone = Columns(np.array([label]), columns.fit[i : i + 1], columns.decay[i : i + 1])
        costs[i] += fit_and_slope(problem.loss, outputs[:, i : i + 1], alone)[0]
    ends = np.cumsum(problem.counts)
    chosen = [
        int(end - count + np.argmin(costs[end - count : end]))
        for end, count in zip(ends, problem.counts, strict=True)
    ]
    return replace(point, features=point.features[:, chosen])


def repeat_samples(problem: DUFM, point: Variables) -> Variables:
    """The sample-level point, of the same loss, in which all samples of a class are alike.

    From features of shape (d_1, K) to (d_1, N), class-major.
    """
    return replace(point, features=np.repeat(point.features, problem.counts, axis=1))


def canonical(problem: DUFM) -> DUFM:
    r"""Reduction B: all decays equal to one number c, the same optimal loss.

    .. math:: c = \Big(\bar n\,\lambda_H \prod_l \lambda_l\Big)^{1/(L+1)}, \qquad
              W_l = \sqrt{c/\lambda_l}\;\tilde W_l, \quad
              M_1 = \sqrt{c/(\bar n \lambda_H)}\;\tilde M_1

    Classes, widths and loss stay; samples are reduced as by `one_per_class`.

    Examples
    --------
    >>> small = canonical(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01))
    >>> round(small.feature_decay, 10) == round(small.decays[0], 10) == 0.0177827941
    True
    """
    small = one_per_class(problem)
    decay = problem.canonical_decay
    mean_count = small.num_samples / small.num_classes
    return replace(small, feature_decay=decay / mean_count, weight_decay=decay)


def _scales(problem: DUFM) -> tuple[float, FloatArray]:
    """Factors from canonical to actual: of the features, and of each weight."""
    decay = problem.canonical_decay
    mean_count = problem.num_samples / problem.num_classes
    features = math.sqrt(decay / (mean_count * problem.feature_decay))
    return features, np.sqrt(decay / np.array(problem.decays))


def from_canonical(problem: DUFM, point: Variables) -> Variables:
    """Carry a class-level point of ``canonical(problem)`` to `problem`; same outputs, same loss."""
    features, weights = _scales(problem)
    scaled = tuple(s * w for s, w in zip(weights, point.weights, strict=True))
    return Variables(features * point.features, scaled, point.bias)


def to_canonical(problem: DUFM, point: Variables) -> Variables:
    """The inverse of `from_canonical`."""
    features, weights = _scales(problem)
    scaled = tuple(w / s for s, w in zip(weights, point.weights, strict=True))
    return Variables(point.features / features, scaled, point.bias)
