"""Text for whoever reads the terminal or the pipe: it never moves a cursor, and never fails to be written."""

import sys
from typing import IO, Any

from .escaping import printable_lines

# How a stream that knows ASCII alone is told what tables and verdicts are made of.
_PLAIN = str.maketrans({"─": "-", "–": "-", "−": "-", "…": "...", "\N{MULTIPLICATION SIGN}": "x", "±": "+-", "≤": "<=", "≥": ">=", "·": "."})  # fmt: skip


def say(text: str, *, error: bool = False) -> None:
    """Print text on standard output or standard error, whatever names it holds and its encoding is."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:  # as under pythonw and some daemons
        print(writable(printable_lines(text), stream), file=stream)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print plain values as strict JSON, in ASCII alone: names come back as they were."""
    import json  # a warning is said without it

    # JSON escapes every other control character by itself.
    print(json.dumps(value, indent=indent, allow_nan=False).replace("\x7f", "\\u007f"))


def writable(text: str, stream: IO[str]) -> str:
    """Return text as the encoding of a stream can hold it."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    return text
