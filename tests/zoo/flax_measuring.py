"""One network of Flax: a batch that is counted, a frozen pass, and brute force."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import linen

from collapsemeter_flax import CollapseMeter
from collapsemeter_flax.arguments import evaluation

from .flax_networks import Given
from .measuring import mismatch, pooled, row


def measured(given: Given) -> dict[str, Any]:
    """Return the row of a network, and assert what holds for all of them."""
    model, inputs = given
    variables = None
    if isinstance(model, linen.Module):
        variables = model.init(jax.random.key(0), *inputs)
        scores = model.apply(variables, *inputs, **evaluation(model))
    else:
        model.eval()
        scores = model(*inputs)
    meter = CollapseMeter(model, verbose=False)
    args = inputs if variables is None else (variables, *inputs)
    if scores.shape[-1] == 1:
        labels = np.arange(scores.size) % 2
    else:
        shape = scores.shape[:-1]
        labels = (np.arange(int(np.prod(shape))) % scores.shape[-1]).reshape(shape)
    call = {} if variables is None else evaluation(model)
    state = meter.init(*args, labels=labels, **call)
    logits, features = meter.capture(model, *args, **call)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    live = meter.report(meter.update(state, features, labels, logits=logits), variables)
    frozen = meter.observe([(inputs, labels)], variables=variables, progress=False)
    found = row(meter, live, frozen, held)
    last = meter.selection.watched[-1]
    rows = pooled(np.asarray(features[last]), labels, features[last].shape[-1])
    flat = np.asarray(scores).reshape(-1, scores.shape[-1])
    expected = mismatch(rows, labels.flatten(), flat, meter.selection.threshold)
    assert frozen[list(frozen)[-1]]["nc4_mismatch"] == expected
    return found
