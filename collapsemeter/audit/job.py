"""An audit's work as plain data: stored arrays, shards, pieces, and how rows are counted."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..activations.array_file import Array
from ..activations.manifest import RESERVED
from ..adapter.reduction import Reduction
from ..adapter.settings import Settings
from ..stats.fields import Phase
from ..stats.head import Head
from ..system.patterns import matches
from ..system.suggest import listed
from ..version import __version__

LABELS, PREDICTIONS, LOGITS, MASK = RESERVED  # the roles of arrays beside layers
WEIGHTS = ("weight", "kernel")  # what the array of a head is called
PIECE_BYTES = 2**30  # a task of its own for every GB: less than that is soon done again


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, from a row on."""

    file: str
    name: str
    array: Array
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.name!r} of {self.file}"

    @property
    def inside(self) -> str:
        """The name that the file's bytes have for it: a ``.npy`` has none, whatever the file is called."""
        return "" if self.file.lower().endswith(".npy") else self.name


def described(arrays: Mapping[str, Array], refused: Mapping[str, str]) -> str:
    """Return arrays in words, with those that are not read and why."""
    words = listed((f"{name} {array}" for name, array in arrays.items()), 12)
    if not refused:
        return words
    return f"{words}; not read: {listed((f'{name!r} {why}' for name, why in refused.items()), 3)}"


@dataclass(frozen=True, eq=False)
class Shard:
    """Samples whose arrays lie side by side: counted as a whole, once."""

    name: str  # for people: the names of its files
    layers: dict[str, StoredArray]
    samples: int  # n, along the first axis of all arrays
    extras: dict[str, StoredArray] = field(default_factory=dict)  # by role: labels, at least
    recorded: dict[str, str] = field(default_factory=dict)  # SHA-256 of files by the manifest

    @property
    def labels(self) -> StoredArray:
        """Its labels, (n,) or (n, T) integers from the offset on, or one-hot."""
        return self.extras[LABELS]

    @property
    def layer_files(self) -> list[str]:
        """The files that hold layers, each once."""
        return list(dict.fromkeys(stored.file for stored in self.layers.values()))

    @property
    def counted_files(self) -> list[str]:
        """All files that the moments depend on: of layers, labels and masks."""
        return [*self.layer_files, *self.files_beside(LABELS, MASK)]

    def files_beside(self, *roles: str) -> list[str]:
        """Return the files of arrays with these roles that hold no layer."""
        files = dict.fromkeys(self.extras[role].file for role in roles if role in self.extras)
        return [file for file in files if file not in self.layer_files]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(stored.array.nbytes for stored in self.layers.values())

    @property
    def whole(self) -> "Piece":
        """All of the shard as one piece."""
        return Piece(self, 0, self.samples)

    def pieces(self) -> "list[Piece]":
        """Cut into pieces of about a GB, the same ones whenever it is asked for."""
        count = max(1, min(self.samples, round(self.nbytes / PIECE_BYTES)))
        bounds = [self.samples * i // count for i in range(count + 1)]
        return [Piece(self, start, stop) for start, stop in itertools.pairwise(bounds)]


@dataclass(frozen=True, eq=False)
class Piece:
    """Samples ``start`` to ``stop`` of a shard."""

    shard: Shard
    start: int
    stop: int

    @property
    def samples(self) -> int:
        """How many samples it has."""
        return self.stop - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the shard."""
        return self.samples == self.shard.samples

    @property
    def nbytes(self) -> int:
        """Bytes of all its layers."""
        return self.shard.nbytes * self.samples // max(self.shard.samples, 1)


@dataclass(frozen=True)
class Counting:
    """How rows are counted: what a state depends on beside the data."""

    settings: Settings
    reductions: tuple[tuple[str, Reduction], ...] = ()  # the first pattern that matches decides
    labels: str | None = None  # the array in the files; None where labels have files of their own

    def reduction(self, layer: str) -> Reduction:
        """Return the reduction of a layer."""
        matching = (how for pattern, how in self.reductions if matches(pattern, layer))
        return next(matching, "auto")

    def key(self, phase: str, layers: Iterable[str]) -> dict[str, Any]:
        """Return everything but the data that a state depends on."""
        settings = asdict(self.settings)
        names = ("num_classes", "scatter", "sketch_rows", "ignore_index", "nonfinite", "groups")
        return {
            "collapsemeter": __version__,
            "phase": phase,
            "labels": self.labels,
            "reductions": {layer: self.reduction(layer) for layer in layers},
            **{name: settings[name] for name in names},
        }


class Task(NamedTuple):
    """The task of one worker: a piece, how to count it, a folder for copies of remote files, and how its rows are numbered."""

    piece: Piece
    counting: Counting
    phase: Phase
    cache: str
    first_row: int | None = None  # that has a class
    mapped: bool = False


class HeadReader(NamedTuple):
    """The head, and the layer that it reads."""

    head: Head
    layer: str


@dataclass(frozen=True, eq=False)
class Job:
    """All that an audit needs to run; states that are ``lasting`` are the result, and are forced to disk."""

    shards: list[Shard]
    layers: list[str]
    counting: Counting
    phase: Phase
    cache: str
    reader: HeadReader | None = None
    nc4: str | int = "auto"
    progress: bool = False
    lasting: bool = True
    skipped: dict[str, str] = field(default_factory=dict)  # arrays not measured, and why

    @cached_property
    def pieces(self) -> "list[Piece]":
        """The pieces of all shards, in order."""
        return [piece for shard in self.shards for piece in shard.pieces()]

    def task(self, piece: Piece, first_row: int | None = None) -> Task:
        """Return a worker's task."""
        return Task(piece, self.counting, self.phase, self.cache, first_row, self.lasting)
