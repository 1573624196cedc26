"""The first pass: every piece of a shard is counted, and its moments go to a state file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..stats.accumulate import Accumulator
from ..stats.moments import ClassMoments
from ..stats.sketch import derived_seed
from ..stats.state_file import CorruptStateError
from ..stats.sums import HOST_CLASS_SCATTER_ENTRIES, scatter_kind
from ..version import __version__
from .digests import digests_of, labels_id, rows_id
from .epochs import LabelsOf
from .job import Counting, Job, Piece, Shard, Task
from .piece_rows import OpenPiece
from .saved_state import AuditState, SavedState, ShardRecord, save_layers
from .workers import Workers, complete


class MapTask(NamedTuple):
    """What a worker is given: a piece, the digests that are known, and where its state goes."""

    task: Task
    digests: dict[str, str] | None
    folder: Path | None  # None: it is returned
    lasting: bool


def map_pieces(
    job: Job, folder: Path, workers: Workers, resume: bool, earlier: Sequence[Path] = ()
) -> list[Path]:
    """Return a state file for each piece; to resume is to use those of the same rows that lie in the folders."""
    digests, done = _digests(job, workers, of_all=resume), {}
    if resume:
        known = _known_states(job, [folder, *earlier])
        for i, piece in enumerate(job.pieces):
            path = _state_of(piece, digests[piece.shard], known)
            if path is not None:
                done[i] = _moved(path, folder)

    def count(left: list[int]) -> Iterator[tuple[int, Path]]:
        place = folder if workers.files else None
        tasks = [
            MapTask(job.task(piece), digests.get(piece.shard), place, job.lasting)
            for piece in (job.pieces[i] for i in left)
        ]
        for k, state in workers.each(_map, tasks):
            whole = tasks[k].task.piece.is_whole
            yield k, _saved(state, folder, whole, job.lasting) if place is None else state

    nbytes = [piece.nbytes for piece in job.pieces]
    return complete(done, nbytes, count, "counting", job.progress)


def _digests(job: Job, workers: Workers, of_all: bool) -> dict[Shard, dict[str, str]]:
    """Hash the files of shards of many pieces, or of all; others are hashed beside their counting."""
    pieces = Counter(piece.shard for piece in job.pieces)
    shards = [shard for shard in job.shards if of_all or pieces[shard] > 1]

    def hash_files(left: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
        return workers.each(partial(digests_of, cache=job.cache), shards)

    hashed = complete({}, [1] * len(shards), hash_files, "hashing", job.progress)
    return dict(zip(shards, hashed, strict=True))


_Known = dict[tuple[str, str, tuple[str, ...]], Path]  # by rows, labels and layers


def _known_states(job: Job, folders: Sequence[Path]) -> _Known:
    """Return the states that lie in folders and were counted as this job counts."""
    known: _Known = {}
    key = _key_of(job.counting, job.phase, job.shards[0].layers)
    for path in [path for folder in folders for path in states_in(folder)]:
        try:
            state = SavedState(path)
        except (CorruptStateError, FileNotFoundError):  # the second: of another process
            continue  # it is counted again
        if state.key == key and len(state.shards) == 1:
            record = state.shards[0]
            known.setdefault((record.id, record.labels, tuple(state.layers)), path)
    return known


def _state_of(piece: Piece, digests: Mapping[str, str], known: _Known) -> Path | None:
    """Return the state of the whole shard, or of the piece, if there is one."""
    labels, layers = labels_id(piece.shard, digests), tuple(piece.shard.layers)
    whole = known.get((rows_id(piece.shard.whole, digests), labels, layers))
    return whole or known.get((rows_id(piece, digests), labels, layers))


def states_in(folder: Path) -> list[Path]:
    """Return the states of shards and of pieces of them, in order."""
    return sorted([*folder.glob("*.state"), *folder.glob("*.piece")])


def _moved(path: Path, folder: Path) -> Path:
    """Move a state here that an earlier run left elsewhere."""
    target = folder / path.name
    if path != target and path.exists():  # else it was moved for an earlier piece of the same shard
        os.replace(path, target)
    return target


def _map(given: MapTask) -> Any:
    """Count a piece; return the path of its state, or the state where the folder is not at hand."""
    state = map_piece(given.task, given.digests)
    if given.folder is None:
        return state
    return _saved(state, given.folder, given.task.piece.is_whole, given.lasting)


def _saved(state: AuditState, folder: Path, whole: bool, lasting: bool) -> Path:
    path = folder / f"{state.shard.file_name}.{'state' if whole else 'piece'}"
    save_layers(path, state.layers.items(), [state.shard], state.key, lasting=lasting)
    return path


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
    return AuditState(layers, record, _key_of(task.counting, task.phase, layers))


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
                first_row=task.piece.start * opened.labels[:1].size,
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
