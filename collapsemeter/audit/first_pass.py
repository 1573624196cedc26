"""The first pass: every shard's moments in a state file, and all of them merged."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..stats.moments import ClassMoments
from ..stats.state_file import CorruptStateError
from .cluster import Dask
from .job import Job
from .mapping import Task, digests_of, hash_of, key_of, labels_id, map_piece, of_shard, shard_id
from .merging import merge_saved, tree
from .progress import bar
from .shard import Piece, Shard
from .state import AuditState, SavedState, ShardRecord, save_layers
from .workers import Workers

MERGED = ".merged"


def map_shards(
    job: Job, folder: Path, workers: Workers, resume: bool, earlier: Sequence[Path] = ()
) -> list[Path]:
    """Write one state file for each shard.

    Parameters
    ----------
    job : Job
    folder : Path
        Where states go.
    workers : Workers
    resume : bool
        Whether states that lie there already, of the same rows counted in the same way, are used.
    earlier : sequence of Path
        Folders from which such states are moved here.

    Returns
    -------
    list of Path
        In the order of the shards.
    """
    digests = _digests(job, workers, of_all=resume)
    known = _Known(job, [folder, *earlier]) if resume else None
    pieces = [(s, p) for s, of_shard in enumerate(job.pieces) for p in of_shard]
    paths = [known.state_of(p, digests[s]) if known is not None else None for s, p in pieces]
    paths = [_moved(path, folder) for path in paths]
    left = [i for i, path in enumerate(paths) if path is None]
    total = sum(piece.nbytes for _, piece in pieces)
    with bar("counting", total, job.progress) as advance:
        advance(total - sum(pieces[i][1].nbytes for i in left))
        tasks = [
            (job.task(pieces[i][1]), str(folder), digests.get(pieces[i][0]), job.lasting)
            for i in left
        ]
        for k, written in _mapped(workers, tasks):
            paths[left[k]] = Path(written)
            advance(pieces[left[k]][1].nbytes)
    by_shard: list[list[Path]] = [[] for _ in job.shards]
    for (s, _), path in zip(pieces, paths, strict=True):
        assert path is not None
        by_shard[s].append(path)
    return [
        _whole(shard, own, folder, job.lasting)
        for shard, own in zip(job.shards, by_shard, strict=True)
    ]


def _digests(job: Job, workers: Workers, of_all: bool) -> dict[int, dict[str, str]]:
    """Hash the files of shards of many pieces, or of all; others are hashed beside their counting."""
    chosen = [s for s, pieces in enumerate(job.pieces) if of_all or len(pieces) > 1]
    digests = {}
    with bar("hashing", len(chosen), job.progress and bool(chosen)) as advance:
        hashing = functools.partial(digests_of, cache=job.cache)
        for k, found in workers.each(hashing, [job.shards[s] for s in chosen]):
            digests[chosen[k]] = found
            advance(1)
    return digests


class _Known:
    """States that lie in folders, by the rows, labels and layers that are in them."""

    def __init__(self, job: Job, folders: Sequence[Path]) -> None:
        self._paths: dict[tuple[str, str, tuple[str, ...]], Path] = {}
        key = key_of(job.counting, job.phase, job.shards[0].layers)
        for path in [p for folder in folders for p in states_in(folder)]:
            try:
                state = SavedState(path)
            except (CorruptStateError, FileNotFoundError):  # the second: of another process
                continue  # it is counted again
            if state.key == key and len(state.shards) == 1:
                record = state.shards[0]
                self._paths.setdefault((record.id, record.labels, tuple(state.layers)), path)

    def state_of(self, piece: Piece, digests: Mapping[str, str]) -> Path | None:
        """Return the state of the whole shard, or of the piece, if there is one."""
        shard = piece.shard
        labels, layers = labels_id(shard, digests), tuple(shard.layers)
        for part in (Piece(shard, 0, shard.samples), piece):
            found = self._paths.get((shard_id(part, digests), labels, layers))
            if found is not None:
                return found
        return None


def states_in(folder: Path) -> list[Path]:
    """Return the states of shards and of pieces of them, in order."""
    return sorted([*folder.glob("*.state"), *folder.glob("*.piece")])


def _moved(path: Path | None, folder: Path) -> Path | None:
    """Move a state here that an earlier run left elsewhere."""
    if path is None or path.parent == folder:
        return path
    if path.exists():  # else it was moved for an earlier piece of the same shard
        os.replace(path, folder / path.name)
    return folder / path.name


_MapTask = tuple[Task, str, dict[str, str] | None, bool]


def _mapped(workers: Workers, tasks: Sequence[_MapTask]) -> Iterator[tuple[int, str]]:
    """Yield the paths of states. The workers of a cluster may not have the folder: theirs come here."""
    if isinstance(workers, Dask):
        for k, state in workers.each(_map, tasks):
            yield k, _saved(state, tasks[k])
    else:
        yield from workers.each(_map_to_folder, tasks)


def _map_to_folder(given: _MapTask) -> str:
    return _saved(_map(given), given)


def _map(given: _MapTask) -> AuditState:
    task, _, digests, _ = given
    return map_piece(task, digests)


def _saved(state: AuditState, given: _MapTask) -> str:
    task, folder, _, lasting = given
    ending = "state" if task.piece.whole else "piece"
    path = Path(folder) / f"{_file_name(state.shards[0])}.{ending}"
    state.save(path, lasting=lasting)
    return str(path)


def _file_name(record: ShardRecord) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', record.name)[:80]}-{record.id[:16]}"


def _whole(shard: Shard, paths: list[Path], folder: Path, lasting: bool) -> Path:
    """Merge the pieces of a shard into its state."""
    if len(set(paths)) == 1:
        return paths[0]
    states = [SavedState(path) for path in paths]
    record = _whole_record(shard, [state.shards[0] for state in states])
    target = folder / f"{_file_name(record)}.state"

    def layers() -> Iterator[tuple[str, ClassMoments]]:
        for name in states[0].layers:
            load = functools.partial(SavedState.moments, layer=name)
            merged = tree(states, load, ClassMoments.merge)
            yield name, of_shard(merged, record)

    save_layers(target, layers(), [record], states[0].key, lasting=lasting)
    for path in set(paths):
        path.unlink(missing_ok=True)
    return target


def _whole_record(shard: Shard, pieces: Sequence[ShardRecord]) -> ShardRecord:
    return replace(
        pieces[0],
        id=shard_id(Piece(shard, 0, shard.samples), pieces[0].files),
        samples=shard.samples,
        rows=sum(record.rows for record in pieces),
        label_order=hash_of([record.label_order for record in pieces]),
        label_counts=hash_of([record.label_counts for record in pieces]),
        label_values=max(record.label_values for record in pieces),
    )


def merge_states(
    states: Sequence[SavedState], target: Path, progress: bool = False, *, lasting: bool = True
) -> SavedState:
    """Merge states into one file.

    Raises
    ------
    ValueError
        If a shard is in two of them, or they are not of one audit.
    CorruptStateError
        If one is damaged.
    """
    layers = len(states[0].layers) if states else 0
    with bar("merging", layers, progress) as advance:
        merge_saved(states, target, advance, lasting=lasting)
    return SavedState(target)


def merged_path(folder: Path, states: Sequence[SavedState | AuditState]) -> Path:
    """Return where the state of all goes: its name tells what is in it, so no other audit writes it."""
    shards = [[record.id, record.labels] for state in states for record in state.shards]
    return folder / f"{hash_of([shards, list(states[0].layers), states[0].key])[:16]}{MERGED}"
