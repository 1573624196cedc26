"""The object that hooks hold: the network as it is known, and where the current batch counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from collapsemeter.adapter.budget import Budget

from . import checkpoint
from .layers import innermost
from .members import numbering_of
from .memory import UNPLANNED
from .namespace import device_of, first_parameters
from .pending import Count, PendingForwards
from .scope import SCOPES, LeftOut, Opened, inside_transform, recomputing
from .state import HEAD_OUTPUT, Store

if TYPE_CHECKING:
    from .learnt import Learnt
    from .selection import Learner


class Attached(Protocol):
    """The hooks of one meter on its model, see `attachment`."""

    handles: list[RemovableHandle]
    head_input: Callable[..., None]
    newest: int  # hook of this process that was there when ours were last looked at

    def attach(self, recorder: Recorder) -> None: ...
    def watch(self, recorder: Recorder, learnt: Learnt) -> None: ...
    def stay_last(self) -> None: ...
    def replaced(self, modules: Mapping[str, nn.Module]) -> list[str]: ...
    def detach(self) -> None: ...


class Recorder:
    """The state that the hooks of one meter share. The meter owns it, and hooks hold it weakly."""

    def __init__(
        self,
        learner: Learner,
        budget: Budget,
        attachment: Attached,
        *,
        exact: bool,
        strict: bool,
        count_eval: bool,
        announce: Callable[[Learnt], None],
    ) -> None:
        self.root, self.budget, self.count_eval = innermost(learner.model), budget, count_eval
        self.limited = budget.limited  # some batches may be left out
        self.learnt: Learnt | None = None
        self.restored: Learnt | None = None  # what the meter of a loaded state knew
        self.resumed: dict[str, Any] | None = None  # a state that says nothing of the network
        self.nothing = ""  # why the last batch was not counted
        self.unseen: list[
            Callable[[], None]
        ] = []  # what expects the rows of blocks in which nothing ran before that
        # Their number of classes is that of nothing until the network has run.
        place = partial(numbering_of, learner.model)
        self.live = Store(
            learner.settings,
            UNPLANNED,
            exact=exact,
            strict=strict,
            wide=learner.wide_sums,
            place=place,
        )
        self.opened = Opened()
        self.first_step = self.next_step = 0  # of what is being measured, in training batches
        self.pending = PendingForwards()
        self.waits_for_loss = False  # labels come with a loss module
        self.keyword_labels = True  # labels may come with a forward
        self.attachment = attachment
        self._learner, self._announce = learner, announce
        self._first_parameters = first_parameters(self.root)
        self.of_thread = threading.local()  # the batch that a hook opened
        self.called = (
            False  # whether the network itself was called in a batch, and not its parts alone
        )
        self.opened_by_hook = False  # whether a batch of labels= was ever opened
        self.learning = threading.RLock()  # held while the first batch runs

    @property
    def knows_classes(self) -> bool:
        """Whether labels can be checked."""
        return self.learnt is not None or self._learner.num_classes is not None

    def attach(self) -> None:
        """Put the hooks on the model; where they are there already, nothing happens."""
        self.attachment.attach(self)

    def detach(self) -> None:
        """Take every hook off the model."""
        self.attachment.detach()

    def learn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Learnt:
        """Learn from the arguments of a forward what to watch, unless that is known."""
        with self.learning:  # two threads may each have a first batch
            return self.learnt or self._learn(args, kwargs)

    def _learn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Learnt:
        if error := inside_transform():
            raise error
        started = perf_counter()
        learnt = self._learner.learn(args, kwargs)
        if self.restored is not None:
            checkpoint.check_same_network(self.restored, learnt)
        self.live.settings, self.live.plan = learnt.settings, learnt.plan
        if self.resumed is not None:
            checkpoint.load_state(self.live, self.resumed, learnt, device_of(self.root))
            self.resumed = None
        for expect in self.unseen:
            expect()
        self.unseen.clear()
        self._announce(learnt)
        self.attachment.watch(self, learnt)
        self.learnt = learnt  # last: from here on other threads count
        self.live.clock.skip_since(started)
        return learnt

    def scope(self) -> LeftOut | None:
        """The batch that is open in this thread."""
        opened = self.opened
        if not torch.compiler.is_compiling():
            return opened.scope
        scope: LeftOut | None = None if opened.slot is None else getattr(SCOPES, opened.slot, None)
        return scope

    def device(self) -> torch.device:
        """Where the model's first parameter is now."""
        for parameter in self._first_parameters.values():
            if parameter is not None:
                return parameter.device
        return device_of(self.root)

    def is_training(self) -> bool:
        """Whether a forward now would be a step of training."""
        return self.root.training and torch.is_grad_enabled() and not recomputing()

    def takes_next(self) -> bool:
        """Whether the budget takes the next training batch."""
        takes: bool = self.budget.takes(self.next_step - self.first_step, self.live.expected_rows)
        return takes

    def close_by_hook(self, *, failed: bool) -> None:
        """Close the batch that a hook opened in this thread, if there is one."""
        batch = getattr(self.of_thread, "batch", None)
        if batch is not None:
            self.of_thread.batch = None
            batch.finish(failed=failed)

    def forward_ends(self, output: Any) -> None:
        """Close the batch that a hook opened; a forward that raised has no output."""
        try:
            self.close_by_hook(failed=output is None)
        except Exception as error:
            self.live.degrade("labels=", error)

    def close_stale(self) -> None:
        """Close the batch of an interrupted forward, which never came to its end."""
        self.close_by_hook(failed=True)

    def stash(self, name: str, count: Count, output: Any) -> None:
        """Keep what a layer gave, until a loss brings labels and it is counted."""
        pending = self.pending
        if torch.compiler.is_compiling():
            pending.refused = True
        elif self.is_training() and not recomputing():
            started = perf_counter()
            forward = pending.open()
            forward.left_out = not self.takes_next()
            if not forward.left_out:
                forward.add(count, output)
            if name == HEAD_OUTPUT and self.learnt is not None:
                pending.end(self.learnt.tensors_of_scores(output))
            self.live.clock.spent += perf_counter() - started

    @property
    def known(self) -> Learnt | None:
        """The network's scores, head and layers, from a forward or from a loaded state."""
        return self.learnt or self.restored

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted as tensors and plain values."""
        if self.known is None:
            state = self.resumed or checkpoint.empty_state()
        else:
            with self.live.lock:
                state = checkpoint.state_dict(self.live, self.known)
        return state | {"steps": [self.first_step, self.next_step]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        checkpoint.check_state(state)
        self.resumed = self.restored = None
        known, network = self.learnt, state.get("network")
        if known is None and network is not None:
            known = self._learner.restored(network, state["num_classes"])
        if known is None:  # of an older version: layers are compared when the network has run
            self.resumed = state
        else:
            self.live.settings, self.live.plan = known.settings, known.plan
            checkpoint.load_state(self.live, state, known, device_of(self.root))
            self.restored = known
        self.first_step, self.next_step = state["steps"]

    def reset(self) -> None:
        """Forget what was counted; memory stays, and the next batch is counted."""
        self.resumed = self.restored = None
        self.unseen.clear()
        self.nothing = ""
        self.live.clear()
        self.pending.clear()
        self.first_step = self.next_step
