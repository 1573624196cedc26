"""Networks that split the classes into blocks, each collapsed in its own way.

A block interpolates its classes, ``Z = I``, and is summed up by one number, its
effective class count: a block of K classes with K_eff below K beats collapse.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..chain import Chain, balance, check_widths, direct_sum
from ..optimum import Optimum
from ..problem import DUFM, DoesNotApply, closed_form, require, require_survival
from ..scalar import ell, ell_minimiser
from .graph import best_subset_size, check_srg, srg_chain, srg_effective_classes


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
    """Blocks side by side, each at its best scale, see `blocks`."""

    problem: DUFM
    blocks: tuple[Block, ...]

    @property
    def strengths(self) -> list[float]:
        """What `ell` takes for every block."""
        total = self.problem.canonical_decay * self.problem.num_classes
        depth = self.problem.depth
        return [total * block.effective_classes(depth) / block.classes for block in self.blocks]

    @property
    def loss(self) -> float:
        """The loss of all blocks together."""
        pairs = zip(self.blocks, self.strengths, strict=True)
        losses = [block.classes * ell(g, self.problem.depth) for block, g in pairs]
        return sum(losses) / self.problem.num_classes

    @cached_property
    def fits(self) -> list[float]:
        """The fit of every block; 0 where it does not survive the decay."""
        return [ell_minimiser(strength, self.problem.depth) for strength in self.strengths]

    def check(self, name: str) -> None:
        """Refuse blocks that do not survive the decay or do not fit the layers."""
        require_survival(name, self.fits)
        depth = self.problem.depth
        alive = [b.widths(depth) for b, fit in zip(self.blocks, self.fits, strict=True) if fit]
        check_widths(self.problem, list(map(sum, zip(*alive, strict=True))), name)

    def chain(self) -> Chain:
        """Features and weights, without padding."""
        depth = self.problem.depth
        chains = []
        for block, fit in zip(self.blocks, self.fits, strict=True):
            norm = fit ** (1 / (depth + 1)) * math.sqrt(block.effective_classes(depth))
            chains.append(balance(block.chain(depth), norm) if fit else _silent(block, depth))
        return direct_sum(chains)


def _silent(block: Block, depth: int) -> Chain:
    """The classes of a block that no neuron serves."""
    inner = (np.zeros((0, 0)),) * (depth - 1)
    return (np.zeros((0, block.classes)), *inner, np.zeros((block.classes, 0)))


def _require_deep(problem: DUFM, name: str) -> None:
    require(problem, name, loss="mse", balanced=True, bias=False, activation="relu")


@closed_form("low rank", place=6)
def srg(problem: DUFM, size: int | None = None) -> Optimum:
    """The strongly regular graph solution: low rank, and below collapse.

    The classes are the edges of a complete graph on r vertices; hidden layers hold
    its vertex-edge incidence, of rank r, and the last one tells the edges apart. It is
    nearly, not exactly, stationary.

    Parameters
    ----------
    problem : DUFM
        ReLU, squared loss, balanced, no bias, K = r (r - 1) / 2, depth 3 or more.
    size : int, optional
        Size s of the vertex subsets; by default the best that fits the widths.

    Examples
    --------
    >>> problem = DUFM(10, 50, 4, feature_decay=0.004, weight_decay=0.004)
    >>> round(srg(problem, size=2).loss, 10), round(srg(problem).loss, 10)
    (0.1938316691, 0.1759418309)
    """
    _require_deep(problem, "srg")
    classes, depth = problem.num_classes, problem.depth
    order = (1 + math.isqrt(1 + 8 * classes)) // 2
    if order * (order - 1) // 2 != classes:
        raise DoesNotApply(
            f"srg needs r (r - 1) / 2 classes, such as 6, 10 or 15, got {classes}: use blocks."
        )
    if size is None:
        check_srg(order, 2, depth)
        size = best_subset_size(order, depth, problem.layer_widths[-1])
    placed = Composition(problem, (Block(classes, order, size),))
    placed.check("srg")
    effective = srg_effective_classes(order, size, depth)
    return Optimum(
        problem=problem,
        name="srg",
        loss=placed.loss,
        chain=placed.chain,
        status="upper bound",
        holds_for="upper bound: polishing lowers it by 0.1 to 2 per cent",
        source="Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468",
        parameters={"t": placed.fits[0], "r": order, "s": size, "effective_classes": effective},
    )


def best_blocks(problem: DUFM) -> tuple[Block, ...]:
    """The cheapest split of the classes into triangular graphs and plain collapse, for `blocks`.

    Triangular graphs come first, then at most one block of plain collapse.

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
    # The cheapest split of the first classes, by dynamic programming over their number.
    least = [0.0] + [math.inf] * classes
    last = [options[0]] * (classes + 1)
    for total in range(1, classes + 1):
        for option, option_cost in zip(options, costs, strict=True):
            if option.classes <= total:
                cost = least[total - option.classes] + option_cost
                if cost < least[total] - 1e-14:
                    least[total], last[total] = cost, option
    graphs, left = [], classes
    while left:
        graphs.append(last[left])
        left -= last[left].classes
    plain = graphs.count(options[0])
    graphs = sorted((b for b in graphs if b.order), key=lambda block: -block.classes)
    return (*graphs, *([Block(plain)] if plain else []))


@closed_form("low rank", place=7)
def blocks(problem: DUFM, split: Sequence[Block] | None = None) -> Optimum:
    r"""Low-rank blocks for any number of classes, beside plainly collapsed ones.

    .. math:: \sum_b \frac{K_b}{K}\,\ell\Big(c K \frac{K_{\mathrm{eff},b}}{K_b}, L\Big)

    Parameters
    ----------
    problem : DUFM
        ReLU, squared loss, balanced, no bias, depth 3 or more.
    split : sequence of Block, optional
        Two blocks or more, with K classes in all; by default `best_blocks`.

    Examples
    --------
    >>> problem = DUFM(12, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> [reference.name for reference in problem.references()][:2]
    ['blocks', 'dnc']
    """
    _require_deep(problem, "blocks")
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
    placed = Composition(problem, chosen)
    placed.check("blocks")
    return Optimum(
        problem=problem,
        name="blocks",
        loss=placed.loss,
        chain=placed.chain,
        status="upper bound",
        holds_for="upper bound: lower losses are found by descent",
        source="Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, for the blocks",
        parameters={f"classes_{i}": float(b.classes) for i, b in enumerate(chosen)},
        free_layers=(1,) if any(not block.order for block in chosen) else (),
    )
