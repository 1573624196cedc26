"""Names that would move a cursor, turn the text around them, or not be written at all."""

from __future__ import annotations

HOSTILE = {
    "escape": "\x1b[31mevil\x1b]0;pwn\x07",
    "c1": "\x9b31mevil",
    "delete": "evil\x7f\x08\x08",
    "lines": "two\r\nlines\x0b\x0c\x85\u2028",
    "surrogate": "\ud800evil",
    "bytes": "evil\udcff",
    "bidi": "\u202efc\u202c \u2066x\u2069",
    "invisible": "f\u200bc\ufeff\u00ad",
    "nul": "\x00evil",
    "formula": "=cmd|' /C calc'!A0",
    "markup": "[red]<b>&amp;[/red]",
}


def unsafe(text: str) -> list[str]:
    """Characters of a text that must not reach a reader; line breaks are its own."""
    return [c for c in text if not (c == "\n" or c.isprintable())]
