"""The data of the kit: small, seeded, and without a decision that rounding could turn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..stats.sums import EPS
from .driver import Batch, Features, Form, Labels, Spec

COUNTS = (40, 28, 18, 10)  # rows of each class: of different size, so that conventions differ
SIZES = (24,) * 4  # one shape, since a compiling framework makes a graph for each
RAGGED = (24, 24, 24, 23, 1)
NEAR = 1e-3  # within-class std of features near collapse, where class means are about 1 apart
OFFSET = 1e3  # what all features have in common: an ulp of float32 there is 6e-5
_GRID = 8  # head weights are multiples of 1/8, which every dtype has
_FINE = 1024  # pixels are multiples of 1/1024, so that their mean is exact


@dataclass(frozen=True, eq=False)
class Stream:
    """Features and labels in the order in which they are fed, and the sizes of the batches."""

    features: Features
    labels: Labels
    sizes: tuple[int, ...] = SIZES

    def __iter__(self) -> Iterator[Batch]:
        cuts = np.cumsum(self.sizes)[:-1]
        yield from zip(np.split(self.features, cuts), np.split(self.labels, cuts), strict=True)

    def with_labels(self, where: Any, label: int) -> Stream:
        """Return the stream with other labels there."""
        labels = self.labels.copy()
        labels[where] = label
        return replace(self, labels=labels)

    def with_features(self, where: Any, value: float) -> Stream:
        """Return the stream with another value there."""
        features = self.features.copy()
        features[where] = value
        return replace(self, features=features)

    def sorted(self) -> Stream:
        """Return the stream class by class, so that most classes first come in a later batch."""
        order = np.argsort(self.labels, kind="stable")
        return replace(self, features=self.features[order], labels=self.labels[order])


def spec_of(
    num_classes: int = 4,
    width: int = 6,
    *,
    positions: tuple[int, ...] = (),
    offset: float = 0.0,
    dtype: str = "float32",
    phase: Any = "live",
    form: Form = "plain",
    **options: Any,
) -> Spec:
    """Return a model whose head decides roughly by nearest class mean, but not quite."""
    rng = np.random.default_rng([num_classes, width, 1])
    weight = _means(num_classes, width) + 0.4 * rng.normal(size=(num_classes, width))
    weight = np.round(weight * _GRID) / _GRID
    bias = np.round(rng.normal(size=num_classes) * _GRID) / _GRID
    bias = bias - weight.sum(axis=1) * offset
    if form == "one_score":
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    return Spec(
        num_classes,
        (*positions, width),
        weight.astype(np.float32),
        bias.astype(np.float32),
        dtype,
        phase,
        options,
        form,
    )


def stream_of(
    spec: Spec,
    counts: Sequence[int] = COUNTS,
    sizes: tuple[int, ...] = SIZES,
    *,
    std: float = 0.6,
    offset: float = 0.0,
    scale: float = 1.0,
    seed: int = 0,
) -> Stream:
    """Return rows about the class means, shuffled, in batches of these sizes; of a sequence every token is a row."""
    rng = np.random.default_rng([spec.num_classes, spec.width, seed])
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = _means(spec.num_classes, spec.width)[labels]

    def drawn(which: npt.NDArray[np.intp]) -> Features:
        noise = std * rng.normal(size=(len(which), spec.width))
        return representable((means[which] + noise + offset) * scale, spec)

    rows = drawn(np.arange(len(labels)))
    while len(doubtful := np.flatnonzero(in_doubt(spec, rows))):
        rows[doubtful] = drawn(doubtful)
    if len(spec.shape) == 2 and not spec.pooled:
        tokens = spec.shape[0]
        return Stream(rows.reshape(-1, tokens, spec.width), labels.reshape(-1, tokens), sizes)
    if spec.pooled:
        rows = _maps(rows, spec, rng)
    return Stream(rows, labels, sizes)


def representable(rows: npt.NDArray[np.floating[Any]], spec: Spec) -> Features:
    """Round to what the network's dtype represents; of an image to what a mean leaves exact."""
    single = rows.astype(np.float32)
    if spec.pooled:
        return (np.round(single * _FINE) / _FINE).astype(np.float32)
    if spec.dtype == "float16":
        return single.astype(np.float16).astype(np.float32)
    if spec.dtype == "bfloat16":  # the upper half of a float32, to nearest with ties to even
        bits = single.view(np.uint32)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.asarray(nearest, np.uint32).view(np.float32)
    return single


def in_doubt(spec: Spec, rows: Features) -> npt.NDArray[np.bool_]:
    """Whether rounding in the network's dtype could change which class it decides on."""
    weight, wide = spec.weight.astype(np.float64), rows.astype(np.float64)
    logits = wide @ weight.T + spec.bias
    if spec.form == "one_score":
        logits = np.column_stack([logits, np.zeros(len(logits))])
    logits = np.sort(logits, axis=1)
    # A rounding of each product, of the sum and of the bias: a few eps of the magnitudes at the most.
    magnitude = np.abs(wide) @ np.abs(weight).T + np.abs(spec.bias)
    bound = 4 * EPS[spec.dtype] * magnitude.max(axis=1)
    return np.asarray(logits[:, -1] - logits[:, -2] <= bound)


def _means(num_classes: int, width: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng([num_classes, width]).normal(size=(num_classes, width))


def _maps(rows: Features, spec: Spec, rng: np.random.Generator) -> Features:
    """Return maps or sequences (N, ..., d) whose mean over positions, an even number, is exactly the row."""
    positions = math.prod(spec.shape[:-1])
    half = representable(rng.normal(size=(len(rows), positions // 2, spec.width)), spec)
    pixels = rows[:, None] + np.concatenate([half, -half], axis=1)
    maps: Features = pixels.reshape(len(rows), *spec.shape)
    return maps
