"""The second pass over all pieces, resumable."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..nc4 import Decisions
from ..state_files import CorruptStateError, read_state, write_state
from .deciding import DecideTask, Rows, choose_rows, decide_piece
from .job import Job
from .progress import bar
from .shard import Piece
from .state import AuditState, SavedState
from .workers import Dask, Workers


def decide_all(
    job: Job, merged: SavedState, folder: Path, workers: Workers, resume: bool
) -> dict[str, Decisions]:
    """Run the second pass; what a piece gave is kept in the folder, so that it can be resumed."""
    rows, firsts, pieces = _which_rows(job, merged)
    if not rows:
        return {}
    tasks, paths = [], []
    for piece, first in zip(pieces, firsts, strict=True):
        given = DecideTask(job.task(piece), first, rows, job.head, job.head_layer)
        tasks.append(given)
        paths.append(folder / f"{_decision_name(given, merged)}.decisions")
    done = {i: kept for i, path in enumerate(paths) if resume and (kept := _kept(path, rows))}
    left = [i for i in range(len(tasks)) if i not in done]
    with bar("deciding", sum(p.nbytes for p in pieces), job.progress) as advance:
        advance(sum(pieces[i].nbytes for i in done))
        for k, found in workers.each(_decider(merged, workers), [tasks[i] for i in left]):
            i = left[k]
            _keep(paths[i], found)
            done[i] = found
            advance(pieces[i].nbytes)
    results = [done[i] for i in range(len(tasks))]
    return {
        layer: functools.reduce(Decisions.merge, (found[layer] for found in results))
        for layer in rows
    }


def _which_rows(job: Job, merged: SavedState) -> tuple[dict[str, Rows], list[int], list[Piece]]:
    """Choose the rows of every layer; number the first label row of every piece."""
    pieces = [piece for of_shard in job.pieces for piece in of_shard]
    rows, samples = (sum(getattr(s, of) for s in merged.shards) for of in ("rows", "samples"))
    firsts = np.cumsum([0, *(piece.stop - piece.start for piece in pieces)]) * rows
    settings = job.counting.settings
    width = max(entry["width"] for entry in merged.header["layers"])
    # One choice for all layers, by the widest: decisions of the network are about the same rows.
    chosen = choose_rows(rows, settings.num_classes, width, job.nc4, settings.seed)
    numbers = [int(first) // max(samples, 1) for first in firsts[:-1]]
    return ({} if chosen is None else dict.fromkeys(job.layers, chosen)), numbers, pieces


def _decider(merged: SavedState, workers: Workers) -> Callable[[DecideTask], dict[str, Decisions]]:
    if isinstance(workers, Dask):
        state = merged.state()
        return functools.partial(_decide_with, state=state)
    return functools.partial(_decide_saved, path=merged.path, digest=merged.digest)


def _decide_with(given: DecideTask, state: AuditState) -> dict[str, Decisions]:
    return decide_piece(given, state.layers.__getitem__)


def _decide_saved(given: DecideTask, path: str, digest: str) -> dict[str, Decisions]:
    return decide_piece(given, _merged(path, digest).moments)


@functools.lru_cache(maxsize=1)
def _merged(path: str, digest: str) -> SavedState:
    """Open the merged state once a process, not once a piece."""
    return SavedState(path)


def _decision_name(given: DecideTask, merged: SavedState) -> str:
    head = None if given.head is None else [given.head.weight.tobytes(), given.head.bias.tobytes()]
    digest = hashlib.sha256(merged.digest.encode())
    for part in head or []:
        digest.update(part)
    chosen = {n: None if r.chosen is None else len(r.chosen) for n, r in given.rows.items()}
    seed = given.task.counting.settings.seed
    digest.update(json.dumps([given.first, given.head_layer, chosen, seed]).encode())
    return digest.hexdigest()[:32]


_KIND = "collapsemeter.Decisions"


def _keep(path: Path, found: Mapping[str, Decisions]) -> None:
    arrays = {}
    for i, decisions in enumerate(found.values()):
        arrays[f"{i}.rows"], arrays[f"{i}.correct"] = decisions.rows, decisions.correct
        if decisions.agree is not None:
            arrays[f"{i}.agree"] = decisions.agree
    write_state(path, {"sampled": [d.sampled for d in found.values()]}, arrays, _KIND)


def _kept(path: Path, rows: Mapping[str, Rows]) -> dict[str, Decisions] | None:
    try:
        header, arrays = read_state(path, _KIND)
    except (FileNotFoundError, CorruptStateError):
        return None
    return {
        layer: Decisions(
            arrays[f"{i}.rows"], arrays[f"{i}.correct"], arrays.get(f"{i}.agree"), sampled
        )
        for i, (layer, sampled) in enumerate(zip(rows, header["sampled"], strict=True))
    }
