"""Counters that a report needs besides the sums of its layers: of one rank, or of several together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from collapsemeter.adapter.selection import listed

from .ranks import Numbering
from .state import Store

if TYPE_CHECKING:
    from .learnt import Learnt

Call = tuple[str, int]  # a layer, and which of its calls in one forward


@dataclass(frozen=True)
class Counts:
    """The counters of one rank besides the sums of its layers, or of several ranks together.

    ``watched`` is None where the network has not run. ``steps`` are those of the training from a first
    to before a last one, and ``left_out`` says how many of them the budget left out.
    """

    place: str  # what asks for them
    numbering: Numbering
    next_numbering: Numbering  # that of a row that is counted next
    watched: list[str] | None = None
    classes: int = 0
    rows: int = 0
    batches: int = 0
    repeated: int = 0
    numbered: tuple[int, ...] = ()  # rows that each process of the numbering has numbered
    calls: tuple[Call, ...] = ()
    degraded: Mapping[str, str] = field(default_factory=dict)
    unpaired: Mapping[str, str] = field(default_factory=dict)
    interrupted: Mapping[Call, int] = field(default_factory=dict)
    nothing: str = ""  # why the last batch was not counted
    steps: tuple[int, int] = (0, 0)
    left_out: int = 0
    overhead: Mapping[str, Any] = field(default_factory=dict)
    rows_of_ranks: tuple[int, ...] = ()
    twins: tuple[int, ...] = ()  # places of ranks that see the same rows, if any do
    spread: int = 0  # ranks that the loader gives rows of their own, where it tells
    ranks: int = 1

    @property
    def most_rows(self) -> int:
        """Rows of the rank that has most."""
        return max(self.rows_of_ranks, default=self.rows)


def counts_of(store: Store, learnt: Learnt | None, place: str, **more: Any) -> Counts:
    """Return what a store has counted besides the sums of its layers."""
    return Counts(
        place,
        store.numbering,
        store.place(),
        watched=None if learnt is None else list(learnt.selection.watched),
        classes=0 if learnt is None else learnt.settings.num_classes,
        rows=store.expected_rows,
        batches=store.batches,
        repeated=store.repeated,
        numbered=tuple(
            store.next_row if rank == store.numbering.rank else 0
            for rank in range(store.numbering.ranks)
        ),
        degraded=dict(store.degraded),
        unpaired=dict(store.unpaired),
        interrupted=dict(store.interrupted),
        **more,
    )


def joint(counts: Sequence[Counts]) -> Counts:
    """Return what all ranks have counted together; rows that several ranks see count once."""
    ranks = len(counts)
    counts = [part for rank, part in enumerate(counts) if counts_for(rank, part)]
    numbered = [part.numbered for part in counts if part.rows] or [counts[0].numbered]
    seen = [part for part in counts if part.batches] or counts
    return replace(
        counts[first_that_knows(counts)],
        rows=sum(part.rows for part in counts),
        batches=sum(part.batches for part in counts),
        repeated=sum(part.repeated for part in counts),
        numbered=tuple(map(sum, zip(*numbered, strict=True))),
        ranks=ranks,
        calls=tuple(dict.fromkeys(call for part in counts for call in part.calls)),
        degraded=_united(part.degraded for part in counts),
        unpaired=_united(part.unpaired for part in counts),
        interrupted=_summed(part.interrupted for part in counts),
        nothing=next((part.nothing for part in counts if part.nothing), ""),
        steps=(min(part.steps[0] for part in seen), max(part.steps[1] for part in seen)),
        left_out=sum(part.left_out for part in counts),
        overhead=max((part.overhead for part in seen), key=_slowness),
        rows_of_ranks=tuple(part.rows for part in counts),
    )


def counts_for(rank: int, counts: Counts) -> bool:
    """Whether a rank speaks for its rows: of those that see the same ones the first does."""
    return not counts.twins or rank == min(counts.twins)


def first_that_knows(counts: Sequence[Counts]) -> int:
    """Return the first rank whose network has run; 0 where none has."""
    return next((rank for rank, part in enumerate(counts) if part.watched is not None), 0)


def check_ranks(counts: Sequence[Counts]) -> None:
    """Raise ValueError unless all ranks measure the same layers, and each its own rows."""
    root = first_that_knows(counts)
    for rank, part in enumerate(counts):
        if part.place != counts[root].place:
            raise ValueError(
                f"rank {root} is in {counts[root].place} and rank {rank} in {part.place}: every rank must call "
                "the same, in the same order"
            )
        if part.watched is not None:
            _check_same(root, counts[root], rank, part)
        if part.rows and part.numbering != part.next_numbering:
            raise ValueError(_of_another_numbering(rank, part.numbering))
    _check_spread(counts)


def _check_same(root: int, a: Counts, rank: int, b: Counts) -> None:
    for what, left, right in (
        ("layers", listed(a.watched or []), listed(b.watched or [])),
        ("classes", str(a.classes), str(b.classes)),
    ):
        if (a.watched, a.classes) != (b.watched, b.classes) and left != right:
            raise ValueError(
                f"ranks do not measure the same network: rank {root} has {what} {left}, rank {rank} has "
                f"{what} {right}; name them with layers=, head= and num_classes=, or pass sync=False"
            )


def _check_spread(counts: Sequence[Counts]) -> None:
    """Raise ValueError if a loader gives several of these ranks the same rows."""
    apart = sum(counts_for(rank, part) for rank, part in enumerate(counts))
    for part in counts:
        if part.spread and part.spread != apart:
            raise ValueError(
                f"the loader spreads its data over {part.spread} ranks, and {apart} ranks merge: rows would count more "
                "than once, or be missing; pass sync= the process group over which the data are spread"
            )


def _of_another_numbering(rank: int, numbering: Numbering) -> str:
    if numbering.ranks == 1:
        return (
            f"rank {rank} has counted rows before there was a process group, or loaded those of one process, which "
            "do not merge: call reset() once the group is there, or pass sync=False"
        )
    return (
        f"rank {rank} has loaded what rank {numbering.rank} of {numbering.ranks} had counted: save and load state_dict() "
        "on every rank of as many, call reset(), or pass sync=False"
    )


def _united(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return what is said of each layer, by the first rank that says it."""
    united: dict[str, str] = {}
    for part in parts:
        united = {**part, **united}
    return united


def _summed(parts: Iterable[Mapping[Call, int]]) -> dict[Call, int]:
    total: dict[Call, int] = {}
    for part in parts:
        for call, rows in part.items():
            total[call] = total.get(call, 0) + rows
    return total


def _slowness(overhead: Mapping[str, Any]) -> float:
    """Order shares of time: of ranks that know theirs the slowest speaks."""
    share = overhead.get("overhead")
    return -1.0 if share is None else float(share)
