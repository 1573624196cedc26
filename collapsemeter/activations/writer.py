"""Write activations that the audit reads: shards of safetensors and a manifest."""

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..stats.fields import Phase
from ..stats.head import Head
from ..stats.labels import are_tokens, check_predictions, class_labels, class_rows
from ..stats.plain import plain
from ..stats.sums import IGNORE_INDEX, check_num_classes
from ..system.files import write_atomically
from .array_file import required
from .manifest import NAME, PHASES, FileRecord, Manifest, sha256_of, stored_name

SHARD_BYTES = 2**28  # 256 MB
_Kinds = dict[
    str, tuple[tuple[int, ...], np.dtype[Any]]
]  # by layer, the shape of a row and the dtype
_WRITTEN = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


class Writer:
    """Write the activations of a data set, batch by batch.

    Files are written atomically, and the manifest last: a folder without one is an unfinished dump.

    Parameters
    ----------
    folder : str or path
        Made if it does not exist; one that holds a dump is refused.
    num_classes : int
        C.
    head : Head, optional
        The classifier, and ``head_layer`` the layer that it reads (by default the last one).
    phase : {"frozen-eval", "frozen-train", "live"}
    step : int, optional
        The epoch or step of the dump.
    ignore_index : int
        Label of rows to leave out.
    shard_bytes : int
        About how large a file becomes.

    Raises
    ------
    ValueError
        If the folder holds a dump already, or a choice is unknown.

    Examples
    --------
    >>> import tempfile
    >>> with Writer(tempfile.mkdtemp(), num_classes=3) as writer:
    ...     for _ in range(4):
    ...         writer.write({"fc": np.eye(3, dtype=np.float32)}, [0, 1, 2], predictions=[0, 1, 2])
    >>> [record.path for record in writer.manifest.files]
    ['shard-00000.safetensors']
    """

    manifest: Manifest

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        num_classes: int,
        head: Head | None = None,
        head_layer: str | None = None,
        phase: Phase = "frozen-eval",
        step: int | None = None,
        ignore_index: int = IGNORE_INDEX,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder = Path(folder)
        num_classes = check_num_classes(num_classes)
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r}: choose one of {', '.join(PHASES)}")
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes={shard_bytes}: pass about how large a file becomes")
        if head is None and head_layer is not None:
            raise ValueError(
                f"head_layer={head_layer!r} says which layer a head reads: pass head, too"
            )
        if head is not None and len(head.weight) != max(num_classes, 2):
            raise ValueError(
                f"head weight has shape {head.weight.shape} and num_classes={num_classes}: they must agree"
            )
        if (self.folder / NAME).exists():
            raise ValueError(f"{self.folder} holds a dump already: choose another folder")
        self._library = _library()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("shard-*.safetensors"):  # of a dump that was cut short
            left.unlink()
        self._head, self._head_layer, self._shard_bytes = head, head_layer, shard_bytes
        self._classes, self._ignore_index = num_classes, ignore_index
        self._phase, self._step = phase, step
        self._kinds: tuple[_Kinds, set[str]] | None = None  # of every batch
        self._pending: dict[str, list[npt.NDArray[Any]]] = {}
        self._bytes = 0
        self._files: list[FileRecord] = []
        self._closed = False

    def write(
        self,
        layers: Mapping[str, npt.ArrayLike],
        labels: npt.ArrayLike,
        *,
        predictions: npt.ArrayLike | None = None,
        logits: npt.ArrayLike | None = None,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        layers : mapping from name to (B, ...) array of float
            The same layers, of the same width and dtype, in every batch. Float dtypes are kept as they are,
            bfloat16 (of ml_dtypes) too.
        labels : (B,) or (B, T) array_like of class numbers, or one-hot
            Rows that name no single class are written as `collapsemeter.stats.sums.UNLABELLED` or ``MIXED``.
        predictions : array_like of int, shaped as the labels, optional
            The network's own decisions; or ``logits``, with the classes as one more axis.

        Raises
        ------
        ValueError
            If the batch does not fit itself or the batches before; it is not written then.
        """
        if self._closed:
            raise ValueError(f"the dump in {self.folder} is closed: write before close")
        batch = {name: plain(values, "features") for name, values in layers.items()}
        tokens = are_tokens(np.shape(labels), [array.shape for array in batch.values()])
        rows = class_labels(labels, self._classes, ignore_index=self._ignore_index, tokens=tokens)
        if rows.shape[1:] == (1,) and not tokens:
            rows = rows[:, 0]
        extras = {"labels": rows}
        for name, values in (("predictions", predictions), ("logits", logits)):
            if values is not None:
                extras[name] = plain(values, name)
        self._check(batch, extras)
        named = {stored_name(name): array for name, array in batch.items()}
        for name, array in (named | extras).items():
            # A copy: the caller's buffer may be the next batch's.
            self._pending.setdefault(name, []).append(np.array(array))
            self._bytes += array.nbytes
        if self._bytes >= self._shard_bytes:
            self._flush()

    def _check(
        self, batch: Mapping[str, npt.NDArray[Any]], extras: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        shape = extras["labels"].shape
        for name, axes, kinds in (("predictions", 0, "iub"), ("logits", 1, _WRITTEN)):
            if name in extras:
                _check_decided(name, extras[name], shape, axes, kinds)
        if "predictions" in extras:
            usable = class_rows(extras["labels"], self._classes, self._ignore_index)
            check_predictions(extras["predictions"], self._classes, usable)
        columns = extras["logits"].shape[-1] if "logits" in extras else self._classes
        if columns != self._classes and (columns, self._classes) != (1, 2):
            raise ValueError(
                f"logits have shape {extras['logits'].shape}, and num_classes={self._classes}: pass one column for "
                "each class"
            )
        for name, array in batch.items():
            _check_layer(name, array, shape)
        layers = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
        if self._head_layer is not None and self._head_layer not in layers:
            raise ValueError(
                f"head_layer={self._head_layer!r} is not among the layers: {', '.join(layers)}"
            )
        if not layers:
            raise ValueError("the batch has no layer: pass at least one array of features")
        held = layers, set(extras)
        if self._kinds is None:
            self._kinds = held
        elif held != self._kinds:
            raise ValueError(
                f"the batch holds {_described(*held)}, the batches before "
                f"{_described(*self._kinds)}: every batch holds the same arrays"
            )

    def _flush(self) -> None:
        if not self._pending:
            return
        arrays = {name: np.concatenate(parts) for name, parts in self._pending.items()}
        self._pending, self._bytes = {}, 0
        self._files.append(self._save(f"shard-{len(self._files):05d}.safetensors", arrays))

    def _save(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> FileRecord:
        data: bytes = self._library.save(
            {key: np.ascontiguousarray(a) for key, a in arrays.items()}
        )
        write_atomically(self.folder / name, data)
        return FileRecord(name, len(data), sha256_of(data))

    def close(self) -> None:
        """Write what is pending, the head and the manifest.

        Raises
        ------
        ValueError
            If no batch was written.
        """
        if self._closed:
            return
        self._flush()
        if self._kinds is None or not self._files:
            raise ValueError(f"no batch was written to {self.folder}: write at least one")
        head, layers = None, tuple(self._kinds[0])
        if self._head is not None:
            arrays = {"weight": self._head.weight, "bias": self._head.bias}
            head = self._save("head.safetensors", arrays)
        self.manifest = Manifest(
            files=tuple(self._files),
            layers=layers,
            num_classes=self._classes,
            phase=self._phase,
            ignore_index=self._ignore_index,
            head=head,
            head_layer=None if head is None else self._head_layer or layers[-1],
            step=self._step,
        )
        write_atomically(self.folder / NAME, self.manifest.to_json().encode())
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # a dump that failed has no manifest
            self.close()


def _check_decided(
    name: str, array: npt.NDArray[Any], shape: tuple[int, ...], axes: int, kinds: Container[str]
) -> None:
    if array.shape[: len(shape)] != shape or array.ndim != len(shape) + axes:
        raise ValueError(
            f"{name} have shape {array.shape} and labels {shape}: pass one for each label"
        )
    if array.dtype.kind not in kinds and array.dtype.name not in kinds:
        raise ValueError(f"{name} have dtype {array.dtype}: pass classes, or scores of them")


def _check_layer(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    fits = array.ndim > 1 and array.shape[0] == shape[0] and 0 not in array.shape[1:]
    if not fits or array.dtype.name not in _WRITTEN:
        raise ValueError(
            f"layer {name!r} has shape {array.shape} and dtype {array.dtype}, labels have "
            f"shape {shape}: pass one row of floats for each label ({', '.join(_WRITTEN)})"
        )
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError(
            f"layer {name!r} has half a character in its name, which no file can hold: rename it"
        )


def _library() -> Any:
    required("ml_dtypes", "writing activations", "audit")  # teaches NumPy the name bfloat16
    return required("safetensors.numpy", "writing activations", "audit")


def _described(layers: _Kinds, extras: set[str]) -> str:
    parts = [f"{name} (N, {', '.join(map(str, s))}) {d.name}" for name, (s, d) in layers.items()]
    return ", ".join(parts + sorted(extras))
