"""Where the rows of a shard are: in which files, under which names."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from ..activations import Array

PIECE_BYTES = 2**30  # a task of its own for every GB: less than that is soon done again


@dataclass(frozen=True)
class ArrayAt:
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


@dataclass(frozen=True, eq=False)
class Shard:
    """Samples whose arrays lie side by side; it is counted as a whole, once.

    Parameters
    ----------
    name : str
        For people: the names of its files.
    layers : dict of str to ArrayAt
    labels : ArrayAt
        (n,) or (n, T) integers from the offset on, or one-hot.
    predictions, logits, mask : ArrayAt or None
        The network's own decisions, the logits they were made by, the attention mask.
    samples : int
        n, along the first axis of all arrays.
    recorded : dict of str to str
        SHA-256 of files by the manifest.
    """

    name: str
    layers: dict[str, ArrayAt]
    labels: ArrayAt
    samples: int
    predictions: ArrayAt | None = None
    logits: ArrayAt | None = None
    mask: ArrayAt | None = None
    recorded: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The files that hold layers, each once."""
        return list(dict.fromkeys(at.file for at in self.layers.values()))

    @property
    def extra_files(self) -> list[str]:
        """Other files that the moments depend on: of labels and masks."""
        return self._beside(self.labels, self.mask)

    @property
    def decision_files(self) -> list[str]:
        """Other files, which the second pass alone reads: of predictions and logits."""
        return self._beside(self.predictions, self.logits)

    def _beside(self, *extras: ArrayAt | None) -> list[str]:
        others = dict.fromkeys(at.file for at in extras if at is not None)
        return [file for file in others if file not in self.files]

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(at.array.nbytes for at in self.layers.values())

    def pieces(self) -> list[Piece]:
        """Cut into pieces of about a GB, the same ones whenever it is asked for."""
        count = max(1, min(self.samples, round(self.nbytes / PIECE_BYTES)))
        bounds = [self.samples * i // count for i in range(count + 1)]
        return [Piece(self, a, b) for a, b in itertools.pairwise(bounds)]


@dataclass(frozen=True, eq=False)
class Piece:
    """Samples ``start`` to ``stop`` of a shard."""

    shard: Shard
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        """Whether it is all of the shard."""
        return self.stop - self.start == self.shard.samples

    @property
    def nbytes(self) -> int:
        """Bytes of all its layers."""
        return self.shard.nbytes * (self.stop - self.start) // max(self.shard.samples, 1)
