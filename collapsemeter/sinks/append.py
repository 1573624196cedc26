"""Appending whole lines to a file that stays readable when a write is cut short."""

from __future__ import annotations

import os
from pathlib import Path


class AppendedFile:
    r"""A file that is opened for each write and closed after it: nothing is held, nothing is buffered.

    A line that was cut short, by a full disk or a crash, is ended before the next one is added, so it
    spoils no other line.

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
        """Add text at the end and hand it to the system."""
        # A lone surrogate, possible in a name from another encoding, must not cost the whole line.
        data = text.encode("utf-8", "backslashreplace")
        if data and self._cut_short():
            data = b"\n" + data
        with self.path.open("ab") as file:
            file.write(data)

    def _cut_short(self) -> bool:
        if self.empty():
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
