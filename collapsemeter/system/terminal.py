"""Text for whoever reads the terminal or the pipe: it never moves a cursor, and never fails to be written."""

from __future__ import annotations

import sys
from typing import IO, Any

from .escaping import printable_lines

# How a stream that knows ASCII alone is told what tables and verdicts are made of.
_PLAIN = str.maketrans({"─": "-", "–": "-", "−": "-", "…": "...", "\N{MULTIPLICATION SIGN}": "x", "±": "+-", "≤": "<=", "≥": ">=", "·": "."})  # fmt: skip


def say(text: str, *, error: bool = False) -> None:
    r"""Print text on standard output or standard error, whatever names it holds and its encoding is.

    Parameters
    ----------
    text : str
        One or several lines; characters that do not print are escaped, see `printable`.
    error : bool
        Whether it goes to standard error.

    Examples
    --------
    >>> say("layer \x1b[31mfc")
    layer \x1b[31mfc
    """
    stream = sys.stderr if error else sys.stdout
    if stream is not None:  # as under pythonw and some daemons
        print(writable(printable_lines(text), stream), file=stream)


def say_json(value: Any, indent: int | None = None) -> None:
    r"""Print plain values as strict JSON, in ASCII alone: names come back as they were.

    Examples
    --------
    >>> say_json({"fc\x7f": 0.5})
    {"fc\u007f": 0.5}
    """
    import json  # a warning is said without it

    # JSON escapes every other control character by itself.
    print(json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f"))


def writable(text: str, stream: IO[str]) -> str:
    r"""Return text as the encoding of a stream can hold it.

    Examples
    --------
    >>> import io
    >>> writable("1 ± 2 µ", io.TextIOWrapper(io.BytesIO(), "ascii"))
    '1 +- 2 \\xb5'
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text
