"""Every form of model, way to compile and kind of fit, against NumPy on the network's own weights."""

from __future__ import annotations

import numpy as np
import pytest

from collapsemeter import ClassMoments, Head, decide, measure
from collapsemeter_keras import CollapseMeter
from collapsemeter_keras.finalise import moments

from .networks import ARCHITECTURES, data, forward, frozen, parts

ROWS, HELD_OUT, BATCH = 88, 40, 16  # the last batch of either is smaller
# A float32 forward of a dozen terms per unit rounds at 1e-6 of the features; metrics are ratios of them.
METRIC = 1e-4
SCATTER = 2e-6


def truth(model, x, labels, layer, phase):
    outputs = forward(model, x)
    rows = outputs[layer]
    moments = ClassMoments.from_batch(rows, labels, 4, phase=phase)
    head = None
    if layer == "fc":
        weight, bias = (np.asarray(w, np.float64) for w in parts(model)["fc"].get_weights())
        head = Head(weight.T, bias)
    decided = decide(moments, rows, labels, predictions=outputs["logits"].argmax(1))
    return moments, measure(moments, head=head, decisions=decided)
