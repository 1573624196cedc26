"""The hooks of the object that the user calls, and of the loss: labels that need no edit of the loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils import _pytree as pytree

from collapsemeter.adapter.reduction import BatchError

from . import compiled
from .batch import IN_EVAL_MODE, FirstBatch, count_pending, forward_begins, open_by_hook
from .callers import labels_taken
from .inert import Hook
from .scope import LeftOut, Scope, inside_transform, mask_of_positions

if TYPE_CHECKING:
    from .recorder import Recorder

_EARLY = (
    "LAYER ran before the network itself, of which it is a part: run other networks outside of `with "
    "meter.batch(labels)`, or after the forward"
)


def begin_forward(recorder: Recorder, module: nn.Module, scope: LeftOut | None) -> None:
    """Mark the start of a forward of the network itself, in the batch that is open."""
    if scope is None:
        if recorder.waits_for_loss and is_compiling():
            # A graph keeps no output until the loss brings labels.
            recorder.pending.refused = True
        return
    eager = not is_compiling()
    if isinstance(scope, FirstBatch):
        scope.compiled = scope.compiled or not eager
    if eager and torch._C._current_graph_task_id() != -1:  # as `recomputing`
        return
    if scope.done:
        scope.again = True
        return
    if eager and not recorder.called:
        recorder.called = True
        if isinstance(scope, Scope):
            why = scope.labels.shape, _EARLY
            scope.store.unpair({name: BatchError(name, "rows", *why) for name in scope.calls})
    scope.begins(module)
    if eager and torch._C._functorch.peek_interpreter_stack() is not None:
        scope.misfit, scope.takes = inside_transform(), False


class RootPreHook(Hook):
    """Marks the start of a forward of a network that is inside of what the user calls."""

    __slots__ = ()

    def __call__(self, module: nn.Module, *unused: Any) -> None:
        recorder = self.recorder()
        if recorder is not None:
            begin_forward(recorder, module, recorder.scope())


class KeywordLabelsPreHook(Hook):
    """Shows the first forward to the meter, and opens a batch when ``labels=`` come and none is open.

    ``of_root`` says that it is the network itself that the user calls.
    """

    __slots__ = ("of_root",)

    def __init__(self, recorder: Recorder, *, of_root: bool) -> None:
        super().__init__(recorder)
        self.of_root = of_root

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder()
        if recorder is None:
            return
        if is_compiling():
            scope = recorder.scope()
        else:
            scope = recorder.opened.scope
            if type(scope) is not Scope or recorder.opened_by_hook or recorder.waits_for_loss:
                self._learn_and_begin(recorder, module, args, kwargs)
                scope = recorder.opened.scope
            elif kwargs and not scope.done:
                scope.mask_seen = mask_of_positions(kwargs)
        if self.of_root:
            begin_forward(recorder, module, scope)

    def _learn_and_begin(
        self, recorder: Recorder, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        known = recorder.learnt is not None
        self._begin(recorder, module, args, kwargs)
        learnt = recorder.learnt
        if not known and learnt is not None and learnt.selection.head_module is module:
            # Hooks that come while a module's hooks run are not called: here the model is the head.
            recorder.attachment.head_input(module, args, kwargs)

    def _begin(
        self, recorder: Recorder, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> None:
        if recorder.scope() is None:  # another batch, or a frozen pass, would be disturbed
            recorder.pending.interrupted()
            count_pending(recorder)
        recorder.close_stale()
        labels = kwargs.get("labels") if recorder.keyword_labels else None
        scope = recorder.scope()
        if labels is None and scope is None and recorder.keyword_labels:
            labels = labels_taken()
        if labels is None or scope is not None:
            forward_begins(recorder, args, kwargs)
            scope = recorder.scope()
            if isinstance(scope, Scope) and not scope.done:
                scope.mask_seen = mask_of_positions(kwargs)
            return
        if not recorder.count_eval and not (module.training and torch.is_grad_enabled()):
            recorder.nothing = IN_EVAL_MODE
            return
        try:
            recorder.learn(args, kwargs)
            if recorder.takes_next():
                labels = next_token(recorder.root, labels, recorder.live.settings.ignore_index)
            open_by_hook(recorder, labels, kwargs.get("attention_mask"))
        except Exception as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("labels=", error)


class FirstForwardHook(Hook):
    """Shows the first forward of a compiled model to the meter of the model inside."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder()
        if recorder is not None and not is_compiling():
            forward_begins(recorder, args, kwargs)


class KeywordLabelsHook(Hook):
    """Closes the batch that the pre-hook opened."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        recorder = self.recorder()
        if recorder is not None and not is_compiling():
            recorder.forward_ends(output)


def next_token(root: nn.Module, labels: Any, ignore_index: int) -> Any:
    """Shift the labels of a causal language model, whose position t predicts label t + 1."""
    names = [cls.__name__ for cls in type(root).__mro__]
    causal = any(word in name for name in names for word in ("CausalLM", "LMHead"))
    if not causal or not isinstance(labels, Tensor) or labels.ndim != 2:
        return labels
    last = torch.full_like(labels[:, :1], ignore_index)
    return torch.cat([labels[:, 1:], last], dim=1)


class CriterionHook(Hook):
    """Gives the labels of a loss to the forward whose scores the loss is of; it is counted when the next begins.

    A second loss on the same scores, with other labels, may still come: of mixed examples, no label is the one.
    """

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder = self.recorder()
        if recorder is None or recorder.scope() is not None:
            return
        try:
            self._note(recorder, module, args, kwargs)
        except Exception as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("criterion=", error)

    def _note(self, recorder: Recorder, module: nn.Module, args: Any, kwargs: Any) -> None:
        pending = recorder.pending
        if pending.refused:
            pending.clear()
            raise RuntimeError(
                "criterion= does not work under torch.compile, where activations are gone when the "
                "labels come: use `with meter.batch(labels):` around the forward"
            )
        if not pending.forwards:
            return
        labels = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("labels"))
        if labels is None:
            raise ValueError(
                f"criterion {type(module).__name__} was called without labels as second argument or "
                "target=: use `with meter.batch(labels):` instead"
            )
        logits = args[0] if args else kwargs.get("input")
        tensors = [leaf for leaf in pytree.tree_leaves(logits) if isinstance(leaf, Tensor)]
        forwards = pending.of(tensors)
        if len(forwards) > 1:
            recorder.nothing = "the loss was given scores of several forwards together"
        elif not forwards:
            recorder.nothing = "the loss was given something else than the network's scores"
        else:
            if isinstance(logits, Tensor):
                labels = of_one_logit(logits, labels)
            tensor = isinstance(labels, Tensor)
            forwards[0].labels.append(labels.detach().clone() if tensor else copy.copy(labels))


def of_one_logit(logits: Tensor, labels: Any) -> Any:
    """Return a binary loss's labels without their column: it takes both in one shape."""
    alike = isinstance(labels, Tensor) and labels.shape == logits.shape
    return labels[:, 0] if alike and logits.ndim > 1 and logits.shape[1] == 1 else labels


def watch_criterion(
    criterion: nn.Module, model: nn.Module, recorder: Recorder
) -> Callable[[], None]:
    """Take labels from the calls of a loss module; return what ends that."""
    if not isinstance(criterion, nn.Module):
        raise ValueError(
            f"criterion={criterion!r} is not an nn.Module: pass the loss as a module "
            "(nn.CrossEntropyLoss()), or use `with meter.batch(labels):`"
        )
    if compiled.is_compiled(model):
        raise ValueError(
            "criterion= does not work under torch.compile, where activations are gone when the "
            "labels come: use `with meter.batch(labels):` around the forward"
        )
    handle = criterion.register_forward_pre_hook(CriterionHook(recorder), with_kwargs=True)
    recorder.waits_for_loss = True
    return handle.remove
