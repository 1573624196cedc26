"""What map writes and merge combines: the moments of every layer, and which shards are in them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..moments import ClassMoments
from ..state_files import CorruptStateError, StateFile, write_state

FORMAT = "collapsemeter.AuditState"
_T = TypeVar("_T")


@dataclass(frozen=True)
class ShardRecord:
    """A shard that was counted.

    Parameters
    ----------
    id : str
        What identifies its rows, wherever its files lie.
    name : str
    files : dict of str to str
        SHA-256 by file.
    samples, rows : int
        Along the first axis, and labels: tokens are more than samples.
    """

    id: str
    name: str
    files: dict[str, str]
    samples: int
    rows: int


@dataclass(frozen=True, eq=False)
class AuditState:
    """Moments by layer, and where they are from.

    Parameters
    ----------
    layers : dict of str to ClassMoments
    shards : tuple of ShardRecord
    key : dict
        How rows were counted; states that were counted otherwise do not merge.
    """

    layers: dict[str, ClassMoments]
    shards: tuple[ShardRecord, ...]
    key: dict[str, Any]

    def merge(self, other: AuditState) -> AuditState:
        """Return the state of both.

        Raises
        ------
        ValueError
            If a shard is in both, the layers differ, or rows were counted in different ways.
        """
        check_mergeable(self.header(), other.header())
        layers = {name: moments.merge(other.layers[name]) for name, moments in self.layers.items()}
        return AuditState(layers, self.shards + other.shards, self.key)

    def header(self) -> dict[str, Any]:
        """Return what is written beside the arrays."""
        entries = [_entry(name, moments) for name, moments in self.layers.items()]
        return _header(entries, self.shards, self.key)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state atomically, with a checksum, see `save_layers`."""
        save_layers(path, self.layers.items(), self.shards, self.key)


def save_layers(
    path: str | os.PathLike[str],
    layers: Iterable[tuple[str, ClassMoments]],
    shards: Sequence[ShardRecord],
    key: Mapping[str, Any],
) -> None:
    """Write a state layer by layer: they need not be in memory together.

    Of absent classes nothing is kept.

    Raises
    ------
    OSError
        If it cannot be written; an older file of that name is then untouched.
    """
    entries: list[dict[str, Any]] = []

    def arrays() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for i, (name, moments) in enumerate(layers):
            entries.append(_entry(name, moments))
            present, low = moments.counts > 0, moments.means_low
            assert low is not None
            yield f"{i}.counts", moments.counts
            yield f"{i}.means", moments.means[present]
            yield f"{i}.means_low", low[present]
            yield f"{i}.traces", moments.traces[present]
            if moments.scatter is not None:
                whole = moments.scatter.ndim == 2
                yield f"{i}.scatter", moments.scatter if whole else moments.scatter[present]

    write_state(path, lambda: _header(entries, shards, key), arrays(), FORMAT)


def _entry(name: str, moments: ClassMoments) -> dict[str, Any]:
    return {
        "name": name,
        "kind": moments.kind,
        "width": moments.width,
        "num_classes": moments.num_classes,
        "feature_dtype": moments.feature_dtype,
        "phase": moments.phase,
        "shards": sorted(moments.shards),
        "ignored": moments.ignored,
        "nonfinite": moments.nonfinite,
    }


def _header(
    entries: list[dict[str, Any]], shards: Sequence[ShardRecord], key: Mapping[str, Any]
) -> dict[str, Any]:
    return {"layers": entries, "shards": [asdict(shard) for shard in shards], "key": dict(key)}


class SavedState:
    """A state file whose checksum was compared: its header is at hand, layers are read when asked for.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    CorruptStateError
        If the file is truncated, altered, or not a state of an audit.
    FileNotFoundError
        If there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = StateFile(path, FORMAT)
        self.digest = self._file.digest
        self.header = self._file.header
        try:
            self.shards = tuple(ShardRecord(**record) for record in self.header["shards"])
            self.layers = [str(entry["name"]) for entry in self.header["layers"]]
            self.key = dict(self.header["key"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStateError(f"{self.path} is not the state of an audit: {error}") from error

    def moments(self, layer: str) -> ClassMoments:
        """Read the moments of a layer."""
        i = self.layers.index(layer)
        entry = self.header["layers"][i]
        try:
            counts = self._file.read(f"{i}.counts")
            present = np.flatnonzero(counts)
            scatter = self._file.read(f"{i}.scatter") if entry["kind"] != "trace" else None
            if entry["kind"] == "class":
                assert scatter is not None
                scatter = _spread(scatter, present, len(counts))
            return ClassMoments(
                counts=counts,
                means=_spread(self._file.read(f"{i}.means"), present, len(counts)),
                scatter=scatter,
                traces=_spread(self._file.read(f"{i}.traces"), present, len(counts)),
                feature_dtype=entry["feature_dtype"],
                phase=entry["phase"],
                shards=frozenset(entry["shards"]),
                ignored=entry["ignored"],
                nonfinite=entry["nonfinite"],
                means_low=_spread(self._file.read(f"{i}.means_low"), present, len(counts)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptStateError(f"{self.path} is not the state of an audit: {error}") from error

    def state(self) -> AuditState:
        """Read the whole state."""
        return AuditState({name: self.moments(name) for name in self.layers}, self.shards, self.key)


def _spread(
    rows: npt.NDArray[Any], present: npt.NDArray[np.intp], classes: int
) -> npt.NDArray[Any]:
    whole = np.zeros((classes, *rows.shape[1:]), rows.dtype)
    whole[present] = rows
    return whole


def check_mergeable(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Raise ValueError where two states, by their headers, are not of the same audit or share a shard."""
    mine = {shard["id"]: shard["name"] for shard in a["shards"] if shard["samples"]}
    for shard in b["shards"]:
        if shard["id"] in mine and shard["samples"]:
            raise ValueError(
                f"shard {shard['name']} holds the rows of {mine[shard['id']]}, which were counted already "
                f"(SHA-256 {shard['id'][:12]}...): a shard is counted once; leave one of them out"
            )
    if a["key"] != b["key"]:
        other = next(name for name in a["key"] if a["key"][name] != b["key"].get(name))
        raise ValueError(
            f"one state was counted with {other}={a['key'][other]!r}, the other with "
            f"{b['key'].get(other)!r}: map all shards with the same options"
        )
    shapes = [{e["name"]: (e["num_classes"], e["width"]) for e in h["layers"]} for h in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"one state has layers {_words(shapes[0])}, the other {_words(shapes[1])}: they are not of the "
            "same network"
        )


def _words(shapes: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


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
) -> None:
    """Merge saved states into one file, a layer at a time.

    Parameters
    ----------
    states : sequence of SavedState
    path : str or path
        Where the merged state goes.
    advance : callable
        Told that a layer is done.

    Raises
    ------
    ValueError
        If there is none, a shard is in two of them, or they are not of one audit.
    """
    if not states:
        raise ValueError("there is no state to merge: pass the files that `audit map` wrote")
    seen: dict[str, Any] = {**states[0].header, "shards": []}
    for state in states:
        try:
            check_mergeable(seen, state.header)
        except ValueError as error:
            raise ValueError(f"{state.path} cannot be merged: {error}") from error
        seen["shards"] = seen["shards"] + state.header["shards"]

    def layers() -> Iterator[tuple[str, ClassMoments]]:
        for name in states[0].layers:
            load = functools.partial(SavedState.moments, layer=name)
            yield name, tree(states, load, ClassMoments.merge)
            advance(1)

    shards = [record for state in states for record in state.shards]
    save_layers(path, layers(), shards, states[0].key)
