"""One network of PyTorch: a step of training that is watched, a frozen pass, and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from collapsemeter_torch import CollapseMeter

from .measuring import mismatch, pooled, row
from .torch_networks import Given


def measured(given: Given) -> dict[str, Any]:
    """Return the row of a network, and assert what holds for all of them."""
    model, inputs = given.model.train(), given.inputs
    labels = torch.arange(int(np.prod(given.labels))).reshape(given.labels) % given.classes
    meter = CollapseMeter(model, verbose=False)
    with meter.batch(
        labels, mask=inputs.get("attention_mask") if isinstance(inputs, dict) else None
    ):
        _call(model, inputs)
    live = meter.compute()
    batch = {**inputs, "labels": labels} if isinstance(inputs, dict) else (inputs, labels)
    frozen = meter.observe([batch], progress=False)
    states = meter._recorder.live.layers.values()
    held = sum(part.nbytes for state in states for part in state.tensors().values())
    held += sum(state.waiting.nbytes for state in states)
    found = row(meter, live, frozen, held)
    last = meter.selection.watched[-1]
    rows, scores = _last_rows(model, inputs, meter, labels)
    layer = frozen[list(frozen)[-1]]
    assert layer["nc4_mismatch"] == mismatch(rows, labels.flatten().numpy(), scores), last
    meter.close()
    return found


def _call(model: Any, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def _last_rows(
    model: Any, inputs: Any, meter: CollapseMeter, labels: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the last watched layer is about, and the model's own scores, by a forward of our own."""
    selection, seen = meter.selection, []
    name = selection.watched[-1]
    module = dict(model.named_modules())[name]
    if selection.head == name:
        handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    else:
        handle = module.register_forward_hook(lambda m, args, out: seen.append(out))
    model.eval()
    with torch.no_grad():
        output = _call(model, inputs)
    handle.remove()
    features = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
    scores = output if isinstance(output, torch.Tensor) else output["logits"]
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    width = meter.moments(name).width
    rows = pooled(features.numpy(), labels.numpy(), width, None if mask is None else mask.numpy())
    return rows, scores.reshape(-1, scores.shape[-1]).numpy()
