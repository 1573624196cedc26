r"""95 % intervals of each class's variance and of its mean's distance from the centre, from groups of its rows.

Leaving out one group at a time gives a jackknife standard error of the logarithm. Of few rows it is itself uncertain, so that the one of
a variance is averaged with what all classes say together: their rows' :math:`|h - \mu_c|^2 / v_c` are taken to spread alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ..stats.linalg import Floats

LEAST_ROWS = 4  # with fewer the interval of a variance covers more than 99 % and says nothing
# Student's t at 97.5 %, by degrees of freedom from 1 on.
_T: tuple[float, ...] = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
_T += (2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314)


def class_intervals(
    counts: npt.NDArray[np.int64], sums: Floats, squares: Floats, centred: Floats
) -> dict[str, Floats]:
    """Return the ends of the intervals by name, (C,) each; NaN for classes of few rows, or at the centre but for noise.

    ``counts`` (C, G), ``sums`` (C, G, d) and ``squares`` (C, G) are those of the groups of present classes about the class
    means, ``centred`` (C, d) is M. The population is the one that the rows of a class were drawn from.
    """
    rows = counts.sum(axis=1)
    left = rows[:, None] - counts
    shifts = -sums / np.maximum(left, 1)[:, :, None]  # of the class mean, without a group
    remaining = squares.sum(axis=1)[:, None] - squares - left * (shifts**2).sum(axis=2)
    variance = squares.sum(axis=1) / np.maximum(rows - 1, 1)
    variances = np.maximum(remaining, 0.0) / np.maximum(left - 1, 1)
    enough = rows >= LEAST_ROWS
    used = (counts > 0) & enough[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        free = used.sum(axis=1) - 1
        half = _quantiles(free) * np.sqrt(_pooled(_jackknife(np.log(variances), used), rows, free))
        ends = {
            "variance_low": np.exp(np.log(variance) - half),
            "variance_high": np.exp(np.log(variance) + half),
        }
        squared = _squared_norms(centred, variance / rows)
        moved = centred[:, None, :] + shifts - shifts.mean(axis=0)
        replicates = _squared_norms(moved, variances / left)
        everywhere = np.ones_like(used)  # the centre moves with every group
        half = _quantiles(free) * np.sqrt(_jackknife(np.log(replicates), everywhere))
        apart = (squared > 0) & (replicates > 0).all(axis=1)
        ends["mean_norm_low"] = np.where(apart, np.exp((np.log(squared) - half) / 2), math.nan)
        ends["mean_norm_high"] = np.where(apart, np.exp((np.log(squared) + half) / 2), math.nan)
    return {name: np.where(enough & np.isfinite(end), end, math.nan) for name, end in ends.items()}


def _squared_norms(centred: Floats, noise: Floats) -> Floats:
    """Return |mu_c - m|^2 less what the noise of the means, of these squared lengths, adds to it."""
    classes = len(centred)
    squares = (centred**2).sum(axis=-1) - (1 - 2 / classes) * noise
    less: Floats = squares - noise.sum(axis=0) / classes**2
    return less


def _jackknife(values: Floats, used: npt.NDArray[np.bool_]) -> Floats:
    """Return the squared standard error of each class from its values without each group."""
    number = used.sum(axis=1)
    mean = np.where(used, values, 0.0).sum(axis=1) / number
    spread = np.where(used, (values - mean[:, None]) ** 2, 0.0).sum(axis=1)
    error: Floats = (number - 1) / number * spread
    return error


def _pooled(errors: Floats, rows: npt.NDArray[np.int64], free: npt.NDArray[np.int64]) -> Floats:
    """Return each squared error averaged with that of all classes, which falls with the rows."""
    known = np.isfinite(errors) & (free > 0)
    weights = free * known
    shared = (np.where(known, errors, 0.0) * rows * weights).sum() / weights.sum() / rows
    averaged: Floats = (errors + shared) / 2
    return averaged


def _quantiles(free: npt.NDArray[np.int64]) -> Floats:
    """Return Student's t for each number of degrees of freedom, NaN without any."""
    table = np.array([math.nan, *_T])
    return table[np.clip(free, 0, len(_T))]
