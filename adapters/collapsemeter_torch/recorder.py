"""What hooks hold: where the current batch counts, and what is between batches."""

from __future__ import annotations

import itertools
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from collapsemeter.adapter.batches import require_labels
from collapsemeter.adapter.budget import Budget
from collapsemeter.adapter.settings import Settings

from .batch import Batch, LeftOut, Scope, current_scope
from .store import Store

if TYPE_CHECKING:
    from .attachment import Attachment
    from .hooks import LayerHook

_NUMBERS = itertools.count()


class Recorder:
    """What the hooks of one meter share. The meter owns it, and hooks hold it weakly."""

    def __init__(
        self,
        root: nn.Module,
        settings: Settings,
        budget: Budget,
        attachment: Attachment,
        *,
        exact: bool,
        strict: bool,
        count_eval: bool,
    ) -> None:
        self.root, self.budget, self.count_eval = root, budget, count_eval
        self.live = Store(settings, exact=exact, strict=strict)
        self.slot = f"recorder {next(_NUMBERS)}"
        self.first_step = self.next_step = 0  # of what is being measured, in training batches
        self.pending = PendingOutputs()
        self.waits_for_loss = False  # labels come with a loss module
        self._attachment = attachment
        self._local = threading.local()

    def attach(self) -> None:
        """Put the hooks on the model; where they are there already, nothing happens."""
        self._attachment.attach(self)

    def detach(self) -> None:
        """Take every hook off the model."""
        self._attachment.detach()

    def scope(self) -> Scope | LeftOut | None:
        """The batch that is open in this thread."""
        return current_scope(self.slot)

    def is_training(self) -> bool:
        """Whether a forward now would be a step of training."""
        return self.root.training and torch.is_grad_enabled()

    def takes_next(self) -> bool:
        """Whether the budget takes the next training batch."""
        takes: bool = self.budget.takes(self.next_step - self.first_step, self.live.expected_rows)
        return takes

    def batch(self, labels: Any, mask: Any = None) -> Batch:
        """Return the block for a live batch; of one that the budget leaves out nothing is looked at."""
        if not self.takes_next():
            return self.left_out()
        require_labels(labels)
        return Batch(self, self.live, labels, mask, anyway=self.count_eval)

    def left_out(self) -> Batch:
        """Return the block for a live batch that is left out."""
        return Batch(self, self.live, None, anyway=self.count_eval)

    def open_by_hook(self, labels: Any, mask: Any) -> None:
        """Open a batch that a hook will close, see `close_by_hook`."""
        batch = self.batch(labels, mask)
        batch.__enter__()
        self._local.batch = batch

    def close_by_hook(self, *, failed: bool) -> None:
        """Close the batch that a hook opened in this thread, if there is one."""
        batch = getattr(self._local, "batch", None)
        if batch is not None:
            self._local.batch = None
            batch.finish(failed=failed)

    def close_stale(self) -> None:
        """Close the batch of an interrupted forward, which never came to its end."""
        self.close_by_hook(failed=True)

    def stash(self, hook: LayerHook, output: Any) -> None:
        """Keep what a layer gave, until the loss brings labels."""
        if torch.compiler.is_compiling():
            self.pending.refused = True
        elif self.is_training():
            started = perf_counter()
            if self.takes_next():
                self.pending.add(hook, output)
            else:
                self.pending.left_out = True
            self.live.clock.spend_since(started)

    def reset(self) -> None:
        """Forget what was counted; memory stays, and the next batch is counted."""
        self.live.clear()
        self.pending.clear()
        self.first_step = self.next_step


class PendingOutputs:
    """Copies of what the layers gave, until the loss is called with the labels.

    Copies, because an in-place operation after a layer (``ReLU(inplace=True)``) overwrites what the
    layer returned, and some such writes leave no trace in the tensor's version.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop what waits."""
        self.outputs: list[tuple[LayerHook, Any]] = []
        self.refused = False  # a compiled forward keeps no output
        self.left_out = False  # the budget left this forward out: nothing was kept of it

    def add(self, hook: LayerHook, output: Any) -> None:
        """Keep a copy of a layer's output."""
        copied = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), output)
        self.outputs.append((hook, copied))

    def take(self) -> list[tuple[LayerHook, Any]]:
        """Return what waits, and wait for nothing more."""
        outputs, self.outputs, self.left_out = self.outputs, [], False
        return outputs
