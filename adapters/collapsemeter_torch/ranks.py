"""The ranks of a process group: which rows each numbers, that all of them come, and what they exchange."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from .blocks import RowNumbers

RankPart = TypeVar("RankPart")
_GO = b"go"
_LONGEST_PAUSE = 0.05  # seconds between two looks at the store


@dataclass(frozen=True)
class Numbering:
    """Which rows a process numbers: every ``ranks``-th, from ``rank`` on, so that no two share a number."""

    rank: int = 0
    ranks: int = 1

    def numbered(self, rows: RowNumbers) -> RowNumbers:
        """Return the numbers that rows have among those of all processes; -1 stays."""
        if self.ranks == 1:
            return rows
        if isinstance(rows, range):
            start, stop = (end * self.ranks + self.rank for end in (rows.start, rows.stop))
            return range(start, stop, self.ranks)
        return np.where(rows < 0, rows, rows * self.ranks + self.rank)


def this_rank() -> Numbering:
    """Return the rows that this process numbers."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Numbering()
    return Numbering(distributed.get_rank(), distributed.get_world_size())


@dataclass(frozen=True)
class Members:
    """The processes that merge: those of a process group; None: of all."""

    group: Any = None

    @property
    def ranks(self) -> list[int]:
        """Their ranks among all processes."""
        return distributed.get_process_group_ranks(self.group)

    @property
    def here(self) -> Numbering:
        """The place of this process among them."""
        if self.group is None:
            return this_rank()
        return Numbering(distributed.get_rank(self.group), distributed.get_world_size(self.group))


class Ranks:
    """The ranks over which one meter merges, which has one name on all of them.

    Before anything is exchanged all ranks meet in the store of the default group, so that one that does
    not come is an error and not a hang. The first that loses patience ends the meeting for all.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._meetings: Counter[tuple[int, ...]] = Counter()  # by the ranks that meet

    def meet(self, members: Members, place: str, timeout: float) -> None:
        """Wait until every rank has come to this call of this meter.

        Raises
        ------
        TimeoutError
            If one does not within ``timeout`` seconds, or another rank has lost patience.
        """
        ranks, store = tuple(members.ranks), distributed.distributed_c10d._get_default_store()
        self._meetings[ranks] += 1
        if store is None:  # some backends have none
            return
        try:
            self._meet(store, ranks, place, timeout)
        except RuntimeError as error:  # of torch: the store does not answer
            raise TimeoutError(
                f"the store of the process group does not answer {place} ({error}): the process that "
                "holds it, that of rank 0 as a rule, has ended; sync=False gives the rows of this rank "
                "alone"
            ) from error

    def fail(self, members: Members, error: BaseException) -> None:
        """End the next meeting, because this rank has failed on its way to it."""
        ranks, store = tuple(members.ranks), distributed.distributed_c10d._get_default_store()
        self._meetings[ranks] += 1
        if store is not None:
            why = f"rank {this_rank().rank} failed ({type(error).__name__}: {error})"
            with contextlib.suppress(RuntimeError):
                store.compare_set(f"{self._key(ranks)}/end", "", why)

    def _key(self, ranks: tuple[int, ...]) -> str:
        return f"collapsemeter/{self._name}/{hash(ranks)}/{self._meetings[ranks]}"

    def _meet(self, store: Any, ranks: tuple[int, ...], place: str, timeout: float) -> None:
        key, here = self._key(ranks), this_rank().rank
        said = f"{place} of {self._name}, call {self._meetings[ranks]}"
        store.set(f"collapsemeter/place/{here}", said)
        store.set(f"{key}/{here}", place)
        if store.add(f"{key}/arrived", 1) == len(ranks):
            store.compare_set(f"{key}/end", "", _GO.decode())
        deadline, pause = time.monotonic() + timeout, 0.001
        while not store.check([f"{key}/end"]) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        absent = [r for r in ranks if not store.check([f"{key}/{r}"])]
        impatient = f"rank {here} waited {timeout:g} seconds for {_named(absent)}"
        end = store.compare_set(f"{key}/end", "", impatient)
        if end == _GO:
            return
        raise TimeoutError(
            f"{place} of {self._name}: {end.decode()}{_whereabouts(store, absent)}; every rank must "
            "call it, and in the same order: pass sync=False for the rows of this rank alone, or a longer "
            "timeout="
        )


def of_all(members: Members, part: RankPart) -> list[RankPart]:
    """Return what every rank gives, in their order, on every rank."""
    parts: list[Any] = [None] * members.here.ranks
    distributed.all_gather_object(parts, part, members.group)
    return parts


def reduced(
    members: Members, part: RankPart, merge: Callable[[RankPart, RankPart], RankPart], root: int
) -> RankPart:
    """Return on one rank the parts of all, merged in their order two by two; elsewhere what it sent.

    No rank ever holds more than its own part and another one.
    """
    here, ranks = members.here, members.ranks
    place, step = (here.rank - root) % here.ranks, 1
    while step < here.ranks:
        if place % (2 * step):
            to = ranks[(place - step + root) % here.ranks]
            distributed.send_object_list([part], to, members.group)
            return part
        if place + step < here.ranks:
            received: list[Any] = [None]
            sender = ranks[(place + step + root) % here.ranks]
            distributed.recv_object_list(received, sender, members.group)
            part = merge(part, received[0])
        step *= 2
    return part


def from_root(members: Members, part: RankPart, root: int) -> RankPart:
    """Return on every rank what one of them gives."""
    parts: list[Any] = [part]
    distributed.broadcast_object_list(parts, members.ranks[root], members.group)
    return parts[0]  # type: ignore[no-any-return]


_GIVEN: ContextVar[Ranks | None] = ContextVar("_GIVEN", default=None)
_MADE: Counter[str] = Counter()  # meters by the line that made them


@contextlib.contextmanager
def using_ranks(ranks: Ranks) -> Iterator[None]:
    """Give these ranks to the meters that are made here: one after another, they are the same to other ranks."""
    token = _GIVEN.set(ranks)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def ranks_of_meter() -> Ranks:
    """Return the ranks of a meter that is made."""
    return _GIVEN.get() or Ranks(_name())


def _name() -> str:
    """Return the line of the user's that makes a meter, and which of its meters this is.

    A meter that one rank alone makes elsewhere does not change the names of the others.
    """
    frame = sys._getframe()
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
    _MADE[line] += 1
    return f"the meter made at {line}" + (f" (number {_MADE[line]})" if _MADE[line] > 1 else "")


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("collapsemeter")


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which objects travel through a model's GPU, where the backend needs one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _whereabouts(store: Any, ranks: Sequence[int]) -> str:
    """Say where absent ranks wait instead, if they do."""
    keys = {rank: f"collapsemeter/place/{rank}" for rank in ranks}
    seen = [
        f"rank {r} was last in {store.get(k).decode()}" for r, k in keys.items() if store.check([k])
    ]
    return f" ({'; '.join(seen)})" if seen else ""
