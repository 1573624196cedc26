"""One pass over a data set with frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .keyword_labels import next_token
from .scope import Store

if TYPE_CHECKING:
    from .meter import CollapseMeter


def run(
    meter: CollapseMeter, model: nn.Module, store: Store, batches: Iterable[Any], progress: bool
) -> None:
    """Pass every batch through the model into the store; leave the model's modes as they were."""
    from .meter import Batch

    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        # Compiled graphs may have been made without the hooks, and gain nothing in one pass.
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for item in _shown(batches, progress):
                inputs, labels, mask = _split(meter, item)
                inputs = pytree.tree_map(lambda leaf: _to(leaf, device), inputs)
                with Batch(meter, store, labels, mask, anyway=True):
                    _call(model, inputs)
    finally:
        for module, training in modes.items():
            module.training = training


def _shown(batches: Iterable[Any], progress: bool) -> Iterable[Any]:
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ValueError(
            f"observe got a {type(batches).__name__}: pass an iterable of (inputs, labels) pairs"
        )
    if not progress:
        return batches
    from rich.console import Console
    from rich.progress import track

    try:
        total = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader over an iterable has no length
        total = None
    return track(batches, "observing", total=total, console=Console(stderr=True))


def _split(meter: CollapseMeter, item: Any) -> tuple[Any, Any, Tensor | None]:
    if isinstance(item, Mapping) and "labels" in item:
        inputs = {name: value for name, value in item.items() if name != "labels"}
        return inputs, next_token(meter, item["labels"]), item.get("attention_mask")
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1], None
    length = f" of length {len(item)}" if isinstance(item, tuple | list) else ""
    raise ValueError(
        f"observe got a {type(item).__name__}{length}: each batch is a pair (inputs, labels) or a "
        "dict with 'labels'"
    )


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
