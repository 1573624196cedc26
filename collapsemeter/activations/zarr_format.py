"""Named arrays in a ``.zarr`` folder, versions 2 and 3, read chunk by chunk.

The folder is read here, with the codecs of numcodecs, and not by the zarr library: see `zarr_codecs`
for why. What comes of it is that arrays of bfloat16 are read, which that library does not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import (
    MAX_DIRECTORY,
    ActivationsError,
    Array,
    Reader,
    Refused,
    check_chunk,
    check_expansion,
    first_line,
)
from .chunk_grid import ChunkGrid, Index, indices
from .zarr_codecs import unpack
from .zarr_metadata import Plan, Shard, plan_v2, plan_v3

_V3, _V2 = "zarr.json", ".zarray"
_REMEDY = (
    "they were never written, or they are the fill value alone, which Zarr does not store by default; "
    'write the array with config={"write_empty_chunks": True}, or with fill_value=nan'
)
_MISSING = 2**64 - 1  # place and length of a chunk that a shard does not have


class ZarrFolder(Reader):
    """The arrays of a ``.zarr`` folder under their paths; a single one under the folder's name.

    Symbolic links are not followed: they may lead out of the folder, or around in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import google_crc32c  # noqa: F401
            import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
            import numcodecs  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"reading {os.fspath(path)} needs zarr: pip install 'collapsemeter[audit,zarr]'"
            ) from error
        super().__init__(path)
        self._grids: dict[str, ChunkGrid] = {}
        root = Path(path)
        os.stat(root)  # if there is nothing, that is what must be said
        kind = _kind(root)
        if not root.is_dir() or not kind:
            raise ActivationsError(
                f"{self.path} is not a Zarr folder: it has no zarr.json or .zgroup"
            )
        if kind != "group":
            self._add(root.name.removesuffix(".zarr"), root)
            return
        for name, folder in _arrays(root):
            self._add(name, folder)

    def _add(self, name: str, folder: Path) -> None:
        try:
            plan = _plan(folder)
            stored = _stored(folder)
            read = _shard_reader(folder, plan, plan.shard) if plan.shard else _reader(folder, plan)
            grid = ChunkGrid(plan.array, plan.chunk, plan.fill, read, _REMEDY)
            check_chunk(grid.nbytes, stored)
            _check_files(folder, plan, grid)
            check_expansion(plan.array, stored)
            self._grids[name] = grid
            self.arrays[name] = plan.array
        except Refused as reason:
            self.refused[name] = str(reason)

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        return self._grids[name].rows(start, stop)

    def check(self) -> None:
        """Unpack all chunks, which compares them with what checksums their codecs have.

        Raises
        ------
        ActivationsError
            If one differs.
        """
        for name, grid in self._grids.items():
            for start in range(0, self.arrays[name].shape[0], grid.height):
                self.read(name, start, start + grid.height)


def _kind(folder: Path) -> str:
    """Return "array", "group", or nothing if the folder is neither."""
    if (folder / _V3).is_file():
        try:
            return "group" if _json(folder / _V3).get("node_type") == "group" else "array"
        except Refused:  # whoever reads it as an array will say why not
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
    if path.stat().st_size > MAX_DIRECTORY:
        raise Refused(
            f"has metadata of {path.stat().st_size} bytes: at most {MAX_DIRECTORY} is read"
        )
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refused(f"has damaged metadata, {path.name}: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise Refused(f"has damaged metadata: {path.name} is not a JSON object")
    return found


def _plan(folder: Path) -> Plan:
    if folder.is_symlink() and folder.suffix != ".zarr":
        raise Refused("is a symbolic link: links are not followed")
    newer = (folder / _V3).is_file()
    meta = _json(folder / (_V3 if newer else _V2))
    if meta.get("zarr_format") != (3 if newer else 2):
        raise Refused(f"has Zarr version {str(meta.get('zarr_format'))[:50]}: 2 and 3 are read")
    return plan_v3(meta) if newer else plan_v2(meta)


def _stored(folder: Path) -> int:
    """Return the bytes of all files of an array."""
    total, folders = 0, [os.fspath(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise Refused(f"has a symbolic link, {entry.name}: links are not followed")
                if entry.is_dir():
                    folders.append(entry.path)
                elif not entry.is_file():
                    raise Refused(f"has {entry.name}, which is not a regular file")
                else:
                    total += entry.stat().st_size
    return total


def _reader(folder: Path, plan: Plan) -> Callable[[Index], npt.NDArray[Any] | None]:
    """Return the reader of chunks that are a file each."""

    def read(at: Index) -> npt.NDArray[Any] | None:
        packed = _bytes(_file(folder, plan, at))
        return None if packed is None else _decoded(packed, plan)

    return read


def _shard_reader(
    folder: Path, plan: Plan, shard: Shard
) -> Callable[[Index], npt.NDArray[Any] | None]:
    """Return the reader of chunks of which many are in a file; the index read last is kept."""
    last: list[Any] = [None, None, None]

    def read(at: Index) -> npt.NDArray[Any] | None:
        outer = tuple(i // n for i, n in zip(at, shard.grid, strict=True))
        if last[0] != outer:
            packed = _bytes(_file(folder, plan, outer))
            last[:] = outer, packed, None if packed is None else _index(packed, shard)
        _, packed, index = last
        if index is None:
            return None
        offset, size = map(int, index[tuple(i % n for i, n in zip(at, shard.grid, strict=True))])
        if offset == size == _MISSING:
            return None
        if offset + size > len(packed):
            raise Refused(f"has a chunk of {size} bytes at {offset} in a shard of {len(packed)}")
        return _decoded(packed[offset : offset + size], plan)

    return read


def _index(packed: npt.NDArray[np.uint8], shard: Shard) -> npt.NDArray[np.uint64]:
    if shard.nbytes > len(packed):
        raise Refused(f"has a shard of {len(packed)} bytes, its index alone has {shard.nbytes}")
    part = packed[-shard.nbytes :] if shard.at_end else packed[: shard.nbytes]
    raw = unpack(part, shard.codecs, shard.nbytes - 4 * len(shard.codecs))
    numbers: npt.NDArray[np.uint64] = np.frombuffer(raw.tobytes(), ">u8" if shard.big else "<u8")
    return numbers.reshape(*shard.grid, 2)


def _check_files(folder: Path, plan: Plan, grid: ChunkGrid) -> None:
    """Refuse an array of which a file is missing; what is missing within a shard is seen when it is read."""
    inner = plan.shard.grid if plan.shard else (1,) * len(plan.chunk)
    outer = tuple(-(-count // n) for count, n in zip(grid.counts, inner, strict=True))
    for at in indices(outer):
        if not os.path.lexists(_file(folder, plan, at)):
            grid.missing(tuple(i * n for i, n in zip(at, inner, strict=True)))
            return


def _file(folder: Path, plan: Plan, at: Index) -> Path:
    return folder / (plan.prefix + plan.separator.join(map(str, at)))


def _bytes(path: Path) -> npt.NDArray[np.uint8] | None:
    """Return a view of a file, or nothing if there is none."""
    try:
        if path.stat().st_size == 0:  # nothing cannot be mapped
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r").view(np.ndarray)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"has a chunk {path.name} that cannot be read: {error.strerror}") from error


def _decoded(packed: npt.NDArray[np.uint8], plan: Plan) -> npt.NDArray[Any]:
    shape = Array(tuple(plan.chunk[axis] for axis in plan.order), plan.array.dtype)
    raw = unpack(packed, plan.codecs, shape.nbytes)
    inverse = sorted(range(len(plan.order)), key=plan.order.__getitem__)
    return raw.view(shape.dtype).reshape(shape.shape).transpose(inverse)
