"""The HTML report: one self-contained file, with figures, that explains itself.

page           what is on the page, in what order, and what it may load: nothing
verdicts       NC1 to NC4 of the final layer as cards
class_tables   tables over the classes of the final layer
tables         numbers and codes as words, tables as rows of text
figures        figures over layers and epochs
class_figures  figures over the classes of the final layer
picture        a figure as an image that is part of the page
"""

from .page import render, write_html

__all__ = ["render", "write_html"]
