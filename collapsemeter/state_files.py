"""State files: named arrays and a header under one checksum, read without pickle."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import write_atomically

FORMAT = "collapsemeter.ClassMoments"
VERSION = 1
_DIGEST = 64  # characters of a SHA-256


class CorruptStateError(ValueError):
    """A state file is truncated, altered, or not a state file."""


def write_state(
    path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Write an uncompressed ``.npz`` atomically; the checksum of all its bytes is its comment.

    Parameters
    ----------
    path : str or path
    header : mapping
        Plain values; format and version are added.
    arrays : mapping of str to array

    Raises
    ------
    OSError
        If it cannot be written; an older file of that name is then untouched.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.npz")
    >>> write_state(path, {"phase": "live"}, {"counts": np.array([1, 2])})
    >>> read_state(path)
    ({'format': 'collapsemeter.ClassMoments', 'version': 1, 'phase': 'live'}, {'counts': array([1, 2])})
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **header})
    members: dict[str, Any] = {"header": np.frombuffer(text.encode(), np.uint8), **arrays}
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * _DIGEST
    body = buffer.getvalue()[:-_DIGEST]
    write_atomically(path, body + hashlib.sha256(body).hexdigest().encode())


def read_state(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the header and arrays of a file written by `write_state`.

    Raises
    ------
    CorruptStateError
        If the file is truncated, altered, or not a state file, or was written by a newer version.
    FileNotFoundError
        If there is none.
    """
    name = os.fspath(path)
    content = Path(path).read_bytes()
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    # Nothing of the file is interpreted before it is known to be what was written.
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CorruptStateError(f"{name} is not a whole state file: its checksum does not match")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = dict(archive)
        header = json.loads(arrays.pop("header").tobytes())
        found, version = header["format"], header["version"]
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise CorruptStateError(f"{name} is not a state file: {error}") from error
    if found != FORMAT:
        raise CorruptStateError(f"{name} is not a state file: it holds a {found}")
    if version > VERSION:
        raise CorruptStateError(
            f"{name} has state version {version}, this collapsemeter reads up to {VERSION}: "
            "upgrade collapsemeter"
        )
    return header, arrays
