"""The block in which a forward is counted."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from collapsemeter.adapter.batches import require_labels
from collapsemeter.system.warning import warn

from . import compiled
from .device import device_of
from .keyword_labels import close_stale
from .sampling import to_device
from .scope import LeftOut, Scope, Store, are_classes, current_scope, label_tensor, set_scope

if TYPE_CHECKING:
    from .meter import CollapseMeter


class Batch:
    """The block in which a forward is counted."""

    def __init__(
        self,
        meter: CollapseMeter,
        store: Store,
        labels: Any,
        mask: Tensor | None,
        *,
        anyway: bool,
        due: bool = True,
    ) -> None:
        started = perf_counter()
        self._meter, self._store, self._anyway = meter, store, anyway
        self._labels = self._mask = None
        self._complete = False  # every row is known to have a class
        self._device = device_of(meter._root)
        if due:  # by the budget; of a batch that is not, nothing is looked at
            require_labels(labels)
            known = meter.num_classes, meter.settings.ignore_index
            self._complete = are_classes(labels, *known)
            self._labels = (
                labels.detach().clone()
                if self._complete
                else label_tensor(labels, *known, self._device, mask)
            )
            self._mask = None if mask is None else to_device(torch.as_tensor(mask), self._device)
        self._scope: Scope | LeftOut | None = None
        self._preparing = perf_counter() - started

    def __enter__(self) -> None:
        started = perf_counter() - self._preparing
        meter, clock = self._meter, self._store.clock
        close_stale(meter)
        outer = current_scope(meter._slot)
        if outer is not None:
            raise ValueError(
                f"labels {_shape(self._labels)} arrive while labels "
                f"{_shape(getattr(outer, 'labels', None))} wait for their forward: close the first "
                "block"
            )
        clock.begin(started)
        meter.attach()
        if self._labels is None:
            self._scope = LeftOut(anyway=self._anyway)
        else:
            clock.taken = True
            with meter._lock:
                self._scope = Scope(
                    self._store,
                    self._labels,
                    self._mask,
                    meter.settings,
                    device=self._device,
                    complete=self._complete,
                    anyway=self._anyway,
                )
                if self._scope.ready:
                    compiled.repair(self._store)
        if not self._anyway and not (meter._root.training and torch.is_grad_enabled()):
            # The model may still be set to train inside the block: its own forward decides.
            self._scope.counted = False
        set_scope(meter._slot, self._scope)
        clock.spend_since(started)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(failed=kind is not None)
        if kind is not None:
            self._meter.detach()

    def finish(self, failed: bool) -> None:
        """Expect every layer to have counted this batch, or forget it where it failed."""
        started = perf_counter()
        meter, scope, clock = self._meter, self._scope, self._store.clock
        set_scope(meter._slot, None)
        self._scope = None
        if scope is None:
            return
        problem = next(iter(scope.problems.values()), None)
        counted = scope.counted and problem is None and not failed
        with meter._lock:
            if isinstance(scope, Scope):
                if counted:
                    self._store.commit(scope)
                else:
                    scope.abort()
            if counted and self._store is meter._live:
                meter._steps[1] += 1
        clock.spend_since(started)
        if not counted:
            clock.leave()
        if failed:
            return
        if problem is not None:
            raise ValueError(str(problem)) from None
        if scope.again:
            warn(
                "the model ran more than once in one `with meter.batch(labels)` block: only the first "
                "forward was counted; give every forward a block of its own"
            )


def _shape(labels: Tensor | None) -> str:
    return "left out by the budget" if labels is None else f"of shape {tuple(labels.shape)}"
