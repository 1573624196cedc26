"""Names of files, here and elsewhere: globs and URLs become a list, and a URL a local copy."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .array_file import ActivationsError, ArrayFile
from .foreign import explained, is_foreign_name
from .formats import open_arrays

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")  # a letter and a colon is a Windows drive
_CHUNK = 2**20  # bytes that are copied at once


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that paths, URLs and globs of both mean, in natural order.

    Parameters
    ----------
    patterns : sequence of str
        Local paths, or URLs of fsspec (``s3://``, ``https://``, ``zip://...::...``), with ``*``,
        ``?``, ``[...]`` and ``**`` where the place can list its files.

    Returns
    -------
    list of str
        For each pattern its files, numbers in names by value: ``shard-10`` comes after ``shard-9``.

    Raises
    ------
    ValueError
        If a pattern matches nothing, or a file comes twice.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for i in (1, 9, 10):
    ...     (folder / f"shard-{i}.npy").touch()
    >>> [os.path.basename(path) for path in expand([f"{folder}/*.npy"])]
    ['shard-1.npy', 'shard-9.npy', 'shard-10.npy']
    """
    found: list[str] = []
    for pattern in patterns:
        matches = _remote(pattern) if _URL.match(pattern) else _local(pattern)
        if not matches:
            raise ValueError(
                f"no file matches {pattern!r}: check the path, and quote its wildcards"
            )
        found += sorted(matches, key=_natural)
    seen: set[str] = set()
    for name in found:
        if name in seen:
            raise ValueError(f"{name!r} is given twice: its rows would count twice")
        seen.add(name)
    return found


def local_path(url: str | os.PathLike[str], cache_folder: str | os.PathLike[str]) -> Path:
    """Return a path where the file of a URL is; it is copied once.

    Parameters
    ----------
    url : str or path
        A URL of fsspec. A plain path and ``file://`` are the file itself.
    cache_folder : str or path
        Where copies go. A copy that is there is taken for the file: empty the folder if the file
        was changed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If fsspec, or what it needs for this kind of URL, is not installed.
    OSError
        If the copy cannot be written; none is left then.

    Examples
    --------
    >>> local_path("acts/fc.npy", "cache").as_posix()
    'acts/fc.npy'
    """
    name = os.fspath(url)
    if name.startswith("file://") and "::" not in name:
        return Path(name.removeprefix("file://"))
    if not _URL.match(name):
        return Path(name)
    # The last name is kept: its ending tells the format, and its stem may be the array's name.
    last = re.sub(r"[^A-Za-z0-9._-]", "_", re.split(r"[?#]|::", name)[0].rsplit("/", 1)[-1])
    place = hashlib.sha256(name.encode()).hexdigest()[:32]
    target = Path(cache_folder) / place / (last[-100:].lstrip(".") or "file")
    if not target.exists():
        _copy(name, target, Path(cache_folder))
    return target


def open_file(url: str, cache_folder: str | os.PathLike[str]) -> ArrayFile:
    """Open a file of arrays, here or elsewhere; messages name it as it was named.

    Raises
    ------
    ActivationsError
        If it does not read; of a URL that ends like a file that is not read, before it is copied.
    OSError, ImportError
        See `local_path`.
    """
    if _URL.match(url) and is_foreign_name(re.split(r"[?#]|::", url)[0]):
        raise ActivationsError(explained("", url) or f"{url} is not read")
    return open_arrays(local_path(url, cache_folder), url)


def is_url(name: str) -> bool:
    """Whether a name is a URL of fsspec.

    Examples
    --------
    >>> is_url("s3://bucket/labels.npy"), is_url("labels.npy")
    (True, False)
    """
    return _URL.match(name) is not None


def _copy(url: str, target: Path, folder: Path) -> None:
    """Copy through a temporary file, so that a copy is whole or not there."""
    fsspec = _fsspec(url)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}"
    try:
        with fsspec.open(url, "rb") as source, open(temporary, "xb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _fsspec(url: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"reading {url} needs fsspec: pip install 'collapsemeter[audit]'"
        ) from error
    return fsspec


def _local(pattern: str) -> list[str]:
    if os.path.exists(pattern):  # a name may have brackets of its own
        return [pattern]
    return glob.glob(pattern, recursive=True)


def _remote(pattern: str) -> list[str]:
    if not glob.has_magic(re.split(r"[?]|::", pattern)[0]) and "*" not in pattern:
        return [pattern]  # whether it is there is found out as it is copied
    filesystem, path = _fsspec(pattern).core.url_to_fs(pattern)
    # A name in an archive alone does not say in which one.
    rest = pattern[pattern.index("::") :] if "::" in pattern else ""
    return [filesystem.unstrip_protocol(name) + rest for name in filesystem.glob(path)]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key by which numbers in names go by value."""
    parts = re.split(r"(\d+)", name)
    return [(i % 2, int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]
