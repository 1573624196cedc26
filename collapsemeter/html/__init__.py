"""The HTML report: one self-contained file, with figures, that explains itself."""

from .page import render, write_html

__all__ = ["render", "write_html"]
