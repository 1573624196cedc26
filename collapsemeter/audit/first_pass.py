"""The first pass: every shard's moments in a state file, and all of them merged."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..moments import ClassMoments
from ..state_files import CorruptStateError
from .job import Job
from .mapping import Task, digests_of, key_of, map_piece, shard_id
from .progress import bar
from .shard import Piece, Shard
from .state import AuditState, SavedState, ShardRecord, merge_saved, save_layers, tree
from .workers import Dask, Workers

MERGED = "merged.state"


def map_shards(job: Job, folder: Path, workers: Workers, resume: bool) -> list[Path]:
    """Write one state file for each shard.

    Parameters
    ----------
    job : Job
    folder : Path
        Where states go.
    workers : Workers
    resume : bool
        Whether states that lie there already, of the same rows counted in the same way, are used.

    Returns
    -------
    list of Path
        In the order of the shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests = _digests(job, workers, of_all=resume)
    known = _states_in(folder, key_of(job.counting, job.phase)) if resume else {}
    pieces = [(s, p) for s, of_shard in enumerate(job.pieces) for p in of_shard]
    paths = [_found(piece, digests.get(s), known) for s, piece in pieces]
    left = [i for i, path in enumerate(paths) if path is None]
    total = sum(piece.nbytes for _, piece in pieces)
    with bar("counting", total, job.progress) as advance:
        advance(total - sum(pieces[i][1].nbytes for i in left))
        tasks = [(job.task(pieces[i][1]), str(folder), digests.get(pieces[i][0])) for i in left]
        for k, written in workers.each(_map_to_folder, tasks):
            paths[left[k]] = Path(written)
            advance(pieces[left[k]][1].nbytes)
    by_shard: list[list[Path]] = [[] for _ in job.shards]
    for (s, _), path in zip(pieces, paths, strict=True):
        assert path is not None
        by_shard[s].append(path)
    return [_whole(shard, own, folder) for shard, own in zip(job.shards, by_shard, strict=True)]


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


def _found(
    piece: Piece, digests: Mapping[str, str] | None, known: Mapping[str, Path]
) -> Path | None:
    """Return the state that holds a piece, or the whole shard, if there is one."""
    if digests is None:
        return None
    whole = Piece(piece.shard, 0, piece.shard.samples)
    return known.get(shard_id(whole, digests)) or known.get(shard_id(piece, digests))


def _map_to_folder(given: tuple[Task, str, dict[str, str] | None]) -> str:
    task, folder, digests = given
    state = map_piece(task, digests)
    ending = "state" if task.piece.whole else "piece"
    path = Path(folder) / f"{_file_name(state.shards[0])}.{ending}"
    state.save(path)
    return str(path)


def _file_name(record: ShardRecord) -> str:
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', record.name)[:80]}-{record.id[:16]}"


def _states_in(folder: Path, key: Mapping[str, Any]) -> dict[str, Path]:
    """Return the states in a folder that were counted in this way, by the rows that are in them."""
    known = {}
    for path in sorted([*folder.glob("*.state"), *folder.glob("*.piece")]):
        if path.name == MERGED:
            continue
        try:
            state = SavedState(path)
        except CorruptStateError:  # it is counted again
            continue
        if state.key == json.loads(json.dumps(dict(key))) and len(state.shards) == 1:
            known[state.shards[0].id] = path
    return known


def _whole(shard: Shard, paths: list[Path], folder: Path) -> Path:
    """Merge the pieces of a shard into its state."""
    if len(set(paths)) == 1:
        return paths[0]
    states = [SavedState(path) for path in paths]
    files = states[0].shards[0].files
    record = replace(
        states[0].shards[0],
        id=shard_id(Piece(shard, 0, shard.samples), files),
        samples=shard.samples,
        rows=sum(state.shards[0].rows for state in states),
    )
    target = folder / f"{_file_name(record)}.state"

    def layers() -> Iterator[tuple[str, ClassMoments]]:
        for name in states[0].layers:
            merged = tree(
                states, functools.partial(SavedState.moments, layer=name), ClassMoments.merge
            )
            yield name, replace(merged, shards=frozenset([record.id]))

    save_layers(target, layers(), [record], states[0].key)
    for path in paths:
        path.unlink()
    return target


def merge_states(paths: Sequence[Path], target: Path, progress: bool = False) -> SavedState:
    """Merge state files into one.

    Raises
    ------
    ValueError
        If a shard is in two of them, or they are not of one audit.
    CorruptStateError
        If one is damaged.
    """
    states = [SavedState(path) for path in paths]
    layers = len(states[0].layers) if states else 0
    with bar("merging", layers, progress) as advance:
        merge_saved(states, target, advance)
    return SavedState(target)


def map_on_cluster(job: Job, folder: Path, workers: Dask) -> SavedState:
    """Map and merge on a Dask cluster; only the merged state comes back."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [piece for of_shard in job.pieces for piece in of_shard]
    futures = [workers.submit(map_piece, job.task(piece)) for piece in pieces]
    with bar("counting", sum(p.nbytes for p in pieces), job.progress) as advance:
        sizes = {future.key: piece.nbytes for future, piece in zip(futures, pieces, strict=True)}
        for future in workers.completed(futures):
            advance(sizes[future.key])
    # The same tree as that of the files: the pieces of a shard first.
    merged = tree(
        futures, lambda future: future, lambda a, b: workers.submit(AuditState.merge, a, b)
    )
    state: AuditState = merged.result()
    state.save(folder / MERGED)
    return SavedState(folder / MERGED)
