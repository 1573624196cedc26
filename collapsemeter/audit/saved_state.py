"""The state that map writes: the moments of every layer, and which shards are in them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..stats.fields import Phase
from ..stats.moments import ClassMoments
from ..stats.state_file import CorruptStateError, StateFile, write_state
from ..stats.stored import fields_of, header_of
from ..stats.sums import Nonfinite, ScatterKind, check_num_classes
from .epochs import Labelled, LabelsOf

FORMAT = "collapsemeter.AuditState"
_GROUPS = ("group_counts", "group_sums", "group_squares")


@dataclass(frozen=True)
class ShardRecord:
    """A shard that was counted; ``label_*`` are as in `LabelsOf`, empty where they are not known."""

    id: str  # identifies its rows, wherever its files lie
    name: str
    files: dict[str, str]  # SHA-256 by file
    samples: int
    rows: int  # labels: tokens are more than samples
    labels: str = ""  # identifies the labels and the mask that were read with the rows
    label_order: str = ""
    label_counts: str = ""
    label_values: int = 0
    first_row: int | None = None  # that has a class: its number, where rows are dealt to groups
    numbered: int = 0  # rows that have a class, and numbers from there on
    mapped: bool = False  # by itself: the audit of all may number its rows otherwise

    @property
    def file_name(self) -> str:
        """The name of its state file, without an ending."""
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', self.name)[:80]}-{self.id[:16]}"

    @property
    def labelled(self) -> Labelled:
        """The shard as `epochs.check_one_epoch` takes it."""
        known = LabelsOf(self.label_order, self.label_counts, self.label_values)
        first = next(iter(self.files), self.name)
        return Labelled(first, lambda: self.id, known if self.label_counts else None)

    def mark(self, moments: ClassMoments) -> ClassMoments:
        """Return moments that know the shard they are of; of no rows nothing can be counted twice."""
        return replace(moments, shards=frozenset([self.id]) if moments.rows else frozenset())


class AuditState(NamedTuple):
    """Moments by layer, and the shard that they are of; states with another key do not merge."""

    layers: dict[str, ClassMoments]
    shard: ShardRecord
    key: dict[str, Any]


def save_layers(
    path: str | os.PathLike[str],
    layers: Iterable[tuple[str, ClassMoments]],
    shards: Sequence[ShardRecord],
    key: Mapping[str, Any],
    *,
    lasting: bool,
) -> None:
    """Write a state layer by layer: they need not be in memory together. Of absent classes nothing is kept."""
    entries: list[dict[str, Any]] = []

    def arrays() -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for i, (name, moments) in enumerate(layers):
            sizes = {"width": moments.width, "num_classes": moments.num_classes}
            groups = moments.groups
            about = header_of(moments) | {"groups": 0 if groups is None else groups.number}
            entries.append({"name": name, "kind": moments.kind, **sizes, **about})
            present, low = moments.counts > 0, moments.means_low
            assert low is not None
            yield f"{i}.counts", moments.counts
            yield f"{i}.means", moments.means[present]
            yield f"{i}.means_low", low[present]
            yield f"{i}.traces", moments.traces[present]
            if moments.scatter is not None:
                pooled = moments.scatter.ndim == 2
                yield f"{i}.scatter", moments.scatter if pooled else moments.scatter[present]
            if moments.sketch is not None and moments.signs is not None:
                yield f"{i}.sketch", moments.sketch
                yield f"{i}.signs", moments.signs[:, present]
            for part, array in ({} if groups is None else groups.arrays()).items():
                yield f"{i}.{part}", array[present]

    def header() -> dict[str, Any]:
        return {"layers": entries, "shards": [asdict(shard) for shard in shards], "key": dict(key)}

    write_state(path, header, arrays(), FORMAT, lasting=lasting)


@functools.lru_cache(maxsize=1)
def _reopened(path: str, digest: str) -> SavedState:
    return SavedState(path)


class SavedState:
    """A state file whose checksum was compared: its header is at hand, layers are read when asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = StateFile(path, FORMAT)
        self.digest = self._file.digest
        self.header = self._file.header
        try:
            _check_header(self.header)
            self.shards = tuple(ShardRecord(**record) for record in self.header["shards"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptStateError(f"{self.path} is not the state of an audit: {error}") from error
        self.layers: list[str] = [entry["name"] for entry in self.header["layers"]]
        self.key: dict[str, Any] = self.header["key"]
        self.widths: dict[str, int] = {e["name"]: e["width"] for e in self.header["layers"]}
        self.rows = sum(shard.rows for shard in self.shards)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as a path: workers open a state once, not once a task."""
        return _reopened, (self.path, self.digest)

    def moments(self, layer: str, scatter: bool = True) -> ClassMoments:
        """Read the moments of a layer; without a scatter where means are enough."""
        i = self.layers.index(layer)
        try:
            return self._moments(i, self.header["layers"][i], scatter)
        except CorruptStateError:
            raise
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CorruptStateError(f"{self.path} is not the state of an audit: {error}") from error

    def means(self) -> dict[str, ClassMoments]:
        """Read the moments of every layer, without a scatter."""
        return {name: self.moments(name, scatter=False) for name in self.layers}

    def _moments(self, i: int, entry: Mapping[str, Any], scatter: bool) -> ClassMoments:
        extras = {"trace": (), "sketch": ("sketch", "signs")}.get(entry["kind"], ("scatter",))
        extras += _GROUPS if entry.get("groups") else ()  # older files have none
        names = ("counts", "means", "means_low", "traces", *(extras if scatter else ()))
        arrays = {name: self._file.read(f"{i}.{name}") for name in names}
        counts = arrays["counts"]
        by_class = {"means", "means_low", "traces", *_GROUPS} | (
            {"scatter"} if entry["kind"] == "class" else set()
        )
        for name in by_class & arrays.keys():
            arrays[name] = _spread(arrays[name], counts)
        if "signs" in arrays:
            arrays["signs"] = _spread(arrays["signs"].T, counts).T
        seeds = entry["seeds"] if "sketch" in arrays else []
        fields = fields_of({**entry, "seeds": seeds}, arrays)
        moments = ClassMoments.summed_in(np.float64, **fields)
        self._check_moments(entry, moments)
        return moments

    def _check_moments(self, entry: Mapping[str, Any], moments: ClassMoments) -> None:
        """Raise ValueError unless moments are as large as the header says, and of as many rows."""
        name, shape = entry["name"], (entry["num_classes"], entry["width"])
        if moments.means.shape != shape or shape[0] != self.key["num_classes"]:
            raise ValueError(f"layer {name!r} has moments of shape {moments.means.shape}")
        counted = moments.rows + moments.ignored + moments.unlabelled + moments.mixed
        if self.key["nonfinite"] != "propagate":
            counted += moments.nonfinite
        if counted != self.rows:
            raise ValueError(
                f"layer {name!r} has counted {counted} rows, its shards have {self.rows}"
            )
        if moments.groups is not None:
            moments.groups.check(moments.counts, moments.traces)


def open_states(paths: Sequence[str | os.PathLike[str]]) -> list[SavedState]:
    """Open state files, several at a time: comparing their checksums reads them."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(SavedState, paths))


def _spread(rows: npt.NDArray[Any], counts: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Put rows of present classes among zeros for absent ones."""
    present = counts != 0
    if present.all():
        return rows
    spread = np.zeros((len(counts), *rows.shape[1:]), rows.dtype)
    spread[present] = rows
    return spread


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise unless what the rest relies on is there: a checksum is no signature."""
    types = {"name": str, "kind": str, "width": int, "num_classes": int, "ignored": int}
    for entry in header["layers"]:
        for name, kind in types.items():
            if not isinstance(entry[name], kind):
                raise TypeError(f"{name} of a layer is {entry[name]!r}")
        if entry["kind"] not in get_args(ScatterKind):
            raise ValueError(f"it keeps a scatter of kind {str(entry['kind'])[:50]!r}")
    names = [entry["name"] for entry in header["layers"]]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"its layers are {names}")
    for record in header["shards"]:
        counts = record["samples"], record["rows"], record.get("label_values", 0)
        numbers = *counts, record.get("first_row") or 0
        texts = record["id"], record["name"], *record["files"], *record["files"].values()
        texts += record.get("label_order", ""), record.get("label_counts", "")
        if not all(isinstance(n, int) and n >= 0 for n in numbers) or not all(
            isinstance(text, str) for text in texts
        ):
            raise TypeError("a record of a shard has no right types")
    key = header["key"]
    check_num_classes(key["num_classes"])
    if not isinstance(key["ignore_index"], int):
        raise TypeError("its ignore_index is no number")
    if key["phase"] not in get_args(Phase) or key["nonfinite"] not in get_args(Nonfinite):
        raise ValueError(f"it was counted with {key}")
