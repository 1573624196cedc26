"""The batch that is open: its labels, its rows' numbers, and what hooks note of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from collapsemeter.adapter.reduction import BatchError
from collapsemeter.stats.sampling import low_32_bits, reservoir_slots
from collapsemeter.stats.sketch import row_hashes

from .blocks import RowNumbers, dealt, joined, to_device
from .compiled import graphs_may_come
from .labels import row_numbers
from .namespace import products_are_reduced

if TYPE_CHECKING:
    from .state import Store

# The scopes that are open in each thread, for graphs. A global: tensors that torch.compile reaches through
# a module are constant in shape to it, and every batch size would be a graph of its own.
# Not a ContextVar, which a compiled graph cannot read; other threads never set it.
SCOPES = threading.local()


def recomputing() -> bool:
    """Whether a backward pass is running: this forward is activation checkpointing's second one."""
    return torch._C._current_graph_task_id() != -1


def inside_transform() -> ValueError | None:
    """Return an error where a transform of torch.func runs, whose tensors do not outlive it."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return None
    return ValueError(
        "the model ran inside a transform of torch.func (grad, vmap, jvp), which lets no activation out: measure "
        "it with meter.observe(batches)"
    )


def mask_of_positions(kwargs: Mapping[str, Any]) -> Any:
    """Return the attention mask that a model is given, (B, T) also where it is (B, 1, 1, T)."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim in (3, 4) and mask.shape[1:-1].numel() == 1:
        return mask.flatten(1)
    return mask


class Opened(threading.local):
    """The scope that a recorder has open in each thread, and its slot among `SCOPES`.

    A graph guards the slot. Each batch takes the first that is free, so that graphs do not tell one meter
    from another: of a code torch.compile makes eight graphs, and no more.
    """

    scope: LeftOut | None = None
    slot: str | None = None

    def put(self, scope: LeftOut) -> None:
        """Open a scope, or put it in the place of the one that is open."""
        if self.slot is None:
            number = 0
            while (slot := f"slot {number}") in SCOPES.__dict__:
                number += 1
            self.slot = slot
        self.scope = scope
        setattr(SCOPES, self.slot, scope)

    def clear(self) -> None:
        """Close the scope."""
        if self.slot is not None:
            del SCOPES.__dict__[self.slot]
        self.scope = self.slot = None


class LeftOut:
    """In place of a `Scope`, for a batch that the budget leaves out: its labels are not looked at."""

    def __init__(self, *, anyway: bool) -> None:
        self.anyway = anyway  # a batch whatever mode the model is in
        self.counted = True  # the model is in a mode that counts
        self.takes = True  # the outputs of layers are counted now
        self.done = False  # the forward that the labels belong to is over
        self.again = False  # the model ran a second time on the same labels
        self.problems: dict[str, BatchError] = {}
        self.misfit: ValueError | None = None  # in the model's output are no scores
        self.calls: dict[str, int] = {}

    def begins(self, module: nn.Module) -> None:
        """Note that a forward of the network begins: labels belong to the first in a mode that counts."""
        if not self.anyway:
            self.counted = module.training and torch.is_grad_enabled()
        self.takes = self.counted


class Scope(LeftOut):
    """The current batch as hooks need to know it; a new one for every batch.

    Where a graph may be made or run, everything that it needs is prepared here, outside of it: hooks
    only read it, note their calls in ``calls`` and problems in ``problems``, and clear the flags.
    """

    def __init__(
        self,
        store: Store,
        labels: Tensor,
        mask: Tensor | None,
        *,
        device: torch.device,
        complete: bool,  # every label is known to be a class
        anyway: bool,
    ) -> None:
        super().__init__(anyway=anyway)
        self.store = store
        self.device_type = device.type
        self.on_cuda = device.type == "cuda"
        self.labels = labels if device == labels.device else to_device(labels, device)
        self.shape = labels.shape  # for eager hooks: a graph would guard its numbers
        self.flat_labels = self.labels if labels.ndim == 1 else self.labels.flatten()
        self.mask = mask
        self.mask_seen: Any = None  # the attention mask that the model was given
        self.head_given: Any = None
        self.head_output: Any = None  # both until the model's end
        self.unseen = False  # something was counted in a compiled graph
        self.first_row = store.next_row
        self.rows = rows = labels.numel()
        numbers: RowNumbers = range(self.first_row, self.first_row + rows)
        if not complete:
            numbers, rows = row_numbers(labels, self.first_row, store.settings)
        alone = self.first_row and store.numbering.ranks == 1  # as it was found with the first row
        self.numbers = numbers if alone else store.numbered(numbers)
        store.next_row = self.end_row = self.first_row + rows
        self.ready = graphs_may_come()
        if self.ready:
            with torch.inference_mode(False):
                self._prepare(device)

    def mask_for(self, output: Any) -> Tensor | None:
        """Return the mask that goes with a layer's output: the user's, or the model's where it fits."""
        seen = self.mask_seen
        if self.mask is not None or not isinstance(seen, Tensor):
            return self.mask
        features = output[0] if isinstance(output, tuple | list) and output else output
        fits = isinstance(features, Tensor) and features.ndim == 3
        return seen if fits and features.shape[:2] == seen.shape and self.labels.ndim == 1 else None

    def _prepare(self, device: torch.device) -> None:
        numbers, settings = joined([self.numbers]), self.store.settings
        self.widen = products_are_reduced(device.type)
        self.slots: dict[int, Tensor] = {}
        self.ids = to_device(torch.from_numpy(numbers), device)
        for size in self.store.sample_sizes:
            slots = reservoir_slots(numbers, size, settings.seed)
            self.slots[size] = to_device(torch.from_numpy(slots), device)
        self.groups = to_device(torch.from_numpy(dealt(numbers)), device)
        self.hashes: tuple[Tensor, Tensor] | None = None
        if self.store.may_sketch():  # here: a compiled graph takes minutes to fuse all this
            hashes = row_hashes(numbers, settings.sketch_rows, settings.seed, low_32_bits)
            buckets, negative = (to_device(torch.from_numpy(part), device) for part in hashes)
            self.hashes = buckets, negative
