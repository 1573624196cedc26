r"""NC4: the network decides by nearest class centre.

The class means must be final before a decision is made, so this is not a function of moments alone:
it needs rows, kept from the same pass (a bounded uniform sample) or seen in a second one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..stats.blas import product
from ..stats.head import Head, HeadLike, argmax_or_none
from ..stats.labels import labelled_rows
from ..stats.linalg import EPS64, LARGEST, TILE, Floats
from ..stats.moments import ClassMoments
from ..stats.plain import plain
from ..stats.sums import IGNORE_INDEX
from .frames import too_small

TILE_ENTRIES = 2**17  # 1 MB in float64, which stays in a core's cache
WORTH_ROWS = 4  # of a class, for which its nearest other centre is looked up
SLACK = 1e-6  # far more than squares of differences lose in rounding, (d + 4) eps

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Decisions:
    """Counts of rows by class: decided on, nearest to their own centre, decided as the network does.

    Decisions of disjoint sets of rows about the same means merge by addition.

    Parameters
    ----------
    rows, correct : (C,) int64
        Rows decided on, and those whose nearest class centre is their label.
    agree : (C,) int64, or None
        Rows on which the network's decision is the nearest class centre; None without logits.
    sampled : bool
        Whether the rows are a sample of those measured, so that intervals are due.

    Examples
    --------
    >>> d = Decisions(np.array([3]), np.array([2]), None, sampled=False)
    >>> d.merge(d).rows
    array([6])
    """

    rows: Counts
    correct: Counts
    agree: Counts | None
    sampled: bool

    def merge(self, other: Self) -> Self:
        """Return the decisions on both sets of rows.

        Raises
        ------
        ValueError
            If they are about different numbers of classes.
        """
        if self.rows.shape != other.rows.shape:
            raise ValueError(
                f"decisions about {len(self.rows)} classes and about {len(other.rows)}: "
                "merge only those of the same layer"
            )
        known = self.agree is not None and other.agree is not None
        return type(self)(
            self.rows + other.rows,
            self.correct + other.correct,
            self.agree + other.agree if known else None,  # type: ignore[operator]  # known: both set
            self.sampled or other.sampled,
        )


def decide(
    moments: ClassMoments,
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    head: HeadLike | None = None,
    logits: npt.ArrayLike | None = None,
    predictions: npt.ArrayLike | None = None,
    sampled: bool | None = None,
    ignore_index: int = IGNORE_INDEX,
    centres: ClassCentres | None = None,
) -> Decisions:
    r"""Compare the network's decisions with the nearest class centre, row by row.

    Parameters
    ----------
    moments : ClassMoments
        The final class means.
    features : (N, d) array_like of float
        Rows to decide on.
    labels : (N,) or (N, 1) array_like of class numbers, or (N, C) one-hot
        As of `collapsemeter.ClassMoments.from_batch`; rows that name no single class are left out.
    head : Head, or its weight (C, d), or the pair (weight, bias), optional
        As `measure` takes it: the network's decision as :math:`\arg\max W h + b`.
    logits : (N, C) array_like, or predictions : (N,) array_like of int, optional
        The network's own decision; it takes precedence over ``head``.
    sampled : bool, optional
        Whether the rows are a sample; by default, whether there are fewer than the moments counted.
    ignore_index : int
    centres : ClassCentres, optional
        Those of the moments, where many batches are decided on.

    Returns
    -------
    Decisions

    Raises
    ------
    ValueError
        If shapes do not fit.

    References
    ----------
    Papyan, Han & Donoho 2020, figure 7; Ben-Shaul & Dekel 2022.

    Examples
    --------
    >>> rows, labels = np.array([[0.0], [1.0], [9.0]]), np.array([0, 0, 1])
    >>> m = ClassMoments.from_batch(rows, labels, num_classes=2)
    >>> decide(m, rows, labels, predictions=[0, 1, 1]).agree
    array([1, 1])
    """
    rows, bins = labelled_rows(features, labels, moments.num_classes, ignore_index=ignore_index)
    if rows.shape[1] != moments.width:
        raise ValueError(
            f"features have shape {rows.shape}, the moments are about {moments.width} features"
        )
    head = None if head is None else Head.of(head)
    if head is not None:
        head.check_fit(moments.num_classes, moments.width)
    decided = _network_decision(rows, head, logits, predictions)
    centres = ClassCentres(moments) if centres is None else centres
    usable = (bins >= 0) & (bins != ignore_index) & _bounded(rows)
    usable[usable] = centres.known[bins[usable]]
    if not usable.all():
        rows, bins = rows[usable], bins[usable]
        decided = None if decided is None else decided[usable]
    nearest = centres.nearest(rows, bins)
    agree = None
    if decided is not None:
        agree = _per_class(bins, decided == nearest, moments.num_classes)
    return Decisions(
        rows=_per_class(bins, np.ones(len(bins), bool), moments.num_classes),
        correct=_per_class(bins, bins == nearest, moments.num_classes),
        agree=agree,
        sampled=len(rows) < moments.rows if sampled is None else sampled,
    )


def _per_class(bins: Counts, flags: npt.NDArray[np.bool_], num_classes: int) -> Counts:
    return np.bincount(bins[flags], minlength=num_classes).astype(np.int64)


def _tiles(rows: npt.NDArray[Any]) -> list[slice]:
    """Cut rows into parts that a core's cache holds in float64."""
    step = max(1, TILE_ENTRIES // max(rows.shape[1], 1))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _bounded(rows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N, d) -> (N,): no value of the row is NaN, or so large that its powers overflow."""
    bounded = np.empty(len(rows), bool)
    for part in _tiles(rows):
        tile = rows[part].astype(np.float64, copy=False)
        bounded[part] = (np.abs(tile) <= LARGEST).all(axis=1)
    return bounded


def _network_decision(
    rows: npt.NDArray[Any],
    head: Head | None,
    logits: npt.ArrayLike | None,
    predictions: npt.ArrayLike | None,
) -> npt.NDArray[Any] | None:
    if predictions is not None:
        decided = plain(predictions, "predictions")
    elif logits is not None:
        scores = plain(logits, "logits")
        if scores.ndim != 2 or scores.shape[1] < 2:
            raise ValueError(
                f"logits have shape {scores.shape}: pass one column per class, (N, C); "
                "of a single logit pass predictions=logit > 0"
            )
        decided = argmax_or_none(scores)
    elif head is not None:
        if not head.finite:
            return None
        decided = head.decide(rows)
    else:
        return None
    if decided.shape != rows.shape[:1]:
        raise ValueError(
            f"the network decided on rows of shape {decided.shape}, features have shape "
            f"{rows.shape}: pass one decision per row"
        )
    return decided


class ClassCentres:
    """Class means made ready to say which is nearest.

    Distances are taken on centred rows in float64; where two centres are too near to tell apart that
    way, they are taken again from the differences.

    Parameters
    ----------
    moments : ClassMoments

    Attributes
    ----------
    known : (C,) bool array
        Classes that have a centre: present, and not made NaN by a propagated row. None where squared
        distances leave float64.

    Examples
    --------
    >>> m = ClassMoments.from_batch([[1e8], [1e8 + 1]], [0, 2], num_classes=3)
    >>> ClassCentres(m).nearest(np.array([[1e8 + 0.9], [1e8 + 0.1]]))
    array([2, 0])
    """

    def __init__(self, moments: ClassMoments) -> None:
        low = moments.means_low
        assert low is not None
        self.known = (moments.counts > 0) & (np.abs(moments.means) <= LARGEST).all(axis=1)
        self._present = np.flatnonzero(self.known)
        if not len(self._present):
            return
        self._origin = moments.means[self._present[0]]
        centres = (moments.means[self._present] - self._origin) + low[self._present]
        self._middle = centres.mean(axis=0)
        self._centres = centres - self._middle
        if too_small(self._centres):
            self.known[:], self._present = False, self._present[:0]
            return
        self._norms = (self._centres**2).sum(axis=1)
        self._reach = np.full(len(self._present), np.nan)

    def nearest(self, rows: npt.NDArray[Any], likely: Counts | None = None) -> Counts:
        r"""Return :math:`\arg\min_c |h - \mu_c|` over the classes present, (N,); ties go to the first.

        Parameters
        ----------
        rows : (N, d) array
            Finite numbers of any dtype.
        likely : (N,) int64 array, optional
            A class that has a centre and is nearest to most rows, such as the label: the result is the same
            and, where classes are apart, most rows are compared with one centre only.

        Returns
        -------
        (N,) int64 array
            -1 where no class is present.
        """
        nearest = np.full(len(rows), -1)
        if not (len(rows) and len(self._present)):
            return nearest
        left = np.arange(len(rows))
        if likely is not None:
            near = self._within_reach(rows, likely)
            nearest[near] = likely[near]
            left = np.flatnonzero(~near)
        for part in self._chunks(left):
            points = self._points(rows[part])
            nearest[part] = self._present[_nearest_row(points, self._centres, self._norms)]
        return nearest

    def _chunks(self, places: Counts) -> Iterator[Counts]:
        """Cut rows into parts that stay in a cache, or, of many classes, are worth a product with all centres."""
        count, width = self._centres.shape
        step = max(1, min(TILE * TILE // count, max(count, TILE_ENTRIES // width)))
        for start in range(0, len(places), step):
            yield places[start : start + step]

    def _points(self, rows: npt.NDArray[Any]) -> Floats:
        """Return rows centred as the centres are."""
        points: Floats = rows.astype(np.float64)
        points -= self._origin
        points -= self._middle
        return points

    def _within_reach(self, rows: npt.NDArray[Any], classes: Counts) -> npt.NDArray[np.bool_]:
        r"""Say which rows are certainly nearer to their class's centre than to any other.

        With D the distance to the nearest other centre, :math:`|h - \mu_y| < D/2` leaves every other
        centre at :math:`D - |h - \mu_y| > |h - \mu_y|`. One centre is compared and not C.
        """
        own = np.searchsorted(self._present, classes)
        self._set_reach(own)
        near = np.empty(len(rows), bool)
        for part in _tiles(rows):
            away = self._points(rows[part])
            away -= self._centres[own[part]]
            # NaN, of a class that was not asked for, is not larger.
            near[part] = self._reach[own[part]] > (1 + SLACK) * np.vecdot(away, away)
        return near

    def _set_reach(self, own: npt.NDArray[np.intp]) -> None:
        """Find a quarter of the squared distance to the nearest other centre, for classes of many rows.

        It costs as much as to decide on one row, and is kept.
        """
        many = np.bincount(own, minlength=len(self._present)) >= WORTH_ROWS
        for part in self._chunks(np.flatnonzero(many & np.isnan(self._reach))):
            squares = product(self._centres[part], self._centres.T)
            squares *= -2.0
            squares += self._norms
            squares[np.arange(len(part)), part] = np.inf
            norms = self._norms[part]
            error = _expanded_error(self._centres.shape[1], norms, self._norms)
            self._reach[part] = np.maximum(squares.min(axis=1) + norms - error, 0.0) / 4


def nearest_class(moments: ClassMoments, features: npt.ArrayLike) -> Counts:
    r"""Return :math:`\arg\min_c |h - \mu_c|` over the classes present, (N,), see `ClassCentres`.

    Examples
    --------
    >>> m = ClassMoments.from_batch([[0.0], [1.0]], [0, 2], num_classes=3)
    >>> nearest_class(m, [[0.9], [0.1]])
    array([2, 0])
    """
    return ClassCentres(moments).nearest(plain(features, "features"))


def _nearest_row(points: Floats, centres: Floats, norms: Floats) -> npt.NDArray[np.intp]:
    scores = product(points, centres.T)
    scores *= -2.0
    scores += norms  # the squared distance but for |point|^2, which is the same for all centres
    nearest: npt.NDArray[np.intp] = scores.argmin(axis=1)
    best = scores[np.arange(len(points)), nearest]
    error = _expanded_error(points.shape[1], np.vecdot(points, points), norms)
    doubtful = np.flatnonzero(np.count_nonzero(scores <= (best + error)[:, None], axis=1) > 1)
    for row in doubtful:
        near = np.flatnonzero(scores[row] <= best[row] + error[row])
        exact = ((points[row] - centres[near]) ** 2).sum(axis=1)
        nearest[row] = near[exact.argmin()]
    return nearest


def _expanded_error(width: int, squares: Floats, norms: Floats) -> Floats:
    """Bound the error of squared distances in expanded form, of points of these squared norms.

    A dot product of length d loses at most d eps of its terms.
    """
    error: Floats = 4 * (width + 1) * EPS64 * (squares + norms.max())
    return error


def wilson_interval(successes: int, rows: int, z: float = 1.959963984540054) -> tuple[float, float]:
    r"""Wilson score interval of a proportion, at 95 % by default.

    :math:`\frac{\hat p + z^2/2n \pm z\sqrt{\hat p(1-\hat p)/n + z^2/4n^2}}{1 + z^2/n}`

    References
    ----------
    Wilson 1927.

    Examples
    --------
    >>> tuple(round(end, 4) for end in wilson_interval(10, 10))
    (0.7225, 1.0)
    """
    share = successes / rows
    centre = share + z**2 / (2 * rows)
    half = z * math.sqrt(share * (1 - share) / rows + (z / (2 * rows)) ** 2)
    scale = 1 + z**2 / rows
    # At 0 and 1 the ends are the share itself, which rounding may miss by a hair.
    low, high = min((centre - half) / scale, share), max((centre + half) / scale, share)
    return max(low, 0.0), min(high, 1.0)
