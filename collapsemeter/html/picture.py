"""A figure as an image that is part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from ..report.drawing import METADATA, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE = "#555555"
EARLIER = "#2171B5"


class Picture(NamedTuple):
    """A figure of the page: a title, what it shows in one sentence, and the address of the image."""

    title: str
    caption: str
    source: str
    wide: bool = False


@contextmanager
def picture(
    pictures: list[Picture],
    title: str,
    caption: str,
    width: float = 5.4,
    height: float = 3.3,
    wide: bool = False,
) -> Iterator[Axes]:
    """Add a picture, of that size in inches, of what is drawn on the axes."""
    with styled():
        figure = canvas(width, height)
        yield figure.subplots()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", dpi=180, metadata=METADATA)
    data = base64.b64encode(buffer.getvalue()).decode()
    pictures.append(Picture(title, caption, f"data:image/svg+xml;base64,{data}", wide))


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of that size."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
