"""The second pass: with the final means, decide on every row, or on a uniform sample of them."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..metrics.class_centres import ClassCentres
from ..metrics.decisions import Decisions, decide
from ..stats.moments import ClassMoments
from ..stats.state_file import CorruptStateError, read_state, write_state
from .digests import digest_of, hash_of
from .job import LOGITS, PREDICTIONS, HeadReader, Job, Piece, Task
from .piece_rows import Chunk, OpenPiece
from .saved_state import SavedState
from .workers import Workers, complete

# Rows x classes x features of a layer: about a quarter of an hour on two cores where classes overlap, and far
# less where they are apart.
EXACT_PRODUCTS = 5e13
SAMPLE_ROWS = 65_536  # above that: a Wilson interval of at most 0.8 % at 95 %
_KIND = "collapsemeter.Decisions"

Ints = npt.NDArray[np.int64]


class DecideTask(NamedTuple):
    """The task of one worker: a piece, its layers, and which of its label rows; None: all of them."""

    task: Task
    layers: tuple[str, ...]
    chosen: Ints | None


def decide_all(
    job: Job, merged: SavedState, folder: Path, workers: Workers, resume: bool
) -> dict[str, Decisions]:
    """Decide on the rows of every layer; what a piece gave is kept in the folder, to be resumed from."""
    if job.nc4 == "none":
        return {}
    layers, chosen = tuple(job.layers), _chosen(job, merged)
    tasks = [
        DecideTask(job.task(piece), layers, _within(chosen, first, count))
        for piece, (first, count) in zip(job.pieces, _label_rows(job.pieces, merged), strict=True)
    ]
    asked = _asked(job, merged, chosen)
    paths = [
        folder / _file_name(asked, i, decide_task, job.cache) for i, decide_task in enumerate(tasks)
    ]
    done = {i: read for i, path in enumerate(paths) if resume and (read := _read(path, layers))}

    def decide_left(left: list[int]) -> Iterator[tuple[int, dict[str, Decisions]]]:
        means = merged if workers.files else merged.means()
        remaining = [tasks[i] for i in left]
        for k, by_layer in workers.each(decide_piece, remaining, means, job.reader) if left else ():
            _write(paths[left[k]], by_layer, job.lasting)
            yield k, by_layer

    nbytes = [piece.nbytes for piece in job.pieces]
    results = complete(done, nbytes, decide_left, "deciding", job.progress)
    return {
        layer: functools.reduce(Decisions.merge, (by_layer[layer] for by_layer in results))
        for layer in layers
    }


def _chosen(job: Job, merged: SavedState) -> Ints | None:
    """Choose rows, the same of all layers: decisions of the network are about the same rows."""
    settings, widest = job.counting.settings, max(merged.widths.values())
    return choose_rows(merged.rows, settings.num_classes, widest, job.nc4, settings.seed)


def choose_rows(total: int, classes: int, width: int, nc4: str | int, seed: int) -> Ints | None:
    """Return the numbers of the label rows that are decided on, in order: all (None), or a uniform sample."""
    if nc4 == "auto":
        nc4 = "exact" if float(total) * classes * width <= EXACT_PRODUCTS else SAMPLE_ROWS
    if nc4 == "exact" or total <= int(nc4):
        return None
    drawn = np.random.default_rng(seed).choice(total, int(nc4), replace=False)
    return np.sort(drawn).astype(np.int64)


def _within(chosen: Ints | None, first: int, count: int) -> Ints | None:
    """Return the chosen ones among ``count`` rows from ``first`` on, counted from there."""
    if chosen is None:
        return None
    start, stop = np.searchsorted(chosen, [first, first + count])
    return np.asarray(chosen[start:stop] - first)


def _label_rows(pieces: Sequence[Piece], merged: SavedState) -> Iterator[tuple[int, int]]:
    """Yield the number of the first label row of every piece, and how many it has."""
    samples = sum(shard.samples for shard in merged.shards)
    each, first = merged.rows // max(samples, 1), 0  # all samples have as many labels
    for piece in pieces:
        count = piece.samples * each
        yield first, count
        first += count


def decide_piece(
    decide_task: DecideTask, means: SavedState | dict[str, ClassMoments], reader: HeadReader | None
) -> dict[str, Decisions]:
    """Decide on the rows of a piece; the head decides for the network where its own decisions were not saved."""
    task = decide_task.task
    with OpenPiece(task.piece, task.counting, task.cache) as opened:
        predictions = opened.decided()
        if predictions is None and reader is not None and reader.head.finite:
            predictions = np.full(opened.labels.size, -1)
            for chunk, picked in _picked(opened, reader.layer, decide_task.chosen):
                numbers = predictions[chunk.first : chunk.first + len(chunk.rows)]
                numbers[picked] = reader.head.decide(chunk.rows[picked])
        return {
            layer: _decisions(opened, layer, means, predictions, decide_task)
            for layer in decide_task.layers
        }


def _decisions(
    opened: OpenPiece,
    layer: str,
    means: SavedState | dict[str, ClassMoments],
    predictions: Ints | None,
    decide_task: DecideTask,
) -> Decisions:
    moments = means.moments(layer, scatter=False) if isinstance(means, SavedState) else means[layer]
    centres, settings = ClassCentres(moments), decide_task.task.counting.settings
    zeros, sampled = np.zeros(moments.num_classes, np.int64), decide_task.chosen is not None
    total = Decisions(zeros, zeros, None if predictions is None else zeros, sampled, zeros)
    for chunk, picked in _picked(opened, layer, decide_task.chosen):
        network = None
        if predictions is not None:
            network = predictions[chunk.first : chunk.first + len(chunk.rows)][picked]
        part = decide(
            moments,
            chunk.rows[picked],
            chunk.labels[picked],
            predictions=network,
            sampled=sampled,
            ignore_index=settings.ignore_index,
            centres=centres,
        )
        total = total.merge(part)
    return total


def _picked(opened: OpenPiece, layer: str, chosen: Ints | None) -> Iterator[tuple[Chunk, Any]]:
    """Yield chunks with the rows that are decided on: a slice of all, or their numbers."""
    for chunk in opened.chunks(layer):
        within = _within(chosen, chunk.first, len(chunk.rows))
        yield chunk, slice(None) if within is None else within


def _asked(job: Job, merged: SavedState, chosen: Ints | None) -> list[Any]:
    """Return in plain values all that every piece's decisions depend on."""
    digest, layer = hashlib.sha256(), None
    if job.reader is not None:
        layer = job.reader.layer
        for part in (job.reader.head.weight, job.reader.head.bias):
            digest.update(repr(part.shape).encode() + part.tobytes())
    sample = None if chosen is None else [len(chosen), job.counting.settings.seed]
    return [merged.digest, digest.hexdigest(), layer, job.layers, sample]


def _file_name(asked: Sequence[Any], number: int, decide_task: DecideTask, cache: str) -> str:
    piece = decide_task.task.piece
    stored = {role: piece.shard.extras.get(role) for role in (PREDICTIONS, LOGITS)}
    sources = [
        [role, digest_of(array.file, cache), array.inside, array.offset]
        for role, array in stored.items()
        if array is not None
    ]
    return f"{hash_of([*asked, number, piece.start, piece.stop, sources])[:32]}.decisions"


def _write(path: Path, by_layer: Mapping[str, Decisions], lasting: bool) -> None:
    arrays = {}
    for i, decisions in enumerate(by_layer.values()):
        arrays[f"{i}.rows"], arrays[f"{i}.correct"] = decisions.rows, decisions.correct
        for name in ("agree", "alone"):
            if (counts := getattr(decisions, name)) is not None:
                arrays[f"{i}.{name}"] = counts
    header = {"sampled": [decisions.sampled for decisions in by_layer.values()]}
    write_state(path, header, arrays, _KIND, lasting=lasting)


def _read(path: Path, layers: Sequence[str]) -> dict[str, Decisions] | None:
    try:
        header, arrays = read_state(path, _KIND)
        sampled = header["sampled"]
        return {
            layer: Decisions(
                arrays[f"{i}.rows"],
                arrays[f"{i}.correct"],
                arrays.get(f"{i}.agree"),
                sampled[i],
                arrays[f"{i}.alone"],  # older files have none: they are decided on again
            )
            for i, layer in enumerate(layers)
        }
    except (FileNotFoundError, CorruptStateError, KeyError, IndexError, TypeError):
        return None  # it is decided on again
