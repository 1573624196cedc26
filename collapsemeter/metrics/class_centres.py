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

    def nearest(self, rows: npt.NDArray[Any], likely: Counts | None = None) -> Counts:
        """(N,): the nearest class, the first of ties, -1 where none is present; ``likely`` (N,), such as the label, only saves comparisons."""
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
            nearest[part] = self._present[_nearest_centre(points, self._centres, self._norms)]
        return nearest

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

    def _within_reach(self, rows: npt.NDArray[Any], classes: Counts) -> npt.NDArray[np.bool_]:
        """Say which rows are certainly nearest to their class's centre: within half its distance to the nearest other one."""
        indices = np.searchsorted(self._present, classes)
        self._set_reach(indices)
        near = np.empty(len(rows), bool)
        for part in row_blocks(*rows.shape):
            away = self._points(rows[part])
            away -= self._centres[indices[part]]
            # NaN, of a class that was not asked for, is not larger.
            near[part] = self._reach[indices[part]] > (1 + _SLACK) * np.vecdot(away, away)
        return near

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


def _nearest_centre(points: Floats, centres: Floats, norms: Floats) -> npt.NDArray[np.intp]:
    scores = points @ centres.T
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
    """Bound the error of squared distances in expanded form: a dot product of length d loses d eps of its terms at most."""
    error: Floats = 4 * (width + 1) * EPS64 * (squares + norms.max())
    return error
