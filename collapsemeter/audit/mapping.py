"""Map: from a piece of a shard to the moments of its layers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from .. import __version__
from ..activations.manifest import sha256_of_path
from ..activations.remote import local_path
from ..stats.accumulate import Accumulator
from ..stats.moments import HOST_CLASS_ENTRIES, ClassMoments
from ..stats.sketch import derived_seed
from ..stats.sums import ScatterKind, scatter_kind
from .epochs import LabelsOf, labels_of
from .rows import Counting, OpenPiece
from .shard import ArrayAt, Piece, Shard
from .state import AuditState, ShardRecord


class Task(NamedTuple):
    """What a worker is given: a piece, how to count it, a folder for copies of remote files."""

    piece: Piece
    counting: Counting
    phase: Any
    cache: str


def map_piece(task: Task, digests: Mapping[str, str] | None = None) -> AuditState:
    """Count a piece.

    Parameters
    ----------
    task : Task
    digests : mapping from file to SHA-256, optional
        Taken beside the counting if left out.

    Returns
    -------
    AuditState

    Raises
    ------
    ValueError
        If a file is damaged or does not match its manifest, or labels and features do not fit.
    """
    piece = task.piece
    with ThreadPoolExecutor(1) as beside:
        hashing = beside.submit(digests_of, piece.shard, task.cache) if digests is None else None

        def found() -> Mapping[str, str]:
            return hashing.result() if hashing is not None else digests or {}

        def seed() -> int:
            return derived_seed(shard_id(piece, found()))

        with OpenPiece(piece, task.counting, task.cache) as opened:
            if piece.start == 0:  # of the whole file, so once is enough
                opened.check()
            counted = {layer: _counted(opened, layer, task, seed) for layer in piece.shard.layers}
            rows = opened.labels.size
            told = labels_told(opened, piece)
        files = dict(found())
    record = ShardRecord(
        id=shard_id(piece, files),
        name=piece.shard.name,
        files=files,
        samples=piece.stop - piece.start,
        rows=rows,
        labels=labels_id(piece.shard, files),
        label_order=told.in_order if told else "",
        label_counts=told.sorted if told else "",
        label_values=told.values if told else 0,
    )
    layers = {name: of_shard(moments, record) for name, moments in counted.items()}
    return AuditState(layers, (record,), key_of(task.counting, task.phase, layers))


def labels_told(opened: OpenPiece, piece: Piece) -> LabelsOf | None:
    """Describe the labels of a piece; those of one long array for all shards tell nothing of epochs."""
    at = piece.shard.labels
    return labels_of(opened.raw(at)) if at.array.shape[0] == piece.shard.samples else None


def of_shard(moments: ClassMoments, record: ShardRecord) -> ClassMoments:
    """Return the moments with the shard that they are of; of no rows nothing can be counted twice."""
    return replace(moments, shards=frozenset([record.id]) if moments.rows else frozenset())


def _counted(opened: OpenPiece, layer: str, task: Task, seed: Callable[[], int]) -> ClassMoments:
    """Count a layer; a sketch takes a seed from what identifies the rows, which waits for their SHA-256."""
    settings = task.counting.settings
    accumulator, dtype = None, task.piece.shard.layers[layer].array.dtype.name
    for chunk in opened.chunks(layer):
        if accumulator is None:
            width = chunk.rows.shape[1]
            kind = host_scatter(task.counting, width)
            accumulator = Accumulator(
                settings.num_classes,
                width,
                kind,
                ignore_index=settings.ignore_index,
                propagate=settings.propagate,
                sketch_rows=settings.sketch_rows,
                seed=seed() if kind == "sketch" else 0,
            )
        accumulator.add(chunk.rows, chunk.labels)
        if accumulator.sums.nonfinite and settings.nonfinite == "raise":
            raise ValueError(
                f"layer {layer!r} has {int(accumulator.sums.nonfinite)} rows that hold NaN or Inf in "
                f"{task.piece.shard.name}: pass --nonfinite skip to leave such rows out"
            )
    assert accumulator is not None  # there is one chunk at least
    return accumulator.moments(dtype, task.phase)


def host_scatter(counting: Counting, width: int) -> ScatterKind:
    """Return the scatter kept of a layer: the host affords more than a training step."""
    settings = counting.settings
    if settings.scatter != "auto":
        return settings.scatter
    return scatter_kind(settings.num_classes, width, HOST_CLASS_ENTRIES)


def digests_of(shard: Shard, cache: str) -> dict[str, str]:
    """Return the SHA-256 of every file of a shard.

    Raises
    ------
    ValueError
        If one is not what the manifest says.
    """
    digests = {file: digest_of(file, cache) for file in [*shard.files, *shard.extra_files]}
    for file, recorded in shard.recorded.items():
        check_recorded(file, digests[file], recorded)
    return digests


def check_recorded(file: str, digest: str, recorded: str) -> None:
    """Raise ValueError unless a file is what the manifest says."""
    if digest != recorded:
        raise ValueError(
            f"{file} has SHA-256 {digest[:12]}..., the manifest says {recorded[:12]}...: it was changed or "
            "damaged after it was written; write the activations again"
        )


def shard_id(piece: Piece, digests: Mapping[str, str]) -> str:
    """Return what identifies the rows of a piece, wherever its files lie and whatever they are called."""
    parts = [_source(at, digests) for at in piece.shard.layers.values()]
    return hash_of([parts, piece.start, piece.stop])


def labels_id(shard: Shard, digests: Mapping[str, str]) -> str:
    """Return what identifies the labels and the mask of a shard."""
    return hash_of([_source(at, digests) for at in (shard.labels, shard.mask) if at is not None])


def _source(at: ArrayAt, digests: Mapping[str, str]) -> list[Any]:
    return [digests[at.file], at.inside, at.offset]


def hash_of(plain: Any) -> str:
    """Return the SHA-256 of plain values.

    Examples
    --------
    >>> hash_of([1, "a"])[:8]
    '4a72386a'
    """
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def digest_of(file: str, cache: str) -> str:
    """Return the SHA-256 of a file; of one that many shards share, such as that of all labels, once."""
    path = local_path(file, cache)
    about = path.stat()
    if not path.is_file():  # a folder does not tell whether what is in it was changed
        return sha256_of_path(path)
    return _digest_once(str(path), about.st_ino, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest_once(path: str, *version: int) -> str:
    return sha256_of_path(path)


def key_of(counting: Counting, phase: str, layers: Iterable[str]) -> dict[str, Any]:
    """Return everything but the data that a state depends on."""
    settings = asdict(counting.settings)
    kept = ("num_classes", "scatter", "sketch_rows", "ignore_index", "nonfinite")
    return {
        "collapsemeter": __version__,
        "phase": phase,
        "labels": counting.labels,
        "reductions": {layer: counting.reduction(layer) for layer in layers},
        **{name: settings[name] for name in kept},
    }
