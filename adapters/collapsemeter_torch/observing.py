"""One pass over a data set with frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from collapsemeter.adapter.batches import shown, split

from .batch import Batch
from .device import device_of
from .keyword_labels import next_token
from .scope import Store

if TYPE_CHECKING:
    from .meter import CollapseMeter


def run(
    meter: CollapseMeter, model: nn.Module, store: Store, batches: Iterable[Any], progress: bool
) -> None:
    """Pass every batch through the model into the store; leave the model's modes as they were."""
    modes = {module: module.training for module in model.modules()}
    device = device_of(model)
    model.eval()
    try:
        # Compiled graphs may have been made without the hooks, and gain nothing in one pass.
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for item in shown(batches, progress):
                inputs, labels, mask = split(item)
                if isinstance(item, Mapping):
                    labels = next_token(meter, labels)
                inputs = pytree.tree_map(lambda leaf: _to(leaf, device), inputs)
                with Batch(meter, store, labels, mask, anyway=True):
                    _call(model, inputs)
    finally:
        for module, training in modes.items():
            module.training = training


def _to(leaf: Any, device: torch.device) -> Any:
    if isinstance(leaf, np.ndarray):
        leaf = torch.tensor(leaf)
    return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple | list):
        model(*inputs)
    else:
        model(inputs)
