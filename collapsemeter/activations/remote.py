"""Names of files, here and elsewhere: globs and URLs become a list, and a URL a local copy.

fsspec's own caches write in place: what a full disk cuts short, or another worker still writes, they
take for the file. Here a copy is whole or not there.
"""

import glob
import hashlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .array_file import ActivationsError, ArrayFile, first_line, required
from .foreign import explained, is_foreign_name
from .formats import open_arrays

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")  # a letter and a colon is a Windows drive
_AFTER_NAME = re.compile(r"[?#]|::")  # a query, or the archive that holds the file


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that paths, URLs and globs mean, each once; ``shard-10`` comes after ``shard-9``."""
    files: list[str] = []
    for pattern in patterns:
        if is_url(pattern):
            matches = _remote(pattern)
        else:  # a name may have brackets of its own
            exists = os.path.exists(pattern)
            matches = [pattern] if exists else glob.glob(pattern, recursive=True)
        if not matches:
            raise ValueError(
                f"no file matches {pattern!r}: check the path, and quote its wildcards"
            )
        files += sorted(matches, key=natural_order)
    for name, times in Counter(files).items():
        if times > 1:
            raise ValueError(f"{name!r} is given twice: its rows would count twice")
    return files


def local_path(url: str | os.PathLike[str], cache_folder: str | os.PathLike[str]) -> Path:
    """Return the path of a local file, or of the copy of a URL in the cache, which is made once."""
    name = os.fspath(url)
    if name.startswith("file://") and "::" not in name:
        return Path(name.removeprefix("file://"))
    if not is_url(name):
        return Path(name)
    # The last name is kept: its ending tells the format, and its stem may be the array's name.
    last = re.sub(r"[^A-Za-z0-9._-]", "_", _AFTER_NAME.split(name)[0].rsplit("/", 1)[-1])
    place = hashlib.sha256(name.encode()).hexdigest()[:32]
    target = Path(cache_folder) / place / (last[-100:].lstrip(".") or "file")
    if not target.exists():
        _copy(name, target, Path(cache_folder))
    return target


def open_file(url: str, cache_folder: str | os.PathLike[str]) -> ArrayFile:
    """Open a file of arrays, here or elsewhere; messages name it as it was named."""
    if is_url(url) and is_foreign_name(_AFTER_NAME.split(url)[0]):
        raise ActivationsError(explained("", url) or f"{url} is not read")
    return open_arrays(local_path(url, cache_folder), url)


def is_url(name: str) -> bool:
    """Whether a name is a URL of fsspec."""
    return _URL.match(name) is not None


def _copy(url: str, target: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{secrets.token_hex(8)}"
    try:
        filesystem, path = _filesystem(url)
        filesystem.get_file(path, os.fspath(temporary))
        target.parent.mkdir(exist_ok=True)
        os.replace(temporary, target)
    except (OSError, ImportError, ValueError):
        raise
    except Exception as error:  # a client's own, such as aiohttp's of a status
        raise OSError(f"{url} cannot be copied: {first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _filesystem(url: str) -> tuple[Any, str]:
    filesystem, path = required("fsspec", f"reading {url}", "audit").url_to_fs(url)
    return filesystem, path


def _remote(pattern: str) -> list[str]:
    if not glob.has_magic(re.split(r"[?]|::", pattern)[0]) and "*" not in pattern:
        return [pattern]  # the copy finds out whether it is there
    filesystem, path = _filesystem(pattern)
    # A name in an archive alone does not say in which one.
    archive = pattern[pattern.index("::") :] if "::" in pattern else ""
    return [filesystem.unstrip_protocol(name) + archive for name in filesystem.glob(path)]


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a key by which numbers in names go by value."""
    parts = re.split(r"(\d+)", name)
    return [(i % 2, int(part) if i % 2 else 0, part) for i, part in enumerate(parts)]
