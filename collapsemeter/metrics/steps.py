r"""The noise in class means and variances, as groups of rows show it: the steps by which each group shifts them.

Group g moves the mean of class c by :math:`-s_{gc} / \sqrt{n_c (n_c - n_{gc})}`, :math:`s_{gc}` the sum of its rows less the mean. The squares
of these steps add up to the variance of the mean without bias, however unevenly rows are dealt; so do those of a class's variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.groups import LEAST_GROUPS, Groups
from ..stats.linalg import Floats, taken

if TYPE_CHECKING:
    from .geometry import ClassGeometry

# Student's t, 97.5 %, by degrees of freedom from 1 on.
STUDENT = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps of C classes by G groups."""

    counts: Floats  # n_gc, (C, G)
    rows: Floats  # n_c, (C,)
    sums: Floats  # s_gc, (C, G, d)
    lengths: Floats  # |s_gc|^2, (C, G)
    scale: Floats  # what turns sums into steps, (C, G): 0 for a group with no row of the class, or all of them
    squares: Floats  # of the rows' distances to the class mean, summed, (C, G)
    variances: Floats  # v_c, (C,)
    spreads: Floats  # steps of the variances, (C, G)

    def widened(self, factor: float) -> Steps:
        """Return the steps with those of variances so many times as long."""
        return replace(self, spreads=self.spreads * factor)

    def along(self, directions: Floats) -> Floats:
        """Return the steps of each mean along its directions, (C, d, K) -> (C, G, K)."""
        steps: Floats = (self.sums @ directions) * self.scale[:, :, None]
        return steps

    @cached_property
    def together(self) -> Floats:
        """Sum of the steps of all means, (G, d)."""
        total: Floats = np.einsum("cg,cgd->gd", self.scale, self.sums)
        return total

    @property
    def norms(self) -> Floats:
        r"""Steps of :math:`|\mu_c|^2 - \operatorname{tr} \Sigma_c / n_c` besides :math:`2 \mu_c \cdot \delta_{gc}`, (C, G)."""
        share = 1 + np.where(self.scale < 0, self.counts, 0.0) / self.rows[:, None]
        variances = self.variances[:, None]
        added = ((variances + self.spreads) * share - variances) / self.rows[:, None]
        steps: Floats = self.lengths * self.scale**2 - added
        return steps

    @property
    def occupied(self) -> npt.NDArray[np.bool_]:
        """Groups that have rows."""
        return np.asarray(self.counts.any(axis=0))


def steps_of(geometry: ClassGeometry) -> Steps | None:
    """Return the steps of the groups; None without groups, or of fewer than four that have rows."""
    groups = geometry.moments.groups
    return None if groups is None else _steps(geometry, groups)


@np.errstate(over="ignore", invalid="ignore")
def _steps(geometry: ClassGeometry, groups: Groups) -> Steps | None:
    present = geometry.present
    counts = groups.counts[present].astype(np.float64)
    if np.count_nonzero(counts.any(axis=0)) < LEAST_GROUPS:
        return None
    sums, squares = taken(groups.sums, present), taken(groups.squares, present)
    rows, traces = geometry.counts.astype(np.float64), geometry.traces
    left = rows[:, None] - counts
    some = (left > 0) & (counts > 0)
    scale = np.where(some, -1 / np.sqrt(rows[:, None] * np.maximum(left, 1)), 0.0)
    lengths = np.vecdot(sums, sums)
    # What a group takes from the scatter when it leaves, and the degrees of freedom that go with it.
    gone = squares + np.where(some, lengths / np.maximum(left, 1), 0.0)
    lost = np.minimum(counts, rows[:, None] - 1)
    spreads = _variance_steps(gone, lost, rows - 1, traces)
    # The variance of two rows has nothing to be compared with.
    pooled = _variance_steps(gone.sum(axis=0), lost.sum(axis=0), (rows - 1).sum(), traces.sum())
    variances = geometry.variances
    spreads = np.where((rows <= 2)[:, None], pooled, spreads)
    return Steps(counts, rows, sums, lengths, scale, squares, variances, spreads)


def _variance_steps(
    gone: Floats, lost: Floats, freedom: Floats | float, total: Floats | float
) -> Floats:
    """Return the steps of total / freedom, (..., G): squares of them add up to its own variance."""
    freedom, total = np.asarray(freedom)[..., None], np.asarray(total)[..., None]
    remaining = freedom - lost
    change = (total - gone) / np.where(remaining > 0, remaining, 1) - total / np.maximum(freedom, 1)
    scale = np.sqrt(np.maximum(remaining, 0) / np.maximum(lost.sum(axis=-1, keepdims=True), 1))
    steps: Floats = np.where(remaining > 0, change * scale, 0.0)
    return steps


def squared_error(steps: Floats, used: npt.NDArray[np.bool_]) -> Floats:
    """Return the squared standard error of values (..., G) that the used groups shift."""
    number = used.sum(axis=-1)
    mean = np.where(used, steps, 0.0).sum(axis=-1) / number
    error: Floats = np.where(used, (steps - mean[..., None]) ** 2, 0.0).sum(axis=-1)
    return error


def quantile(freedom: npt.ArrayLike) -> Floats:
    """Return Student's t for degrees of freedom, NaN for none."""
    places = np.asarray(freedom, np.float64)
    with np.errstate(divide="ignore"):
        interpolated = np.interp(-1 / places, -1 / np.arange(1, len(STUDENT) + 1), STUDENT)
    return np.where(places >= 1, interpolated, np.nan)
