r"""Groups of rows: a row's number deals it to one of 16, and each keeps its own sums, from which intervals come.

Row number t lies in block :math:`\lfloor t / 16 \rfloor`, and a hash of the block orders its 16 places, so that 16 rows that follow
each other are in 16 groups, whatever the split into batches, shards and processes. Groups add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .linalg import Floats

GROUPS = 16  # as `sampling.dealt_groups` deals rows
LEAST_GROUPS = 4  # fewer say little of a spread
GROUP_ENTRIES = 2**22  # groups times classes times features on a device: 16 MB in float32
HOST_GROUP_ENTRIES = 2**24  # 128 MB in float64
CACHED_ENTRIES = 2**16  # of classes that are moved at once

Counts = npt.NDArray[np.int64]


def affordable_groups(
    num_classes: int, width: int, most: int = GROUPS, entries: int = HOST_GROUP_ENTRIES
) -> int:
    """Return 16 groups, or 8, 4 or 0 where a layer of this shape does not afford them.

    Examples
    --------
    >>> affordable_groups(10, 512), affordable_groups(1000, 2048), affordable_groups(50_257, 768)
    (16, 8, 0)
    """
    groups = check_groups(most)
    while groups >= LEAST_GROUPS and groups * num_classes * width > entries:
        groups //= 2
    return groups if groups >= LEAST_GROUPS else 0


def check_groups(groups: Any) -> int:
    """Return a number of groups, or raise ValueError."""
    if isinstance(groups, bool) or groups not in (0, 4, 8, GROUPS):
        raise ValueError(f"groups={groups!r}: pass 16, 8, 4, or 0 for no intervals")
    return int(groups)


@dataclass(frozen=True, eq=False)
class Groups:
    """The counts, sums and squares of each group of rows, by class.

    Attributes
    ----------
    counts : (C, G) int64
        Rows.
    sums : (C, G, d) float64
        Sum of the rows less their class's mean.
    squares : (C, G) float64
        Sum of their squared distances to it.
    """

    counts: Counts
    sums: Floats
    squares: Floats

    @property
    def number(self) -> int:
        """G."""
        return int(self.counts.shape[1])

    @classmethod
    def about(cls, counts: Counts, sums: Floats, squares: Floats, offsets: Floats) -> Groups:
        """Return groups about class means that lie at ``offsets`` (C, d) from where these sums are about; `sums` are taken over."""
        moved = np.empty_like(squares)
        step = max(1, CACHED_ENTRIES // max(sums[0].size, 1))
        for part in (slice(start, start + step) for start in range(0, len(sums), step)):
            moved[part] = moved_to(counts[part], sums[part], squares[part], offsets[part])
        return cls(counts, sums, moved)

    def folded(self, groups: int) -> Groups:
        """Return the rows in fewer groups, as if they had been dealt to so many."""
        if groups == self.number:
            return self
        classes = len(self.counts)
        parts = (
            array.reshape(classes, -1, groups, *array.shape[2:]).sum(axis=1)
            for array in (self.counts, self.sums, self.squares)
        )
        return Groups(*parts)

    @classmethod
    def among(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Groups | None:
        """Return the groups among the arrays of a state file; None where there are none, as in older files."""
        named = [arrays.get(f"group_{part.name}") for part in fields(cls)]
        if all(array is None for array in named):
            return None
        classes, width = arrays["means"].shape
        shape = () if named[0] is None else named[0].shape
        if len(shape) != 2 or shape[0] != classes or shape[1] not in (4, 8, GROUPS):
            raise ValueError(f"its groups have counts of shape {shape}")
        for array, expected, kind in zip(
            named, (shape, (*shape, width), shape), "iff", strict=True
        ):
            if array is None or array.shape != expected or array.dtype.kind != kind:
                raise ValueError("its groups are not those of its means")
        return cls(*map(np.asarray, named))

    def check(self, counts: Counts, traces: Floats) -> None:
        """Raise ValueError unless the groups add up to what all rows did."""
        whole = (self.counts >= 0).all() and np.array_equal(self.counts.sum(axis=1), counts)
        total = self.squares.sum(axis=1)
        with np.errstate(invalid="ignore"):
            slack = 1e-3 * (total + traces) + np.finfo(np.float32).tiny
            near = (np.abs(total - traces) <= slack) | ~np.isfinite(total + traces)
        if not whole or not near.all():
            raise ValueError("no data have such moments: its groups do not add up to its classes")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays under the names that `among` looks for."""
        return {f"group_{part.name}": getattr(self, part.name) for part in fields(self)}


def moved_to(counts: Counts, sums: Floats, squares: Floats, offsets: Floats) -> Floats:
    """Move sums of groups, in place, to be about centres at these offsets; return the squares about them."""
    moved: npt.NDArray[np.float64] = squares + counts * np.vecdot(offsets, offsets)[:, None]
    filled = np.nonzero(counts)
    if 4 * len(filled[0]) >= 3 * counts.size:
        moved -= 2 * np.vecdot(sums, offsets[:, None])
        sums -= counts[:, :, None] * offsets[:, None]
    else:  # the memory of groups without rows need not even be read, here and in `totals_of`
        rows, steps = sums[filled], offsets[filled[0]]
        moved[filled] -= 2 * np.vecdot(rows, steps)
        steps *= counts[filled][:, None]
        sums[filled] = rows - steps
    return np.maximum(moved, 0.0, out=moved)


def totals_of(counts: Counts, sums: Floats) -> Floats:
    """Return the sums of classes, (C, d), from those of their groups."""
    filled = np.nonzero(counts)
    if 4 * len(filled[0]) >= 3 * counts.size:
        totals: Floats = sums.sum(axis=1)
        return totals
    rows, totals = sums[filled], np.zeros((len(sums), sums.shape[-1]))
    bounds = np.searchsorted(filled[0], np.arange(len(sums) + 1)).tolist()
    for total, start, stop in zip(totals, bounds[:-1], bounds[1:], strict=True):
        np.add.reduce(rows[start:stop], axis=0, out=total)
    return totals


def merged_groups(
    a: Groups | None, b: Groups | None, offsets_a: Floats, offsets_b: Floats
) -> Groups | None:
    """Return the groups of both sets of rows about means at these offsets from their own."""
    if a is None or b is None:
        return None
    number = min(a.number, b.number)
    left, right = (
        Groups.about(part.counts, part.sums.copy(), part.squares, offsets)
        for part, offsets in ((a.folded(number), offsets_a), (b.folded(number), offsets_b))
    )
    return Groups(left.counts + right.counts, left.sums + right.sums, left.squares + right.squares)
