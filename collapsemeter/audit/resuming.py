"""Resume an audit that was cut short: find the states of pieces whose rows, labels and settings are the same."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..stats.state_file import CorruptStateError
from .digests import Digests, labels_id, rows_id
from .job import Job, Piece
from .saved_state import SavedState

_Known = dict[tuple[Any, ...], Path]  # by rows, labels, layers and the number of the first row
_ANY = "mapped"  # in the place of the number


def counted_before(
    job: Job, numbers: Sequence[int | None], folders: Sequence[Path], digests: Digests
) -> dict[int, Path]:
    """Return by piece the states of an earlier run that count again; those that lie elsewhere are moved to the first folder."""
    known, done = _known_states(job, folders), {}
    first = {p.shard: n for p, n in zip(job.pieces, numbers, strict=True) if not p.start}
    for i, piece in enumerate(job.pieces):
        digest = digests[piece.shard]
        path = _state_of(piece.shard.whole, digest, first[piece.shard], known)
        path = path or _state_of(piece, digest, numbers[i], known)
        if path is not None:
            done[i] = _moved(path, folders[0])
    return done


def states_in(folder: Path) -> list[Path]:
    """Return the states of shards and of pieces of them, in order."""
    return sorted([*folder.glob("*.state"), *folder.glob("*.piece")])


def _known_states(job: Job, folders: Sequence[Path]) -> _Known:
    """Return the states that lie in folders and were counted as this job counts."""
    known: _Known = {}
    key = job.counting.key(job.phase, job.shards[0].layers)
    for path in [path for folder in folders for path in states_in(folder)]:
        try:
            state = SavedState(path)
        except (CorruptStateError, FileNotFoundError):  # the second: of another process
            continue  # it is counted again
        if state.key == key and len(state.shards) == 1:
            record = state.shards[0]
            for number in (record.first_row, *([_ANY] if record.mapped else [])):
                known.setdefault((record.id, record.labels, tuple(state.layers), number), path)
    return known


def _state_of(
    piece: Piece, digests: Mapping[str, str], number: int | None, known: _Known
) -> Path | None:
    """Return a state whose rows have these numbers, or that was mapped by itself, if there is one."""
    key = rows_id(piece, digests), labels_id(piece.shard, digests), tuple(piece.shard.layers)
    return known.get((*key, number)) or known.get((*key, _ANY))


def _moved(path: Path, folder: Path) -> Path:
    """Move a state here that an earlier run left elsewhere."""
    target = folder / path.name
    if path != target and path.exists():  # else it was moved for an earlier piece of the same shard
        os.replace(path, target)
    return target
