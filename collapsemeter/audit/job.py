"""Everything an audit needs to run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..stats.head import Head
from ..stats.moments import Phase
from .deciding import Reader
from .mapping import Task
from .rows import Counting
from .shard import Piece, Shard


@dataclass(frozen=True, eq=False)
class Job:
    """Everything an audit needs to run: what to count, how, and what reads it.

    Parameters
    ----------
    shards : list of Shard
    layers : list of str
    counting : Counting
    phase : str
    cache : str
        Folder for copies of remote files.
    head : Head, optional
    head_layer : str, optional
    nc4 : "auto", "exact", "none" or int
        See `choose_rows`.
    progress : bool
        Whether to show bars on standard error.
    lasting : bool
        Whether states are the result. Those of an audit are not forced to disk: one that a crash of the
        machine damages has another checksum, and is counted again.
    """

    shards: list[Shard]
    layers: list[str]
    counting: Counting
    phase: Phase
    cache: str
    head: Head | None = None
    head_layer: str | None = None
    nc4: str | int = "auto"
    progress: bool = False
    lasting: bool = True

    @cached_property
    def pieces(self) -> list[list[Piece]]:
        """The pieces of each shard."""
        return [shard.pieces() for shard in self.shards]

    @property
    def reader(self) -> Reader | None:
        """The head and the layer that it reads, if there is one."""
        if self.head is None or self.head_layer is None:
            return None
        return Reader(self.head, self.head_layer)

    def task(self, piece: Piece) -> Task:
        """Return a worker's task."""
        return Task(piece, self.counting, self.phase, self.cache)
