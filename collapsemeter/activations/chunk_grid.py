"""Arrays in compressed chunks: no library unpacks a chunk before its size was checked here.

HDF5's library reads beyond a chunk that unpacks to less than it should, and every library unpacks one
to whatever size it has.
"""

import bz2
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .array_file import Array, Refused, first_line

MAX_CHUNK = 2**26  # bytes; a compressed chunk must fit in memory whole

Index = tuple[int, ...]


class PackedChunk(NamedTuple):
    """A chunk as it is stored, and the codecs that were applied to it, in order."""

    data: bytes
    codecs: Sequence[str]


class ChunkGrid:
    """An array in chunks of one shape, the last read kept; a chunk that is not stored is refused unless its ``fill`` is NaN, whose rows no count takes."""

    def __init__(
        self,
        array: Array,
        chunk: Index,
        fill: Any,
        remedy: str,
        packed: Callable[[Index], PackedChunk | None],
        unpack: Callable[[tuple[slice, ...]], npt.NDArray[Any]],
    ) -> None:
        if len(chunk) != len(array.shape) or min(chunk, default=1) < 1:
            raise Refused(f"has chunks {str(chunk)[:200]} in shape {array.shape}")
        self.array, self.chunk, self._fill, self._remedy = array, chunk, fill, remedy
        self._packed, self._unpack = packed, unpack
        self._nbytes = math.prod(chunk) * array.dtype.itemsize
        self._checked: set[Index] = set()
        self._last: tuple[Index, npt.NDArray[Any] | None] | None = None

    def check_size(self, stored: int) -> None:
        """Refuse chunks that take much more memory than the file."""
        most = max(MAX_CHUNK, 2 * stored)
        if self._nbytes > most:
            raise Refused(
                f"has chunks of {self._nbytes} bytes, which must be in memory whole: at most {most} are "
                "read"
            )

    def check_stored(self, is_stored: Callable[[Index], bool], step: Index) -> None:
        """Refuse the array if a chunk is not stored, unless it would be NaN; look at each ``step``-th one."""
        if np.isnan(self._fill):
            return
        spans = (c * s for c, s in zip(self.chunk, step, strict=True))
        counts = [-(-n // span) for n, span in zip(self.array.shape, spans, strict=True)]
        for flat in range(math.prod(counts)):
            place = np.unravel_index(flat, counts)
            index = tuple(int(i) * s for i, s in zip(place, step, strict=True))
            if not is_stored(index):
                raise self._missing(index)

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return the rows, unpacking every chunk that they touch once."""
        spans = ((start, stop), *((0, n) for n in self.array.shape[1:]))
        rows = np.full([b - a for a, b in spans], self._fill, self.array.dtype)
        if rows.size == 0:
            return rows
        grid = (range(a // c, -(-b // c)) for (a, b), c in zip(spans, self.chunk, strict=True))
        for index in itertools.product(*grid):
            first, *columns = part = self._part(index)
            if self._last is None or self._last[0] != index:
                self._last = None  # its memory is free before the next chunk takes some
                self._last = index, self._unpacked(index, part)
            values = self._last[1]
            if values is not None:
                values = values[max(start - first.start, 0) : stop - first.start]
                place = max(first.start - start, 0)
                rows[(slice(place, place + len(values)), *columns)] = values
        return rows

    def check(self) -> None:
        """Read all rows, which compares the chunks with the checksums of their codecs."""
        end = self.array.shape[0]
        for start in range(0, end, self.chunk[0]):
            self.read(start, min(start + self.chunk[0], end))

    def _part(self, index: Index) -> tuple[slice, ...]:
        """Return the part of the array that a chunk holds."""
        places = zip(index, self.chunk, self.array.shape, strict=True)
        return tuple(slice(i * c, min((i + 1) * c, n)) for i, c, n in places)

    def _unpacked(self, index: Index, part: tuple[slice, ...]) -> npt.NDArray[Any] | None:
        """Return the values of a chunk; None where it would be NaN and is not stored."""
        try:
            if index not in self._checked:
                chunk = self._packed(index)
                if chunk is None:
                    if np.isnan(self._fill):
                        return None
                    raise self._missing(index)
                check_unpacked(chunk, self._nbytes)
                self._checked.add(index)
            return self._unpack(part)
        except Refused:
            raise
        except Exception as error:  # the errors of libraries have many types
            raise Refused(f"has a damaged chunk: {first_line(error)}") from error

    def _missing(self, index: Index) -> Refused:
        rows = self._part(index)[0]
        return Refused(
            f"has no stored values in rows {rows.start} to {rows.stop} "
            f"(chunk {'.'.join(map(str, index))}): {self._remedy}"
        )


def check_unpacked(chunk: PackedChunk, nbytes: int) -> None:
    """Refuse a chunk that does not unpack to so many bytes; at most one more is unpacked to find out."""
    if sum(codec in _SIZES for codec in chunk.codecs) > 1:
        raise Refused(f"has chunks that are compressed twice, by {', '.join(chunk.codecs)}")
    size, data = len(chunk.data), memoryview(chunk.data)
    most = nbytes + 4 * sum(codec in _CHECKSUMS for codec in chunk.codecs)
    for codec in reversed(chunk.codecs):
        if codec in _CHECKSUMS:
            size, data = max(size - 4, 0), data[:-4]
        elif codec in _SIZES:
            size = _SIZES[codec](bytes(data), most)
    if size > most:
        raise Refused(f"has a chunk that does not end after {nbytes} bytes: it is damaged")
    if size != nbytes:
        raise Refused(f"has a chunk that unpacks to {size} bytes, not {nbytes}: it is damaged")


def _size_of_stream(unpacker: Any, data: bytes, most: int) -> int:
    """Return how many bytes a stream unpacks to, or one more than ``most``."""
    size = len(unpacker.decompress(data, most + 1))
    if size <= most and (not unpacker.eof or unpacker.unused_data):
        raise ValueError("it ends early, or something follows its end")
    return size


def _size_of_blosc(data: bytes, most: int) -> int:
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("its blosc header says another length")
    return int.from_bytes(data[4:8], "little")


def _size_of_zstd(data: bytes, most: int) -> int:
    """Return the size that the header of a frame claims (RFC 8878, 3.1.1.1)."""
    if data[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("it is no zstd frame")
    single = data[4] >> 5 & 1
    width = (single, 2, 4, 8)[data[4] >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[data[4] & 3]
    if not width or start + width > len(data):
        raise ValueError("its zstd frame does not say its size")
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)


def _size_of_lzf(data: bytes, most: int) -> int:
    """Return the size of literal runs and references, without following them."""
    size = place = 0
    while place < len(data) and size <= most:
        control = data[place]
        if control < 32:
            size, place = size + control + 1, place + control + 2
        else:
            long = control >> 5 == 7
            size += (control >> 5) + 2 + (data[place + 1] if long else 0)
            place += 3 if long else 2
    if size <= most and place != len(data):
        raise ValueError("it ends early")
    return size


_CHECKSUMS = ("crc32c", "fletcher32")
_SIZES: dict[str, Callable[[bytes, int], int]] = {
    "gzip": lambda data, most: _size_of_stream(zlib.decompressobj(31), data, most),
    "zlib": lambda data, most: _size_of_stream(zlib.decompressobj(), data, most),
    "bz2": lambda data, most: _size_of_stream(bz2.BZ2Decompressor(), data, most),
    "blosc": _size_of_blosc,
    "lz4": lambda data, most: int.from_bytes(data[:4], "little"),
    "zstd": _size_of_zstd,
    "lzf": _size_of_lzf,
}
