"""The strongly regular graph solution: classes as edges of a complete graph."""

import math

import numpy as np

from ..applies import DoesNotApply
from ..arrays import FloatArray
from ..factors import Chain, split_first
from ..frames import subset_signs, triangular_incidence


def inclusion_spectrum(order: int, size: int) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues, and multiplicities, of B^T B with B the edges inside s-subsets.

    Examples
    --------
    >>> values, counts = inclusion_spectrum(5, 2)
    >>> values.tolist(), counts.tolist()
    ([1.0, 1.0, 1.0], [1.0, 4.0, 5.0])
    """
    r, s = order, size
    same, touching, apart = (math.comb(r - i, s - i) if s >= i else 0 for i in (2, 3, 4))
    edges = r * (r - 1) // 2
    neighbours = np.array([2 * (r - 2), r - 4, -2])
    others = np.array([edges - 1 - 2 * (r - 2), 3 - r, 1])
    values = same + touching * neighbours + apart * others
    return values.astype(np.float64), np.array([1, r - 1, r * (r - 3) // 2], dtype=np.float64)


def check_srg(order: int, size: int, depth: int) -> None:
    if order < 3 or not 2 <= size <= max(2, order - 2):
        raise DoesNotApply(
            f"srg needs r >= 3 vertices and subsets of 2 to r - 2, got r={order}, s={size}: "
            "otherwise the last layer cannot tell the classes apart."
        )
    if depth < 3:
        raise DoesNotApply(f"srg needs depth 3 or more, got {depth}: use dnc.")


def srg_effective_classes(order: int, size: int, depth: int) -> float:
    r"""Effective class count of the strongly regular graph solution.

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

    Returns
    -------
    float
        Below the number of classes where the solution beats collapse.

    Raises
    ------
    DoesNotApply
        If r, s or L is out of range.

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
    kept = counts > 0
    last = float(np.sum(counts[kept] / values[kept]))
    signs = math.comb(r, size) * r / 4
    return float((nuclear**2 * float(r) ** (depth - 3) * signs * last) ** (1 / (depth + 1)))


def best_subset_size(order: int, depth: int, room: float = math.inf) -> int:
    """The subset size of least effective class count whose hidden layer fits `room`.

    Size 2, the narrowest, if none fits.

    Examples
    --------
    >>> best_subset_size(6, 4), best_subset_size(6, 4, room=15)
    (3, 4)
    """
    sizes = [s for s in range(2, max(2, order - 2) + 1) if math.comb(order, s) <= room]
    return min(sizes or [2], key=lambda size: srg_effective_classes(order, size, depth))


def srg_chain(order: int, size: int, depth: int) -> Chain:
    """Unit chain of the solution: its output is the identity."""
    check_srg(order, size, depth)
    incidence = triangular_incidence(order)
    signs = subset_signs(order, size)
    inclusion = np.maximum(signs @ incidence, 0.0)
    straight = (np.eye(order),) * (depth - 3)
    last = np.asarray(np.linalg.pinv(inclusion))
    return (*split_first(incidence), *straight, signs, last)
