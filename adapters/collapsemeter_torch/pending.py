"""Forwards that wait for a loss to be called with their scores, which brings the labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .scope import Scope

Count = Callable[[Scope, Any], None]  # of a hook
_MOST = 4  # forwards that wait; of more, as where a loop evaluates in training mode, the oldest go
_DEEPEST = 256  # operations between scores and a loss that are looked through


class PendingForward:
    """One forward: copies of what its layers gave, its scores, and the labels that came for them.

    Copies, because an in-place operation after a layer (``ReLU(inplace=True)``) overwrites what the
    layer returned, and some such writes leave no trace in the tensor's version.
    """

    def __init__(self) -> None:
        self.outputs: list[tuple[Count, Any]] = []
        self.left_out = False  # the budget left it out: nothing was kept of it
        self.labels: list[Any] = []
        self._scores: list[weakref.ref[Tensor]] = []
        self.nodes: list[Any] = []

    def add(self, count: Count, output: Any) -> None:
        """Keep a copy of a layer's output."""
        copied = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), output)
        self.outputs.append((count, copied))

    def end(self, scores: list[Tensor]) -> None:
        """Note by what a loss will know this forward."""
        self._scores = [weakref.ref(tensor) for tensor in scores]
        self.nodes = [tensor.grad_fn for tensor in scores if tensor.grad_fn is not None]

    def gave(self, tensor: Tensor) -> bool:
        """Whether a tensor is the scores, or a view of them."""
        for reference in self._scores:
            scores = reference()
            if scores is not None and (tensor is scores or _same_memory(tensor, scores)):
                return True
        return False

    def all_labels(self, num_classes: int) -> Any:
        """Return the labels; of two sets, as of mixed examples, rows where they differ name two classes."""
        first, *later = self.labels
        for labels in later:
            if not _equal(first, labels):
                return _mixed(self.labels, num_classes)
        return first


class PendingForwards:
    """The forwards whose labels may still come."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop what waits."""
        self.forwards: list[PendingForward] = []
        self.refused = False  # a compiled forward keeps no output
        self._open: PendingForward | None = None

    def open(self) -> PendingForward:
        """Return the forward that runs."""
        if self._open is None:
            self._open = PendingForward()
            self.forwards = [*self.forwards[1 - _MOST :], self._open]
        return self._open

    def end(self, scores: list[Tensor]) -> None:
        """End the forward that runs: what runs again in the backward pass is not it."""
        self.open().end(scores)
        self._open = None

    def interrupted(self) -> None:
        """Drop a forward that never came to its end."""
        if self._open is not None:
            self.forwards.remove(self._open)
            self._open = None

    def of(self, tensors: list[Tensor]) -> list[PendingForward]:
        """Return the forwards from whose scores a loss was made."""
        forwards = [f for f in self.forwards if any(map(f.gave, tensors))]
        return forwards or self._before([tensor.grad_fn for tensor in tensors])

    def _before(self, nodes: list[Any]) -> list[PendingForward]:
        """Return the forwards whose scores come before operations, through few others."""
        owners = {node: forward for forward in self.forwards for node in forward.nodes}
        seen: set[Any] = set()
        forwards: list[PendingForward] = []
        waiting = [node for node in nodes if node is not None]
        while waiting and len(seen) < _DEEPEST:
            node = waiting.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node not in owners:
                waiting += [before for before, _ in node.next_functions if before is not None]
            elif owners[node] not in forwards:
                forwards.append(owners[node])
        return forwards

    def take_labelled(self) -> Iterator[PendingForward]:
        """Yield the forwards that have labels; those before them have lost their turn."""
        labelled = [forward for forward in self.forwards if forward.labels]
        if labelled:
            self.forwards = []
            self._open = None
        yield from labelled


def _same_memory(tensor: Tensor, scores: Tensor) -> bool:
    return tensor._is_view() and tensor._base is (scores._base if scores._is_view() else scores)


def _equal(first: Any, second: Any) -> bool:
    if first is second:
        return True
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    return tensors and first.shape == second.shape and torch.equal(first, second)


def _mixed(sets: list[Tensor], num_classes: int) -> Tensor:
    """Return the mean of several label sets as one column a class, zero where a label is no class."""
    return torch.stack([_columns(labels, num_classes) for labels in sets]).mean(0)


def _columns(labels: Tensor, num_classes: int) -> Tensor:
    if labels.is_floating_point() and labels.ndim > 1:
        return labels.float()
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[..., None] == classes).float()
