r"""95 % intervals of each class's variance and of its mean's distance from the centre, from groups of its rows.

Leaving out one group at a time gives a jackknife standard error of the logarithm. Of few rows it is itself uncertain, so that the one of
a variance is averaged with what all classes say together: their rows' :math:`|h - \mu_c|^2 / v_c` are taken to spread alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.linalg import Floats, taken

if TYPE_CHECKING:
    from ..stats.groups import Groups

LEAST_ROWS = 4  # with fewer the interval of a variance covers more than 99 % and says nothing
# Student's t, 97.5 %, by degrees of freedom from 1 on.
STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314
)  # fmt: skip


def class_intervals(groups: Groups, centred: Floats) -> dict[str, Floats]:
    """Return the ends of the intervals by name, (C,) each, of the classes that are present, whose M is ``centred``.

    They answer for the population that the rows of a class were drawn from. NaN stands for classes of few rows, and for means
    that lie at the centre but for noise.
    """
    present = np.flatnonzero(groups.counts.sum(axis=1))
    counts, squares = groups.counts[present], groups.squares[present]
    rows, whole = counts.sum(axis=1), squares.sum(axis=1)
    left = rows[:, None] - counts
    variances, replicates = np.empty(counts.shape), np.empty(counts.shape)
    with np.errstate(all="ignore"):
        for g in range(groups.number):  # one at a time: all together have G (C, d) matrices
            rest = left[:, g]
            shift = taken(groups.sums[:, g], present) / -np.maximum(rest, 1)[:, None]
            remaining = whole - squares[:, g] - rest * np.vecdot(shift, shift)
            variances[:, g] = np.maximum(remaining, 0.0) / np.maximum(rest - 1, 1)
            moved = centred + shift - shift.mean(axis=0)
            replicates[:, g] = _squared_norms(moved, variances[:, g] / rest)
        enough = rows >= LEAST_ROWS
        used = (counts > 0) & enough[:, None]
        free = used.sum(axis=1) - 1
        variance = np.log(whole / np.maximum(rows - 1, 1))
        error = _averaged(_jackknife(np.log(variances), used), rows, free)
        half = _quantiles(free) * np.sqrt(error)
        squared = _squared_norms(centred, np.exp(variance) / rows)
        apart = (squared > 0) & (replicates > 0).all(axis=1)
        norm = np.where(apart, np.log(squared), math.nan)
        # The centre moves with every group, whether or not the class has a row in it.
        norm_half = _quantiles(free) * np.sqrt(_jackknife(np.log(replicates), np.ones_like(used)))
        ends = {
            "variance_low": np.exp(variance - half),
            "variance_high": np.exp(variance + half),
            "mean_norm_low": np.exp((norm - norm_half) / 2),
            "mean_norm_high": np.exp((norm + norm_half) / 2),
        }
    return {name: np.where(enough & np.isfinite(end), end, math.nan) for name, end in ends.items()}


def _squared_norms(centred: Floats, noise: Floats) -> Floats:
    """Return |mu_c - m|^2 less what the noise of the means, of these squared lengths, adds to it."""
    classes = len(centred)
    squares = (centred**2).sum(axis=1) - (1 - 2 / classes) * noise
    less: Floats = squares - noise.sum(axis=0) / classes**2
    return less


def _jackknife(values: Floats, used: npt.NDArray[np.bool_]) -> Floats:
    """Return the squared standard error of each class from its values without each group."""
    number = used.sum(axis=1)
    mean = np.where(used, values, 0.0).sum(axis=1) / number
    spread = np.where(used, (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
    error: Floats = (number - 1) / number * spread
    return error


def _averaged(errors: Floats, rows: npt.NDArray[np.int64], free: npt.NDArray[np.int64]) -> Floats:
    """Return each squared error averaged with that of all classes, which falls with the rows."""
    known = np.isfinite(errors) & (free > 0)
    weights = free * known
    shared = (np.where(known, errors, 0.0) * rows * weights).sum() / weights.sum() / rows
    averaged: Floats = (errors + shared) / 2
    return averaged


def _quantiles(free: npt.NDArray[np.int64]) -> Floats:
    """Return Student's t for each number of degrees of freedom, NaN without any."""
    table = np.array([math.nan, *STUDENT])
    return table[np.clip(free, 0, len(STUDENT))]
