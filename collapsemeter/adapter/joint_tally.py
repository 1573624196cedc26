"""Merge, two by two, the counts of one layer from several processes, which number their rows apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..stats.fields import Phase
from ..stats.moments import ClassMoments
from ..stats.sampling import evenly_likely, reservoir_slots
from ..stats.sums import COUNTERS, Sums
from .tally import Array, Tally


@dataclass(frozen=True, eq=False, kw_only=True)
class JointTally(Tally):
    """A tally of several processes: joint moments, the slots of the row sample, and the slot of each row by the seed of its process."""

    joint: ClassMoments
    sample_size: int | None
    slots: Array | None

    @classmethod
    def of(cls, tally: Tally, phase: Phase, sample_size: int | None) -> JointTally:
        """Finalise what one process counted."""
        parts = {part.name: getattr(tally, part.name) for part in fields(Tally)}
        parts["sums"] = _counters([tally.sums])
        slots = None
        if sample_size is not None:
            slots = reservoir_slots(tally.ids, sample_size, tally.seed)
        return cls(**parts, joint=tally.moments(phase), sample_size=sample_size, slots=slots)

    def moments(self, phase: Phase) -> ClassMoments:
        """Return the joint moments."""
        return self.joint

    def merge(self, other: JointTally) -> JointTally:
        """Return what both counted: the row sample is that of one process that saw all rows, and of rows of one slot the last stays."""
        joint = self.joint.merge(other.joint, numbered_apart=True)
        parts = (self, other)
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("ids", "rows", "labels")
        }
        slots = self._joint_slots(other)
        stays = np.argsort(columns["ids"]) if slots is None else _last(slots, columns["ids"])
        columns = {name: column[stays] for name, column in columns.items()}
        return JointTally(
            sums=_counters([part.sums for part in parts]),
            feature_dtype=joint.feature_dtype,
            **columns,
            decided=_decided(self, other, columns["ids"]),
            seed=self.seed,
            joint=joint,
            sample_size=self.sample_size,
            slots=None if slots is None else slots[stays],
        )

    def _joint_slots(self, other: JointTally) -> Array | None:
        if self.slots is None or other.slots is None:
            return None
        if self.sample_size != other.sample_size:
            raise ValueError(
                f"row samples of {self.sample_size} and of {other.sample_size} rows do not merge: pass "
                "the same sample_rows= and memory= on every rank"
            )
        return np.concatenate([self.slots, other.slots])


def _last(slots: Array, ids: Array) -> Array:
    """Return the places of the last row of each slot."""
    order = np.lexsort((ids, slots))
    last: Array = order[np.append(slots[order][1:] != slots[order][:-1], True)]
    return last


def evened(tally: Tally, sample_size: int | None, rows: Sequence[int]) -> Tally:
    """Return a tally whose sample holds all rows with one probability; so many rows each process numbered."""
    if sample_size is None or len(rows) < 2:
        return tally
    even = evenly_likely(tally.ids, sample_size, rows)
    if even.all():
        return tally
    return replace(tally, rows=tally.rows[even], labels=tally.labels[even], ids=tally.ids[even])


def _counters(sums: Sequence[Sums]) -> Sums:
    """Return the counts of rows, without what became moments."""
    nothing: dict[str, Any] = dict.fromkeys(("shift", "sums", "squares", "scatter"))
    counted = {
        name: sum(np.asarray(getattr(part, name), np.int64) for part in sums)
        for name in ("counts", *COUNTERS)
    }
    return Sums(**counted, **nothing)


def _decided(a: JointTally, b: JointTally, ids: Array) -> tuple[Array, Array] | None:
    """Return the network's decisions on the rows that stay, of those processes that kept any."""
    parts = [part.decided for part in (a, b) if part.decided is not None]
    if not parts:
        return None
    numbers, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
    stay = np.isin(numbers, ids)
    return numbers[stay], classes[stay]
