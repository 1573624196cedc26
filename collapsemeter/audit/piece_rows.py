"""The rows of a piece: features reduced to one row per label, chunk by chunk."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..activations.array_file import ArrayFile
from ..activations.remote import open_file
from ..adapter.reduction import feature_rows
from ..stats.head import argmax_or_none
from ..stats.labels import are_tokens, check_predictions, class_labels, class_rows
from ..stats.plain import widened
from .epochs import LabelsOf, labels_of
from .job import LOGITS, MASK, PREDICTIONS, Counting, Piece, StoredArray

CHUNK_BYTES = 2**26  # 64 MB of what a file holds

Ndarray = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


class Chunk(NamedTuple):
    """Some rows of a layer: features (N, d), labels (N,), and the number of the first row in the piece."""

    rows: Ndarray
    labels: Ints
    first: int


class OpenPiece(ExitStack):
    """The open files of a piece; ``cache`` is the folder for copies of remote files."""

    def __init__(self, piece: Piece, counting: Counting, cache: str) -> None:
        super().__init__()
        self._piece, self._counting, self._cache = piece, counting, cache
        self._files: dict[str, ArrayFile] = {}
        self._labels: Ndarray | None = None

    def _file(self, name: str) -> ArrayFile:
        if name not in self._files:
            self._files[name] = self.enter_context(open_file(name, self._cache))
        return self._files[name]

    def _read(self, stored: StoredArray, start: int, stop: int) -> Ndarray:
        first = stored.offset + start
        values = self._file(stored.file).read(stored.name, first, stored.offset + stop)
        if len(values) != stop - start:
            raise ValueError(
                f"{stored} ends at row {first + len(values)} of {stored.array.shape[0]}"
            )
        return values

    def raw(self, stored: StoredArray) -> Ndarray:
        """Return the piece's part of an array as it is."""
        return self._read(stored, self._piece.start, self._piece.stop)

    @property
    def labels(self) -> Ndarray:
        """Labels of the piece, (n,) or (n, T), checked."""
        if self._labels is None:
            piece, settings = self._piece, self._counting.settings
            values = self.raw(piece.shard.labels)
            shapes = [stored.array.shape for stored in piece.shard.layers.values()]
            try:
                labels = class_labels(
                    values,
                    settings.num_classes,
                    ignore_index=settings.ignore_index,
                    tokens=are_tokens(values.shape, shapes),
                )
            except ValueError as error:
                raise self._named(error, "labels", piece.shard.labels) from error
            self._labels = labels[:, 0] if labels.shape == (len(labels), 1) else labels
        return self._labels

    def _named(self, error: ValueError, role: str, stored: StoredArray) -> ValueError:
        first = self._piece.start + stored.offset
        counted = f" (rows are counted from {first} on)" if first else ""
        return ValueError(f"{role} {stored}: {error}{counted}")

    def labels_told(self) -> LabelsOf | None:
        """Describe the raw labels; those of one long array for all shards tell nothing of epochs."""
        shard = self._piece.shard
        alone = shard.labels.array.shape[0] == shard.samples
        return labels_of(self.raw(shard.labels)) if alone else None

    def check(self) -> None:
        """Compare the files with the checksums that their formats have, and what is decided with labels."""
        for name in self._piece.shard.counted_files:
            self._file(name).check()
        self._check_decided()

    def _check_decided(self) -> None:
        """Raise unless predictions or logits have one entry for each label, and for each class."""
        labels, classes = self.labels.shape, self._counting.settings.num_classes
        scores = {(*labels, classes)} | ({labels, (*labels, 1)} if classes == 2 else set())
        for role in (PREDICTIONS, LOGITS):
            stored = self._piece.shard.extras.get(role)
            if stored is None:
                continue
            shape, dtype = (labels[0], *stored.array.shape[1:]), stored.array.dtype
            if role == PREDICTIONS:
                fits, kinds, entry = math.prod(shape) == math.prod(labels), "iub", "one class"
            else:
                fits, kinds = shape in scores, "fV"
                entry = f"one row of {classes} scores" + ", or a single logit," * (classes == 2)
            if not fits or dtype.kind not in kinds:
                wide = role == LOGITS and shape[:-1] == labels and shape[-1] > classes
                hint = f"; if there are {shape[-1]} classes, pass --num-classes {shape[-1]}"
                raise ValueError(
                    f"{role} {stored} have dtype {dtype} and shape {shape}, labels {labels}, and num_classes="
                    f"{classes}: pass {entry} for each label{hint if wide else ''}"
                )
            if role == PREDICTIONS:
                self._predictions(stored)

    def chunks(self, layer: str) -> Iterator[Chunk]:
        """Yield the rows of a layer in chunks of bounded memory; of no rows one empty chunk."""
        piece, stored = self._piece, self._piece.shard.layers[layer]
        labels, mask = self.labels, piece.shard.extras.get(MASK)
        per_sample = labels[:1].size
        for start, stop in self._steps(stored) or [(piece.start, piece.start)]:
            part = labels[start - piece.start : stop - piece.start]
            rows = feature_rows(
                self._read(stored, start, stop),
                part.shape,
                None if mask is None else self._read(mask, start, stop),
                OPERATIONS,
                layer=layer,
                layout=None,
                reduction=self._counting.reduction(layer),
            )
            yield Chunk(rows, part.reshape(-1), (start - piece.start) * per_sample)

    def _steps(self, stored: StoredArray) -> list[tuple[int, int]]:
        """Return where chunks of an array start and stop."""
        start, stop = self._piece.start, self._piece.stop
        step = max(1, CHUNK_BYTES // max(stored.array.row_nbytes, 1))
        return [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def decided(self) -> Ints | None:
        """Return the network's own decisions, one for each label; None if the files have none."""
        extras = self._piece.shard.extras
        for name in self._piece.shard.files_beside(PREDICTIONS, LOGITS):
            self._file(name).check()
        self._check_decided()
        if PREDICTIONS in extras:
            return self._predictions(extras[PREDICTIONS])
        if LOGITS not in extras:
            return None
        logits = extras[LOGITS]
        single = len(logits.array.shape) == self.labels.ndim
        columns = 1 if single else logits.array.shape[-1]
        decided = [
            _classes(self._read(logits, start, stop).reshape(-1, columns))
            for start, stop in self._steps(logits)
        ]
        return np.concatenate([np.zeros(0, np.int64), *decided])

    def _predictions(self, stored: StoredArray) -> Ints:
        settings, predictions = self._counting.settings, self.raw(stored).reshape(self.labels.shape)
        usable = class_rows(self.labels, settings.num_classes, settings.ignore_index)
        try:
            check_predictions(predictions, settings.num_classes, usable)
        except ValueError as error:
            raise self._named(error, PREDICTIONS, stored) from error
        return predictions.reshape(-1).astype(np.int64)


def _classes(scores: Ndarray) -> Ints:
    """Return the class that each row of scores, or a single logit, decides on; -1 where one is NaN."""
    scores = widened(scores)
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    return argmax_or_none(scores).astype(np.int64)


class NumpyOperations:
    """The operations that `feature_rows` needs of NumPy."""

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def is_float(self, x: Ndarray) -> bool:
        return x.dtype.kind in "fV"

    def flat(self, x: Ndarray) -> Ndarray:
        return x.reshape(len(x), math.prod(x.shape[1:]))  # -1 would not do for no rows

    def rows(self, x: Ndarray) -> Ndarray:
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def channels_to_end(self, x: Ndarray) -> Ndarray:
        return np.moveaxis(x, 1, -1)

    def mean(self, x: Ndarray, axes: tuple[int, ...]) -> Ndarray:
        return np.asarray(x.astype(np.float64).mean(axis=axes))

    def masked_mean(self, x: Ndarray, mask: Ndarray) -> Ndarray:
        visible = (mask != 0)[..., None]
        total = np.where(visible, x.astype(np.float64), 0.0).sum(axis=1)
        return np.asarray(total / np.maximum(visible.sum(axis=1), 1))

    def last(self, x: Ndarray, mask: Ndarray) -> Ndarray:
        positions = np.where(mask != 0, np.arange(mask.shape[1]), -1).max(axis=1)
        rows: Ndarray = x[np.arange(len(x)), np.maximum(positions, 0)]
        return rows


OPERATIONS = NumpyOperations()
