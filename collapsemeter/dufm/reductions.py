"""Two exact reductions: one sample per class, and one decay for all."""

import math
from dataclasses import replace

import numpy as np

from .arrays import FloatArray
from .network import Variables, fit_and_slope, forward, sample_columns
from .problem import DUFM


def one_per_class(problem: DUFM) -> DUFM:
    r"""Reduction A: the same optimal loss with fewer samples.

    .. math:: n \to 1, \qquad \lambda_H \to n \lambda_H

    Given the weights the samples decouple, so every sample of a class may use the
    cheapest features of that class. Imbalanced counts are divided by their greatest
    common divisor, for the same reason.

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    DUFM
        With one sample per class if the classes are balanced.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

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
    """The class-level point that keeps, of each class, its cheapest sample.

    Parameters
    ----------
    problem : DUFM
        The problem of the point.
    point : Variables
        Features of shape (d_1, N).

    Returns
    -------
    Variables
        Features of shape (d_1, K); its loss is never higher.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 2, 1, 1, feature_decay=0.1, weight_decay=0.1)
    >>> point = Variables(np.array([[1.0, 3.0, -1.0, 9.0]]), (np.array([[1.0], [-1.0]]),))
    >>> cheapest_samples(problem, point).features.tolist()
    [[1.0, -1.0]]
    """
    columns = sample_columns(problem)
    outputs = forward(problem, point)[1][-1]
    costs = np.empty(problem.num_samples)
    for i in range(problem.num_samples):
        one = replace(columns, labels=columns.labels[i : i + 1], fit=np.ones(1))
        costs[i] = fit_and_slope(problem.loss, outputs[:, i : i + 1], one)[0]
    costs /= problem.num_samples
    costs += 0.5 * problem.feature_decay * np.sum(point.features**2, axis=0)
    ends = np.cumsum(problem.counts)
    chosen = [
        int(end - count + np.argmin(costs[end - count : end]))
        for end, count in zip(ends, problem.counts, strict=True)
    ]
    return replace(point, features=point.features[:, chosen])


def repeat_samples(problem: DUFM, point: Variables) -> Variables:
    """The sample-level point in which every sample of a class has the same features.

    Parameters
    ----------
    problem : DUFM
        Gives the counts.
    point : Variables
        Features of shape (d_1, K).

    Returns
    -------
    Variables
        Features of shape (d_1, N), class-major; same loss.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, [1, 2], 1, 1, feature_decay=0.1, weight_decay=0.1)
    >>> point = Variables(np.array([[1.0, -1.0]]), (np.array([[1.0], [-1.0]]),))
    >>> repeat_samples(problem, point).features.tolist()
    [[1.0, -1.0, -1.0]]
    """
    return replace(point, features=np.repeat(point.features, problem.counts, axis=1))


def canonical(problem: DUFM) -> DUFM:
    r"""Reduction B: all decays equal to one number c.

    .. math:: c = \Big(\bar n\,\lambda_H \prod_l \lambda_l\Big)^{1/(L+1)}, \qquad
              W_l = \sqrt{c/\lambda_l}\;\tilde W_l, \quad
              M_1 = \sqrt{c/(\bar n \lambda_H)}\;\tilde M_1

    Parameters
    ----------
    problem : DUFM
        Any problem.

    Returns
    -------
    DUFM
        Same classes, widths and loss, one sample per class (see `one_per_class`),
        and the same optimal loss.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

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
    """Carry a point of ``canonical(problem)`` to `problem`; same outputs, same loss.

    Parameters
    ----------
    problem : DUFM
        The actual problem.
    point : Variables
        Class-level point of the canonical problem, features (d_1, K).

    Returns
    -------
    Variables
        Class-level point of `problem`.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.4)
    >>> from_canonical(problem, Variables(np.eye(2), (np.eye(2),))).weights[0].round(6).tolist()
    [[0.707107, 0.0], [0.0, 0.707107]]
    """
    features, weights = _scales(problem)
    scaled = tuple(s * w for s, w in zip(weights, point.weights, strict=True))
    return Variables(features * point.features, scaled, point.bias)


def to_canonical(problem: DUFM, point: Variables) -> Variables:
    """Carry a class-level point of `problem` to ``canonical(problem)``.

    Parameters
    ----------
    problem : DUFM
        The actual problem.
    point : Variables
        Class-level point, features (d_1, K).

    Returns
    -------
    Variables
        The inverse of `from_canonical`.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165.

    Examples
    --------
    >>> problem = DUFM(2, 1, 1, 2, feature_decay=0.1, weight_decay=0.4)
    >>> point = Variables(np.eye(2), (np.eye(2),))
    >>> back = from_canonical(problem, to_canonical(problem, point))
    >>> bool(np.allclose(back.features, np.eye(2)))
    True
    """
    features, weights = _scales(problem)
    scaled = tuple(w / s for s, w in zip(weights, point.weights, strict=True))
    return Variables(point.features / features, scaled, point.bias)
