"""Merge: states of shards to one state, however many there are, if they are of one audit."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ..stats.moments import ClassMoments
from .state import SavedState, save_layers

_T = TypeVar("_T")


class Together:
    """States, by their headers, that may be merged: of one audit, and no shard in two of them."""

    def __init__(self) -> None:
        self._first: Mapping[str, Any] | None = None
        self._names: dict[str, str] = {}

    def add(self, header: Mapping[str, Any]) -> None:
        """Take one more.

        Raises
        ------
        ValueError
            If it shares a shard with those before, or was counted otherwise, or of other layers.
        """
        for shard in header["shards"]:
            self._add_shard(shard)
        first = self._first = self._first or header
        for name in sorted({*first["key"], *header["key"]}):
            a, b = first["key"].get(name), header["key"].get(name)
            if a != b:
                raise ValueError(
                    f"one state was counted with {name}={a!r}, the other with {b!r}: map all shards with "
                    "the same options"
                )
        shapes = [
            {e["name"]: (e["num_classes"], e["width"]) for e in h["layers"]}
            for h in (first, header)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"one state has layers {_words(shapes[0])}, the other {_words(shapes[1])}: they are not of "
                "the same network"
            )

    def _add_shard(self, shard: Mapping[str, Any]) -> None:
        if shard["id"] in self._names and shard["samples"]:
            raise ValueError(
                f"shard {shard['name']} holds the rows of {self._names[shard['id']]}, which were counted "
                f"already (SHA-256 {shard['id'][:12]}...): a shard is counted once; leave one of them out"
            )
        if shard["samples"]:
            self._names[shard["id"]] = shard["name"]


def _words(shapes: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def check_together(states: Sequence[SavedState]) -> None:
    """Raise ValueError if there is none, a shard is in two of them, or they are not of one audit."""
    if not states:
        raise ValueError("there is no state to merge: pass the files that `audit map` wrote")
    together = Together()
    for state in states:
        try:
            together.add(state.header)
        except ValueError as error:
            raise ValueError(f"{state.path} cannot be merged: {error}") from error


def check_unchanged(states: Sequence[SavedState]) -> None:
    """Raise ValueError if a file is in two states as what it is and as what it was."""
    digests: dict[str, str] = {}
    for file, digest in [item for s in states for r in s.shards for item in r.files.items()]:
        known = digests.setdefault(file, digest)
        if known != digest:
            raise ValueError(
                f"{file} was changed between the states, which have SHA-256 {known[:12]}... and "
                f"{digest[:12]}...: map it again, and delete the states of what it was"
            )


def tree(items: Sequence[Any], load: Callable[[Any], _T], merge: Callable[[_T, _T], _T]) -> _T:
    """Merge neighbours, then neighbours of those: the same pairs however the items were made.

    Few results are at hand at a time: as many as the tree is deep.

    Examples
    --------
    >>> tree("abc", str.upper, lambda a, b: f"({a}{b})")
    '((AB)C)'
    """
    if len(items) == 1:
        return load(items[0])
    half = 1 << (len(items) - 1).bit_length() - 1  # the largest power of two below
    return merge(tree(items[:half], load, merge), tree(items[half:], load, merge))


def merge_saved(
    states: Sequence[SavedState],
    path: str | os.PathLike[str],
    advance: Callable[[int], None] = lambda count: None,
    *,
    lasting: bool = True,
) -> None:
    """Merge saved states into one file, a layer at a time.

    Parameters
    ----------
    states : sequence of SavedState
    path : str or path
        Where the merged state goes.
    advance : callable
        Told that a layer is done.
    lasting : bool
        See `collapsemeter.system.files.write_atomically`.

    Raises
    ------
    ValueError
        If there is none, a shard is in two of them, or they are not of one audit.
    """
    check_together(states)

    def layers() -> Iterator[tuple[str, ClassMoments]]:
        for name in states[0].layers:
            load = functools.partial(SavedState.moments, layer=name)
            yield name, tree(states, load, ClassMoments.merge)
            advance(1)

    shards = [record for state in states for record in state.shards]
    save_layers(path, layers(), shards, states[0].key, lasting=lasting)
