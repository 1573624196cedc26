"""The rows of a piece: features reduced to one row per label, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..activations import ArrayFile
from ..activations.remote import open_file
from ..adapter.reduction import Reduction, feature_rows
from ..adapter.settings import Settings
from ..stats.accumulate import widened
from ..stats.head import argmax_or_none
from ..stats.labels import are_tokens, class_labels
from .shard import ArrayAt, Piece

CHUNK_BYTES = 2**26  # 64 MB of what a file holds

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Counting:
    """How rows are counted: what a state depends on beside the data.

    Parameters
    ----------
    settings : Settings
    reductions : tuple of (pattern, reduction)
        The first pattern that a layer's name matches decides.
    labels : str or None
        The array in the files that labels are; None where they have files of their own.
    """

    settings: Settings
    reductions: tuple[tuple[str, Reduction], ...] = ()
    labels: str | None = None

    def reduction(self, layer: str) -> Reduction:
        """Return the reduction of a layer."""
        return next(
            (how for pattern, how in self.reductions if fnmatchcase(layer, pattern)), "auto"
        )


class Chunk(NamedTuple):
    """Some rows of a layer: features (N, d), labels (N,), and the number of the first row in the piece."""

    rows: Array
    labels: npt.NDArray[np.int64]
    first: int


class OpenPiece:
    """The open files of a piece.

    Parameters
    ----------
    piece : Piece
    counting : Counting
    cache : str
        Folder for copies of remote files.
    """

    def __init__(self, piece: Piece, counting: Counting, cache: str) -> None:
        self._piece, self._counting, self._cache = piece, counting, cache
        self._stack = ExitStack()
        self._open: dict[str, ArrayFile] = {}
        self._labels: Array | None = None

    def __enter__(self) -> OpenPiece:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _file(self, name: str) -> ArrayFile:
        if name not in self._open:
            opened = open_file(name, self._cache)
            self._open[name] = self._stack.enter_context(opened)
        return self._open[name]

    def _read(self, at: ArrayAt, start: int, stop: int) -> Array:
        found = self._file(at.file).read(at.name, at.offset + start, at.offset + stop)
        if len(found) != stop - start:
            raise ValueError(
                f"{at} ends at row {at.offset + start + len(found)} of {at.array.shape[0]}"
            )
        return found

    def raw(self, at: ArrayAt) -> Array:
        """Return the piece's part of an array as it is."""
        return self._read(at, self._piece.start, self._piece.stop)

    @property
    def labels(self) -> Array:
        """Labels of the piece, (n,) or (n, T), checked."""
        if self._labels is None:
            piece, settings = self._piece, self._counting.settings
            found = self.raw(piece.shard.labels)
            try:
                labels = class_labels(
                    found,
                    settings.num_classes,
                    ignore_index=settings.ignore_index,
                    tokens=are_tokens(
                        found.shape, [at.array.shape for at in piece.shard.layers.values()]
                    ),
                )
            except ValueError as error:
                first = piece.start + piece.shard.labels.offset
                counted = f" (rows are counted from {first} on)" if first else ""
                raise ValueError(f"labels {piece.shard.labels}: {error}{counted}") from error
            self._labels = labels[:, 0] if labels.shape == (len(labels), 1) else labels
        return self._labels

    def check(self) -> None:
        """Compare the files with the checksums that their formats have, and what is decided with labels."""
        for name in [*self._piece.shard.files, *self._piece.shard.extra_files]:
            self._file(name).check()
        self._check_decided()

    def _check_decided(self) -> None:
        """Raise unless predictions or logits have one entry for each label: headers tell."""
        shard, shape = self._piece.shard, self.labels.shape
        at = shard.predictions
        if at is not None:
            found = (len(self.labels), *at.array.shape[1:])
            if at.array.dtype.kind not in "iub" or math.prod(found) != self.labels.size:
                raise ValueError(
                    f"predictions {at} have dtype {at.array.dtype} and shape {found}, labels {shape}: pass "
                    "one class for each label"
                )
        at = shard.logits
        if at is not None:
            found = (len(self.labels), *at.array.shape[1:])
            if found not in {shape, (*shape, found[-1])} or at.array.dtype.kind not in "fV":
                raise ValueError(
                    f"logits {at} have dtype {at.array.dtype} and shape {found}, labels {shape}: pass one row "
                    "of C scores, or a single logit, for each label"
                )

    def chunks(self, layer: str) -> Iterator[Chunk]:
        """Yield the rows of a layer in chunks of bounded memory; of no rows one empty chunk."""
        piece, at = self._piece, self._piece.shard.layers[layer]
        labels, mask = self.labels, piece.shard.mask
        step = max(1, CHUNK_BYTES // max(at.array.row_nbytes, 1))
        per_sample = labels[:1].size
        for start in range(piece.start, max(piece.stop, piece.start + 1), step):
            stop = min(start + step, piece.stop)
            part = labels[start - piece.start : stop - piece.start]
            rows = feature_rows(
                self._read(at, start, stop),
                part.shape,
                None if mask is None else self._read(mask, start, stop),
                OPERATIONS,
                layer=layer,
                layout=None,
                reduction=self._counting.reduction(layer),
            )
            yield Chunk(rows, part.reshape(-1), (start - piece.start) * per_sample)

    def decided(self) -> npt.NDArray[np.int64] | None:
        """Return the network's own decisions, one for each label; None if the files have none."""
        shard = self._piece.shard
        for name in shard.decision_files:
            self._file(name).check()
        self._check_decided()
        if shard.predictions is not None:
            return self.raw(shard.predictions).reshape(-1).astype(np.int64)
        return None if shard.logits is None else self._of_logits(shard.logits)

    def _of_logits(self, at: ArrayAt) -> npt.NDArray[np.int64]:
        piece, axes = self._piece, len(at.array.shape)
        columns = 1 if axes == self.labels.ndim else at.array.shape[-1]
        step = max(1, CHUNK_BYTES // max(at.array.row_nbytes, 1))
        decided = [
            _classes(self._read(at, start, min(start + step, piece.stop)).reshape(-1, columns))
            for start in range(piece.start, piece.stop, step)
        ]
        return np.concatenate([np.zeros(0, np.int64), *decided])


class NumpyOperations:
    """What `feature_rows` needs of NumPy."""

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def is_float(self, x: Array) -> bool:
        return x.dtype.kind in "fV"

    def flat(self, x: Array) -> Array:
        return x.reshape(len(x), math.prod(x.shape[1:]))  # -1 would not do for no rows

    def rows(self, x: Array) -> Array:
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def channels_to_end(self, x: Array) -> Array:
        return np.moveaxis(x, 1, -1)

    def mean(self, x: Array, axes: tuple[int, ...]) -> Array:
        return np.asarray(_wide(x).mean(axis=axes))

    def masked_mean(self, x: Array, mask: Array) -> Array:
        kept = (mask != 0)[..., None]
        total = np.where(kept, _wide(x), 0.0).sum(axis=1)
        return np.asarray(total / np.maximum(kept.sum(axis=1), 1))

    def last(self, x: Array, mask: Array) -> Array:
        positions = np.where(mask != 0, np.arange(mask.shape[1]), -1).max(axis=1)
        found: Array = x[np.arange(len(x)), np.maximum(positions, 0)]
        return found


OPERATIONS = NumpyOperations()


def _wide(x: Array) -> Array:
    return x.astype(np.float64)


def _classes(scores: Array) -> npt.NDArray[np.int64]:
    """Return the class that each row of scores, or a single logit, decides on; -1 where one is NaN."""
    scores = widened(scores)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    return argmax_or_none(scores).astype(np.int64)
