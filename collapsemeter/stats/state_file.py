"""State files: named arrays and a header under one checksum, read without pickle."""

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..system.files import write_atomically
from .npy_header import PREFIX, read_npy_header

FORMAT = "collapsemeter.ClassMoments"
VERSION = 1
_DIGEST = 64  # characters of a SHA-256
_HEADER = "header"


class CorruptStateError(ValueError):
    """A state file is truncated, altered, or not a state file."""


def write_state(
    path: str | os.PathLike[str],
    header: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    arrays: Mapping[str, npt.NDArray[Any]] | Iterable[tuple[str, npt.NDArray[Any]]],
    kind: str = FORMAT,
    *,
    lasting: bool = True,
) -> None:
    """Write an uncompressed ``.npz`` atomically; the checksum of all its bytes is its comment."""

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items() if isinstance(arrays, Mapping) else arrays:
                _add(archive, name, array)
            about = header() if callable(header) else header
            text = json.dumps({"format": kind, "version": VERSION, **about})
            _add(archive, _HEADER, np.frombuffer(text.encode(), np.uint8))
            archive.comment = b"0" * _DIGEST
        end = file.seek(0, os.SEEK_END) - _DIGEST
        digest = _digest(file, end)
        file.seek(end)
        file.write(digest)

    write_atomically(path, write, lasting=lasting)


def _add(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    # Without the date the bytes depend on the state alone.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _digest(file: IO[bytes], end: int) -> bytes:
    """Return the SHA-256 of a file's first bytes, as hexadecimal digits."""
    file.seek(0)
    digest, left = hashlib.sha256(), end
    while left > 0 and (part := file.read(min(left, 2**20))):
        digest.update(part)
        left -= len(part)
    return digest.hexdigest().encode()


class StateFile:
    """A state file whose checksum was compared; arrays are read when they are asked for."""

    def __init__(self, path: str | os.PathLike[str], kind: str = FORMAT) -> None:
        self.path = os.fspath(path)
        with open(path, "rb") as file:
            # Nothing of the file is interpreted before it is known to be what was written.
            end = max(0, file.seek(0, os.SEEK_END) - _DIGEST)
            digest = _digest(file, end)
            file.seek(end)
            if file.read() != digest:
                raise CorruptStateError(
                    f"{self.path} is not a whole state file: its checksum does not match"
                )
        self.digest = digest.decode()
        try:
            # Read strictly: a checksum is no signature, and what comes next may be crafted.
            self._members = _members(path, end)
            self.header: dict[str, Any] = json.loads(self.read(_HEADER).tobytes())
            holds, version = self.header["format"], int(self.header["version"])
        except CorruptStateError:
            raise
        except Exception as error:  # zipfile states no list of what a damaged archive raises
            raise CorruptStateError(f"{self.path} is not a state file: {error}") from error
        if holds != kind:
            raise CorruptStateError(
                f"{self.path} is not a state file of a {kind}: it holds {str(holds)[:100]!r}"
            )
        if version > VERSION:
            raise CorruptStateError(
                f"{self.path} has state version {version}, this collapsemeter reads up to {VERSION}: "
                "upgrade collapsemeter"
            )
        self.names = [name for name in self._members if name != _HEADER]

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read an array."""
        if name not in self._members:
            raise CorruptStateError(f"{self.path} is not a state file: it has no array {name!r}")
        try:
            return _read_array(self.path, self._members[name])
        except (OSError, ValueError, struct.error) as error:
            raise CorruptStateError(
                f"{self.path} is not a state file: array {name!r} {error}"
            ) from error


def _members(path: str | os.PathLike[str], size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name; refuse those that share a name or lie over each other."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are longer than the file")
    named = {member.filename.removesuffix(".npy"): member for member in members}
    if len(named) < len(members):
        raise ValueError("two of its members have one name")
    return named


def _read_array(path: str, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    values = bytearray(member.file_size)
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<2H", file.read(4))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        ends_early = file.readinto(values) != len(values)
    if ends_early or member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("is compressed or ends early, as no state is written")
    header = read_npy_header(bytes(values[:PREFIX]))
    nbytes = math.prod(header.shape) * header.dtype.itemsize
    if header.dtype.kind not in "fiub" or header.order != "C":
        raise ValueError(f"has dtype {header.dtype} in order {header.order}: it is no state's")
    if nbytes != len(values) - header.offset:
        raise ValueError(f"asks for {nbytes} bytes, its member has {len(values) - header.offset}")
    return np.frombuffer(values, header.dtype, offset=header.offset).reshape(header.shape)


def read_state(
    path: str | os.PathLike[str], kind: str = FORMAT
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the header and arrays of a file written by `write_state`."""
    file = StateFile(path, kind)
    return file.header, {name: file.read(name) for name in file.names}
