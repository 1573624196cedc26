"""Labels that come after the forward, with the loss: activations wait for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
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
        copied = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), output)
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
        with meter.batch(labels):
            scope = current_scope(meter._slot)
            if not isinstance(scope, Scope):
                return
            for hook, output in waiting:
                hook.guarded(meter, scope, output)
            logits = args[0] if args else kwargs.get("input")
            if isinstance(logits, torch.Tensor) and logits.ndim == scope.labels.ndim + 1:
                # Loss modules take the classes on axis 1, however many positions follow.
                HeadOutputHook(meter).guarded(meter, scope, logits.movedim(1, -1))
