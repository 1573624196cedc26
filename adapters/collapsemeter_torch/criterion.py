"""Labels that come after the forward, with the loss: activations wait for them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .batch import Batch
from .hooks import HeadOutputHook, Hook, LayerHook
from .scope import Scope, current_scope


class Pending:
    """Copies of what the layers gave, until the criterion is called with the labels.

    Copies, because an in-place operation after a layer (``ReLU(inplace=True)``) overwrites what the
    layer returned, and some such writes leave no trace in the tensor's version.
    """

    def __init__(self) -> None:
        self.outputs: list[tuple[LayerHook, Any]] = []
        self.refused = False
        self.left_out = False  # the budget left this forward out: nothing was kept of it

    def add(self, hook: LayerHook, output: Any) -> None:
        """Keep a copy of a layer's output."""
        copied = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), output)
        self.outputs.append((hook, copied))

    def take(self) -> list[tuple[LayerHook, Any]]:
        """Return what waits, and wait for nothing more."""
        outputs, self.outputs, self.left_out = self.outputs, [], False
        return outputs

    def clear(self) -> None:
        """Drop what waits."""
        self.outputs = []
        self.refused = self.left_out = False


class CriterionHook(Hook):
    """Counts what waits when the loss module is called with the labels."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        meter = self.meter()
        if meter is None:
            return
        if meter._pending.refused:
            meter._pending.clear()
            raise RuntimeError(
                "criterion= does not work under torch.compile, where activations are gone when the "
                "labels come: use `with meter.batch(labels):` around the forward"
            )
        if meter._pending.left_out and current_scope(meter._slot) is None:
            meter._pending.clear()
            with Batch(meter, meter._live, None, None, anyway=meter.count_eval, due=False):
                return
        waiting = meter._pending.take()
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
            with meter.batch(labels):
                scope = current_scope(meter._slot)
                if not isinstance(scope, Scope):
                    return
                for hook, output in waiting:
                    hook.guarded(meter, scope, output)
                if isinstance(logits, Tensor) and logits.ndim == scope.labels.ndim + 1:
                    # Loss modules take the classes on axis 1, however many positions follow.
                    HeadOutputHook(meter).guarded(meter, scope, logits.movedim(1, -1))
        except ValueError as error:  # the loop was not edited for us: it must not notice us either
            meter._live.degrade(meter, "criterion=", error)


def of_one_logit(logits: Tensor, labels: Any) -> tuple[Tensor, Any]:
    """Return a binary loss's logits with their one column, and its labels without: it takes both in one shape.

    Examples
    --------
    >>> import torch
    >>> logits, labels = of_one_logit(torch.zeros(8, 1, 5), torch.ones(8, 1, 5))
    >>> logits.shape, labels.shape
    (torch.Size([8, 1, 5]), torch.Size([8, 5]))
    """
    if not isinstance(labels, Tensor) or labels.shape != logits.shape:
        return logits, labels
    if logits.ndim == 1:
        return logits[:, None], labels
    return (logits, labels[:, 0]) if logits.shape[1] == 1 else (logits, labels)
