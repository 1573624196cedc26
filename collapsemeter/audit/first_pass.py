"""The first pass: every piece of a shard is counted, and its moments go to a state file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..stats.accumulate import Accumulator
from ..stats.moments import ClassMoments
from ..stats.sketch import derived_seed
from ..stats.state_file import CorruptStateError
from ..stats.sums import HOST_CLASS_SCATTER_ENTRIES, scatter_kind
from .cluster import DaskWorkers
from .digests import digests_of, labels_id, rows_id
from .epochs import LabelsOf
from .job import Counting, Job, Piece, Task
from .piece_rows import OpenPiece
from .saved_state import AuditState, SavedState, ShardRecord
from .workers import Workers, bar


class MapTask(NamedTuple):
    """What a worker is given: a piece, and where its state goes; digests that are known are not taken again."""

    task: Task
    folder: str
    digests: dict[str, str] | None
    lasting: bool


def map_pieces(
    job: Job,
    folder: Path,
    workers: Workers,
    resume: bool,
    earlier: Sequence[Path] = (),
) -> list[list[Path]]:
    """Write a state file for each piece, and return them by shard, in order.

    To resume is to use states of the same rows, counted in the same way, that lie in the folder; those in
    ``earlier`` folders are moved to it.
    """
    digests = _digests(job, workers, of_all=resume)
    known = _KnownStates(job, [folder, *earlier]) if resume else None
    pieces = [(s, piece) for s, pieces in enumerate(job.pieces) for piece in pieces]
    paths: list[Path | None] = [None] * len(pieces)
    if known is not None:
        paths = [_moved(known.state_of(piece, digests[s]), folder) for s, piece in pieces]
    left = [i for i, path in enumerate(paths) if path is None]
    total = sum(piece.nbytes for _, piece in pieces)
    with bar("counting", total, job.progress) as advance:
        advance(total - sum(pieces[i][1].nbytes for i in left))
        tasks = [
            MapTask(job.task(piece), str(folder), digests.get(s), job.lasting)
            for s, piece in (pieces[i] for i in left)
        ]
        for k, path in _mapped(workers, tasks):
            paths[left[k]] = Path(path)
            advance(pieces[left[k]][1].nbytes)
    by_shard: list[list[Path]] = [[] for _ in job.shards]
    for (s, _), written in zip(pieces, paths, strict=True):
        assert written is not None
        by_shard[s].append(written)
    return by_shard


def _digests(job: Job, workers: Workers, of_all: bool) -> dict[int, dict[str, str]]:
    """Hash the files of shards of many pieces, or of all; others are hashed beside their counting."""
    chosen = [s for s, pieces in enumerate(job.pieces) if of_all or len(pieces) > 1]
    digests = {}
    with bar("hashing", len(chosen), job.progress and bool(chosen)) as advance:
        hashing = functools.partial(digests_of, cache=job.cache)
        for k, by_file in workers.each(hashing, [job.shards[s] for s in chosen]):
            digests[chosen[k]] = by_file
            advance(1)
    return digests


class _KnownStates:
    """States that lie in folders, by the rows, labels and layers that are in them."""

    def __init__(self, job: Job, folders: Sequence[Path]) -> None:
        self._paths: dict[tuple[str, str, tuple[str, ...]], Path] = {}
        key = _key_of(job.counting, job.phase, job.shards[0].layers)
        for path in [path for folder in folders for path in states_in(folder)]:
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
        for part in (shard.whole, piece):
            path = self._paths.get((rows_id(part, digests), labels, layers))
            if path is not None:
                return path
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


def _mapped(workers: Workers, tasks: Sequence[MapTask]) -> Iterator[tuple[int, str]]:
    """Yield the paths of states. The workers of a cluster may not have the folder: theirs come here."""
    if isinstance(workers, DaskWorkers):
        for k, state in workers.each(_map, tasks):
            yield k, _save(state, tasks[k])
    else:
        yield from workers.each(_map_to_folder, tasks)


def _map_to_folder(given: MapTask) -> str:
    return _save(_map(given), given)


def _map(given: MapTask) -> AuditState:
    return map_piece(given.task, given.digests)


def _save(state: AuditState, given: MapTask) -> str:
    ending = "state" if given.task.piece.is_whole else "piece"
    path = Path(given.folder) / f"{state.shards[0].file_name}.{ending}"
    state.save(path, lasting=given.lasting)
    return str(path)


def map_piece(task: Task, digests: Mapping[str, str] | None = None) -> AuditState:
    """Count a piece; the SHA-256 of its files are taken beside the counting if they are not known."""
    piece = task.piece
    with ThreadPoolExecutor(1) as beside:
        hashing = beside.submit(lambda: digests or digests_of(piece.shard, task.cache))
        with OpenPiece(piece, task.counting, task.cache) as opened:
            if piece.start == 0:  # of the whole file, so once is enough
                opened.check()
            counted = {
                layer: _counted(
                    opened, layer, task, lambda: derived_seed(rows_id(piece, hashing.result()))
                )
                for layer in piece.shard.layers
            }
            rows, told = opened.labels.size, opened.labels_told() or LabelsOf()
        files = dict(hashing.result())
    record = ShardRecord(
        id=rows_id(piece, files),
        name=piece.shard.name,
        files=files,
        samples=piece.samples,
        rows=rows,
        labels=labels_id(piece.shard, files),
        label_order=told.in_order,
        label_counts=told.sorted,
        label_values=told.values,
    )
    layers = {name: record.mark(moments) for name, moments in counted.items()}
    return AuditState(layers, (record,), _key_of(task.counting, task.phase, layers))


def _counted(opened: OpenPiece, layer: str, task: Task, seed: Callable[[], int]) -> ClassMoments:
    """Count a layer; a sketch takes a seed from what identifies the rows, which waits for their SHA-256."""
    settings = task.counting.settings
    accumulator, dtype = None, task.piece.shard.layers[layer].array.dtype.name
    for chunk in opened.chunks(layer):
        if accumulator is None:
            width, kind = chunk.rows.shape[1], settings.scatter
            if kind == "auto":  # the host affords more than a training step
                kind = scatter_kind(settings.num_classes, width, HOST_CLASS_SCATTER_ENTRIES)
            accumulator = Accumulator(
                settings.num_classes,
                width,
                kind,
                phase=task.phase,
                ignore_index=settings.ignore_index,
                nonfinite="propagate" if settings.propagate else "skip",
                sketch_rows=settings.sketch_rows,
                seed=seed() if kind == "sketch" else 0,
            )
        accumulator.update(chunk.rows, chunk.labels)
    assert accumulator is not None  # there is one chunk at least
    moments = accumulator.moments(feature_dtype=dtype)
    if moments.nonfinite and settings.nonfinite == "raise":
        raise ValueError(
            f"layer {layer!r} has {moments.nonfinite} rows that hold NaN or Inf in "
            f"{task.piece.shard.name}: pass --nonfinite skip to leave such rows out"
        )
    return moments


def _key_of(counting: Counting, phase: str, layers: Iterable[str]) -> dict[str, Any]:
    """Return everything but the data that a state depends on."""
    settings = asdict(counting.settings)
    names = ("num_classes", "scatter", "sketch_rows", "ignore_index", "nonfinite")
    return {
        "collapsemeter": __version__,
        "phase": phase,
        "labels": counting.labels,
        "reductions": {layer: counting.reduction(layer) for layer in layers},
        **{name: settings[name] for name in names},
    }
