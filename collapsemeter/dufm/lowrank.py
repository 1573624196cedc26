"""Networks that split the classes into blocks, each collapsed in its own way.

A block interpolates its classes, ``Z = I``, and is summed up by one number, its
effective class count: a block of K classes with K_eff below K beats collapse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collapsemeter.dufm.arrays import FloatArray
from collapsemeter.dufm.factors import (
    RANK_TOLERANCE,
    Chain,
    DoesNotApply,
    balance,
    check_widths,
    direct_sum,
)
from collapsemeter.dufm.frames import subset_signs, triangular_incidence
from collapsemeter.dufm.optimum import Optimum
from collapsemeter.dufm.problem import DUFM
from collapsemeter.dufm.scalar import ell, ell_minimiser
from collapsemeter.dufm.shallow import require


@dataclass(frozen=True)
class Block:
    """Some of the classes: `order` 0 for plain collapse, else a triangular graph."""

    classes: int
    order: int = 0
    size: int = 0

    def effective_classes(self, depth: int) -> float:
        """Classes that plain collapse would pay the same for."""
        if not self.order:
            return float(self.classes)
        return srg_effective_classes(self.order, self.size, depth)

    def chain(self, depth: int) -> Chain:
        """Unit chain: its output is the identity."""
        if not self.order:
            return (np.eye(self.classes),) * (depth + 1)
        return _srg_chain(self.order, self.size, depth)


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


def _check_srg(order: int, size: int, depth: int) -> None:
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
    _check_srg(order, size, depth)
    r = order
    nuclear = math.sqrt(2 * (r - 1)) + (r - 1) * math.sqrt(r - 2)
    values, counts = inclusion_spectrum(order, size)
    kept = counts > 0
    last = float(np.sum(counts[kept] / values[kept]))
    signs = math.comb(r, size) * r / 4
    return float((nuclear**2 * float(r) ** (depth - 3) * signs * last) ** (1 / (depth + 1)))


def best_subset_size(order: int, depth: int) -> int:
    """The subset size with the least effective class count.

    Examples
    --------
    >>> best_subset_size(5, 4)
    3
    """
    sizes = range(2, max(2, order - 2) + 1)
    return min(sizes, key=lambda size: srg_effective_classes(order, size, depth))


def _srg_chain(order: int, size: int, depth: int) -> Chain:
    _check_srg(order, size, depth)
    incidence = triangular_incidence(order)
    left, values, right = np.linalg.svd(incidence, full_matrices=False)
    signs = subset_signs(order, size)
    inclusion = np.maximum(signs @ incidence, 0.0)
    roots = np.sqrt(values)
    straight = (np.eye(order),) * (depth - 3)
    last = np.asarray(np.linalg.pinv(inclusion))
    return (roots[:, None] * right, left * roots, *straight, signs, last)


def split_first(target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Features and first weight, both as small as the nuclear norm of H_2 allows."""
    left, values, right = np.linalg.svd(target, full_matrices=False)
    rank = max(1, int(np.sum(values > RANK_TOLERANCE * values[0])))
    roots = np.sqrt(values[:rank])
    return roots[:, None] * right[:rank], left[:, :rank] * roots


@dataclass(frozen=True)
class Composition:
    """Blocks at their best scales."""

    loss: float
    chain: Chain
    fits: tuple[float, ...]


def compose(problem: DUFM, blocks: Sequence[Block]) -> Composition:
    r"""Place blocks side by side; classes beyond the last block are not learned.

    .. math:: \sum_b \frac{K_b}{K}\,\ell\Big(c K \frac{K_{\mathrm{eff},b}}{K_b}, L\Big)
              + \frac{K - \sum_b K_b}{2K}
    """
    classes, depth = problem.num_classes, problem.depth
    chains: list[Chain] = []
    fits: list[float] = []
    left = classes - sum(block.classes for block in blocks)
    loss = left / (2 * classes)
    for block in blocks:
        effective = block.effective_classes(depth)
        strength = problem.canonical_decay * classes * effective / block.classes
        fit = ell_minimiser(strength, depth)
        loss += block.classes / classes * ell(strength, depth)
        fits.append(fit)
        if fit == 0.0:
            chains.append(_silent(block.classes, depth))
        else:
            norm = fit ** (1 / (depth + 1)) * math.sqrt(effective)
            chains.append(balance(block.chain(depth), norm))
    if left:
        chains.append(_silent(left, depth))
    return Composition(loss, direct_sum(chains), tuple(fits))


def _silent(classes: int, depth: int) -> Chain:
    """Classes that no neuron serves."""
    return (np.zeros((0, classes)), *(np.zeros((0, 0)),) * (depth - 1), np.zeros((classes, 0)))


def require_collapsible(problem: DUFM, name: str) -> None:
    """Squared loss, balanced classes, no bias, and the nonlinear network or one layer."""
    require(problem, name, loss="mse", balanced=True, bias=False, activation="relu")


def check_learned(name: str, fits: Sequence[float]) -> None:
    """Refuse a structure of which nothing survives the decay."""
    if not any(fits):
        raise DoesNotApply(
            f"{name} does not exist at these decays, they are too strong: "
            "lower them, only the zero network is left."
        )


def srg(problem: DUFM, size: int | None = None) -> Optimum:
    r"""The strongly regular graph solution: low rank, and below collapse.

    The classes are the edges of a complete graph on r vertices; hidden layers hold
    its vertex-edge incidence, of rank r, and the last one tells the edges apart.

    Parameters
    ----------
    problem : DUFM
        ReLU, squared loss, balanced, no bias, K = r (r - 1) / 2, depth 3 or more.
    size : int, optional
        Size s of the vertex subsets; by default the best that fits the widths.

    Returns
    -------
    Optimum
        Status "upper bound": it is nearly, not exactly, stationary.

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow or the decays too strong.

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468.

    Examples
    --------
    >>> problem = DUFM(10, 50, 4, feature_decay=0.004, weight_decay=0.004)
    >>> round(srg(problem, size=2).loss, 10), round(srg(problem).loss, 10)
    (0.1938316691, 0.1759418309)
    """
    require_collapsible(problem, "srg")
    classes, depth = problem.num_classes, problem.depth
    order = (1 + math.isqrt(1 + 8 * classes)) // 2
    if order * (order - 1) // 2 != classes:
        raise DoesNotApply(
            f"srg needs r (r - 1) / 2 classes, such as 6, 10 or 15, got {classes}: use blocks."
        )
    if size is None:
        _check_srg(order, 2, depth)
        size = _best_fitting(problem, order)
    found = compose(problem, [Block(classes, order, size)])
    check_learned("srg", found.fits)
    check_widths(problem, found.chain, "srg")
    effective = srg_effective_classes(order, size, depth)
    return Optimum(
        problem=problem,
        name="srg",
        loss=found.loss,
        chain=found.chain,
        status="upper bound",
        holds_for="upper bound: polishing lowers it by 0.1 to 2 per cent",
        source="Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468",
        parameters={"t": found.fits[0], "r": order, "s": size, "effective_classes": effective},
    )


def _best_fitting(problem: DUFM, order: int) -> int:
    """The best subset size whose last hidden layer fits; 2, the narrowest, if none."""
    room = problem.layer_widths[-1]
    sizes = [s for s in range(2, max(2, order - 2) + 1) if math.comb(order, s) <= room]
    return min(sizes or [2], key=lambda s: srg_effective_classes(order, s, problem.depth))


def best_blocks(problem: DUFM) -> tuple[Block, ...]:
    """The cheapest split of the classes into triangular graphs and plain collapse.

    Parameters
    ----------
    problem : DUFM
        ReLU, squared loss, balanced, no bias, depth 3 or more.

    Returns
    -------
    tuple of Block
        Triangular graphs first, then at most one block of plain collapse.

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, for the blocks.

    Examples
    --------
    >>> problem = DUFM(12, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> [block.classes for block in best_blocks(problem)]
    [6, 6]
    """
    classes, depth = problem.num_classes, problem.depth
    strength = problem.canonical_decay * classes
    options = [Block(1)]
    for order in range(3, (1 + math.isqrt(1 + 8 * classes)) // 2 + 1):
        options.append(Block(order * (order - 1) // 2, order, best_subset_size(order, depth)))
    costs = [o.classes * ell(strength * o.effective_classes(depth) / o.classes, depth)
             for o in options]  # fmt: skip
    best = [0.0] + [math.inf] * classes
    taken = [0] * (classes + 1)
    for total in range(1, classes + 1):
        for index, option in enumerate(options):
            if option.classes <= total:
                cost = best[total - option.classes] + costs[index]
                if cost < best[total] - 1e-14:
                    best[total], taken[total] = cost, index
    chosen: list[Block] = []
    left = classes
    while left:
        chosen.append(options[taken[left]])
        left -= chosen[-1].classes
    plain = sum(1 for block in chosen if not block.order)
    graphs = sorted((b for b in chosen if b.order), key=lambda b: -b.classes)
    return (*graphs, *([Block(plain)] if plain else []))


def blocks(problem: DUFM, split: Sequence[Block] | None = None) -> Optimum:
    r"""Low-rank blocks for any number of classes, beside plainly collapsed ones.

    .. math:: \sum_b \frac{K_b}{K}\,\ell\Big(c K \frac{K_{\mathrm{eff},b}}{K_b}, L\Big)

    Parameters
    ----------
    problem : DUFM
        ReLU, squared loss, balanced, no bias, depth 3 or more.
    split : sequence of Block, optional
        By default `best_blocks`.

    Returns
    -------
    Optimum
        Status "upper bound".

    Raises
    ------
    DoesNotApply
        If the problem is another one, a layer too narrow, the decays too strong, or
        the split is a single block, which has a name of its own.

    References
    ----------
    Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, for the blocks.

    Examples
    --------
    >>> problem = DUFM(12, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> [reference.name for reference in problem.references()][:2]
    ['blocks', 'dnc']
    """
    require_collapsible(problem, "blocks")
    if problem.depth < 3:
        raise DoesNotApply(f"blocks needs depth 3 or more, got {problem.depth}: use dnc.")
    chosen = tuple(split) if split is not None else best_blocks(problem)
    if len(chosen) < 2:
        raise DoesNotApply(f"blocks needs two blocks, got {chosen}: use dnc or srg for one.")
    total = sum(block.classes for block in chosen)
    if total != problem.num_classes:
        raise DoesNotApply(
            f"blocks needs {problem.num_classes} classes in all, got {total}: change the split."
        )
    found = compose(problem, chosen)
    check_learned("blocks", found.fits)
    check_widths(problem, found.chain, "blocks")
    return Optimum(
        problem=problem,
        name="blocks",
        loss=found.loss,
        chain=found.chain,
        status="upper bound",
        holds_for="upper bound: lower losses are found by descent",
        source="Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, for the blocks",
        parameters={f"classes_{i}": float(b.classes) for i, b in enumerate(chosen)},
    )
