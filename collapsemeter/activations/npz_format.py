"""Named arrays in an ``.npz`` file: stored ones are mapped, compressed ones are streamed."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from functools import partial
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..stats.npy_header import PREFIX
from .array_file import (
    MAX_DIRECTORY,
    Array,
    ArrayFile,
    Mapped,
    Refused,
    check_expansion,
    file_size,
    first_line,
)
from .npy_format import read_header

_PIECE = 2**18  # bytes that are unpacked at once; no more than a directory may have
_LOCAL_HEADER = struct.Struct("<26x2H")  # before a member's data; then its name and extra field


class NpzFile(ArrayFile):
    """The arrays of an ``.npz`` file under their members' names; a compressed one is read from its start on, in one pass if chunks ascend."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        file_size(path)
        file = self._open.enter_context(_BoundedFile(open(path, "rb", buffering=0)))  # noqa: SIM115
        with self._whole(".npz file"):
            self._archive = zipfile.ZipFile(file)
            starts = _data_starts(file, self._archive)
            for member in self._archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name in self.arrays or name in self.refused:
                    raise ValueError(f"two of its members are array {name!r}")
                self._add(name, partial(self._locate, member, starts[member.orig_filename]))

    def _locate(self, member: zipfile.ZipInfo, start: int) -> tuple[Array, _Member]:
        if member.flag_bits & 1:
            raise Refused("is encrypted: save it without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(
                f"is packed by method {member.compress_type}: only stored and deflated is read"
            )
        stored, size = member.compress_size, member.file_size
        whole = member.compress_type == zipfile.ZIP_STORED
        if whole and stored != size:
            raise Refused(f"has {stored} bytes that should unpack to {size}: it is damaged")
        if not member.filename.endswith(".npy"):
            raise Refused("is no .npy member")
        rows = _Member(self._archive, member)
        array, order, offset = rows.header
        if offset + array.nbytes != size:
            raise Refused(
                f"asks for {array.nbytes} bytes {array}, its member has {size - offset}: it is damaged"
            )
        check_expansion(array, stored)
        if whole:
            rows.mapped = Mapped(self.path, array, start + offset, order)
        return array, rows


class _Member:
    """The rows of a member: mapped where it is stored, unpacked from its start on where it is deflated."""

    mapped: Mapped | None = None

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self._archive, self._member = archive, member
        self._stream: IO[bytes] | None = None
        prefix = self._unpacked(0, min(member.file_size, PREFIX)).tobytes()
        self._stream = None  # it takes memory, and few of the members may be read
        try:
            self.header = read_header(prefix)
        except ValueError as error:
            raise Refused(f"is not a .npy array: {error}") from error

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        if self.mapped is not None:
            return self.mapped.read(start, stop)
        array, order, offset = self.header
        shape = (stop - start, *array.shape[1:])
        if order == "C":
            place, size = offset + start * array.row_nbytes, (stop - start) * array.row_nbytes
            return self._unpacked(place, size).view(array.dtype).reshape(shape)
        # Every column lies apart, and each read is a whole pass.
        item = array.dtype.itemsize
        columns = np.empty((array.row_nbytes // item, (stop - start) * item), np.uint8)
        for i, column in enumerate(columns if columns.size else ()):
            place = offset + (i * array.shape[0] + start) * item
            column[:] = self._unpacked(place, len(column))
        return columns.view(array.dtype).T.reshape(shape, order="F")

    def check(self) -> None:
        """Unpack all of it: zipfile compares the CRC with the last bytes."""
        self._skip_to(self._member.file_size, self._archive.open(self._member))

    def _unpacked(self, place: int, size: int) -> npt.NDArray[np.uint8]:
        """Return unpacked bytes; those before are unpacked once if places ascend."""
        if self._stream is None:
            self._stream = self._archive.open(self._member)
        if place < self._stream.tell():
            self._stream.seek(0)
        self._skip_to(place, self._stream)
        target, filled = np.empty(size, np.uint8), 0
        while filled < size:
            piece = self._next(self._stream, size - filled)
            target[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        return target

    def _skip_to(self, place: int, stream: IO[bytes]) -> None:
        while stream.tell() < place:
            self._next(stream, place - stream.tell())

    def _next(self, stream: IO[bytes], size: int) -> bytes:
        """Return some of the bytes that follow."""
        try:
            piece = stream.read(min(size, _PIECE))
        except zipfile.BadZipFile as error:
            raise Refused("has another checksum (CRC) than its contents: it is damaged") from error
        except (EOFError, zlib.error) as error:
            raise Refused(f"is damaged: {first_line(error)}") from error
        if not piece:
            raise Refused(
                f"ends after {stream.tell()} bytes of {self._member.file_size}: it is damaged"
            )
        return piece


class _BoundedFile(io.BufferedReader):
    """A file from which zipfile reads no directory that is too large."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"its directory has {size} bytes, at most {MAX_DIRECTORY} are read")
        return super().read(size)


def _data_starts(file: IO[bytes], archive: zipfile.ZipFile) -> dict[str, int]:
    """Return where the data of each member starts; refuse members that share a name, or lie over each other."""
    starts: dict[str, int] = {}
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        name, begin = member.orig_filename, member.header_offset
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise ValueError(f"member {name!r} has a name that leads out of the archive")
        if name in starts:
            raise ValueError(f"it has two members {name!r}")
        if begin < end:
            raise ValueError(f"member {name!r} lies over another one")
        file.seek(begin)
        starts[name] = begin + 30 + sum(_LOCAL_HEADER.unpack(file.read(30)))
        end = starts[name] + member.compress_size
    if end > archive.start_dir:
        raise ValueError("its last member lies over the directory")
    return starts
