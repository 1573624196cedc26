"""Files that are either the old one or the new one, never half of one."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(
    path: str | os.PathLike[str],
    data: bytes | Callable[[IO[bytes]], None],
    *,
    lasting: bool = True,
) -> None:
    """Replace a file by ``data``, or by what it writes; a crash at any moment leaves the old file or the new one (``lasting``: of the machine, too)."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(8)}"
    # "x" refuses a file that exists, and the mode follows the umask, which mkstemp's does not.
    try:
        with open(temporary, "x+b") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if lasting:
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Force the rename itself to disk, where the system can (Windows cannot open a folder)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
