"""Patterns of layer names: ``*`` within one part of a name, ``**`` across; dots and slashes part names."""

import re
from functools import lru_cache


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern selects a name: itself, or by ``*``, ``**``, ``?`` and ``[...]``."""
    return name == pattern or _compiled(pattern).fullmatch(name) is not None


@lru_cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Translate a pattern; what is in brackets is a set of characters, ``[!...]`` what is not."""
    parts = {"**": ".*", "*": "[^./]*", "?": "[^./]"}
    text = ""
    for piece in re.findall(r"\*\*|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if piece in parts:
            text += parts[piece]
        elif len(piece) > 1:
            negated = piece[1] == "!"
            members = piece[2 if negated else 1 : -1].replace("\\", r"\\")
            text += f"[{'^' if negated else ''}{members}]"
        else:
            text += re.escape(piece)
    return re.compile(text, re.DOTALL)
