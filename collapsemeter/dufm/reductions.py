"""Two exact reductions: one sample per class, and one decay for all."""

import math
from dataclasses import replace

import numpy as np

from .network import Variables, fits_and_slopes, forward, sample_columns
from .problem import Problem


def one_per_class(problem: Problem) -> Problem:
    r"""Reduction A: the same optimal loss with fewer samples, one per class if they are balanced.

    .. math:: n \to 1, \qquad \lambda_H \to n \lambda_H

    Given the weights the samples decouple, so every sample of a class may use the
    cheapest features of that class. Imbalanced counts are divided by their greatest
    common divisor, for the same reason.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> small = one_per_class(DUFM(2, 10, 1, feature_decay=0.01, weight_decay=0.1))
    >>> small.per_class, round(small.feature_decay, 12)
    ((1, 1), 0.1)
    """
    divisor = math.gcd(*(int(n) for n in problem.counts))
    counts = tuple(int(n) // divisor for n in problem.counts)
    return replace(problem, per_class=counts, feature_decay=divisor * problem.feature_decay)


def cheapest_samples(problem: Problem, point: Variables) -> Variables:
    """The class-level point, of no higher loss, that keeps the cheapest sample of each class.

    From features of shape (d_1, N) to (d_1, K).

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(2, 2, 1, 1, feature_decay=0.1, weight_decay=0.1)
    >>> point = Variables(np.array([[1.0, 3.0, -1.0, 9.0]]), (np.array([[1.0], [-1.0]]),))
    >>> cheapest_samples(problem, point).features.tolist()
    [[1.0, -1.0]]
    """
    columns = sample_columns(problem)
    fits = fits_and_slopes(problem.loss, forward(problem, point)[1][-1], columns.labels)[0]
    costs = 0.5 * columns.decay * np.sum(point.features**2, axis=0) + columns.fit * fits
    first = np.cumsum(problem.counts) - problem.counts
    chosen = np.lexsort((costs, columns.labels))[first]
    return replace(point, features=point.features[:, chosen])


def repeat_samples(problem: Problem, point: Variables) -> Variables:
    """The sample-level point, of the same loss, in which all samples of a class are alike.

    From features of shape (d_1, K) to (d_1, N), class-major.
    """
    return replace(point, features=np.repeat(point.features, problem.counts, axis=1))


def canonical(problem: Problem) -> Problem:
    r"""Reduction B: all decays equal to one number c, the same optimal loss.

    .. math:: c = \Big(\bar n\,\lambda_H \prod_l \lambda_l\Big)^{1/(L+1)}, \qquad
              W_l = \sqrt{c/\lambda_l}\;\tilde W_l, \quad
              M_1 = \sqrt{c/(\bar n \lambda_H)}\;\tilde M_1

    Classes, widths and loss stay; samples are reduced as by `one_per_class`.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> small = canonical(DUFM(2, 10, 3, feature_decay=0.01, weight_decay=0.01))
    >>> round(small.feature_decay, 10) == round(small.decays[0], 10) == 0.0177827941
    True
    """
    small = one_per_class(problem)
    decay = problem.canonical_decay
    mean_count = small.num_samples / small.num_classes
    return replace(small, feature_decay=decay / mean_count, weight_decay=decay)


def _scales(problem: Problem) -> list[float]:
    """Factors from canonical to actual, of the features, the weights and the bias."""
    decay = problem.canonical_decay
    mean_count = problem.num_samples / problem.num_classes
    scales = [decay / (mean_count * problem.feature_decay), *(decay / x for x in problem.decays)]
    return [*map(math.sqrt, scales), 1.0]


def from_canonical(problem: Problem, point: Variables) -> Variables:
    """Carry a class-level point of ``canonical(problem)`` to `problem`; same outputs, same loss."""
    scaled = zip(_scales(problem), point.arrays, strict=False)
    return point.with_arrays(scale * array for scale, array in scaled)


def to_canonical(problem: Problem, point: Variables) -> Variables:
    """The inverse of `from_canonical`."""
    scaled = zip(_scales(problem), point.arrays, strict=False)
    return point.with_arrays(array / scale for scale, array in scaled)
