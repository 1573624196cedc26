"""Labels that need no edit of the loop: given to the model as ``labels=``, or to the loss after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .batch import Scope
from .hooks import HeadOutputHook, Hook

if TYPE_CHECKING:
    from .recorder import Recorder


class KeywordLabelsPreHook(Hook):
    """Opens a batch when the model is called with ``labels=`` and none is open."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        recorder = self.recorder()
        if recorder is None or torch.compiler.is_compiling():
            return
        recorder.pending.clear()  # what a forward without a loss left behind
        recorder.close_stale()
        labels = kwargs.get("labels")
        if labels is None or recorder.scope() is not None:
            return
        if not recorder.count_eval and not (module.training and torch.is_grad_enabled()):
            return
        try:
            if recorder.takes_next():
                labels = next_token(recorder, labels)
            recorder.open_by_hook(labels, kwargs.get("attention_mask"))
        except Exception as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("labels=", error)


class KeywordLabelsHook(Hook):
    """Closes the batch that the pre-hook opened."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        recorder = self.recorder()
        if recorder is None or torch.compiler.is_compiling():
            return
        try:
            recorder.close_by_hook(failed=output is None)  # a forward that raised has no output
        except Exception as error:
            recorder.live.degrade("labels=", error)


def next_token(recorder: Recorder, labels: Any) -> Any:
    """Shift the labels of a causal language model, whose position t predicts label t + 1."""
    names = [cls.__name__ for cls in type(recorder.root).__mro__]
    causal = any(word in name for name in names for word in ("CausalLM", "LMHead"))
    if not causal or not isinstance(labels, Tensor) or labels.ndim != 2:
        return labels
    last = torch.full_like(labels[:, :1], recorder.live.settings.ignore_index)
    return torch.cat([labels[:, 1:], last], dim=1)


class CriterionHook(Hook):
    """Counts what waits when the loss module is called with the labels."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder = self.recorder()
        if recorder is None:
            return
        pending = recorder.pending
        if pending.refused:
            pending.clear()
            raise RuntimeError(
                "criterion= does not work under torch.compile, where activations are gone when the "
                "labels come: use `with meter.batch(labels):` around the forward"
            )
        if pending.left_out and recorder.scope() is None:
            pending.clear()
            with recorder.left_out():
                return
        waiting = pending.take()
        if not waiting:
            return
        labels = args[1] if len(args) > 1 else kwargs.get("target", kwargs.get("labels"))
        if labels is None:
            raise ValueError(
                f"criterion {type(module).__name__} was called without labels as second argument or "
                "target=: use `with meter.batch(labels):` instead"
            )
        logits = args[0] if args else kwargs.get("input")
        if isinstance(logits, Tensor):
            logits, labels = of_one_logit(logits, labels)
        if isinstance(module, nn.BCELoss) and isinstance(logits, Tensor):
            logits = logits.detach() - 0.5  # of probabilities: a half decides, and not zero
        try:
            with recorder.batch(labels):
                scope = recorder.scope()
                if not isinstance(scope, Scope):
                    return
                for hook, output in waiting:
                    hook.guarded(scope, output)
                if isinstance(logits, Tensor) and logits.ndim == scope.labels.ndim + 1:
                    # Loss modules take the classes on axis 1, however many positions follow.
                    HeadOutputHook(recorder).guarded(scope, logits.movedim(1, -1))
        except ValueError as error:  # the loop was not edited for us: it must not notice us either
            recorder.live.degrade("criterion=", error)


def of_one_logit(logits: Tensor, labels: Any) -> tuple[Tensor, Any]:
    """Return a binary loss's logits with their one column, and its labels without: it takes both in one shape."""
    if not isinstance(labels, Tensor) or labels.shape != logits.shape:
        return logits, labels
    if logits.ndim == 1:
        return logits[:, None], labels
    return (logits, labels[:, 0]) if logits.shape[1] == 1 else (logits, labels)
