"""The filters of HDF5 that are read, undone to a size that is known beforehand."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .array_file import Refused

Bytes = npt.NDArray[np.uint8]

GZIP, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
FILTERS = {GZIP, SHUFFLE, FLETCHER32, LZF}


class Filter(NamedTuple):
    """One step that was applied to a chunk when it was written."""

    code: int
    values: tuple[int, ...]


def unfilter(packed: Bytes, filters: list[Filter], mask: int, size: int) -> Bytes:
    """Undo the filters, the last one first, but for those that the chunk's mask skips.

    Raises
    ------
    Refused
        If that does not lead to ``size`` bytes.

    Examples
    --------
    >>> packed = np.frombuffer(zlib.compress(b"abcd"), np.uint8)
    >>> unfilter(packed, [Filter(GZIP, (4,))], 0, 4).tobytes()
    b'abcd'
    """
    data = packed
    # Of all filters, only checksums make data longer.
    most = size + 4 * sum(step.code == FLETCHER32 for step in filters)
    for position in reversed(range(len(filters))):
        if mask >> position & 1:
            continue
        code, values = filters[position]
        if code == FLETCHER32:
            data = _checked(data)
        elif code == SHUFFLE:
            data = unshuffle(data, values[0] if values else 1)
        elif code == GZIP:
            data = inflate(data, most, zlib.MAX_WBITS)
        else:
            data = _unpack_lzf(data, most)
    if len(data) != size:
        raise Refused(f"has a chunk that unpacks to {len(data)} bytes, not {size}: it is damaged")
    return data


def inflate(data: Any, most: int, wbits: int) -> Bytes:
    """Unpack zlib's or gzip's bytes, at most so many.

    Raises
    ------
    Refused
        If they are damaged, or more.
    """
    unpack = zlib.decompressobj(wbits)
    try:
        found = unpack.decompress(data, most + 1)
    except zlib.error as error:
        raise Refused(f"has a damaged chunk: {error}") from error
    if len(found) > most or not unpack.eof:
        raise Refused(f"has a chunk that does not end after {most} bytes: it is damaged")
    return np.frombuffer(found, np.uint8)


def _checked(data: Bytes) -> Bytes:
    """Return what is before the checksum, if that is right."""
    if len(data) < 4:
        raise Refused("has a chunk without room for its checksum: it is damaged")
    body = data[:-4]
    found = int.from_bytes(data[-4:].tobytes(), "little")
    if _fletcher32(body) != (found % 2**16 % 65535, (found >> 16) % 65535):
        raise Refused("has a chunk with another checksum than its contents: it is damaged")
    return body


def _fletcher32(data: Bytes) -> tuple[int, int]:
    """Return both sums modulo 65535, in pieces so that they fit 64 bits and little memory."""
    first = second = 0
    piece = 2**16  # words: 65535 * 2**16 * 2**16 is below 2**63
    for start in range(0, len(data), 2 * piece):
        part = data[start : start + 2 * piece]
        if len(part) % 2:
            part = np.append(part, np.uint8(0))
        words = part.view(">u2").astype(np.int64)
        second += len(words) * first + int(words @ np.arange(len(words), 0, -1))
        first = (first + int(words.sum())) % 65535
        second %= 65535
    return first, second


def unshuffle(data: Bytes, width: int) -> Bytes:
    """Put the bytes of each number together again; what does not fill a number is left as it is."""
    if width < 2 or len(data) < width:
        return data
    count = len(data) // width
    found = np.empty_like(data)
    found[: count * width].reshape(count, width)[:] = data[: count * width].reshape(width, count).T
    found[count * width :] = data[count * width :]
    return found


def _unpack_lzf(data: Bytes, most: int) -> Bytes:
    """Unpack LZF: runs of literal bytes, and references to what was unpacked before."""
    packed, found, at = data.tobytes(), bytearray(), 0
    try:
        while at < len(packed):
            control, at = packed[at], at + 1
            if control < 32:
                found += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length, at = length + packed[at], at + 1
            begin, at = len(found) - ((control & 31) << 8) - packed[at] - 1, at + 1
            if begin < 0 or len(found) > most:
                raise IndexError
            length += 2
            part = found[begin : begin + length]
            found += (part * (length // len(part) + 1))[:length]  # a reference may overlap its copy
    except IndexError as error:
        raise Refused("has a damaged chunk: its LZF leads nowhere") from error
    return np.frombuffer(found, np.uint8)
