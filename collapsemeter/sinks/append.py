"""Appending whole lines to a file that stays readable when a write is cut short."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class AppendedFile:
    r"""A file that is opened for each write and closed after it: nothing is held, nothing is buffered.

    A write that fails, on a full disk for example, is taken back. A line that was cut short all the
    same, by a crash, is ended before the next one is added, so it spoils no other line.

    Parameters
    ----------
    path : str or path
        Made with its folder if it does not exist.

    Raises
    ------
    OSError
        If the file cannot be opened for appending.

    Examples
    --------
    >>> import tempfile
    >>> file = AppendedFile(Path(tempfile.mkdtemp()) / "new" / "a.txt")
    >>> file.append("cut short"); file.append("line 2\n")
    >>> file.path.read_text().splitlines()
    ['cut short', 'line 2']
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, so that a later chdir does not scatter the record over two files.
        self.path = Path(path).absolute()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.append("")
        except OSError as error:
            raise type(error)(f"cannot append to {self.path}: {error.strerror or error}") from error

    def empty(self) -> bool:
        """Whether nothing has been written yet."""
        return self.path.stat().st_size == 0

    def append(self, text: str) -> None:
        """Add text at the end and hand it to the system; all of it, or none."""
        # A lone surrogate, possible in a name from another encoding, must not cost the whole line.
        data = text.encode("utf-8", "backslashreplace")
        if data and self.unfinished():
            data = b"\n" + data
        with self.path.open("ab", buffering=0) as file:
            before, written = os.fstat(file.fileno()).st_size, 0
            try:
                while written < len(data):
                    written += file.write(data[written:])
            except OSError:
                # Unless another process has written behind it meanwhile.
                if written and os.fstat(file.fileno()).st_size == before + written:
                    with contextlib.suppress(OSError):
                        file.truncate(before)
                raise

    def unfinished(self) -> bytes:
        """Return the last line where it has no end, empty where it has one."""
        size, tail = self.path.stat().st_size, b""
        with self.path.open("rb") as file:
            while size and b"\n" not in tail:
                start = max(0, size - (1 << 16))
                file.seek(start)
                tail = file.read(size - start) + tail
                size = start
                if tail.endswith(b"\n"):
                    return b""
        return tail[tail.rfind(b"\n") + 1 :]

    def take_back(self, count: int) -> None:
        """Remove so many bytes from the end."""
        os.truncate(self.path, self.path.stat().st_size - count)
