"""Streams of which the first rows lie far from the others, and their sums in float32."""

from __future__ import annotations

import math

import numpy as np

from collapsemeter import ClassMoments
from collapsemeter.stats import sums
from collapsemeter.stats.namespace import Numpy
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import row_hashes

C, WIDTH = 4, 12


def batches(far, rows=40, count=60, std=1.0, displaced="all", seed=0):
    """Class means 5 apart; the first batch, or its first row of each class, ``far`` deviations away."""
    rng = np.random.default_rng(seed)
    means = 5 * rng.normal(size=(C, WIDTH)) / math.sqrt(WIDTH)
    away = far * std * rng.normal(size=WIDTH) / math.sqrt(WIDTH)
    for number in range(count):
        labels = np.arange(rows) % C
        features = means[labels] + std * rng.normal(size=(rows, WIDTH)) / math.sqrt(WIDTH)
        if number == 0 and displaced == "row":
            # A batch of its own, for the shift to stay there.
            yield (features[:C] + away).astype(np.float32), labels[:C]
            features, labels = features[C:], labels[C:]
        elif number == 0:
            features += away
        yield features.astype(np.float32), labels


def summed(stream, kind, dtype=np.float32):
    sketch = {"sketch_rows": 16} if kind == "sketch" else {}
    state, first = sums.init(C, WIDTH, kind, dtype, **sketch), 0
    for features, labels in stream:
        hashes = None
        if kind == "sketch":
            numbers = np.arange(first, first + len(labels))
            first += len(labels)
            hashes = row_hashes(numbers, 16, 0, low_32_bits)
        state = sums.update(state, features, labels, Numpy(dtype), hashes=hashes)
    return state


def moments(stream, kind, dtype=np.float32):
    return ClassMoments.from_sums(summed(stream, kind, dtype), "float32", "live")
