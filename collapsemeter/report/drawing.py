"""How every figure is drawn: one style, the same bytes for the same figure, as a file or as SVG text."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.escaping import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "collapsemeter",
}
# Without date and version in the metadata the bytes depend on what is drawn alone.
METADATA: dict[str, Any] = {"Date": None, "Creator": None}


def check_ending(path: str | os.PathLike[str]) -> None:
    """Refuse a file that is neither .svg nor .png."""
    target = Path(path)
    if target.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"the figure is written as .svg or .png, got {target.name!r}")


def write_figure(draw: Callable[[], Figure], path: str | os.PathLike[str]) -> None:
    """Draw once the style is set, and write a file that ends in .svg or .png."""
    check_ending(path)
    target = Path(path)
    with styled():
        figure = draw()
        target.parent.mkdir(parents=True, exist_ok=True)
        vector = target.suffix.lower() == ".svg"
        figure.savefig(target, dpi=180, metadata=METADATA if vector else {"Software": None})


def readable(name: str, longest: int) -> str:
    """Return a name as the font can draw it, on one line, shortened in the middle."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    text = "".join(c if font.get_char_index(ord(c)) else ascii(c)[1:-1] for c in printable(name))
    if len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[: longest - 1 - half]}…{text[-half:]}"
    return text or "(no name)"


def evenly(count: int, most: int) -> list[int]:
    """Return at most so many places of a list, the first and the last among them."""
    shown = min(count, most)
    return sorted({round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)})


def styled() -> AbstractContextManager[None]:
    """Let figures look as ours do, whatever the caller's style, within a block."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "drawing the figure needs matplotlib: pip install 'collapsemeter[report]'"
        ) from error
    # The caller's own style would make the same history look different from run to run.
    defaults = matplotlib.rcParamsDefault.items()
    style: Any = {key: value for key, value in defaults if not key.startswith("backend")}
    context: AbstractContextManager[None] = matplotlib.rc_context(style | _STYLE)
    return context
