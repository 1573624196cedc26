r"""Rank and depth: how many directions the class means and features use, and what the head reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..stats.blas import gram, norm, product
from ..stats.linalg import EPS64, TILE, Floats, row_blocks, row_norms, taken
from ..stats.undefined import Undefined
from ..system.threads import InOrder, threads
from .geometry import ClassGeometry
from .pairs import row_bands
from .spectra import eigenvalues_of_sum, principal_axes


def effective_rank(values: Floats) -> float:
    r""":math:`\exp H(p)` with :math:`p_j = s_j / \sum_k s_k` and H the Shannon entropy.

    Parameters
    ----------
    values : (r,) float64
        Singular values (of a scatter: eigenvalues), not negative.

    Returns
    -------
    float
        Between 1 and r.

    References
    ----------
    Roy & Vetterli 2007.

    Examples
    --------
    >>> round(effective_rank(np.array([2.0, 2.0, 0.0])), 12)
    2.0
    """
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def stable_rank(values: Floats) -> float:
    r""":math:`|M|^2 / s_1^2`.

    Examples
    --------
    >>> stable_rank(np.array([2.0, 2.0]))
    2.0
    """
    return float((values**2).sum() / values[0] ** 2)


def features_effective_rank(geometry: ClassGeometry) -> float:
    r"""Effective rank of :math:`S_W + S_B`.

    Examples
    --------
    >>> from collapsemeter import ClassMoments
    >>> m = ClassMoments.from_batch(np.repeat(np.eye(3), 2, axis=0), [0, 0, 1, 1, 2, 2], num_classes=3)
    >>> round(features_effective_rank(ClassGeometry(m)), 12)  # three means span a plane
    2.0
    """
    within = geometry.within("sample")
    try:
        centred = geometry.centred
    except Undefined as undefined:
        if undefined.code not in ("one_class", "no_between_class_scatter"):
            raise
        centred = np.zeros((1, geometry.width))
    values = eigenvalues_of_sum(within, centred, 1.0 / max(geometry.num_present, 1))
    # Eigenvalues below the round-off of the largest are noise, of either sign.
    values = values[values > values.max(initial=0.0) * geometry.width * EPS64]
    if not len(values):
        raise Undefined("no_between_class_scatter")
    return effective_rank(values)


def means_condition(values: Floats, num_present: int) -> float:
    r""":math:`s_1/s_C` of the uncentred class means: 1 at an orthogonal frame.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023.

    Examples
    --------
    >>> means_condition(np.array([2.0, 1.0]), 2)
    2.0
    """
    if len(values) < num_present or values[-1] <= values[0] * num_present * EPS64:
        raise Undefined("rank_deficient_means")
    return float(values[0] / values[-1])


def weight_balance(
    incoming: Floats, outgoing: Floats, decays: tuple[float, float] = (1.0, 1.0)
) -> float:
    r"""How far two consecutive weights are from balance.

    :math:`|A - B| / (|A| + |B|)` with :math:`A = \lambda_l W_l W_l^\top` and
    :math:`B = \lambda_{l+1} W_{l+1}^\top W_{l+1}`. Zero at every stationary point where no activation
    is between them, and at deep neural collapse; through a ReLU only the diagonals of A and B agree at
    every stationary point.

    Parameters
    ----------
    incoming : (d, k) float64
        :math:`W_l`, whose output is this layer.
    outgoing : (m, d) float64
        :math:`W_{l+1}`, which this layer feeds.
    decays : (float, float)
        Weight decays :math:`\lambda_l, \lambda_{l+1}`, positive.

    Returns
    -------
    float
        Between 0 and 1.

    References
    ----------
    Dang et al. 2023 (balance of deep linear optima); Sukenik, Mondelli & Lampert 2023.

    Examples
    --------
    >>> weight_balance(np.diag([1.0, 2.0]), np.diag([2.0, 4.0]), decays=(4.0, 1.0))
    0.0
    """
    a = decays[0] * gram(incoming)
    b = decays[1] * gram(outgoing.T)
    total = norm(a) + norm(b)
    if not total > 0:
        raise Undefined("zero_weights")
    return norm(a - b) / total


def dnc3_sine(weight: Floats, means: Floats) -> float:
    r"""How far the rows of a weight matrix point from the class means it is fed.

    :math:`\sum_j |w_j| \sin\angle(w_j, \mu_{c(j)}) \,/\, \sum_j |w_j|` over the nonzero rows, with
    :math:`\mu_{c(j)}` the uncentred class mean at the smallest angle. An angle beyond a right one
    counts as a right one.

    Parameters
    ----------
    weight : (k, d) float64
        A weight matrix fed by this layer.
    means : (C, d) float64
        Uncentred class means.

    Returns
    -------
    float
        Between 0 (every row is along a class mean) and 1.

    References
    ----------
    Sukenik, Mondelli & Lampert 2023 (DNC3).

    Examples
    --------
    >>> dnc3_sine(np.array([[2.0, 0.0], [0.0, 0.0]]), np.eye(2))
    0.0
    """
    mean_norms, lengths = row_norms(means), row_norms(weight)
    if not (mean_norms > 0).all():
        raise Undefined("zero_class_mean")
    directed = np.flatnonzero(lengths > 0)
    if not len(directed):
        raise Undefined("zero_head")
    rows, lengths = taken(weight, directed), taken(lengths, directed)
    units = means / mean_norms[:, None]
    sines = np.empty(len(rows))
    with threads() as in_order:
        search = _ClosestUnits(units, in_order)
        for start in range(0, len(rows), TILE):
            part = slice(start, start + TILE)
            directions = rows[part] / lengths[part, None]
            closest = search.closest(directions)
            sines[part] = np.concatenate(
                [_sines(directions[rows], units[closest[rows]]) for rows in row_blocks(directions)]
            )
    return float(np.average(sines, weights=lengths))


def _sines(rows: Floats, closest: Floats) -> Floats:
    """Sines of the angles between unit vectors; 1 beyond a right angle."""
    cosine = np.vecdot(rows, closest)
    # From the difference vector: sqrt(1 - cos^2) has no digits left near collapse.
    across = np.multiply(closest, -cosine[:, None])
    across += rows
    return np.where(cosine > 0, row_norms(across), 1.0)


class _ClosestUnits:
    r"""Finds which unit vector is closest to each of some others.

    Products in float32, which take half the time, decide wherever their rounding cannot have; the
    rows where it could are done again in float64. What all unit vectors have in common decides
    nothing, so they are centred first: what is left is small, and so is its rounding.

    Of many unit vectors, those directions in which they vary most often rule out all but one: a sixteenth
    of all directions near collapse, a quarter far from it. With P on them,
    :math:`w \cdot u \le Pw \cdot Pu + |w - Pw|\,|u - Pu|`: a product, too.

    Parameters
    ----------
    units : (C, d) float64
    in_order : callable
        Applies a function to several items, see `threads.threads`.
    """

    def __init__(self, units: Floats, in_order: InOrder) -> None:
        width = units.shape[1]
        self._in_order = in_order
        self._units, self._mean = units, units.mean(axis=0)
        relative = units - self._mean
        # d products, and the rounding of both factors; of either of two that are compared.
        rounding = (width + 4) * float(np.finfo(np.float32).eps)
        self._error = rounding * float(row_norms(relative).max())
        self._relative = relative.astype(np.float32)
        self._bounds: list[tuple[Floats, npt.NDArray[np.float32]]] = []
        if len(units) > TILE:
            axes = principal_axes(gram(relative.T))[1]
            leading = [axes[:, -max(1, width // share) :] for share in (16, 4)]
            self._bounds = [(some, _with_remainder(relative, some)) for some in leading]

    def closest(self, rows: Floats) -> npt.NDArray[np.int64]:
        """Return the index of the closest of all units to each unit row, (k,)."""
        index, unsure = np.zeros(len(rows), np.int64), np.arange(len(rows))
        worth = []
        for axes, others in self._bounds:
            left = self._decide(
                index, rows, unsure, _with_remainder(taken(rows, unsure), axes), others
            )
            if 2 * len(left) <= len(unsure):
                worth.append((axes, others))
            unsure = left
        self._bounds = worth  # for the next rows
        single = taken(rows, unsure).astype(np.float32)
        unsure = self._decide(index, rows, unsure, single, self._relative)
        step = max(1, TILE * TILE // len(self._units))
        for start in range(0, len(unsure), step):
            part = unsure[start : start + step]
            index[part] = product(rows[part], self._units.T).argmax(axis=1)
        return index

    def _decide(
        self,
        index: npt.NDArray[np.int64],
        rows: Floats,
        places: npt.NDArray[np.int64],
        coordinates: npt.NDArray[np.float32],
        others: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.int64]:
        """Set the index of the rows at some places, by products of coordinates; return where it is unsure."""
        if not len(places):
            return places
        index[places], second = _leaders(coordinates, others, self._in_order)
        # By how much the product with a unit exceeds the bound of every other.
        rows = taken(rows, places)
        margin: Floats = (
            np.vecdot(rows, self._units[index[places]]) - product(rows, self._mean) - second
        )
        left: npt.NDArray[np.int64] = places[margin <= self._error]
        return left


def _with_remainder(rows: Floats, axes: Floats) -> npt.NDArray[np.float32]:
    """Coordinates on some orthonormal axes (d, k), and beside them the norm of the rest, (n, k + 1)."""
    within = product(rows, axes)
    squares = np.vecdot(rows, rows)
    rest = squares - np.vecdot(within, within)
    # A difference of squares: what rounding may have taken is given back.
    rest = np.sqrt(np.maximum(rest, 0.0) + 4 * len(axes) * EPS64 * squares)
    return np.concatenate([within, rest[:, None]], axis=1, dtype=np.float32, casting="same_kind")


def _leaders(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32], in_order: InOrder
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Index of the largest product of each row with the others, and the next largest product."""
    index = np.zeros(len(rows), np.int64)
    best, second = (np.full(len(rows), -np.inf, np.float32) for _ in range(2))
    buffer = np.empty((len(rows), min(TILE, len(others))), np.float32)
    for start in range(0, len(others), TILE):
        part = others[start : start + TILE]
        products = product(rows, part.T, out=buffer[:, : len(part)])
        found = zip(*in_order(_two_largest, row_bands(products)), strict=True)
        first, largest, next_largest = (np.concatenate(of_bands) for of_bands in found)
        second = np.maximum(second, np.maximum(next_largest, np.minimum(best, largest)))
        index = np.where(largest > best, first + start, index)
        best = np.maximum(best, largest)
    return index, second


def _two_largest(
    products: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Place of the largest entry of each row, that entry, which is lost, and the next largest."""
    every = np.arange(len(products))
    first = products.argmax(axis=1)
    largest = products[every, first]
    products[every, first] = -np.inf
    return first, largest, products.max(axis=1)
