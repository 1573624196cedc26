"""The second pass over all pieces, resumable."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..metrics.decisions import Decisions
from ..stats.state_file import CorruptStateError, read_state, write_state
from .cluster import Dask
from .deciding import DecideTask, Reader, Rows, choose_rows, decide_piece
from .job import Job
from .mapping import digest_of, hash_of
from .progress import bar
from .shard import Piece
from .state import AuditState, SavedState
from .workers import Workers


def decide_all(
    job: Job, merged: SavedState, folder: Path, workers: Workers, resume: bool
) -> dict[str, Decisions]:
    """Run the second pass; what a piece gave is kept in the folder, so that it can be resumed."""
    rows = _which_rows(job, merged)
    if rows is None:
        return {}
    pieces = [piece for of_shard in job.pieces for piece in of_shard]
    layers = tuple(job.layers)
    tasks = [
        DecideTask(job.task(piece), layers, rows.within(first, count))
        for piece, (first, count) in zip(pieces, _label_rows(pieces, merged), strict=True)
    ]
    asked = _asked(job, merged, rows)
    paths = [folder / _decisions_name(asked, i, given, job.cache) for i, given in enumerate(tasks)]
    done = {i: kept for i, path in enumerate(paths) if resume and (kept := _kept(path, layers))}
    left = [i for i in range(len(tasks)) if i not in done]
    with bar("deciding", sum(p.nbytes for p in pieces), job.progress) as advance:
        advance(sum(pieces[i].nbytes for i in done))
        for k, found in _decided(workers, merged, job.reader, [tasks[i] for i in left]):
            i = left[k]
            _keep(paths[i], found, job.lasting)
            done[i] = found
            advance(pieces[i].nbytes)
    results = [done[i] for i in range(len(tasks))]
    return {
        layer: functools.reduce(Decisions.merge, (found[layer] for found in results))
        for layer in layers
    }


def _which_rows(job: Job, merged: SavedState) -> Rows | None:
    """Choose rows, the same of all layers: decisions of the network are about the same rows."""
    rows, settings = sum(shard.rows for shard in merged.shards), job.counting.settings
    widest = max(merged.widths.values())
    return choose_rows(rows, settings.num_classes, widest, job.nc4, settings.seed)


def _label_rows(pieces: Sequence[Piece], merged: SavedState) -> Iterator[tuple[int, int]]:
    """Yield the number of the first label row of every piece, and how many it has."""
    rows, samples = (sum(getattr(s, of) for s in merged.shards) for of in ("rows", "samples"))
    each, first = rows // max(samples, 1), 0  # a sample has as many labels as every other one
    for piece in pieces:
        count = (piece.stop - piece.start) * each
        yield first, count
        first += count


def _decided(
    workers: Workers, merged: SavedState, reader: Reader | None, tasks: Sequence[DecideTask]
) -> Iterator[tuple[int, dict[str, Decisions]]]:
    if isinstance(workers, Dask):
        shared = workers.everywhere((merged.state(scatter=False), reader))
        yield from workers.each(_decide_with, tasks, shared)
    else:
        decide = functools.partial(
            _decide_saved, path=merged.path, digest=merged.digest, reader=reader
        )
        yield from workers.each(decide, tasks)


def _decide_with(
    given: DecideTask, shared: tuple[AuditState, Reader | None]
) -> dict[str, Decisions]:
    means, reader = shared
    return decide_piece(given, means.layers.__getitem__, reader)


def _decide_saved(
    given: DecideTask, path: str, digest: str, reader: Reader | None
) -> dict[str, Decisions]:
    means = functools.partial(_merged(path, digest).moments, scatter=False)
    return decide_piece(given, means, reader)


@functools.lru_cache(maxsize=1)
def _merged(path: str, digest: str) -> SavedState:
    """Open the merged state once a process, not once a piece."""
    return SavedState(path)


def _asked(job: Job, merged: SavedState, rows: Rows) -> list[Any]:
    """Return in plain values all that every piece's decisions depend on."""
    head = hashlib.sha256()
    for part in () if job.head is None else (job.head.weight, job.head.bias):
        head.update(repr(part.shape).encode() + part.tobytes())
    chosen = None if rows.chosen is None else [len(rows.chosen), job.counting.settings.seed]
    return [merged.digest, head.hexdigest(), job.head_layer, job.layers, chosen]


def _decisions_name(asked: Sequence[Any], number: int, given: DecideTask, cache: str) -> str:
    piece = given.task.piece
    sources = [
        [role, digest_of(at.file, cache), at.inside, at.offset]
        for role, at in (("predictions", piece.shard.predictions), ("logits", piece.shard.logits))
        if at is not None
    ]
    return f"{hash_of([*asked, number, piece.start, piece.stop, sources])[:32]}.decisions"


_KIND = "collapsemeter.Decisions"


def _keep(path: Path, found: Mapping[str, Decisions], lasting: bool) -> None:
    arrays = {}
    for i, decisions in enumerate(found.values()):
        arrays[f"{i}.rows"], arrays[f"{i}.correct"] = decisions.rows, decisions.correct
        if decisions.agree is not None:
            arrays[f"{i}.agree"] = decisions.agree
    about = {"sampled": [d.sampled for d in found.values()]}
    write_state(path, about, arrays, _KIND, lasting=lasting)


def _kept(path: Path, layers: Sequence[str]) -> dict[str, Decisions] | None:
    try:
        header, arrays = read_state(path, _KIND)
        sampled = header["sampled"]
        return {
            layer: Decisions(
                arrays[f"{i}.rows"], arrays[f"{i}.correct"], arrays.get(f"{i}.agree"), sampled[i]
            )
            for i, layer in enumerate(layers)
        }
    except (FileNotFoundError, CorruptStateError, KeyError, IndexError, TypeError):
        return None  # it is decided on again
