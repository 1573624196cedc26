"""The strongly regular graph solution: classes as edges of a complete graph."""

import math
from itertools import combinations

import numpy as np

from ..chain import Chain, split_linear
from ..problem import DoesNotApply, FloatArray


def edges(order: int) -> list[tuple[int, int]]:
    """The r (r - 1) / 2 edges of the complete graph on r vertices, in a fixed order."""
    return list(combinations(range(order), 2))


def triangular_incidence(order: int) -> FloatArray:
    """The vertex-edge incidence matrix T of a complete graph, shape (r, r (r - 1) / 2), of rank r.

    ``T.T @ T = 2 I + A`` with A the adjacency of the triangular graph.
    """
    pairs = edges(order)
    incidence = np.zeros((order, len(pairs)))
    for column, pair in enumerate(pairs):
        incidence[list(pair), column] = 1.0
    return incidence


def subset_signs(order: int, size: int) -> FloatArray:
    """One row per vertex subset of the given size: +1/2 inside, -1/2 outside.

    Applied to an edge it gives 1 inside the subset, 0 across, -1 outside.
    """
    subsets = list(combinations(range(order), size))
    signs = np.full((len(subsets), order), -0.5)
    for row, subset in enumerate(subsets):
        signs[row, list(subset)] = 0.5
    return signs


def inclusion_spectrum(order: int, size: int) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues, and multiplicities, of B^T B with B the edges inside s-subsets."""
    r, s = order, size
    same, touching, apart = (math.comb(r - i, s - i) if s >= i else 0 for i in (2, 3, 4))
    classes = r * (r - 1) // 2
    neighbours = np.array([2 * (r - 2), r - 4, -2])
    others = np.array([classes - 1 - 2 * (r - 2), 3 - r, 1])
    values = same + touching * neighbours + apart * others
    return values.astype(np.float64), np.array([1, r - 1, r * (r - 3) // 2], dtype=np.float64)


def check_srg(order: int, size: int, depth: int) -> None:
    """Refuse graphs and depths that have no such solution."""
    if order < 3 or not 2 <= size <= max(2, order - 2):
        raise DoesNotApply(
            f"srg needs r >= 3 vertices and subsets of 2 to r - 2, got r={order}, s={size}: "
            "otherwise the last layer cannot tell the classes apart."
        )
    if depth < 3:
        raise DoesNotApply(f"srg needs depth 3 or more, got {depth}: use dnc.")


def srg_effective_classes(order: int, size: int, depth: int) -> float:
    r"""Effective class count of the strongly regular graph solution: below K it beats collapse.

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

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468.

    Examples
    --------
    >>> round(srg_effective_classes(5, 3, 4) / 10, 4)
    0.8168
    """
    check_srg(order, size, depth)
    r = order
    nuclear = math.sqrt(2 * (r - 1)) + (r - 1) * math.sqrt(r - 2)
    values, counts = inclusion_spectrum(order, size)
    present = counts > 0
    last = float(np.sum(counts[present] / values[present]))
    signs = math.comb(r, size) * r / 4
    return float((nuclear**2 * float(r) ** (depth - 3) * signs * last) ** (1 / (depth + 1)))


def best_subset_size(order: int, depth: int, room: float = math.inf) -> int:
    """The subset size of least effective class count whose hidden layer fits `room`, or 2."""
    sizes = [s for s in range(2, max(2, order - 2) + 1) if math.comb(order, s) <= room]
    return min(sizes or [2], key=lambda size: srg_effective_classes(order, size, depth))


def read_by_signs(incidence: FloatArray, signs: FloatArray, depth: int) -> Chain:
    """A chain through a graph whose last hidden layer applies sign functionals; output identity."""
    straight = (np.eye(len(incidence)),) * (depth - 3)
    hidden = np.maximum(signs @ incidence, 0.0)
    return (*split_linear(incidence, 1), *straight, signs, np.asarray(np.linalg.pinv(hidden)))


def srg_chain(order: int, size: int, depth: int) -> Chain:
    """Unit chain of the solution: its output is the identity."""
    check_srg(order, size, depth)
    return read_by_signs(triangular_incidence(order), subset_signs(order, size), depth)
