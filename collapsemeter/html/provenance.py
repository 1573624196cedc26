"""Records of any shape as a tree that a page can show: entries, lists, tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .tables import scalar, title

_SHORT = 12  # items of a list that are written in a line
_OPEN = 5  # rows of a table that are not folded
_DEEPEST = 6


class Node(NamedTuple):
    """One entry: ``kind`` is text, list, table or record; what is long is ``folded``."""

    kind: str
    label: str
    text: str = ""
    children: tuple[Node, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    folded: bool = False


def tree(record: Mapping[str, Any]) -> tuple[Node, ...]:
    """Return the entries of a record, in its order.

    Parameters
    ----------
    record : mapping
        Of plain values, mappings and lists; a list of mappings with plain values is a table.

    Returns
    -------
    tuple of Node

    Examples
    --------
    >>> files = [{"path": "a.npy", "bytes": 1024}, {"path": "b.npy", "bytes": 2048}]
    >>> rows, table = tree({"rows": 100, "files": files})
    >>> rows.text, table.columns, table.rows
    ('100', ('path', 'bytes'), (('a.npy', '1,024'), ('b.npy', '2,048')))
    """
    return tuple(_node(title(key), value, 0) for key, value in record.items())


def _node(label: str, value: Any, depth: int) -> Node:
    if depth >= _DEEPEST and isinstance(value, (Mapping, list, tuple)):
        return Node("text", label, "…")
    if isinstance(value, Mapping):
        children = tuple(_node(title(key), item, depth + 1) for key, item in value.items())
        return Node("record", label, children=children) if children else Node("text", label, "–")
    if isinstance(value, (list, tuple)):
        return _list(label, list(value), depth)
    return Node("text", label, scalar(value))


def _list(label: str, values: list[Any], depth: int) -> Node:
    if not values:
        return Node("text", label, "none")
    if all(isinstance(value, Mapping) and _plain(value) for value in values):
        columns = tuple(dict.fromkeys(key for value in values for key in value))
        rows = tuple(tuple(scalar(value.get(key)) for key in columns) for value in values)
        titles = tuple(map(title, columns))
        text = f"{len(values)} entries"
        return Node("table", label, text, (), titles, rows, folded=len(values) > _OPEN)
    if any(isinstance(value, (Mapping, list, tuple)) for value in values):
        children = tuple(_node(str(i + 1), value, depth + 1) for i, value in enumerate(values))
        return Node("record", label, children=children)
    texts = tuple((scalar(value),) for value in values)
    if len(values) <= _SHORT:
        return Node("text", label, ", ".join(text for (text,) in texts))
    return Node("list", label, f"{len(values)} entries", rows=texts, folded=True)


def _plain(record: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, (Mapping, list, tuple)) for value in record.values())
