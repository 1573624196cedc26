r"""Which class is which: the distance of two Gram matrices over permutations of the classes.

A reference names its classes in an order of its own, and a structure such as a strongly regular graph
has many. Finding the best permutation is a quadratic assignment problem, NP-hard in general: it is
solved exactly for few classes and searched for many. SciPy is imported only where it is searched.
"""

import math
from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..stats.linalg import Floats

EXACT_CLASSES = 7  # 7! = 5040 permutations are tried one by one
EQUAL = 1e-9  # a distance of Gram matrices that are the same, where no search goes on
NEAR = 0.02  # features of classes closer than this are the same, while classes are told apart
RESTARTS = 6  # of each search, fewer for many classes
_FEATURES = 12
_Order = npt.NDArray[np.intp]


class Match(NamedTuple):
    """A distance, and the class of the second matrix that stands for each class of the first."""

    distance: float
    order: _Order


def normalised(gram: Floats) -> Floats:
    """Return the matrix at Frobenius norm 1; a zero matrix stays zero."""
    scaled = gram / (np.abs(gram).max(initial=0.0) or 1.0)
    return np.asarray(scaled / (np.linalg.norm(scaled) or 1.0))


def match_classes(gram: Floats, reference: Floats) -> Match:
    """Distance of two Gram matrices at norm 1 over all orders of the classes: exact for seven classes or a matrix without an order, else an upper bound by search."""
    if gram.shape != reference.shape or gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(
            f"Gram matrices have shapes {gram.shape} and {reference.shape}: "
            "pass two (C, C) matrices of the same classes"
        )
    a, b = normalised(gram), normalised(reference)
    if _alike(a) or _alike(b):  # every order gives the same distance
        order = np.arange(len(a), dtype=np.intp)
        return Match(_distance(a, b, order), order)
    if len(a) <= EXACT_CLASSES:
        return _exact(a, b)
    best = Match(math.inf, np.arange(len(a)))
    for order in _candidates(a, b, np.random.default_rng(0)):
        best = min(best, _exchange(a, b, order), key=lambda match: match.distance)
        if best.distance <= EQUAL:
            break
    return best


def _alike(gram: Floats) -> bool:
    """Whether no class differs from another: orthogonal frame, simplex ETF, equal means, zero."""
    off = gram[~np.eye(len(gram), dtype=bool)]
    parts = (np.diag(gram), off)
    return all(bool(np.ptp(part) <= 1e-12) for part in parts if part.size)


def _distance(a: Floats, b: Floats, order: _Order) -> float:
    return float(np.linalg.norm(a - b[np.ix_(order, order)]))


def _exact(a: Floats, b: Floats) -> Match:
    orders = np.array(list(permutations(range(len(a)))), dtype=np.intp)
    moved = b[orders[:, :, None], orders[:, None, :]]
    order = orders[((moved - a) ** 2).sum(axis=(1, 2)).argmin()]
    return Match(_distance(a, b, order), order)


def _candidates(a: Floats, b: Floats, rng: np.random.Generator) -> Iterator[_Order]:
    """Yield orders to start from, the most promising first."""
    restarts = max(1, min(RESTARTS, 200 // len(a)))
    yield np.arange(len(a), dtype=np.intp)
    for _ in range(restarts):
        yield from _tell_apart(a, b, rng)
    from scipy.optimize import quadratic_assignment

    for start in ("barycenter", *("randomized",) * (restarts - 1)):
        options = {"maximize": True, "P0": start, "rng": rng}
        yield np.asarray(quadratic_assignment(a, b, options=options).col_ind, np.intp)


def _tell_apart(a: Floats, b: Floats, rng: np.random.Generator) -> Iterator[_Order]:
    """Pair classes one by one by random smooth functions of their inner products, each choice telling the others further apart."""
    from scipy.optimize import linear_sum_assignment

    count = len(a)
    # At the scale of the entries, so that noise is small and structure is not.
    unit = float(np.sqrt(np.mean(np.diag(a)) * np.mean(np.diag(b)))) or 1.0
    mixing = _Mixing(rng)
    marks = np.zeros((2, count, _FEATURES))
    free_a, free_b = list(rng.permutation(count)), list(range(count))
    while free_a:
        feats_a, feats_b = (
            mixing.features(g / unit, m) for g, m in zip((a, b), marks, strict=True)
        )
        cost = ((feats_a[:, None, :] - feats_b[None, :, :]) ** 2).sum(axis=2)
        order = np.asarray(linear_sum_assignment(cost)[1], np.intp)
        if _distance(a, b, order) <= EQUAL:
            yield order
            return
        ambiguous = [
            i for i in free_a if (cost[i, free_b] < cost[i, free_b].min() + NEAR**2).sum() > 1
        ]
        if not ambiguous:
            break
        chosen = ambiguous[0]
        partner = min(free_b, key=lambda j: float(cost[chosen, j]))
        marks[0, chosen] = marks[1, partner] = rng.standard_normal(_FEATURES)
        free_a.remove(chosen)
        free_b.remove(partner)
    yield order


class _Mixing:
    """Random smooth functions, the same for both matrices."""

    def __init__(self, rng: np.random.Generator) -> None:
        size = _FEATURES
        self.across = 2 * (rng.standard_normal((size, size)) / math.sqrt(size))
        self.along = 2 * rng.standard_normal(size)
        self.shift = rng.uniform(0, 2 * np.pi, size)

    def features(self, gram: Floats, marks: Floats) -> Floats:
        """Return (C, features): three rounds of sums over the other classes."""
        itself = np.diag(gram)[:, None] * self.along
        state = marks + np.sin(itself)
        for _ in range(3):
            inside = (state @ self.across + self.shift)[None, :, :] + gram[:, :, None] * self.along
            state = marks + np.sin(itself) + np.cos(inside).mean(axis=1)
        return np.asarray(state)


def _exchange(a: Floats, b: Floats, order: _Order) -> Match:
    """Exchange the two classes that help most, until no exchange helps."""
    order = order.copy()
    for _ in range(10 * len(a)):
        moved = b[np.ix_(order, order)]
        gain = _exchange_gain(a, moved)
        p, q = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[p, q] <= 1e-14:
            break
        order[[p, q]] = order[[q, p]]
    return Match(_distance(a, b, order), order)


def _exchange_gain(a: Floats, b: Floats) -> Floats:
    r"""Return by how much :math:`\langle A, B\rangle` grows when two classes of B change places."""
    product = a @ b.T
    diagonal = np.diag(product)
    diagonal_a, diagonal_b = np.diag(a), np.diag(b)
    whole = product + product.T - diagonal[:, None] - diagonal[None, :]
    at_p = (diagonal_a[:, None] - a) * (b - diagonal_b[:, None])
    both = (diagonal_a[:, None] - diagonal_a) * (diagonal_b - diagonal_b[:, None])
    return np.asarray(2 * (whole - at_p - at_p.T) + both)
