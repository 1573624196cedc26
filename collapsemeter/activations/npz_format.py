"""Named arrays in an ``.npz`` file: stored ones are mapped, compressed ones are streamed."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..stats.npy_header import PREFIX
from .array_file import (
    MAX_DIRECTORY,
    ActivationsError,
    ArrayFile,
    Refused,
    check_expansion,
    file_size,
    first_line,
    map_array,
)
from .npy_format import CheckedHeader, read_header

_PIECE = 2**18  # bytes that are unpacked at once; no more than a directory may have
_LOCAL_HEADER = struct.Struct(
    "<26x2H"
)  # before a member's data: lengths of its name and extra field


class NpzFile(ArrayFile):
    """The arrays of an ``.npz`` file, each under its member's name without ``.npy``.

    A compressed array can only be read from its start on: reading it in ascending chunks is one
    pass, and going back starts again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._headers: dict[str, CheckedHeader] = {}
        self._streams: dict[str, IO[bytes]] = {}
        file_size(path)
        self._file = _BoundedFile(open(path, "rb", buffering=0))  # noqa: SIM115  # closed by close()
        try:
            self._archive = zipfile.ZipFile(self._file)
            self._starts = _data_starts(self._file, self._archive)
            for member in self._archive.infolist():
                self._add(member)
        except Exception as error:  # zipfile states no list of what a damaged archive raises
            self._file.close()
            raise ActivationsError(
                f"{self.path} is not a whole .npz file: {first_line(error)}"
            ) from error

    def _add(self, member: zipfile.ZipInfo) -> None:
        name = member.filename.removesuffix(".npy")
        if name in self._members:
            raise ValueError(f"two of its members are array {name!r}")
        self._members[name] = member
        try:
            self._headers[name] = header = self._describe(member)
            self.arrays[name] = header.array
        except Refused as reason:
            self.refused[name] = str(reason)

    def _describe(self, member: zipfile.ZipInfo) -> CheckedHeader:
        if member.flag_bits & 1:
            raise Refused("is encrypted: save it without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(
                f"is packed by method {member.compress_type}: only stored and deflated is read"
            )
        stored, size = member.compress_size, member.file_size
        if member.compress_type == zipfile.ZIP_STORED and stored != size:
            raise Refused(f"has {stored} bytes that should unpack to {size}: it is damaged")
        if not member.filename.endswith(".npy"):
            raise Refused("is no .npy member")
        prefix = np.empty(min(size, PREFIX), np.uint8)
        with self._archive.open(member) as stream:
            _fill(stream, prefix, member)
        try:
            header = read_header(prefix.tobytes())
        except ValueError as error:
            raise Refused(f"is not a .npy array: {error}") from error
        if header.offset + header.array.nbytes != size:
            raise Refused(
                f"asks for {header.array.nbytes} bytes {header.array}, its member has "
                f"{size - header.offset}: it is damaged"
            )
        check_expansion(header.array, stored)
        return header

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        member, header = self._members[name], self._headers[name]
        array = header.array
        if member.compress_type == zipfile.ZIP_STORED:
            offset = self._starts[member.filename] + header.offset
            return map_array(self.path, array, offset, header.order)[start:stop]
        if name not in self._streams:
            self._streams[name] = self._archive.open(member)
        stream, size = self._streams[name], array.dtype.itemsize
        # In Fortran order every column lies apart, and each read is a whole pass.
        columns, item = (
            (1, array.row_nbytes) if header.order == "C" else (array.row_nbytes // size, size)
        )
        rows = np.empty((columns, (stop - start) * item), np.uint8)
        for i, column in enumerate(rows if rows.size else ()):
            _skip_to(stream, header.offset + (i * array.shape[0] + start) * item, member)
            _fill(stream, column, member)
        if header.order == "C":
            return rows.view(array.dtype).reshape(stop - start, *array.shape[1:])
        return rows.view(array.dtype).T.reshape(stop - start, *array.shape[1:], order="F")

    def check(self) -> None:
        """Compare every array with its CRC."""
        for name in self.arrays:
            member = self._members[name]
            try:
                with self._archive.open(member) as stream:
                    _skip_to(stream, member.file_size, member)
            except Refused as reason:
                raise ActivationsError(f"{self.path}: array {name!r} {reason}") from reason

    def close(self) -> None:
        """Close the file; views that were read stay valid."""
        self._streams.clear()
        self._file.close()


class _BoundedFile(io.BufferedReader):
    """A file from which zipfile reads no directory that is too large."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"its directory has {size} bytes, at most {MAX_DIRECTORY} are read")
        return super().read(size)


def _data_starts(file: IO[bytes], archive: zipfile.ZipFile) -> dict[str, int]:
    """Return where the data of each member starts; refuse what could be read in two ways.

    zipfile takes the last of two members of one name, and members may lie over each other: so does a
    small file unpack to petabytes.
    """
    starts: dict[str, int] = {}
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        name = member.orig_filename
        if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise ValueError(f"member {name!r} has a name that leads out of the archive")
        if name in starts:
            raise ValueError(f"it has two members {name!r}")
        if member.header_offset < end:
            raise ValueError(f"member {name!r} lies over another one")
        file.seek(member.header_offset)
        starts[name] = member.header_offset + 30 + sum(_LOCAL_HEADER.unpack(file.read(30)))
        end = starts[name] + member.compress_size
    if end > archive.start_dir:
        raise ValueError("its last member lies over the directory")
    return starts


def _read(stream: IO[bytes], size: int, member: zipfile.ZipInfo) -> bytes:
    """Return some of the bytes that follow; zipfile compares the CRC with the last ones."""
    try:
        piece = stream.read(min(size, _PIECE))
    except zipfile.BadZipFile as error:
        raise Refused("has another checksum (CRC) than its contents: it is damaged") from error
    except (EOFError, zlib.error) as error:
        raise Refused(f"is damaged: {first_line(error)}") from error
    if not piece:
        raise Refused(f"ends after {stream.tell()} bytes of {member.file_size}: it is damaged")
    return piece


def _fill(stream: IO[bytes], target: npt.NDArray[np.uint8], member: zipfile.ZipInfo) -> None:
    filled = 0
    while filled < len(target):
        piece = _read(stream, len(target) - filled, member)
        target[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)


def _skip_to(stream: IO[bytes], place: int, member: zipfile.ZipInfo) -> None:
    if place < stream.tell():
        stream.seek(0)
    while stream.tell() < place:
        _read(stream, place - stream.tell(), member)
