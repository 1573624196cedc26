"""The counts of several ranks become one: a rank sends its part or its error, so that none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from collapsemeter.adapter.joint_tally import JointTally, evened

from .counts import Counts, check_ranks, first_that_knows, joint
from .ranks import Members, from_root, of_all, reduced

if TYPE_CHECKING:
    from collapsemeter import ClassMoments
    from collapsemeter.adapter.tally import Tally

    from .counts import Call

Result = TypeVar("Result")


def result_of_all(
    members: Members,
    counts: Counts,
    merge: Callable[[Counts, int], Callable[[], Result]],
) -> Result:
    """Return on all ranks what the first that knows the network makes of the merged counts, or raise its error."""
    parts = of_all(members, counts)
    check_ranks(parts)
    root = first_that_knows(parts)
    make = merge(joint(parts), root)
    outcome: Any = attempt(make) if members.here.rank == root else None
    result: Result = result_of(from_root(members, outcome, root))
    return result


def tallies_of_all(
    members: Members, counts: Counts, own: Mapping[Call, Callable[[], JointTally]], root: int
) -> dict[Call, Callable[[], Tally]]:
    """Merge what the ranks counted, layer by layer in the same order on all; the root has the whole of it."""

    def whole(part: Any) -> Tally:
        tally: JointTally = result_of(part)
        return evened(tally, tally.sample_size, counts.numbered)

    merged: dict[Call, Callable[[], Tally]] = {}
    for key in counts.calls:
        if key[0] not in counts.degraded and key[0] not in counts.unpaired:
            part = attempt(own[key]) if key in own else None
            merged[key] = partial(whole, reduced(members, part, _merged_tallies, root))
    return merged


def moments_of_all(
    members: Members, own: Callable[[], ClassMoments | None], root: int
) -> ClassMoments | Exception | None:
    """Merge the moments of one layer; the root has the whole of them."""
    return reduced(members, attempt(own), _merged_moments, root)


def attempt(make: Callable[[], Result]) -> Result | Exception:
    try:
        return make()
    except Exception as error:
        return error


def result_of(part: Result | Exception) -> Result:
    if isinstance(part, Exception):
        raise part
    return part


def _merged_tallies(a: Any, b: Any) -> Any:
    return _merged_parts(a, b, lambda: a.merge(b))


def _merged_moments(a: Any, b: Any) -> Any:
    return _merged_parts(a, b, lambda: a.merge(b, numbered_apart=True))


def _merged_parts(a: Any, b: Any, merge: Callable[[], Any]) -> Any:
    for part in (a, b):
        if isinstance(part, Exception):
            return part
    if a is None or b is None:
        return b if a is None else a
    return attempt(merge)
