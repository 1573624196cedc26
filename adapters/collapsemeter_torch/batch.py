"""One batch on its way through the model: the block that opens it, and what hooks need to know of it."""

from __future__ import annotations

import copy
import threading
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from collapsemeter.adapter.reduction import BatchError
from collapsemeter.stats.sampling import low_32_bits, reservoir_slots
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.system.warning import warn

from .blocks import RowNumbers, dealt, joined, to_device
from .compiled import graphs_may_come
from .labels import are_classes, label_tensor, row_numbers
from .namespace import products_are_reduced
from .state import HEAD_OUTPUT

if TYPE_CHECKING:
    from .recorder import Recorder
    from .state import Store

# The scopes that are open in each thread, for graphs. A global: tensors that torch.compile reaches through
# a module are constant in shape to it, and every batch size would be a graph of its own.
# Not a ContextVar, which a compiled graph cannot read; other threads never set it.
SCOPES = threading.local()

IN_EVAL_MODE = (
    "the model was in eval mode, or without gradients, whenever labels came: pass count_eval=True"
)
# Seconds that a first batch waits for that of another thread, which may have been left open.
_PATIENCE = 60.0


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
        self.done = False  # the forward that the labels belong to is over
        self.again = False  # the model ran a second time on the same labels
        self.problems: dict[str, BatchError] = {}
        self.misfit: ValueError | None = None  # in the model's output are no scores
        self.calls: dict[str, int] = {}


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


class FirstBatch(LeftOut):
    """A batch before it is known which layers to watch: its own forward tells."""

    def __init__(self, batch: Batch, *, anyway: bool) -> None:
        super().__init__(anyway=anyway)
        self.counted = False
        self.labels = batch.labels
        self.compiled = False  # the forward ran where no hook sees what it was given
        self.error: Exception | None = None
        self._batch = batch

    def learn(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Learn from the forward's arguments; the block of the user sees an error at its end."""
        if self.error is None and (self.anyway or recorder.is_training()):
            try:
                recorder.learn(args, kwargs)
                self._batch.open()
            except Exception as error:
                self.error = error


class Batch:
    """The block in which a forward is counted; with ``labels=None`` one that the budget leaves out."""

    def __init__(
        self, recorder: Recorder, store: Store, labels: Any, mask: Any = None, *, anyway: bool
    ) -> None:
        started = perf_counter()
        self._recorder, self._store, self._anyway = recorder, store, anyway
        self.labels, self._mask = labels, mask
        self._complete = False  # every row is known to have a class
        self._checked = False
        if labels is not None:
            self._device = recorder.device()
            if recorder.learnt is not None or recorder.knows_classes:
                self._check_labels()
            else:  # the loop may write into them before the forward tells of classes
                tensor = isinstance(labels, Tensor)
                self.labels = labels.detach().clone() if tensor else copy.copy(labels)
        self._scope: Scope | LeftOut | None = None
        self._alone = False  # until this first batch is over others wait
        self._preparing = perf_counter() - started

    def _check_labels(self) -> None:
        if self._checked:
            return
        self._checked = True
        settings, labels, mask = self._store.settings, self.labels, self._mask
        classes, ignored = settings.num_classes, settings.ignore_index
        if are_classes(labels, classes, ignored):
            self._complete, self.labels = True, labels.clone()
        else:
            self.labels = label_tensor(labels, classes, ignored, self._device, mask, settings.mixed)
        if mask is not None:
            self._mask = to_device(torch.as_tensor(mask), self._device)

    def __enter__(self) -> None:
        started = perf_counter() - self._preparing
        recorder, store = self._recorder, self._store
        if recorder.opened_by_hook:
            recorder.close_stale()
        outer = recorder.opened.scope
        if outer is not None:
            raise ValueError(
                f"labels {_shape(self.labels)} arrive while labels "
                f"{_shape(getattr(outer, 'labels', None))} wait for their forward: close the first "
                "block"
            )
        if self.labels is not None and recorder.learnt is None:
            # While a network is studied no other thread may run it: one first batch at a time.
            self._alone = recorder.learning.acquire(timeout=_PATIENCE)
        store.clock.begin(started)
        if recorder.learnt is None or not recorder.attachment.handles:
            recorder.attach()  # once, as learning: no share of the steps
            started = perf_counter()
        if self.labels is None:
            self._begin(LeftOut(anyway=self._anyway))
        elif recorder.learnt is None:
            self._scope = FirstBatch(self, anyway=self._anyway)
            recorder.opened.put(self._scope)
        else:
            self.open()
        store.clock.spent += perf_counter() - started

    def open(self) -> None:
        """Prepare what the hooks read."""
        store = self._store
        if not self._checked:  # the classes are known only now
            self._check_labels()
        with store.lock:
            scope = Scope(
                store,
                self.labels,
                self._mask,
                device=self._device,
                complete=self._complete,
                anyway=self._anyway,
            )
            if scope.ready:
                store.make_ordinary()
        self._begin(scope)

    def _begin(self, scope: Scope | LeftOut) -> None:
        recorder, self._scope = self._recorder, scope
        # The model may still be set to train inside the block: its own forward decides.
        scope.counted = self._anyway or (recorder.root.training and torch.is_grad_enabled())
        recorder.opened.put(scope)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(failed=kind is not None)
        if kind is not None:
            self._recorder.detach()

    def finish(self, failed: bool) -> None:
        """Expect every layer to have counted this batch, or forget it where it failed."""
        if self._alone:
            self._alone = False
            try:
                self.finish(failed)
            finally:
                self._recorder.learning.release()
            return
        started = perf_counter()
        recorder, store, scope = self._recorder, self._store, self._scope
        if scope is None:
            return
        self._scope = None
        recorder.opened.clear()
        if type(scope) is FirstBatch:
            store.clock.leave()
            if not failed:
                self._explain(scope)
            return
        problem = scope.misfit or (_problem_of_all(scope) if scope.problems else None)
        recorder.nothing = str(problem or IN_EVAL_MODE) if problem or not scope.counted else ""
        counted = scope.counted and problem is None and not failed
        with store.lock:
            if type(scope) is Scope:
                if counted:
                    if scope.problems:
                        store.unpair(scope.problems)
                    store.commit(scope)
                else:
                    store.abort(scope)
            if counted and store is recorder.live:
                recorder.next_step += 1
        store.clock.spent += perf_counter() - started
        if not counted:
            store.clock.leave()
        if failed:
            return
        if problem is not None:
            raise ValueError(str(problem)) from None
        if scope.again:
            warn(
                "the model ran more than once in one `with meter.batch(labels)` block: only the first "
                "forward was counted; give every forward a block of its own"
            )

    def _explain(self, scope: FirstBatch) -> None:
        """Say why nothing could be learnt from a block."""
        error = scope.error
        if error is None and scope.compiled:
            error = ValueError(
                "the model ran inside a compiled graph before the meter had seen it run: pass example=, "
                "a batch of inputs, or the compiled model itself"
            )
        if error is not None:
            self._recorder.nothing = str(error)
            raise error from None
        if scope.anyway or self._recorder.is_training():
            self._recorder.unseen.append(self)
            self._recorder.nothing = "the model did not run inside `with meter.batch(labels)`"
        else:
            self._recorder.nothing = IN_EVAL_MODE

    def expect(self) -> None:
        """Expect these rows of every layer: in this block nothing ran."""
        self._check_labels()
        self._store.expected_rows += self.labels.numel()
        self._store.batches += 1


def _problem_of_all(scope: LeftOut) -> BatchError | None:
    """Return a problem that no layer was without: the labels are not those of this forward."""
    layers = [name for name in scope.calls if name not in scope.problems and name != HEAD_OUTPUT]
    return None if layers else next(iter(scope.problems.values()), None)


def _shape(labels: Any) -> str:
    return "left out by the budget" if labels is None else f"of shape {tuple(np.shape(labels))}"
