"""The directory of a zip file, read strictly: what a reader could take in two ways is refused.

`zipfile` looks for a directory anywhere near the end, takes the last of two members of one name,
and believes a directory whose members lie over each other, which is how a small file unpacks to
petabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .array_file import MAX_DIRECTORY, Refused
from .npy_format import PREFIX, read_header

STORED, DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1, 0x800  # flags
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class Member(NamedTuple):
    """One member, its place checked."""

    name: str
    method: int
    encrypted: bool
    crc: int
    stored: int
    size: int
    offset: int  # of its data in the file


class _Entry(NamedTuple):
    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int  # where the local header is


def read_members(file: IO[bytes], size: int) -> list[Member]:
    """Return the members of an archive, in the order of its directory.

    Parameters
    ----------
    file : binary file
    size : int
        Its length.

    Raises
    ------
    ValueError
        If its structure is damaged, or such that members lie over each other, share a name, or
        have a name that leads out of a folder.

    Examples
    --------
    >>> import io, zipfile
    >>> file = io.BytesIO()
    >>> with zipfile.ZipFile(file, "w") as archive:
    ...     archive.writestr("a.txt", "hello")
    >>> read_members(file, len(file.getvalue()))
    [Member(name='a.txt', method=0, encrypted=False, crc=907060870, stored=5, size=5, offset=35)]
    """
    start, length = _find_directory(file, size)
    file.seek(start)
    entries = list(_entries(file.read(length)))
    members = [_member(file, entry, start) for entry in entries]
    seen: set[str] = set()
    for member in members:
        _check_name(member.name)
        if member.name in seen:
            raise ValueError(f"it has two members {member.name!r}")
        seen.add(member.name)
    end = 0
    for entry, member in sorted(zip(entries, members, strict=True), key=lambda p: p[0].header):
        if entry.header < end:
            raise ValueError(f"member {member.name!r} lies over another one")
        end = member.offset + member.stored
    if end > start:
        raise ValueError("its last member lies over the directory")
    return members


def _find_directory(file: IO[bytes], size: int) -> tuple[int, int]:
    """Return where the directory is and how long."""
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    while at >= 0:  # the comment may hold the mark, too
        if at + _END.size <= len(tail):
            fields = _END.unpack_from(tail, at)
            if at + _END.size + fields[7] == len(tail):
                break
        at = tail.rfind(b"PK\5\6", 0, at)
    if at < 0:
        raise ValueError("it has no end of a zip directory: it is truncated, or no zip file")
    _, _, _, _, count, length, start, _ = fields
    end = size - len(tail) + at
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):
        end, count, length, start = _find_directory64(file, end)
    if start + length != end:
        raise ValueError(f"its directory of {length} bytes at {start} does not end at {end}")
    if length > MAX_DIRECTORY:
        raise ValueError(f"its directory has {length} bytes, at most {MAX_DIRECTORY} are read")
    return start, length


def _find_directory64(file: IO[bytes], end: int) -> tuple[int, int, int, int]:
    """Return the same for a directory with long numbers, and where its own end is."""
    place = end - _LOCATOR64.size
    if place < 0:
        raise ValueError("it has no end of a zip directory with long numbers")
    file.seek(place)
    mark, _, found, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
    if mark != b"PK\6\7" or found + _END64.size != place:
        raise ValueError("it has no end of a zip directory with long numbers")
    file.seek(found)
    mark, _, _, _, _, _, _, count, length, start = _END64.unpack(file.read(_END64.size))
    if mark != b"PK\6\6":
        raise ValueError("it has no end of a zip directory with long numbers")
    return found, count, length, start


def _entries(directory: bytes) -> Iterator[_Entry]:
    at = 0
    while at < len(directory):
        if len(directory) - at < _ENTRY.size or not directory.startswith(b"PK\1\2", at):
            raise ValueError(f"its directory is damaged at byte {at}")
        fields = _ENTRY.unpack_from(directory, at)
        flags, method, crc, stored, size = fields[3], fields[4], *fields[7:10]
        names, extras, comment, header = *fields[10:13], fields[16]
        at += _ENTRY.size
        name, extra = directory[at : at + names], directory[at + names : at + names + extras]
        at += names + extras + comment
        if at > len(directory):
            raise ValueError("its directory is cut off")
        size, stored, header = _long_numbers(extra, [size, stored, header])
        yield _Entry(name, flags, method, crc, stored, size, header)


def _long_numbers(extra: bytes, numbers: list[int]) -> list[int]:
    """Replace those that do not fit 32 bits by what the extra field has for them, in order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            long = extra[at + 4 : at + 4 + length]
            values = iter(struct.unpack_from(f"<{len(long) // 8}Q", long))
            return [next(values, n) if n == 0xFFFFFFFF else n for n in numbers]
        at += 4 + length
    return numbers


def _member(file: IO[bytes], entry: _Entry, end: int) -> Member:
    """Return a member after a look at its local header, which must say the same."""
    name = entry.name.decode("utf-8" if entry.flags & _UTF8 else "cp437")
    if entry.header + _LOCAL.size > end:
        raise ValueError(f"member {name!r} is outside of the file")
    file.seek(entry.header)
    fields = _LOCAL.unpack(file.read(_LOCAL.size))
    mark, flags, method, names, extras = fields[0], fields[2], fields[3], *fields[9:]
    local = (mark, method, flags & _ENCRYPTED, file.read(names))
    if local != (b"PK\3\4", entry.method, entry.flags & _ENCRYPTED, entry.name):
        raise ValueError(f"member {name!r} has another header than its entry in the directory")
    offset = entry.header + _LOCAL.size + names + extras
    encrypted = bool(entry.flags & _ENCRYPTED)
    return Member(name, entry.method, encrypted, entry.crc, entry.stored, entry.size, offset)


def _check_name(name: str) -> None:
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise ValueError(f"member {name!r} has a name that leads out of the archive")


def read_member(file: IO[bytes], member: Member) -> npt.NDArray[Any]:
    """Read a whole array that is stored without compression; its CRC is left to a checksum of the file."""
    if member.encrypted or member.method != STORED or member.stored != member.size:
        raise Refused("is compressed or in Fortran order, as no state is written")
    file.seek(member.offset)
    try:
        header = read_header(file.read(min(member.size, PREFIX)))
    except ValueError as error:
        raise Refused(f"is not a .npy array: {error}") from error
    if header.order == "F" or header.offset + header.array.nbytes != member.size:
        raise Refused("is compressed or in Fortran order, as no state is written")
    values = np.empty(header.array.nbytes, np.uint8)
    file.seek(member.offset + header.offset)
    if file.readinto(values.data) != len(values):  # type: ignore[attr-defined]
        raise Refused("ends early: it is damaged")
    return values.view(header.array.dtype).reshape(header.array.shape)
