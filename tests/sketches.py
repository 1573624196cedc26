"""Rows, the matrix that a sketch multiplies them by, and their sketch."""

from __future__ import annotations

import numpy as np

from collapsemeter import ClassMoments
from collapsemeter.stats.sketch import row_hashes


def rows_and_labels(seed=0, N=60, C=4, d=5, std=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, N)
    return offset + rng.normal(size=(C, d))[labels] + std * rng.normal(size=(N, d)), labels


def omega(N, k, seed):
    """The k x N sketching matrix of rows number 0..N-1."""
    buckets, negative = row_hashes(np.arange(N, dtype=np.uint32), k, seed)
    matrix = np.zeros((k, N))
    matrix[buckets, np.arange(N)] = np.where(negative, -1.0, 1.0)
    return matrix


def sketch_of(rows, labels, C=4, k=8, **options):
    return ClassMoments.from_batch(rows, labels, C, scatter="sketch", sketch_rows=k, **options)
