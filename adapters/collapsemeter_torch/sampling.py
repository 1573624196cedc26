"""What is kept for NC4: which rows, where they go, and the network's own decisions on them."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from collapsemeter.stats.sampling import reservoir_slots


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for what it still has to do.

    From ordinary memory a GPU's copy waits for all work before it, the last step's backward; from
    pinned memory it takes its turn.

    Examples
    --------
    >>> to_device(torch.tensor([1, 2]), torch.device("cpu"))
    tensor([1, 2])
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def chosen(
    numbers: npt.NDArray[np.int64], seed: int, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return which rows of a block go into the sample, into which slots, and their numbers.

    Parameters
    ----------
    numbers : (B,) int64 array
        As of `collapsemeter.stats.sampling.reservoir_slots`.
    seed : int
    kept : (size + 1,) tensor
        Numbers of the rows in the sample. A row whose slot a later one took while it waited goes to the bin.

    Returns
    -------
    three (n,) tensors beside ``kept``, or None if n = 0

    Examples
    --------
    >>> chosen(np.array([7, -1, 8]), 0, torch.tensor([-1] * 9 + [-1]))
    (tensor([0, 2]), tensor([7, 8]), tensor([7, 8]))
    """
    size = len(kept) - 1
    picked = _picked(numbers.tobytes(), size, seed)
    if not picked.size:
        return None
    places, due, ids = to_device(torch.from_numpy(picked), kept.device)
    return places, torch.where(ids > kept.index_select(0, due), due, size), ids


@functools.lru_cache(maxsize=1)
def _picked(numbers: bytes, size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return rows, slots and numbers of those that have a slot: every layer asks, and so do decisions."""
    plain = np.frombuffer(numbers, np.int64)
    slots = reservoir_slots(plain, size, seed)
    rows = np.flatnonzero(slots < size)
    return np.stack([rows, slots[rows], plain[rows]])


class PredictionState:
    """The network's own decisions on the sampled rows, by row number.

    Examples
    --------
    >>> state = PredictionState(torch.device("cpu"), sample_size=2)
    >>> state.add(torch.tensor([5, 6]), slots=torch.tensor([1, 2]), ids=torch.tensor([1, 9]))
    >>> state.ids[:-1], state.predictions[:-1]
    (tensor([-1,  1]), tensor([0, 5]))
    """

    def __init__(self, device: torch.device, sample_size: int) -> None:
        self.made_in_graph = torch.compiler.is_compiling()
        self.predictions = torch.zeros(sample_size + 1, dtype=torch.int64, device=device)
        self.ids = torch.full((sample_size + 1,), -1, dtype=torch.int64, device=device)

    def add(self, predictions: Tensor, slots: Tensor, ids: Tensor) -> None:
        """Keep the decisions on the rows that have a slot."""
        self.predictions.index_copy_(0, slots, predictions)
        self.ids.index_copy_(0, slots, ids)

    def clear(self) -> None:
        """Forget every decision."""
        self.ids.fill_(-1)
