"""Where the whole signal of a network passes through one tensor, read off the graph of a forward pass."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def cut_points(
    last: Node, parents: Callable[[Node], Iterable[Node]], is_source: Callable[[Node], bool]
) -> list[Node]:
    """Return the nodes that every path from a source to the last node passes, in the order of the data.

    In a topological order from the last node back, a node is a cut point if no edge from a node before
    it reaches past it. Nodes that no source leads to (weights, positions) do not count. Several sources
    are one common source, so that what only one of them passes is no cut point.

    Parameters
    ----------
    last : hashable
        The node of the scores.
    parents : callable
        The nodes that a node was computed from.
    is_source : callable
        Whether a node is an input. What lies before it is not followed.

    Returns
    -------
    list
        The last node is the last entry. Empty where no path leads from a source.
    """
    order = _reached(last, parents, is_source)
    place = {node: number for number, node in enumerate(order)}
    farthest, points = 0, []
    for number, node in enumerate(order):
        if number >= farthest:
            points.append(node)
        if is_source(node):
            farthest = len(order) if number + 1 < len(order) else farthest
        else:
            before = [place[parent] for parent in parents(node) if parent in place]
            farthest = max([farthest, *before])
    return points[::-1]


def _reached(
    last: Node, parents: Callable[[Node], Iterable[Node]], is_source: Callable[[Node], bool]
) -> list[Node]:
    """Return what lies between the sources and a node, each node before its parents; no recursion."""

    def before(node: Node) -> Iterable[Node]:
        return iter(() if is_source(node) else parents(node))

    stack, seen, finished = [(last, before(last))], {last}, []
    while stack:
        node, left = stack[-1]
        for parent in left:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, before(parent)))
                break
        else:
            finished.append(node)
            stack.pop()
    leads: dict[Node, bool] = {}
    for node in finished:
        leads[node] = is_source(node) or any(leads.get(parent, False) for parent in parents(node))
    return [node for node in reversed(finished) if leads[node]]


def spread(names: Sequence[str], most: int) -> list[str]:
    """Return at most so many names, spread evenly, the last always among them."""
    if most <= 0:
        return []
    if len(names) <= most:
        return list(names)
    step = len(names) / most
    return [names[round((number + 1) * step) - 1] for number in range(most)]
