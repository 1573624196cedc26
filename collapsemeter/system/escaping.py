"""Names as text that a terminal, a pipe and a page can be trusted with: one function escapes."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return text in which every character that does not print stands as its escape.

    Control characters, line breaks, lone surrogates and marks that turn the direction of writing become
    ``\x1b``, ``\n``, ``\ud800``, ``\u202e``: names that differ still differ, and none moves a cursor.

    Examples
    --------
    >>> print(printable("\x1b[31mfc\u202e"))
    \x1b[31mfc\u202e
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    r"""Return text of several lines, each as `printable` returns it.

    Examples
    --------
    >>> printable_lines("a\x07\nb").split("\n")
    ['a\\x07', 'b']
    """
    return "\n".join(map(printable, text.split("\n")))
