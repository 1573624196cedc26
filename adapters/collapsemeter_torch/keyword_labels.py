"""Labels that the model itself is given as ``labels=``: no edit of the loop is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .hooks import Hook
from .scope import current_scope

if TYPE_CHECKING:
    from .meter import CollapseMeter


class KeywordLabelsPreHook(Hook):
    """Opens a batch when the model is called with ``labels=`` and none is open."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        meter = self.meter()
        if meter is None or torch.compiler.is_compiling():
            return
        meter._pending.clear()  # what a forward without a loss left behind
        close_stale(meter)
        labels = kwargs.get("labels")
        if labels is None or current_scope(meter._slot) is not None:
            return
        if not meter.count_eval and not (module.training and torch.is_grad_enabled()):
            return
        try:
            labels = next_token(meter, labels) if meter._due() else labels
            batch = meter.batch(labels, mask=kwargs.get("attention_mask"))
            batch.__enter__()
        except Exception as error:  # the loop was not edited for us: it must not notice us either
            meter._live.degrade(meter, "labels=", error)
            return
        meter._local.batch = batch


class KeywordLabelsHook(Hook):
    """Closes the batch that the pre-hook opened."""

    __slots__ = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        meter = self.meter()
        if meter is None or torch.compiler.is_compiling():
            return
        batch = getattr(meter._local, "batch", None)
        if batch is None:
            return
        meter._local.batch = None
        try:
            batch.finish(failed=output is None)  # a forward that raised has no output
        except Exception as error:
            meter._live.degrade(meter, "labels=", error)


def close_stale(meter: CollapseMeter) -> None:
    """Close the batch of an interrupted forward, which never came to its end."""
    stale = getattr(meter._local, "batch", None)
    if stale is not None:
        meter._local.batch = None
        stale.finish(failed=True)


def next_token(meter: CollapseMeter, labels: Any) -> Any:
    """Shift the labels of a causal language model, whose position t predicts label t + 1."""
    causal = any(
        word in cls.__name__ for cls in type(meter._root).__mro__ for word in ("CausalLM", "LMHead")
    )
    if not causal or not isinstance(labels, Tensor) or labels.ndim != 2:
        return labels
    last = torch.full_like(labels[:, :1], meter.settings.ignore_index)
    return torch.cat([labels[:, 1:], last], dim=1)
