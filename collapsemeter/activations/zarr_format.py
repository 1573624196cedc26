"""Named arrays in a ``.zarr`` folder, versions 2 and 3, read by the zarr library."""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from .array_file import (
    MAX_DIRECTORY,
    ActivationsError,
    Array,
    ArrayFile,
    Refused,
    check_array,
    check_expansion,
    first_line,
    required,
)
from .chunk_grid import ChunkGrid, Index, PackedChunk
from .packing import check_unpacked

_V3, _V2 = "zarr.json", ".zarray"
_CODECS = ("gzip", "zlib", "bz2", "blosc", "lz4", "zstd", "crc32c", "shuffle")
_LAYOUTS = ("bytes", "transpose")  # of version 3
_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2")  # of ml_dtypes; zarr reads their bits
_REMEDY = (
    "they were never written, or they are the fill value alone, which Zarr does not store by default; "
    'write the array with config={"write_empty_chunks": True}, or with fill_value=nan'
)
_MISSING = 2**64 - 1  # place and length of a chunk that a shard does not have


class ZarrFolder(ArrayFile):
    """The arrays of a ``.zarr`` folder under their paths, without following symbolic links; a single one under its name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        reading = f"reading {os.fspath(path)}"
        required("zarr", reading, "audit,zarr")
        required("ml_dtypes", reading, "audit,zarr")  # teaches NumPy the name bfloat16
        super().__init__(path)
        root = Path(path)
        os.stat(root)  # a missing folder must be called missing
        kind = _kind(root)
        if not root.is_dir() or not kind:
            raise ActivationsError(
                f"{self.path} is not a Zarr folder: it has no zarr.json or .zgroup"
            )
        arrays = _arrays(root) if kind == "group" else [(root.name.removesuffix(".zarr"), root)]
        for name, folder in arrays:  # the library checks the rest of the metadata
            self._add(name, partial(_locate, folder), damaged="has damaged metadata")


def _kind(folder: Path) -> str:
    """Return "array", "group", or nothing if the folder is neither."""
    if (folder / _V3).is_file():
        try:
            return "group" if _json(folder / _V3).get("node_type") == "group" else "array"
        except Refused:  # the reader of arrays says why
            return "array"
    if (folder / _V2).is_file():
        return "array"
    return "group" if (folder / ".zgroup").is_file() else ""


def _arrays(group: Path) -> Iterator[tuple[str, Path]]:
    """Yield the arrays in a group and the groups in it, with their paths."""
    folders = [("", group)]
    while folders:
        prefix, folder = folders.pop(0)
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            kind = _kind(Path(entry.path)) if entry.is_dir() else ""
            if kind == "group" and not entry.is_symlink():
                folders.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif kind:
                yield prefix + entry.name, Path(entry.path)


def _json(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        raise Refused(f"has a symbolic link, {path.name}: links are not followed")
    size = path.stat().st_size
    if size > MAX_DIRECTORY:
        raise Refused(f"has metadata of {size} bytes: at most {MAX_DIRECTORY} is read")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refused(f"has damaged metadata, {path.name}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise Refused(f"has damaged metadata: {path.name} is not a JSON object")
    return content


def _locate(folder: Path) -> tuple[Array, ChunkGrid]:
    """Return the chunks of an array, if its metadata are safe and all of its files are there."""
    from zarr import Array as ZarrArray
    from zarr.storage import LocalStore, StorePath

    if folder.is_symlink() and folder.suffix != ".zarr":
        raise Refused("is a symbolic link: links are not followed")
    version = 3 if (folder / _V3).is_file() else 2
    meta = _json(folder / (_V3 if version == 3 else _V2))
    if meta.get("zarr_format") != version:
        raise Refused(f"has Zarr version {str(meta.get('zarr_format'))[:50]}: 2 and 3 are read")
    dtype = _dtype(meta["dtype" if version == 2 else "data_type"])
    check_unpacked(_attributes(folder, meta, version).get, dtype)
    shape = check_array(tuple(meta["shape"]), dtype).shape
    codecs, index = _codecs(meta, version)
    if dtype.name in _NARROW:  # the library knows the bits, not the numbers
        fill = _bits(meta["fill_value"], dtype)
        meta = meta | {"data_type": f"uint{8 * dtype.itemsize}", "fill_value": fill}
    opened: Any = ZarrArray.from_dict(StorePath(LocalStore(folder, read_only=True)), meta)
    native = dtype if dtype.name in _NARROW else opened.dtype
    files = _ChunkFiles(folder, opened, codecs, index)
    grid = ChunkGrid(
        Array(shape, native),
        opened.chunks,
        np.asarray(opened.fill_value or 0, opened.dtype).view(native)[()],
        _REMEDY,
        files.packed,
        lambda part: opened[part].view(native),
    )
    stored = _stored(folder)
    grid.check_size(stored)
    grid.check_stored(lambda index: os.path.lexists(files.path(index)), files.per_file)
    return check_expansion(grid.array, stored), grid


def _attributes(folder: Path, meta: dict[str, Any], version: int) -> dict[str, Any]:
    if version == 2:
        path = folder / ".zattrs"
        return _json(path) if os.path.lexists(path) else {}
    attributes = meta.get("attributes") or {}
    return attributes if isinstance(attributes, dict) else {}


def _dtype(stored: Any) -> np.dtype[Any]:
    if not isinstance(stored, str):
        raise Refused(f"has dtype {str(stored)[:200]}: only real numbers are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns of names that it has given up
            dtype: np.dtype[Any] = np.dtype(stored)
            return dtype
    except (TypeError, ValueError, SyntaxError, DeprecationWarning) as error:
        raise Refused(f"has dtype {stored[:100]!r}, which is not read") from error


def _bits(fill: Any, dtype: np.dtype[Any]) -> int:
    if isinstance(fill, str) and fill.startswith("0x"):
        return int(fill, 16)
    return int(np.asarray(float(fill or 0), dtype).view(f"u{dtype.itemsize}"))


def _codecs(meta: dict[str, Any], version: int) -> tuple[list[str], _ShardIndex | None]:
    """Return the codecs of a chunk, in order, and how shards keep their index; refuse unknown codecs."""
    if version == 2:
        steps = [*(meta.get("filters") or []), meta.get("compressor")]
        return _names([step for step in steps if step is not None], "id"), None
    names = _names(meta["codecs"], "name", (*_LAYOUTS, "sharding_indexed"))
    if "sharding_indexed" not in names:
        return names, None
    if len(names) > 1:
        raise Refused("has other codecs beside sharding_indexed: that is not read")
    config = meta["codecs"][0]["configuration"]
    steps = config["index_codecs"]
    of_index = _names(steps, "name", _LAYOUTS)
    if of_index not in (["bytes"], ["bytes", "crc32c"]) or "'big'" in str(steps[0]):
        raise Refused("has an index of shards in other codecs than little-endian bytes and crc32c")
    index = _ShardIndex(config.get("index_location", "end") == "end", 4 * (len(of_index) - 1))
    return _names(config["codecs"], "name", _LAYOUTS), index


def _names(steps: Any, key: str, layouts: tuple[str, ...] = ()) -> list[str]:
    names = []
    for step in steps:
        name = step.get(key) if isinstance(step, dict) else step
        if not isinstance(name, str):
            raise Refused(f"has damaged metadata: {str(step)[:100]} has no {key}")
        names.append(name.removeprefix("numcodecs."))
        if names[-1] not in (*_CODECS, *layouts):
            raise Refused(f"has codec {names[-1][:100]!r}: only {', '.join(_CODECS)} are read")
    return names


def _stored(folder: Path) -> int:
    """Return the bytes of all files of an array; refuse links and pipes."""
    total = 0
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            status = os.lstat(os.path.join(root, name))
            if stat.S_ISLNK(status.st_mode):
                raise Refused(f"has a symbolic link, {name}: links are not followed")
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                raise Refused(f"has {name}, which is not a regular file")
    return total


class _ShardIndex(NamedTuple):
    """Where the index of a shard is, and the bytes of its checksum."""

    at_end: bool
    checksum: int


class _ChunkFiles:
    """The stored bytes of each chunk: a file, or a part of a shard."""

    def __init__(
        self, folder: Path, opened: Any, codecs: list[str], index: _ShardIndex | None
    ) -> None:
        self._folder, self._opened, self._codecs, self._index = folder, opened, codecs, index
        file_shape = opened.shards or opened.chunks
        self.per_file = tuple(
            f // max(c, 1) for f, c in zip(file_shape, opened.chunks, strict=True)
        )

    def path(self, index: Index) -> Path:
        place = tuple(i // n for i, n in zip(index, self.per_file, strict=True))
        return self._folder / str(self._opened.metadata.encode_chunk_key(place))

    def packed(self, index: Index) -> PackedChunk | None:
        try:
            with open(self.path(index), "rb") as file:
                offset, size = 0, -1
                if self._index is not None:
                    offset, size = self._place(self._index, file, index)
                if offset == size == _MISSING:
                    return None
                file.seek(offset)
                return PackedChunk(file.read(size), self._codecs)
        except FileNotFoundError:
            return None

    def _place(self, index: _ShardIndex, file: IO[bytes], chunk: Index) -> tuple[int, int]:
        """Return the offset and length of a chunk in its shard, as the index of the shard says."""
        length = file.seek(0, os.SEEK_END)
        nbytes = 16 * math.prod(self.per_file) + index.checksum
        if nbytes > length:
            raise Refused(f"has a shard of {length} bytes, its index alone has {nbytes}")
        inner = tuple(i % n for i, n in zip(chunk, self.per_file, strict=True))
        start = length - nbytes if index.at_end else 0
        file.seek(start + 16 * int(np.ravel_multi_index(inner, self.per_file)))
        offset, size = struct.unpack("<2Q", file.read(16))
        if offset + size > length and (offset, size) != (_MISSING, _MISSING):
            raise Refused(f"has a chunk of {size} bytes at {offset} in a shard of {length}")
        return offset, size
