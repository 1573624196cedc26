"""One batch on its way through the model: the block `with meter.batch(labels)`, which a hook or a loss may open, too."""

from __future__ import annotations

import copy
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from collapsemeter.adapter.batches import require_labels
from collapsemeter.adapter.reduction import BatchError
from collapsemeter.system.warning import warn

from .blocks import to_device
from .labels import are_classes, label_tensor
from .scope import LeftOut, Scope
from .sharding import local
from .state import HEAD_OUTPUT

if TYPE_CHECKING:
    from .pending import PendingForward
    from .recorder import Recorder
    from .state import Store

IN_EVAL_MODE = (
    "the model was in eval mode, or without gradients, whenever labels came: pass count_eval=True"
)
# Seconds that a first batch waits for that of another thread, which may have been left open.
_PATIENCE = 60.0


class FirstBatch(LeftOut):
    """A batch before it is known which layers to watch: its own forward tells."""

    def __init__(self, batch: Batch, *, anyway: bool) -> None:
        super().__init__(anyway=anyway)
        self.counted = False
        self.labels = batch.labels
        self.compiled = False  # the forward ran where no hook sees what it was given
        self.ran = False  # the network did, in whatever mode
        self.error: Exception | None = None
        self._batch = batch

    def learn(self, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Learn from the forward's arguments; the block of the user sees an error at its end."""
        self.ran = True
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
        if recorder.attachment.newest != RemovableHandle.next_id:
            recorder.attachment.stay_last()
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
        # Where the network itself is called, what runs before that is another one with layers of this.
        scope.takes = scope.counted and not recorder.called
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
        if scope.anyway or (self._recorder.is_training() and not scope.ran):
            self._recorder.unseen.append(self._expect)
            self._recorder.nothing = "the model did not run inside `with meter.batch(labels)`"
        else:
            self._recorder.nothing = IN_EVAL_MODE

    def _expect(self) -> None:
        """Expect these rows of every layer: in this block nothing ran."""
        self._check_labels()
        self._store.expected_rows += self.labels.numel()
        self._store.batches += 1


def live_batch(recorder: Recorder, labels: Any, mask: Any = None) -> Batch:
    """Return the block for a live batch; of one that the budget leaves out nothing is looked at."""
    if recorder.limited and not recorder.takes_next():
        return _left_out(recorder)
    if type(labels) is not Tensor:
        labels = local(labels)
        require_labels(labels)
    return Batch(recorder, recorder.live, labels, mask, anyway=recorder.count_eval)


def open_by_hook(recorder: Recorder, labels: Any, mask: Any) -> None:
    """Open a batch that a hook will close, see `Recorder.close_by_hook`."""
    batch = live_batch(recorder, labels, mask)
    batch.__enter__()
    recorder.opened_by_hook = True
    recorder.of_thread.batch = batch


def forward_begins(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Learn from the first forward that has labels, or whose labels come with the loss."""
    scope = recorder.scope()
    if isinstance(scope, FirstBatch):
        scope.learn(recorder, args, kwargs)
    elif (
        recorder.learnt is None
        and scope is None
        and recorder.waits_for_loss
        and recorder.is_training()
    ):
        try:
            recorder.learn(args, kwargs)
        except Exception as error:
            recorder.live.degrade("criterion=", error)


def count_pending(recorder: Recorder) -> None:
    """Count the forwards whose labels a loss has brought."""
    for forward in recorder.pending.take_labelled():
        try:
            _count_forward(recorder, forward)
        except Exception as error:  # the loop was not edited for us: it must not notice us
            recorder.live.degrade("criterion=", error)


def _count_forward(recorder: Recorder, forward: PendingForward) -> None:
    if forward.left_out:
        with _left_out(recorder):
            return
    labels = forward.all_labels(recorder.live.settings.num_classes)
    require_labels(labels)
    # The model trained when this ran, whatever it does now.
    with Batch(recorder, recorder.live, labels, anyway=True):
        scope = recorder.scope()
        if isinstance(scope, Scope):
            for count, output in forward.outputs:
                count(scope, output)


def _left_out(recorder: Recorder) -> Batch:
    """Return the block for a live batch that is left out."""
    return Batch(recorder, recorder.live, None, anyway=recorder.count_eval)


def _problem_of_all(scope: LeftOut) -> BatchError | None:
    """Return a problem that no layer was without: the labels are not those of this forward."""
    layers = [name for name in scope.calls if name not in scope.problems and name != HEAD_OUTPUT]
    return None if layers else next(iter(scope.problems.values()), None)


def _shape(labels: Any) -> str:
    return "left out by the budget" if labels is None else f"of shape {tuple(np.shape(labels))}"
