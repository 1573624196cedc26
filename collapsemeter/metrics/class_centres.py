"""Class means made ready to say which is nearest to a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..stats.linalg import EPS64, LARGEST, TILE, Floats, row_blocks
from .frames import too_small

if TYPE_CHECKING:
    from ..stats.moments import ClassMoments

_CACHED_ENTRIES = 2**17  # 1 MB in float64, which stays in a core's cache
WORTH_ROWS = 4  # of a class, for which its nearest other centre is looked up
_SLACK = 1e-6  # far more than squares of differences lose in rounding, (d + 4) eps

Counts = npt.NDArray[np.int64]


class ClassCentres:
    """The centres of the classes, for decisions on many batches of rows; ``known`` (C,) says which classes have one."""

    def __init__(self, moments: ClassMoments) -> None:
        self.known = (moments.counts > 0) & (np.abs(moments.means) <= LARGEST).all(axis=1)
        self._present = np.flatnonzero(self.known)
        if not len(self._present):
            return
        self._origin = moments.means[self._present[0]]
        centres = (moments.means[self._present] - self._origin) + moments.means_low[self._present]
        self._middle = centres.mean(axis=0)
        self._centres = centres - self._middle
        if too_small(self._centres):
            self.known[:], self._present = False, self._present[:0]
            return
        self._norms = (self._centres**2).sum(axis=1)
        self._reach = np.full(len(self._present), np.nan)
        counts, traces = moments.counts[self._present], moments.traces[self._present]
        freedom = counts.sum() - len(counts)
        pooled = traces.sum() / max(freedom, 1)
        # What the noise of a mean adds to squared distances from it, with a row of its own and without.
        self._noise = pooled / counts
        self._noise_without = pooled / np.maximum(counts - 1, 1)
        self._growth = (counts / np.maximum(counts - 1, 1)) ** 2

    def nearest(self, rows: npt.NDArray[Any], likely: Counts | None = None) -> Counts:
        """(N,): the nearest class, the first of ties, -1 where none is present; ``likely`` (N,), such as the label, only saves comparisons."""
        nearest = np.full(len(rows), -1)
        if not (len(rows) and len(self._present)):
            return nearest
        left = np.arange(len(rows))
        if likely is not None:
            near = self._within_reach(rows, likely)[0]
            nearest[near] = likely[near]
            left = np.flatnonzero(~near)
        for part in self._chunks(left):
            points = self._points(rows[part])
            scores = self._scores(points)
            nearest[part] = self._present[
                _nearest_centre(points, self._centres, self._norms, scores)
            ]
        return nearest

    def decided(
        self, rows: npt.NDArray[Any], classes: Counts
    ) -> tuple[Counts, npt.NDArray[np.bool_]]:
        r"""Return the nearest class of rows of these classes, and whether their own centre would be nearest if it were made without them.

        With :math:`\sigma^2` the pooled variance of a row, :math:`(\frac{n}{n-1})^2 |h - \mu_y|^2 - \frac{\sigma^2}{n_y - 1}` is compared with
        :math:`|h - \mu_c|^2 - \sigma^2 / n_c` of the other classes.
        """
        nearest, alone = classes.copy(), np.ones(len(rows), bool)
        if not (len(rows) and len(self._present)):
            return nearest, alone
        near, far = self._within_reach(rows, classes)
        for part in self._chunks(np.flatnonzero(~(near & far))):
            points = self._points(rows[part])
            scores = self._scores(points)
            nearest[part] = self._present[
                _nearest_centre(points, self._centres, self._norms, scores)
            ]
            own_class = np.searchsorted(self._present, classes[part])
            places = np.arange(len(part))
            squares = np.vecdot(points, points)
            distance = self._growth[own_class] * (scores[places, own_class] + squares)
            scores -= self._noise
            scores[places, own_class] = np.inf
            alone[part] = distance - self._noise_without[own_class] < scores.min(axis=1) + squares
        return nearest, alone

    def _scores(self, points: Floats) -> Floats:
        """Return the squared distances (N, C) but for |point|^2, which is the same for all centres."""
        scores: Floats = points @ self._centres.T
        scores *= -2.0
        scores += self._norms
        return scores

    def _chunks(self, places: Counts) -> Iterator[Counts]:
        """Cut rows into parts that stay in a cache, or, of many classes, are worth a product with all centres."""
        count, width = self._centres.shape
        step = max(1, min(TILE * TILE // count, max(count, _CACHED_ENTRIES // width)))
        return (places[part] for part in row_blocks(len(places), 1, step))

    def _points(self, rows: npt.NDArray[Any]) -> Floats:
        """Return rows centred as the centres are."""
        points: Floats = rows.astype(np.float64)
        points -= self._origin
        points -= self._middle
        return points

    def _within_reach(
        self, rows: npt.NDArray[Any], classes: Counts
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Say which rows are certainly nearest to their class's centre, within half its distance to the nearest other one, and which without themselves."""
        indices = np.searchsorted(self._present, classes)
        self._set_reach(indices)
        near, alone = np.empty(len(rows), bool), np.empty(len(rows), bool)
        largest = self._noise.max()
        for part in row_blocks(*rows.shape):
            own_class = indices[part]
            away = self._points(rows[part])
            away -= self._centres[own_class]
            squares = (1 + _SLACK) * np.vecdot(away, away)
            # NaN, of a class that was not asked for, is not larger.
            near[part] = self._reach[own_class] > squares
            reach_of_others = (
                2 * np.sqrt(self._reach[own_class]) - np.sqrt(squares)
            ) ** 2 - largest
            alone[part] = (
                self._growth[own_class] * squares - self._noise_without[own_class] < reach_of_others
            )
        return near, alone

    def _set_reach(self, indices: npt.NDArray[np.intp]) -> None:
        """Keep a quarter of the squared distance to the nearest other centre, for classes of many rows."""
        many = np.bincount(indices, minlength=len(self._present)) >= WORTH_ROWS
        for part in self._chunks(np.flatnonzero(many & np.isnan(self._reach))):
            squares = self._centres[part] @ self._centres.T
            squares *= -2.0
            squares += self._norms
            squares[np.arange(len(part)), part] = np.inf
            norms = self._norms[part]
            error = _expanded_error(self._centres.shape[1], norms, self._norms)
            self._reach[part] = np.maximum(squares.min(axis=1) + norms - error, 0.0) / 4


def _nearest_centre(
    points: Floats, centres: Floats, norms: Floats, scores: Floats
) -> npt.NDArray[np.intp]:
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
    """Bound the error of squared distances in expanded form: a dot product of length d loses d eps of its terms at most."""
    error: Floats = 4 * (width + 1) * EPS64 * (squares + norms.max())
    return error
