"""The codecs of Zarr that are read, undone to a size that is known beforehand.

Zarr's own library asks a registry for a codec, where unpickling is one of them, and lets a chunk
unpack to whatever size it says. Here is a table, and sizes are compared before anything unpacks.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .array_file import Refused, first_line
from .hdf5_filters import inflate, unshuffle

Bytes = npt.NDArray[np.uint8]


def unpack(packed: Bytes, codecs: list[tuple[str, Any]], size: int) -> Bytes:
    """Undo codecs that were applied to the bytes of a chunk, the last one first.

    Parameters
    ----------
    packed : array of uint8
    codecs : list of (name, number)
        Names of `CODECS`; the number is the width of shuffled elements.
    size : int
        Bytes that it must lead to.

    Raises
    ------
    Refused
        If it does not.

    Examples
    --------
    >>> packed = np.frombuffer(zlib.compress(b"abcd"), np.uint8)
    >>> unpack(packed, [("zlib", 1)], 4).tobytes()
    b'abcd'
    """
    data = packed
    # What is packed twice was a little longer in between, if it could not be packed.
    most = size + (size // 64 + 1024 if len(codecs) > 1 else 0)
    for name, width in reversed(codecs):
        try:
            data = CODECS[name](data, most, width)
        except (RuntimeError, ValueError, OSError, zlib.error) as error:
            raise Refused(f"has a damaged chunk: {name}: {first_line(error)}") from error
    if len(data) != size:
        raise Refused(f"has a chunk that unpacks to {len(data)} bytes, not {size}: it is damaged")
    return data


def _gzip(data: Bytes, most: int, _: int) -> Bytes:
    return inflate(data, most, 16 + zlib.MAX_WBITS)


def _zlib(data: Bytes, most: int, _: int) -> Bytes:
    return inflate(data, most, zlib.MAX_WBITS)


def _bz2(data: Bytes, most: int, _: int) -> Bytes:
    unpacker = bz2.BZ2Decompressor()
    found = unpacker.decompress(data.data, most + 1)
    if len(found) > most or not unpacker.eof:
        raise Refused(f"has a chunk that does not end after {most} bytes: it is damaged")
    return np.frombuffer(found, np.uint8)


def _blosc(data: Bytes, most: int, _: int) -> Bytes:
    from numcodecs import Blosc

    header = data[:16].tobytes()
    if len(header) < 16 or int.from_bytes(header[12:16], "little") != len(data):
        raise Refused("has a chunk with another length than its blosc header says: it is damaged")
    _check_claim(int.from_bytes(header[4:8], "little"), most)
    return _bytes(Blosc().decode(np.array(data)))


def _lz4(data: Bytes, most: int, _: int) -> Bytes:
    from numcodecs import LZ4

    _check_claim(int.from_bytes(data[:4].tobytes(), "little"), most)
    return _bytes(LZ4().decode(np.array(data)))


def _zstd(data: Bytes, most: int, _: int) -> Bytes:
    from numcodecs import Zstd

    _check_claim(_zstd_size(data[:18].tobytes()), most)
    return _bytes(Zstd().decode(np.array(data)))


def _zstd_size(header: bytes) -> int:
    """Return the size that the header of a frame claims."""
    if len(header) < 6 or header[:4] != b"\x28\xb5\x2f\xfd":
        raise Refused("has a chunk that is no zstd frame: it is damaged")
    flags = header[4]
    single = flags >> 5 & 1
    width = (single, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    if not width or at + width > len(header):
        raise Refused("has a chunk of zstd that does not say its size: it is not read")
    return int.from_bytes(header[at : at + width], "little") + (256 if width == 2 else 0)


def _crc32c(data: Bytes, most: int, _: int) -> Bytes:
    from google_crc32c import value

    body, found = data[:-4], int.from_bytes(data[-4:].tobytes(), "little")
    if len(data) < 4 or value(body.tobytes()) != found:
        raise Refused("has a chunk with another checksum than its contents: it is damaged")
    return body


def _shuffle(data: Bytes, most: int, width: int) -> Bytes:
    return unshuffle(data, width)


def _check_claim(claimed: int, most: int) -> None:
    if claimed > most:
        raise Refused(f"has a chunk that claims {claimed} bytes, where at most {most} are due")


def _bytes(found: Any) -> Bytes:
    return np.frombuffer(found, np.uint8)


CODECS: dict[str, Callable[[Bytes, int, int], Bytes]] = {
    "gzip": _gzip, "zlib": _zlib, "bz2": _bz2, "blosc": _blosc, "lz4": _lz4, "zstd": _zstd,
    "crc32c": _crc32c, "shuffle": _shuffle,
}  # fmt: skip
