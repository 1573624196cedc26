"""The second pass: with the final means, decide on every row, or on a uniform sample of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..metrics.class_centres import ClassCentres
from ..metrics.decisions import Decisions, decide
from ..stats.head import Head
from ..stats.moments import ClassMoments
from .mapping import Task
from .rows import Chunk, OpenPiece

# Rows x classes x features of a layer: about a quarter of an hour on two cores where classes overlap, and far
# less where they are apart.
EXACT_PRODUCTS = 5e13
SAMPLE_ROWS = 65_536  # above that: a Wilson interval of at most 0.8 % at 95 %

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of a layer are decided on.

    Parameters
    ----------
    total : int
        Label rows there are.
    chosen : (K,) int64 array, or None
        Their numbers in order; all if None.
    """

    total: int
    chosen: Ints | None

    def within(self, first: int, count: int) -> Ints | None:
        """Return those among ``count`` rows from ``first`` on, counted from there; None: all of them."""
        if self.chosen is None:
            return None
        a, b = np.searchsorted(self.chosen, [first, first + count])
        return np.asarray(self.chosen[a:b] - first)


def choose_rows(total: int, classes: int, width: int, nc4: str | int, seed: int) -> Rows | None:
    """Say which rows of a layer are decided on.

    Parameters
    ----------
    total, classes, width : int
        Label rows, C and d.
    nc4 : "auto", "exact", "none" or int
        ``auto`` is exact up to `EXACT_PRODUCTS`; a number is the size of a uniform sample.
    seed : int

    Returns
    -------
    Rows or None
        None for ``none``.

    Examples
    --------
    >>> choose_rows(1000, 10, 64, "auto", 0).chosen is None
    True
    >>> len(choose_rows(1000, 10, 64, 100, 0).chosen)
    100
    """
    if nc4 == "none":
        return None
    if nc4 == "auto":
        nc4 = "exact" if float(total) * classes * width <= EXACT_PRODUCTS else SAMPLE_ROWS
    if nc4 == "exact" or total <= int(nc4):
        return Rows(total, None)
    drawn = np.random.default_rng(seed).choice(total, int(nc4), replace=False)
    return Rows(total, np.sort(drawn).astype(np.int64))


class DecideTask(NamedTuple):
    """What a worker is given: a piece, its layers, and which of its label rows; None: all of them."""

    task: Task
    layers: tuple[str, ...]
    chosen: Ints | None


class Reader(NamedTuple):
    """The head, and the layer that it reads."""

    head: Head
    layer: str


def decide_piece(
    given: DecideTask, moments_of: Callable[[str], ClassMoments], reader: Reader | None
) -> dict[str, Decisions]:
    """Decide on the rows of a piece.

    Parameters
    ----------
    given : DecideTask
    moments_of : callable
        From a layer to its final moments.
    reader : Reader, optional
        Decides for the network where its own decisions were not saved.

    Returns
    -------
    dict of str to Decisions
        By layer.
    """
    task = given.task
    with OpenPiece(task.piece, task.counting, task.cache) as opened:
        predictions = opened.decided()
        if predictions is None and reader is not None and reader.head.finite:
            predictions = _predictions(opened, given, reader)
        return {
            layer: _decided(opened, layer, moments_of(layer), predictions, given)
            for layer in given.layers
        }


def _predictions(opened: OpenPiece, given: DecideTask, reader: Reader) -> Ints:
    """Return the head's decision for every label row that is chosen."""
    decided = np.full(opened.labels.size, -1)
    for chunk in opened.chunks(reader.layer):
        picked = _picked(given.chosen, chunk)
        numbers = decided[chunk.first : chunk.first + len(chunk.rows)]
        numbers[picked] = reader.head.decide(chunk.rows[picked])
    return decided


def _decided(
    opened: OpenPiece,
    layer: str,
    moments: ClassMoments,
    predictions: Ints | None,
    given: DecideTask,
) -> Decisions:
    centres, settings = ClassCentres(moments), given.task.counting.settings
    zeros, sampled = np.zeros(moments.num_classes, np.int64), given.chosen is not None
    total = Decisions(zeros, zeros, None if predictions is None else zeros, sampled)
    for chunk in opened.chunks(layer):
        picked = _picked(given.chosen, chunk)
        own = None
        if predictions is not None:
            own = predictions[chunk.first : chunk.first + len(chunk.rows)][picked]
        part = decide(
            moments,
            chunk.rows[picked],
            chunk.labels[picked],
            predictions=own,
            sampled=sampled,
            ignore_index=settings.ignore_index,
            centres=centres,
        )
        total = total.merge(part)
    return total


def _picked(chosen: Ints | None, chunk: Chunk) -> Any:
    """Return the rows of a chunk that are decided on: a slice of all, or their numbers."""
    if chosen is None:
        return slice(None)
    a, b = np.searchsorted(chosen, [chunk.first, chunk.first + len(chunk.rows)])
    return chosen[a:b] - chunk.first
