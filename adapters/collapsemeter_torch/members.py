"""Which processes merge, and which rows each numbers: those of the group that was given, of the wrapper's, or all."""

from typing import Any, Literal

from torch import distributed, nn

from .ranks import Members, Numbering, this_rank
from .sharding import data_parallel_ranks, own_group, twins

Sync = bool | Literal["auto"] | Any  # a process group, or a device mesh of one dimension


def members_of(sync: Sync, model: nn.Module) -> Members | None:
    """Return the processes that merge; None where this one reports alone.

    Raises
    ------
    ValueError
        If it says nothing of the kind, or this process is not among them.
    """
    if isinstance(sync, bool):
        members = _by_model(model) if sync and this_rank().ranks > 1 else None
        return None if members is None or members.here.ranks == 1 else members
    group: Any = sync
    group = group.get_group() if hasattr(group, "get_group") else group
    if not isinstance(group, distributed.ProcessGroup):
        if group is distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(f"sync=: rank {this_rank().rank} is not of this process group")
        raise ValueError(
            f"sync={sync!r}: choose True, False or 'auto', or pass the process group to merge over"
        )
    if distributed.get_rank(group) < 0:
        raise ValueError(f"sync=: rank {this_rank().rank} is not of this process group")
    return Members(group)


def numbering_of(model: nn.Module, members: Members | None = None) -> Numbering:
    """Return which rows this process numbers: ranks among which layers are split see the same ones."""
    if this_rank().ranks == 1:
        return Numbering()
    same, apart = twins(model), data_parallel_ranks(model)
    if not same:
        return (members or _by_model(model)).here
    if apart:
        return Numbering(apart.index(this_rank().rank), len(apart))
    if len(same) == this_rank().ranks:
        return Numbering()
    return Numbering(same[0], this_rank().ranks)


def twins_among(members: Members, model: nn.Module, copies: set[int]) -> tuple[int, ...]:
    """Return the places among the members of those that see the rows of this process, if any other does."""
    same = copies.union(twins(model))
    places = tuple(place for place, rank in enumerate(members.ranks) if rank in same)
    return places if len(places) > 1 else ()


def _by_model(model: nn.Module) -> Members:
    return Members(own_group(model))
