"""Classes as edges of a graph whose vertices are neurons, and subsets of vertices that read them."""

import math
from itertools import combinations

import numpy as np

from .chain import Chain, split_linear
from .problem import FloatArray
from .refusals import DoesNotApply


def triangular_incidence(order: int) -> FloatArray:
    """The vertex-edge incidence matrix of a complete graph, shape (r, r (r - 1) / 2), of rank r."""
    return subset_signs(order, 2).T + 0.5


def subset_signs(order: int, size: int) -> FloatArray:
    """One row per vertex subset: +1/2 inside, -1/2 outside, so edges give 1 inside, 0 across."""
    subsets = combinations(range(order), size)
    return np.array([[0.5 if i in subset else -0.5 for i in range(order)] for subset in subsets])


def inclusion_spectrum(order: int, size: int) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues, and multiplicities, of B^T B with B the edges inside s-subsets."""
    r, s = order, size
    same, touching, apart = (math.comb(r - i, s - i) if s >= i else 0 for i in (2, 3, 4))
    neighbours = np.array([2 * (r - 2), r - 4, -2.0])
    distant = np.array([math.comb(r - 2, 2), 3 - r, 1.0])
    return same + touching * neighbours + apart * distant, np.array([1, r - 1, r * (r - 3) / 2])


def srg_effective_classes(order: int, size: int, depth: int) -> float:
    r"""Effective class count of `srg`, below K where it beats collapse (arXiv 2405.14468).

    .. math:: K_\mathrm{eff}^{L+1} = \big[\sqrt{2(r-1)} + (r-1)\sqrt{r-2}\big]^2\;
              r^{L-3}\;\tfrac r4 \tbinom rs\; \sum_j m_j/\theta_j

    Parameters
    ----------
    order : int
        Vertices r; the classes are the r (r - 1) / 2 edges.
    size : int
        Size s of the vertex subsets read by the last hidden layer.
    depth : int
        Number of weight matrices, L, at least 3.

    Examples
    --------
    >>> round(srg_effective_classes(5, 3, 4) / 10, 4)
    0.8168
    """
    if order < 3 or not 2 <= size <= max(2, order - 2):
        raise DoesNotApply(
            f"srg needs r >= 3 vertices and subsets of 2 to r - 2, got r={order}, s={size}: "
            "otherwise the last layer cannot tell the classes apart."
        )
    if depth < 3:
        raise DoesNotApply(f"srg needs depth 3 or more, got {depth}: use dnc.")
    r = order
    nuclear = math.sqrt(2 * (r - 1)) + (r - 1) * math.sqrt(r - 2)
    values, counts = inclusion_spectrum(order, size)
    last = sum(m / theta for theta, m in zip(values, counts, strict=True) if m)
    signs = math.comb(r, size) * r / 4
    product = float(
        nuclear**2 * signs * last
    )  # without a power of r, which floats of 500 layers do not hold
    return float(product ** (1 / (depth + 1)) * r ** ((depth - 3) / (depth + 1)))


def best_subset_size(order: int, depth: int, room: float = math.inf) -> int:
    """The subset size of least effective class count whose hidden layer fits `room`, or 2."""
    sizes = [s for s in range(2, max(2, order - 2) + 1) if math.comb(order, s) <= room]
    return min(sizes or [2], key=lambda size: srg_effective_classes(order, size, depth))


def read_by_signs(incidence: FloatArray, signs: FloatArray, depth: int) -> Chain:
    """A chain through a graph whose last hidden layer applies sign functionals; output identity."""
    straight = (np.eye(len(incidence)),) * (depth - 3)
    hidden = np.maximum(signs @ incidence, 0.0)
    return (*split_linear(incidence, 1), *straight, signs, np.asarray(np.linalg.pinv(hidden)))
