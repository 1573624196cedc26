r"""95 % intervals of each class's variance and of its mean's distance from the centre, from groups of its rows.

Of few rows the error of a variance is itself uncertain: it is averaged with what all classes say together, their rows' :math:`|h - \mu_c|^2 / v_c` taken to
spread alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.linalg import Floats
from .noise import centred_diagonal
from .steps import quantile, squared_error

if TYPE_CHECKING:
    from .steps import Steps

LEAST_ROWS = 4  # with fewer the interval of a variance covers more than 99 % and says nothing


def class_intervals(steps: Steps, centred: Floats) -> dict[str, Floats]:
    """Return the ends of the intervals by name, (C,) each, of the classes that are present, whose M is ``centred``.

    They answer for the population that the rows of a class were drawn from. NaN stands for classes of few rows, and for means
    that lie at the centre but for noise.
    """
    rows, variances = steps.rows, steps.variances
    classes, enough = len(rows), rows >= LEAST_ROWS
    with np.errstate(all="ignore"):
        used = (steps.counts > 0) & enough[:, None]
        free = used.sum(axis=1) - 1
        # Wider than Gaussian rows need: those of random size have few that count.
        error = squared_error(steps.spreads / variances[:, None], used) * (rows - 1) / (rows - 2)
        error = _averaged(error, rows, free)
        half = quantile(free) * np.sqrt(error)
        squared = np.vecdot(centred, centred) - centred_diagonal(variances / rows)
        # The centre moves with every group, whether or not the class has a row in it.
        norms = steps.norms
        moved = 2 * (
            steps.along(centred[:, :, None])[..., 0] - centred @ steps.together.T / classes
        )
        moved += (1 - 2 / classes) * norms + norms.sum(axis=0) / classes**2
        occupied = np.broadcast_to(steps.occupied, moved.shape)
        norm_error = squared_error(moved / squared[:, None], occupied) * rows / (rows - 1)
        norm_half = quantile(np.count_nonzero(steps.occupied) - 1) * np.sqrt(norm_error)
        norm = np.where(squared > 0, np.log(squared), math.nan)
        ends = {
            "variance_low": variances * np.exp(-half),
            "variance_high": variances * np.exp(half),
            "mean_norm_low": np.exp((norm - norm_half) / 2),
            "mean_norm_high": np.exp((norm + norm_half) / 2),
        }
    return {name: np.where(enough & np.isfinite(end), end, math.nan) for name, end in ends.items()}


def _averaged(errors: Floats, rows: Floats, free: npt.NDArray[np.int64]) -> Floats:
    """Return each squared error averaged with that of all classes, which falls with the rows."""
    known = np.isfinite(errors) & (free > 0)
    weights = free * known
    shared = (np.where(known, errors, 0.0) * rows * weights).sum() / weights.sum() / rows
    averaged: Floats = (errors + shared) / 2
    return averaged
