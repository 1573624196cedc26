"""Names as text that a terminal, a pipe and a page can be trusted with: one function escapes."""


def printable(text: str) -> str:
    r"""Return text in which every character that does not print stands as its escape.

    >>> print(printable("\x1b[31mfc\u202e"))
    \x1b[31mfc\u202e
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each as `printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))
