"""Chains: balanced layers without padding, split from a map or put side by side."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import linalg  # type: ignore[import-untyped, unused-ignore]

from .network import Variables, zero_variables
from .problem import FloatArray, Problem
from .refusals import TooNarrow

Chain = tuple[FloatArray, ...]
"""``(M_1, W_1, ..., W_L)`` of a canonical problem: features, a column per class, and weights."""

MOST_ENTRIES = 500_000_000  # numbers in the features and weights of one point: 4 GB
VANISHING = 1e-10  # singular values below this fraction of the largest count as zero


def split_linear(target: FloatArray, depth: int) -> Chain:
    """Factors of a matrix with roots of its singular values: the cheapest split (Dang et al. 2023)."""
    left, values, right = np.linalg.svd(target, full_matrices=False)
    rank = max(1, int(np.sum(values > VANISHING * max(values[0], 1e-300))))
    roots = values[:rank] ** (1 / (depth + 1))
    middle = (np.diag(roots),) * (depth - 1)
    return (roots[:, None] * right[:rank], *middle, left[:, :rank] * roots)


def split_by_size(outputs: FloatArray, problem: Problem) -> Chain:
    """Balanced factors of the outputs of one layer; a class weighs as much as it has samples."""
    roots = np.sqrt(problem.counts / problem.counts.mean())
    features, weight = split_linear(outputs * roots, 1)
    return features / roots, weight


def split_diagonal(values: FloatArray, depth: int) -> Chain:
    """Non-negative factors of a diagonal matrix, which a ReLU keeps; zeros get no neuron."""
    learned = np.flatnonzero(values)
    axes = np.eye(values.size)[:, learned] if learned.size else np.zeros((values.size, 1))
    roots = values[learned] ** (1 / (depth + 1)) if learned.size else np.zeros(1)
    middle = (np.diag(roots),) * (depth - 1)
    return (roots[:, None] * axes.T, *middle, axes * roots)


def paired_signs(num_classes: int) -> FloatArray:
    """Pairs of opposite classes: blocks [[1, -1], [-1, 1]], and 1 for an odd class out."""
    signs = np.eye(num_classes)
    for first in range(0, num_classes - 1, 2):
        signs[first, first + 1] = signs[first + 1, first] = -1.0
    return signs


def balance(chain: Chain, norm: float) -> Chain:
    """Rescale every factor to the same Frobenius norm."""
    return tuple(factor * (norm / max(float(np.linalg.norm(factor)), 1e-300)) for factor in chain)


def direct_sum(chains: Sequence[Chain]) -> Chain:
    """Networks side by side: each keeps its own neurons and its own classes."""
    return tuple(np.asarray(linalg.block_diag(*blocks)) for blocks in zip(*chains, strict=True))


def widths_of(chain: Chain) -> tuple[int, ...]:
    """Neurons of a chain in layers 1 to L."""
    return tuple(factor.shape[0] for factor in chain[:-1])


def require_widths(problem: Problem, needs: Sequence[int], name: str) -> None:
    """Refuse widths that the layers of the problem do not have."""
    if any(need > have for need, have in zip(needs, problem.layer_widths, strict=True)):
        raise TooNarrow(
            f"{name} needs widths {tuple(needs)}, got {problem.layer_widths}: widen the layers."
        )


def check_size(problem: Problem) -> None:
    """Refuse to build the arrays of a problem that would fill the memory."""
    widths = (problem.num_classes, *problem.layer_widths, problem.num_classes)
    entries = sum(a * b for a, b in pairwise(widths))
    if entries > MOST_ENTRIES:
        raise ValueError(
            f"the features and weights of K = {problem.num_classes} classes and widths "
            f"{shortened(problem.layer_widths)} have {entries:.3g} numbers, more than "
            f"{MOST_ENTRIES:.3g}: pass smaller widths."
        )


def shortened(values: Sequence[object]) -> str:
    """The first eight values, or the one that all are."""
    if len(set(values)) == 1:
        return f"{values[0]}"
    return f"({', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''})"


def pad(problem: Problem, point: Variables) -> Variables:
    """Fill a point up with zeros to the widths of the problem."""
    check_size(problem)
    padded = zero_variables(problem, point.features.shape[1])
    for room, array in zip(padded.arrays, point.arrays, strict=False):
        room[tuple(map(slice, array.shape))] = array
    return padded
