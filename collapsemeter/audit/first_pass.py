"""The first pass: every piece of a shard is counted, and its moments go to a state file."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..stats.accumulate import Accumulator
from ..stats.moments import ClassMoments
from ..stats.sketch import derived_seed
from ..stats.sums import HOST_CLASS_SCATTER_ENTRIES, scatter_kind
from .digests import Digests, digests_of, labels_id, rows_id
from .epochs import LabelsOf
from .job import Counting, Job, Shard, Task
from .piece_rows import OpenPiece
from .saved_state import AuditState, ShardRecord, save_layers
from .workers import Workers, complete


class MapTask(NamedTuple):
    """The task of one worker: a piece, the digests that are known, and where its state goes."""

    task: Task
    digests: dict[str, str] | None
    folder: Path | None  # None: it is returned
    lasting: bool


def map_pieces(
    job: Job,
    numbers: Sequence[int | None],
    folder: Path,
    workers: Workers,
    counted: Callable[[Digests], dict[int, Path]] | None = None,
) -> list[Path]:
    """Return a state file for each piece, whose first rows have these numbers; ``counted`` finds those that are there already."""
    digests = _digests(job, workers, of_all=counted is not None)
    done = {} if counted is None else counted(digests)

    def count(left: list[int]) -> Iterator[tuple[int, Path]]:
        place = folder if workers.files else None
        tasks = [
            MapTask(
                job.task(job.pieces[i], numbers[i]),
                digests.get(job.pieces[i].shard),
                place,
                job.lasting,
            )
            for i in left
        ]
        for k, state in workers.each(_map, tasks):
            whole = tasks[k].task.piece.is_whole
            yield k, _saved(state, folder, whole, job.lasting) if place is None else state

    nbytes = [piece.nbytes for piece in job.pieces]
    return complete(done, nbytes, count, "counting", job.progress)


def first_row_numbers(job: Job, first: int) -> list[int | None]:
    """Number the rows that have a class through all shards, and return the number of the first of every piece; None where no groups are kept."""
    if not job.counting.settings.groups:
        return [None] * len(job.pieces)
    numbers = [first]
    for piece in job.pieces[:-1]:
        with OpenPiece(piece, job.counting, job.cache) as opened:
            numbers.append(numbers[-1] + _numbered(opened.labels, job.counting))
    return [*numbers]


def _numbered(labels: npt.NDArray[Any], counting: Counting) -> int:
    """Return how many rows have a class, and so a number."""
    return int(np.count_nonzero((labels >= 0) & (labels != counting.settings.ignore_index)))


def _digests(job: Job, workers: Workers, of_all: bool) -> dict[Shard, dict[str, str]]:
    """Hash the files of shards of many pieces, or of all; others are hashed beside their counting."""
    pieces = Counter(piece.shard for piece in job.pieces)
    shards = [shard for shard in job.shards if of_all or pieces[shard] > 1]

    def hash_files(left: list[int]) -> Iterator[tuple[int, dict[str, str]]]:
        return workers.each(partial(digests_of, cache=job.cache), shards)

    hashed = complete({}, [1] * len(shards), hash_files, "hashing", job.progress)
    return dict(zip(shards, hashed, strict=True))


def _map(task: MapTask) -> Any:
    """Count a piece; return the path of its state, or the state where the folder is not at hand."""
    state = map_piece(task.task, task.digests)
    if task.folder is None:
        return state
    return _saved(state, task.folder, task.task.piece.is_whole, task.lasting)


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
            labels, told = opened.labels, opened.labels_told() or LabelsOf()
        files = dict(hashing.result())
    record = ShardRecord(
        id=rows_id(piece, files),
        name=piece.shard.name,
        files=files,
        samples=piece.samples,
        rows=labels.size,
        labels=labels_id(piece.shard, files),
        label_order=told.in_order,
        label_counts=told.sorted,
        label_values=told.values,
        first_row=task.first_row,
        numbered=_numbered(labels, task.counting),
        mapped=task.mapped,
    )
    layers = {name: record.mark(moments) for name, moments in counted.items()}
    return AuditState(layers, record, task.counting.key(task.phase, layers))


def _counted(opened: OpenPiece, layer: str, task: Task, seed: Callable[[], int]) -> ClassMoments:
    """Count a layer. Sketches of rows that are numbered through have one seed; others take it from what identifies the rows, which waits for their SHA-256."""
    settings = task.counting.settings
    apart = task.first_row is None
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
                seed=seed() if kind == "sketch" and apart else 0,
                groups=settings.groups,
                first_row=task.first_row or 0,
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
