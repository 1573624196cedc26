"""Merge states: of pieces to shards, and of shards to one state, if they are of one audit."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..stats.moments import ClassMoments
from ..stats.sketch import derived_seed
from ..system.suggest import listed
from .digests import hash_of, rows_id
from .job import Job, Shard
from .saved_state import SavedState, ShardRecord, save_layers
from .workers import Advance, bar

_T = TypeVar("_T")


def merge_states(
    states: Sequence[SavedState], target: Path, progress: bool = False, *, lasting: bool = True
) -> SavedState:
    """Merge states into one file; raise ValueError unless they are of one audit, and each shard in one."""
    check_together(states)
    records = [record for state in states for record in state.shards]
    with bar("merging", len(states[0].layers), progress) as advance:
        layers = _merged_layers(states, advance)
        save_layers(target, layers, records, states[0].key, lasting=lasting)
    return SavedState(target)


def merge_pieces(job: Job, paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return the state of every shard; states of its pieces are merged into it, and go."""
    by_shard: dict[Shard, list[Path]] = {}
    for piece, path in zip(job.pieces, paths, strict=True):
        by_shard.setdefault(piece.shard, []).append(path)
    return [
        paths[0] if len(set(paths)) == 1 else _shard_state(shard, paths, folder, job.lasting)
        for shard, paths in by_shard.items()
    ]


def _shard_state(shard: Shard, paths: Sequence[Path], folder: Path, lasting: bool) -> Path:
    states = [SavedState(path) for path in paths]
    records = [state.shards[0] for state in states]
    record = replace(
        records[0],
        id=rows_id(shard.whole, records[0].files),
        samples=shard.samples,
        rows=sum(piece.rows for piece in records),
        numbered=sum(piece.numbered for piece in records),
        label_order=hash_of([piece.label_order for piece in records]),
        label_counts=hash_of([piece.label_counts for piece in records]),
        label_values=max(piece.label_values for piece in records),
    )
    target = folder / f"{record.file_name}.state"
    layers = ((name, record.mark(moments)) for name, moments in _merged_layers(states))
    save_layers(target, layers, [record], states[0].key, lasting=lasting)
    for path in set(paths):
        path.unlink(missing_ok=True)
    return target


def _merged_layers(
    states: Sequence[SavedState], advance: Advance = lambda count: None
) -> Iterator[tuple[str, ClassMoments]]:
    """Yield a layer at a time: they need not be in memory together."""
    again = _with_numbers_again(states)
    merge = functools.partial(ClassMoments.merge, numbered_apart=True)
    for name in states[0].layers:

        def load(state: SavedState, name: str = name) -> ClassMoments:
            moments = state.moments(name)
            # The hashes of rows that have one number are not independent.
            again_as = derived_seed(state.shards[0].id) if state.path in again else None
            return moments if again_as is None else moments.reseeded(again_as)

        yield name, tree(states, load, merge)
        advance(1)


def _with_numbers_again(states: Sequence[SavedState]) -> set[str]:
    """Return the states of which a row has the number of a row of an earlier one."""
    earlier: list[tuple[int, int]] = []
    again = set()
    for state in states:
        spans = [
            (record.first_row, record.first_row + record.numbered)
            for record in state.shards
            if record.first_row is not None and record.numbered
        ]
        if any(
            start < stop_b and start_b < stop
            for start, stop in spans
            for start_b, stop_b in earlier
        ):
            again.add(state.path)
        else:
            earlier += spans
    return again


def tree(items: Sequence[Any], load: Callable[[Any], _T], merge: Callable[[_T, _T], _T]) -> _T:
    """Merge neighbours, then neighbours of those: the same pairs however the items were made.

    Few results are at hand at a time: as many as the tree is deep.

    >>> tree("abc", str.upper, lambda a, b: f"({a}{b})")
    '((AB)C)'
    """
    if len(items) == 1:
        return load(items[0])
    half = 1 << (len(items) - 1).bit_length() - 1  # the largest power of two below
    return merge(tree(items[:half], load, merge), tree(items[half:], load, merge))


def check_together(states: Sequence[SavedState]) -> None:
    """Raise ValueError if there is none, a shard is in two of them, or they are not of one audit."""
    if not states:
        raise ValueError("there is no state to merge: pass the files that `audit map` wrote")
    names: dict[str, str] = {}
    for state in states:
        try:
            _check_shards(state, names)
            _check_alike(states[0].header, state.header)
        except ValueError as error:
            raise ValueError(f"{state.path} cannot be merged: {error}") from error


def _check_shards(state: SavedState, names: dict[str, str]) -> None:
    """Add the shards of a state to those that were counted, by what identifies their rows."""
    for shard in state.shards:
        if not shard.samples:
            continue
        if shard.id in names:
            raise ValueError(
                f"shard {shard.name} holds the rows of {names[shard.id]}, which were counted "
                f"already (SHA-256 {shard.id[:12]}...): a shard is counted once; leave one of them out"
            )
        names[shard.id] = shard.name


def _check_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Raise unless two headers are of rows that were counted in one way, in the same layers."""
    for name in sorted({*first["key"], *second["key"]}):
        a, b = first["key"].get(name), second["key"].get(name)
        if a != b and not (name == "groups" and None in (a, b)):  # those of older files have none
            raise ValueError(
                f"one state was counted with {name}={a!r}, the other with {b!r}: map all shards with "
                "the same options"
            )
    shapes = [
        {e["name"]: (e["num_classes"], e["width"]) for e in header["layers"]}
        for header in (first, second)
    ]
    if shapes[0] != shapes[1]:
        words = [", ".join(f"{n} {shape}" for n, shape in layers.items()) for layers in shapes]
        raise ValueError(
            f"one state has layers {words[0]}, the other {words[1]}: they are not of the same network"
        )


def check_unchanged(states: Sequence[SavedState]) -> None:
    """Raise ValueError if a file is in two states as what it is and as what it was."""
    digests: dict[str, str] = {}
    for file, digest in [item for s in states for r in s.shards for item in r.files.items()]:
        known = digests.setdefault(file, digest)
        if known != digest:
            raise ValueError(
                f"{file} was changed between the states, which have SHA-256 {known[:12]}... and "
                f"{digest[:12]}...: map it again, and delete the states of what it was"
            )


def numbered_again(shards: Sequence[ShardRecord]) -> list[str]:
    """Return the names of shards whose rows have numbers that those of another have, too."""
    numbered = [record for record in shards if record.rows and record.first_row is not None]
    times = Counter(record.first_row for record in numbered)
    return [record.name for record in numbered if times[record.first_row] > 1]


def numbering_notes(shards: Sequence[str]) -> list[str]:
    """Say that rows were numbered as in other data, if any were: the intervals are as good, but others."""
    if not shards:
        return []
    return [
        f"rows of {listed(shards, 3)} were counted with the numbers of another audit: intervals differ a little from "
        "those of one that counts all; pass --first-row to audit map"
    ]
