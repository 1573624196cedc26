"""The rows of a piece: features reduced to one row per label, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..activations import ArrayFile, open_arrays
from ..activations.remote import local_path
from ..labels import class_labels
from ..nc3 import argmax_or_none
from ..reduction import Reduction, feature_rows
from ..settings import Settings
from .shard import ArrayAt, Piece

CHUNK_BYTES = 2**25  # 32 MB of what a file holds

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Counting:
    """How rows are counted: what a state depends on beside the data.

    Parameters
    ----------
    settings : Settings
    reductions : tuple of (pattern, reduction)
        The first pattern that a layer's name matches decides.
    """

    settings: Settings
    reductions: tuple[tuple[str, Reduction], ...] = ()

    def reduction(self, layer: str) -> Reduction:
        """Return the reduction of a layer."""
        from fnmatch import fnmatchcase

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
            opened = open_arrays(local_path(name, self._cache))
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
                    found, settings.num_classes, ignore_index=settings.ignore_index
                )
            except ValueError as error:
                raise ValueError(f"labels {piece.shard.labels}: {error}") from error
            self._labels = labels[:, 0] if labels.shape == (len(labels), 1) else labels
        return self._labels

    def check(self) -> None:
        """Compare the files with the checksums that their formats have."""
        for name in [*self._piece.shard.files, *self._piece.shard.extra_files]:
            self._file(name).check()

    def chunks(self, layer: str) -> Iterator[Chunk]:
        """Yield the rows of a layer in chunks of bounded memory."""
        piece, at = self._piece, self._piece.shard.layers[layer]
        labels, mask = self.labels, piece.shard.mask
        sample_bytes = at.array.nbytes // max(at.array.shape[0], 1)
        step = max(1, CHUNK_BYTES // max(sample_bytes, 1))
        per_sample = labels[:1].size
        for start in range(piece.start, piece.stop, step):
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
        piece = self._piece
        if piece.shard.predictions is not None:
            found = self.raw(piece.shard.predictions)
            if found.dtype.kind not in "iu" or found.size != self.labels.size:
                raise ValueError(
                    f"predictions {piece.shard.predictions} have dtype {found.dtype} and shape "
                    f"{found.shape}, labels {self.labels.shape}: pass one class for each label"
                )
            return found.reshape(-1).astype(np.int64)
        if piece.shard.logits is None:
            return None
        found = self.raw(piece.shard.logits)
        classes = found.shape[-1]
        if classes < 2 or found.size != self.labels.size * classes:
            raise ValueError(
                f"logits {piece.shard.logits} have shape {found.shape}, labels {self.labels.shape}: pass "
                "one row of C scores for each label"
            )
        return argmax_or_none(found.reshape(-1, classes))


class NumpyOperations:
    """What `feature_rows` needs of NumPy."""

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, np.ndarray)

    def is_float(self, x: Array) -> bool:
        return x.dtype.kind in "fV"

    def flat(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def rows(self, x: Array) -> Array:
        return x.reshape(-1, x.shape[-1])

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


def feature_dtypes(shard_layers: Mapping[str, ArrayAt]) -> dict[str, str]:
    """Return the dtype that each layer was computed in: that of the file, not of a mean."""
    return {name: at.array.dtype.name for name, at in shard_layers.items()}
