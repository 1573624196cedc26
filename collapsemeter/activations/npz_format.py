"""Named arrays in an ``.npz`` file: stored ones are mapped, compressed ones are streamed."""

from __future__ import annotations

import os
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .array_file import (
    ActivationsError,
    ArrayFile,
    Refused,
    check_expansion,
    file_size,
    first_line,
    map_array,
)
from .npy_format import PREFIX, NpyHeader, read_header
from .zip_directory import DEFLATED, STORED, Member, read_members

_PIECE = 2**16  # bytes that are read or thrown away at once


class NpzFile(ArrayFile):
    """The arrays of an ``.npz`` file, each under its member's name without ``.npy``.

    A compressed array can only be read from its start on: reading it in ascending chunks is one
    pass, and going back starts again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._members: dict[str, Member] = {}
        self._headers: dict[str, NpyHeader] = {}
        self._streams: dict[str, Stream] = {}
        size = file_size(path)
        self._file = open(path, "rb")  # noqa: SIM115  # closed by close()
        try:
            self._open(size)
        except ValueError as error:
            self._file.close()
            raise ActivationsError(
                f"{self.path} is not a whole .npz file: {first_line(error)}"
            ) from error

    def _open(self, size: int) -> None:
        for member in read_members(self._file, size):
            name = member.name.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"two of its members are array {name!r}")
            self._members[name] = member
            try:
                self._headers[name] = header = _describe(self._file, member)
                self.arrays[name] = header.array
            except Refused as reason:
                self.refused[name] = str(reason)

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        member, header = self._members[name], self._headers[name]
        if member.method == STORED:
            place = member.offset + header.offset
            return map_array(self.path, header.array, place, header.order)[start:stop]
        if name not in self._streams:
            self._streams[name] = Stream(self._file, member)
        read = _read_rows if header.order == "C" else _read_columns
        return read(self._streams[name], header, start, stop)

    def check(self) -> None:
        """Compare every array with its CRC.

        Raises
        ------
        ActivationsError
            If one differs.
        """
        for name in self.arrays:
            stream = Stream(self._file, self._members[name])
            try:
                stream.skip(self._members[name].size)
            except Refused as reason:
                raise ActivationsError(f"{self.path}: array {name!r} {reason}") from reason

    def close(self) -> None:
        """Let go of the file; views that were read stay valid."""
        self._streams.clear()
        self._file.close()


class Stream:
    """The bytes of a member from its start on; at its end they are compared with its CRC."""

    def __init__(self, file: IO[bytes], member: Member) -> None:
        self._file, self._member = file, member
        self.rewind()

    def rewind(self) -> None:
        """Go back to the start."""
        self.position = 0  # in what is unpacked
        self._taken = self._crc = 0
        self._pending = b""
        self._unpack = zlib.decompressobj(-15) if self._member.method == DEFLATED else None

    def skip(self, size: int) -> None:
        """Read and forget; what is kept of it is small."""
        piece = memoryview(bytearray(min(size, _PIECE)))
        while size:
            self.fill(piece[: min(size, _PIECE)])
            size -= min(size, _PIECE)

    def fill(self, target: memoryview) -> None:
        """Fill the target with the bytes that follow.

        Raises
        ------
        Refused
            If there are not as many, more follow at the end, or the CRC differs there.
        """
        at = 0
        while at < len(target):
            found = self._next(min(len(target) - at, _PIECE))
            if not found:
                raise Refused(
                    f"ends after {self.position} bytes of {self._member.size}: it is damaged"
                )
            target[at : at + len(found)] = found
            at += len(found)
            self.position += len(found)
            self._crc = zlib.crc32(found, self._crc)
        if self.position == self._member.size:
            self._check_end()

    def _check_end(self) -> None:
        if self._next(1):
            raise Refused(f"goes on beyond its {self._member.size} bytes: it is damaged")
        if self._crc != self._member.crc:
            raise Refused("has another checksum (CRC) than its contents: it is damaged")

    def _next(self, most: int) -> bytes:
        """Return some bytes, at most so many; none at the end."""
        if self._unpack is None:
            return self._take(most)
        while not self._unpack.eof:
            packed = self._pending or self._take(_PIECE)
            try:
                found = self._unpack.decompress(packed, most)
            except zlib.error as error:
                raise Refused(f"is damaged: {error}") from error
            self._pending = self._unpack.unconsumed_tail
            if found:
                return found
            if not packed:
                break
        return b""

    def _take(self, most: int) -> bytes:
        self._file.seek(self._member.offset + self._taken)
        found = self._file.read(min(most, self._member.stored - self._taken))
        self._taken += len(found)
        return found


def read_member(file: IO[bytes], member: Member) -> npt.NDArray[Any]:
    """Read a whole array that is stored without compression; its CRC is left to a checksum of the file.

    Raises
    ------
    Refused
        If it is something else, or ends early.

    Examples
    --------
    >>> file = io.BytesIO()
    >>> np.savez(file, a=np.arange(3))
    >>> read_member(file, read_members(file, len(file.getvalue()))[0])
    array([0, 1, 2])
    """
    header = _describe(file, member)
    if member.method != STORED or header.order == "F":
        raise Refused("is compressed or in Fortran order, as no state is written")
    found = np.empty(header.array.nbytes, np.uint8)
    file.seek(member.offset + header.offset)
    if file.readinto(found.data) != len(found):  # type: ignore[attr-defined]
        raise Refused("ends early: it is damaged")
    return found.view(header.array.dtype).reshape(header.array.shape)


def _describe(file: IO[bytes], member: Member) -> NpyHeader:
    """Return what the member says it is, if that can be."""
    if member.encrypted:
        raise Refused("is encrypted: save it without a password")
    if member.method not in (STORED, DEFLATED):
        raise Refused(f"is packed by method {member.method}: only stored and deflated is read")
    if member.method == STORED and member.stored != member.size:
        raise Refused(
            f"has {member.stored} bytes that should unpack to {member.size}: it is damaged"
        )
    if not member.name.endswith(".npy"):
        raise Refused("is no .npy member")
    prefix = bytearray(min(member.size, PREFIX))
    stream = Stream(file, member)
    stream.fill(memoryview(prefix))
    try:
        header = read_header(bytes(prefix))
    except ValueError as error:
        raise Refused(f"is not a .npy array: {error}") from error
    if header.offset + header.array.nbytes != member.size:
        raise Refused(
            f"asks for {header.array.nbytes} bytes {header.array}, its member has "
            f"{member.size - header.offset}: it is damaged"
        )
    check_expansion(header.array, member.stored)
    return header


def _read_rows(stream: Stream, header: NpyHeader, start: int, stop: int) -> npt.NDArray[Any]:
    array = header.array
    first = header.offset + start * array.row_nbytes
    if stream.position > first:
        stream.rewind()
    stream.skip(first - stream.position)
    rows = np.empty((stop - start) * array.row_nbytes, np.uint8)
    stream.fill(rows.data)
    return rows.view(array.dtype).reshape(stop - start, *array.shape[1:])


def _read_columns(stream: Stream, header: NpyHeader, start: int, stop: int) -> npt.NDArray[Any]:
    """Return rows of an array that is stored column by column: each read is a whole pass."""
    array, size = header.array, header.array.dtype.itemsize
    total = array.shape[0]
    columns = array.row_nbytes // size
    found = np.empty((columns, (stop - start) * size), np.uint8)
    stream.rewind()
    stream.skip(header.offset)
    for column in found if stop > start else ():
        stream.skip(start * size)
        stream.fill(column.data)
        stream.skip((total - stop) * size)
    rows = found.view(array.dtype).T
    return rows.reshape(stop - start, *array.shape[1:], order="F")
