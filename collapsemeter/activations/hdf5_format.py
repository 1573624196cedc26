"""Named arrays in an HDF5 file: h5py tells what is where, and the bytes are read here.

HDF5's library unpacks a chunk to whatever size it unpacks to, and loads filters from plugins; a file
from elsewhere should not decide on either. So of the library only the directory is used. There is no
bfloat16 in HDF5: save it as safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import (
    NUMBER_LABELS,
    ActivationsError,
    Array,
    Reader,
    Refused,
    check_array,
    check_chunk,
    check_expansion,
    file_size,
    first_line,
    map_array,
)
from .chunk_grid import ChunkGrid, Index, indices, is_nan
from .hdf5_filters import FILTERS, Filter, unfilter

MAX_OBJECTS = 100_000
_REMEDY = "they were never written; finish the file, or make the dataset with fillvalue=nan to leave such rows out"
_TYPES = {
    f"{family}{8 * size}{order}": f"{sign}{kind}{size}"
    for family, kind, sizes in (
        ("IEEE_F", "f", (2, 4, 8)), ("STD_I", "i", (1, 2, 4, 8)), ("STD_U", "u", (1, 2, 4, 8))
    )
    for size in sizes
    for order, sign in (("LE", "<"), ("BE", ">"))
}  # fmt: skip


class Hdf5File(Reader):
    """The datasets of an HDF5 file under their paths, like ``group/name``.

    Only hard links are followed: other links, external storage and virtual datasets name files
    that are none of this file's business.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                f"reading {os.fspath(path)} needs h5py: pip install 'collapsemeter[hdf5]'"
            ) from error
        super().__init__(path)
        self._h5py = h5py
        self._size = file_size(path)
        self._rows_of: dict[str, ChunkGrid | npt.NDArray[Any]] = {}
        try:
            self._file = h5py.File(path, "r")
        except Exception as error:  # the library's errors have many types
            raise ActivationsError(
                f"{self.path} is not a whole HDF5 file: {first_line(error)}"
            ) from error
        try:
            self._raw = np.memmap(path, np.uint8, "r").view(np.ndarray)
            for name, found in self._walk():
                self._add(name, found)
        except ActivationsError:
            self._file.close()
            raise
        except Exception as error:
            self._file.close()
            raise ActivationsError(
                f"{self.path} is not a whole HDF5 file: {first_line(error)}"
            ) from error

    def _walk(self) -> Iterator[tuple[str, Any]]:
        """Yield what is in the groups, with its path: an object, or the reason why there is none."""
        h5py, groups, visited, count = self._h5py, [("", self._file["/"])], set(), 0
        while groups:
            prefix, group = groups.pop(0)
            for key in group:
                count += 1
                if count > MAX_OBJECTS:
                    raise ActivationsError(
                        f"{self.path} has more than {MAX_OBJECTS} objects: that many are not read"
                    )
                name = prefix + key
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    yield name, f"is not in the file: it is a {type(link).__name__}"
                    continue
                try:
                    found = group[key]
                except Exception as error:
                    yield name, f"is damaged: {first_line(error)}"
                    continue
                if not isinstance(found, h5py.Group):
                    yield name, found
                    continue
                address = h5py.h5o.get_info(found.id).addr
                if address not in visited:  # a group may hold itself
                    visited.add(address)
                    groups.append((name + "/", found))

    def _add(self, name: str, found: Any) -> None:
        try:
            if isinstance(found, str):
                raise Refused(found)
            if not isinstance(found, self._h5py.Dataset):
                raise Refused("is not a dataset")
            if "MATLAB_class" in found.attrs:
                raise Refused(
                    "was written by MATLAB, whose arrays are transposed in HDF5: save them as "
                    f"np.savez('x.npz', x=h5py.File(file)[{name!r}][()].T)"
                )
            array = self._describe(found)
            self._rows_of[name] = self._locate(found, array)
            self.arrays[name] = array
        except Refused as reason:
            self.refused[name] = str(reason)
        except Exception as error:
            self.refused[name] = f"is damaged: {first_line(error)}"

    def _describe(self, dataset: Any) -> Array:
        h5t, kind = self._h5py.h5t, dataset.id.get_type()
        if kind.get_class() == h5t.ENUM and dataset.dtype == bool:
            return check_array(dataset.shape, np.dtype(bool))
        for name, dtype in _TYPES.items():
            if kind.equal(getattr(h5t, name)):
                if dataset.shape is None:
                    raise Refused("is empty: it has no shape")
                return check_array(dataset.shape, np.dtype(dtype))
        text = kind.get_class() == h5t.STRING
        raise Refused(
            f"has dtype {str(dataset.dtype)[:200]}, which in HDF5 is no plain type of real numbers"
            + (NUMBER_LABELS if text else "")
        )

    def _locate(self, dataset: Any, array: Array) -> ChunkGrid | npt.NDArray[Any]:
        """Return where the rows come from, if all of that is in this file and fits it."""
        h5d, plist = self._h5py.h5d, dataset.id.get_create_plist()
        if plist.get_external_count():
            raise Refused("is not in the file: it has external storage")
        layout = plist.get_layout()
        if layout == h5d.VIRTUAL:
            raise Refused("is not in the file: it is a virtual dataset")
        stored = dataset.id.get_storage_size()
        if layout == h5d.CHUNKED:
            grid = self._chunks(dataset, array, _filters(plist))
            check_expansion(array, stored)
            return grid
        if layout == h5d.COMPACT:
            return np.asarray(dataset[()], check_expansion(array, stored).dtype)
        if stored == 0:  # never written; get_offset() may still return a number
            if array.nbytes and not is_nan(dataset.fillvalue):
                raise Refused(f"has no stored values in rows 0 to {array.shape[0]}: {_REMEDY}")
            check_expansion(array, stored)
            return np.full(array.shape, dataset.fillvalue, array.dtype)
        offset = dataset.id.get_offset()
        if offset + array.nbytes > self._size:
            raise Refused(f"asks for {array.nbytes} bytes at {offset}, the file has {self._size}")
        return map_array(self.path, array, offset)

    def _chunks(self, dataset: Any, array: Array, filters: list[Filter]) -> ChunkGrid:
        shape = dataset.chunks
        places: dict[Index, tuple[int, int, int]] = {}

        def note(info: Any) -> None:
            at = tuple(o // c for o, c in zip(info.chunk_offset, shape, strict=True))
            places[at] = info.byte_offset, info.size, info.filter_mask

        def decode(at: Index) -> npt.NDArray[Any] | None:
            if at not in places:
                return None
            offset, size, mask = places[at]
            if offset + size > self._size:
                raise Refused(f"has a chunk of {size} bytes at {offset}, the file has {self._size}")
            packed = self._raw[offset : offset + size]
            return unfilter(packed, filters, mask, grid.nbytes).view(array.dtype).reshape(shape)

        grid = ChunkGrid(array, shape, dataset.fillvalue, decode, _REMEDY)
        check_chunk(grid.nbytes, self._size)
        dataset.id.chunk_iter(note)
        # At most one more than are stored is looked for.
        for at in indices(grid.counts):
            if at not in places:
                grid.missing(at)
                break
        return grid

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        rows = self._rows_of[name]
        return rows.rows(start, stop) if isinstance(rows, ChunkGrid) else rows[start:stop]

    def check(self) -> None:
        """Unpack all chunks, which compares them with what checksums their filters have.

        Raises
        ------
        ActivationsError
            If one differs.
        """
        for name, rows in self._rows_of.items():
            if isinstance(rows, ChunkGrid):
                for start in range(0, self.arrays[name].shape[0], rows.height):
                    self.read(name, start, start + rows.height)

    def close(self) -> None:
        """Let go of the file; views that were read stay valid."""
        self._file.close()


def _filters(plist: Any) -> list[Filter]:
    found = []
    for i in range(plist.get_nfilters()):
        code, _, values, name = plist.get_filter(i)
        if code not in FILTERS:
            raise Refused(
                f"has filter {code} ({name.decode('ascii', 'replace')[:50]}): only gzip, lzf, "
                "shuffle and fletcher32 are read"
            )
        found.append(Filter(code, values))
    return found
