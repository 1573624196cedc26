"""Networks that split the classes into blocks, each collapsed in its own way.

A block interpolates its classes, ``Z = I``, and is summed up by one number, its
effective class count: a block of K classes with K_eff below K beats collapse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..applies import DoesNotApply, require, require_survival
from ..factors import Chain, balance, check_widths, direct_sum
from ..optimum import Optimum
from ..problem import DUFM
from ..scalar import ell, ell_minimiser
from .triangular import best_subset_size, check_srg, srg_chain, srg_effective_classes


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

    def widths(self, depth: int) -> tuple[int, ...]:
        """Neurons that the block takes in layers 1 to L."""
        if not self.order:
            return (self.classes,) * depth
        return (*(self.order,) * (depth - 1), math.comb(self.order, self.size))

    def chain(self, depth: int) -> Chain:
        """Unit chain: its output is the identity."""
        if not self.order:
            return (np.eye(self.classes),) * (depth + 1)
        return srg_chain(self.order, self.size, depth)


@dataclass(frozen=True)
class Composition:
    """Blocks at their best scales; classes beyond the last one are not learned."""

    problem: DUFM
    blocks: tuple[Block, ...]
    loss: float
    fits: tuple[float, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons that the living blocks take in layers 1 to L."""
        depth = self.problem.depth
        alive = [b.widths(depth) for b, fit in zip(self.blocks, self.fits, strict=True) if fit]
        return tuple(map(sum, zip(*alive, strict=True))) if alive else (0,) * depth

    def chain(self) -> Chain:
        """Features and weights, without padding."""
        depth = self.problem.depth
        chains = []
        for block, fit in zip(self.blocks, self.fits, strict=True):
            norm = fit ** (1 / (depth + 1)) * math.sqrt(block.effective_classes(depth))
            alive = fit > 0
            chains.append(
                balance(block.chain(depth), norm) if alive else _silent(block.classes, depth)
            )
        left = self.problem.num_classes - sum(block.classes for block in self.blocks)
        return direct_sum([*chains, _silent(left, depth)] if left else chains)


def compose(problem: DUFM, blocks: Sequence[Block]) -> Composition:
    r"""Place blocks side by side; classes beyond the last block are not learned.

    .. math:: \sum_b \frac{K_b}{K}\,\ell\Big(c K \frac{K_{\mathrm{eff},b}}{K_b}, L\Big)
              + \frac{K - \sum_b K_b}{2K}
    """
    classes, depth = problem.num_classes, problem.depth
    fits: list[float] = []
    left = classes - sum(block.classes for block in blocks)
    loss = left / (2 * classes)
    for block in blocks:
        effective = block.effective_classes(depth)
        strength = problem.canonical_decay * classes * effective / block.classes
        fits.append(ell_minimiser(strength, depth))
        loss += block.classes / classes * ell(strength, depth)
    return Composition(problem, tuple(blocks), loss, tuple(fits))


def _silent(classes: int, depth: int) -> Chain:
    """Classes that no neuron serves."""
    return (np.zeros((0, classes)), *(np.zeros((0, 0)),) * (depth - 1), np.zeros((classes, 0)))


def require_collapsible(problem: DUFM, name: str) -> None:
    """Squared loss, balanced classes, no bias, and the nonlinear network or one layer."""
    require(problem, name, loss="mse", balanced=True, bias=False, activation="relu")


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
        check_srg(order, 2, depth)
        size = best_subset_size(order, depth, problem.layer_widths[-1])
    found = compose(problem, [Block(classes, order, size)])
    require_survival("srg", found.fits)
    check_widths(problem, found.widths, "srg")
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
    [10, 2]
    """
    classes, depth = problem.num_classes, problem.depth
    strength = problem.canonical_decay * classes
    options = [Block(1)]
    for order in range(3, (1 + math.isqrt(1 + 8 * classes)) // 2 + 1):
        edges = order * (order - 1) // 2
        # A share of the last layer in proportion, so that all blocks fit together.
        room = problem.layer_widths[-1] * edges / classes
        options.append(Block(edges, order, best_subset_size(order, depth, room)))
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
    require_survival("blocks", found.fits)
    check_widths(problem, found.widths, "blocks")
    return Optimum(
        problem=problem,
        name="blocks",
        loss=found.loss,
        chain=found.chain,
        status="upper bound",
        holds_for="upper bound: lower losses are found by descent",
        source="Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, for the blocks",
        parameters={f"classes_{i}": float(b.classes) for i, b in enumerate(chosen)},
        free_layers=(1,) if any(not block.order for block in chosen) else (),
    )
