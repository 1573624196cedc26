"""Named arrays in an HDF5 file, read by h5py. HDF5 has no bfloat16: save it as safetensors."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .array_file import (
    NUMBER_LABELS,
    ActivationsError,
    Array,
    ArrayFile,
    Mapped,
    Refused,
    Rows,
    check_array,
    check_expansion,
    file_size,
    first_line,
    required,
)
from .chunk_grid import ChunkGrid, Index, PackedChunk
from .packing import check_unpacked

MAX_OBJECTS = 100_000
_FILTERS = {1: "zlib", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # all others are plugins
_REMEDY = "they were never written; finish the file, or make the dataset with fillvalue=nan to leave such rows out"


class Hdf5File(ArrayFile):
    """The datasets of an HDF5 file under their paths; only hard links are followed, and nothing outside the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._h5py = required("h5py", f"reading {os.fspath(path)}", "hdf5")
        super().__init__(path)
        self._size = file_size(path)
        with self._whole("HDF5 file"):
            self._file = self._open.enter_context(self._h5py.File(path, "r"))
            for name, item in self._walk():
                self._add(name, partial(self._locate, name, item), damaged="is damaged")

    def _walk(self) -> Iterator[tuple[str, Any]]:
        """Yield the path of each object with the object, or the reason why there is none."""
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
                    item = group[key]
                except Exception as error:
                    yield name, f"is damaged: {first_line(error)}"
                    continue
                if not isinstance(item, h5py.Group):
                    yield name, item
                    continue
                address = h5py.h5o.get_info(item.id).addr
                if address not in visited:  # a group may hold itself
                    visited.add(address)
                    groups.append((name + "/", item))

    def _locate(self, name: str, item: Any) -> tuple[Array, Rows]:
        if isinstance(item, str):
            raise Refused(item)
        if not isinstance(item, self._h5py.Dataset):
            raise Refused("is not a dataset")
        if "MATLAB_class" in item.attrs:
            raise Refused(
                "was written by MATLAB, whose arrays are transposed in HDF5: save them as "
                f"np.savez('x.npz', x=h5py.File(file)[{name!r}][()].T)"
            )
        h5t, kind, dtype = self._h5py.h5t, item.id.get_type(), item.dtype
        if dtype.kind not in "fiub" or not kind.equal(h5t.py_create(dtype)):
            text = kind.get_class() == h5t.STRING
            raise Refused(
                f"has dtype {str(dtype)[:200]}, which in HDF5 is no plain type of real numbers"
                + (NUMBER_LABELS if text else "")
            )
        check_unpacked(item.attrs.get, dtype)
        if item.shape is None:
            raise Refused("is empty: it has no shape")
        array = check_array(item.shape, dtype)
        return array, self._rows_in(item, array)

    def _rows_in(self, dataset: Any, array: Array) -> Rows:
        """Return where the rows come from, if all of that is in this file and fits it."""
        h5d, plist = self._h5py.h5d, dataset.id.get_create_plist()
        if plist.get_external_count():
            raise Refused("is not in the file: it has external storage")
        layout, stored = plist.get_layout(), dataset.id.get_storage_size()
        if layout == h5d.VIRTUAL:
            raise Refused("is not in the file: it is a virtual dataset")
        if layout == h5d.CHUNKED:
            grid = self._chunks(dataset, array, plist)
            check_expansion(array, stored)
            return grid
        if stored == 0:  # never written; get_offset() may still return a number
            if array.nbytes and not np.isnan(dataset.fillvalue):
                raise Refused(f"has no stored values in rows 0 to {array.shape[0]}: {_REMEDY}")
            check_expansion(array, stored)
            return _Held(np.full(array.shape, dataset.fillvalue, array.dtype))
        if layout == h5d.COMPACT and stored == array.nbytes:
            return _Held(np.asarray(dataset[()], array.dtype))
        offset = dataset.id.get_offset() or self._size
        if offset + array.nbytes > self._size:
            raise Refused(f"asks for {array.nbytes} bytes at {offset}, the file has {self._size}")
        return Mapped(self.path, array, offset)

    def _chunks(self, dataset: Any, array: Array, plist: Any) -> ChunkGrid:
        shape, codecs = dataset.chunks, _filters(plist)
        stored: set[Index] = set()

        def note(info: Any) -> None:
            if info.byte_offset + info.size > self._size:
                raise Refused(
                    f"has a chunk of {info.size} bytes at {info.byte_offset}, the file has {self._size}"
                )
            stored.add(tuple(o // c for o, c in zip(info.chunk_offset, shape, strict=True)))

        def packed(index: Index) -> PackedChunk | None:
            if index not in stored:
                return None
            place = tuple(i * c for i, c in zip(index, shape, strict=True))
            mask, data = dataset.id.read_direct_chunk(place)
            return PackedChunk(data, [c for i, c in enumerate(codecs) if not mask >> i & 1])

        grid = ChunkGrid(array, shape, dataset.fillvalue, _REMEDY, packed, dataset.__getitem__)
        grid.check_size(self._size)
        dataset.id.chunk_iter(note)
        grid.check_stored(stored.__contains__, (1,) * len(shape))
        return grid


class _Held(NamedTuple):
    """An array that is in memory: of few bytes, or without any that were written."""

    values: npt.NDArray[Any]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self.values[start:stop]

    def check(self) -> None:
        pass


def _filters(plist: Any) -> list[str]:
    codes = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    for code, _, _, name in codes:
        if code not in _FILTERS:
            raise Refused(
                f"has filter {code} ({name.decode('ascii', 'replace')[:50]}): only gzip, lzf, "
                "shuffle and fletcher32 are read"
            )
    return [_FILTERS[code] for code, *_ in codes]
