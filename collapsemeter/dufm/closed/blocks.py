"""Networks that split the classes into blocks, each collapsed in its own way.

A block interpolates its classes, ``Z = I``, and is summed up by one number, its effective class
count: a block of K classes with K_eff below K beats collapse. In a strongly regular graph block
the classes are the edges of a complete graph.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial as bind

import numpy as np

from ..chain import Chain, balance, direct_sum, require_widths
from ..graphs import (
    best_subset_size,
    read_by_signs,
    srg_effective_classes,
    subset_signs,
    triangular_incidence,
)
from ..optimum import Optimum, structure
from ..problem import Problem
from ..refusals import DoesNotApply, require_problem, require_survival
from ..registry import closed_form
from ..scalar import ell, ell_minimiser

DEEP = {"loss": "mse", "balanced": True, "bias": False, "activation": "relu"}
SOURCE = "Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468"


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

    def strength(self, problem: Problem) -> float:
        """The value of `ell` for every class of the block."""
        share = self.effective_classes(problem.depth) / self.classes
        return problem.canonical_decay * problem.num_classes * share

    def widths(self, depth: int) -> tuple[int, ...]:
        """Neurons that the block takes in layers 1 to L."""
        if not self.order:
            return (self.classes,) * depth
        return (*(self.order,) * (depth - 1), math.comb(self.order, self.size))

    def chain(self, depth: int) -> Chain:
        """Unit chain: its output is the identity."""
        if not self.order:
            return (np.eye(self.classes),) * (depth + 1)
        signs = subset_signs(self.order, self.size)
        return read_by_signs(triangular_incidence(self.order), signs, depth)


def _compose(
    problem: Problem, name: str, chosen: Sequence[Block], words: str, source: str,
    parameters: dict[str, float],
) -> Optimum:  # fmt: skip
    """Blocks side by side, each at its best scale; some may not survive the decay."""
    depth, strengths = problem.depth, [block.strength(problem) for block in chosen]
    fits = [ell_minimiser(strength, depth) for strength in strengths]
    require_survival(name, fits)
    alive = [block.widths(depth) for block, fit in zip(chosen, fits, strict=True) if fit]
    require_widths(problem, list(map(sum, zip(*alive, strict=True))), name)
    losses = [b.classes * ell(g, depth) for b, g in zip(chosen, strengths, strict=True)]
    chain, loss = bind(_blocks_chain, chosen, fits, depth), sum(losses) / problem.num_classes
    free = (1,) if any(not block.order for block in chosen) else ()
    return structure(problem, name, loss, chain, words, source, parameters, free_layers=free)


def _blocks_chain(chosen: Sequence[Block], fits: Sequence[float], depth: int) -> Chain:
    chains = []
    for block, fit in zip(chosen, fits, strict=True):
        norm = fit ** (1 / (depth + 1)) * math.sqrt(block.effective_classes(depth))
        inner = (np.zeros((0, 0)),) * (depth - 1)
        silent = (np.zeros((0, block.classes)), *inner, np.zeros((block.classes, 0)))
        chains.append(balance(block.chain(depth), norm) if fit else silent)
    return direct_sum(chains)


@closed_form("low rank", place=6)
def srg(problem: Problem, size: int | None = None) -> Optimum:
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
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(10, 50, 4, feature_decay=0.004, weight_decay=0.004)
    >>> round(srg(problem, size=2).loss, 10), round(srg(problem).loss, 10)
    (0.1938316691, 0.1759418309)
    """
    require_problem(problem, "srg", **DEEP)
    classes, depth = problem.num_classes, problem.depth
    order = (1 + math.isqrt(1 + 8 * classes)) // 2
    if math.comb(order, 2) != classes:
        raise DoesNotApply(
            f"srg needs r (r - 1) / 2 classes, such as 6, 10 or 15, got {classes}: use blocks."
        )
    if size is None:
        size = best_subset_size(order, depth, problem.layer_widths[-1])
    block = Block(classes, order, size)
    effective = block.effective_classes(depth)
    fit = ell_minimiser(block.strength(problem), depth)
    parameters = {"t": fit, "r": order, "s": size, "effective_classes": effective}
    words = "upper bound: polishing lowers it by 0.1 to 2 per cent"
    return _compose(problem, "srg", (block,), words, SOURCE, parameters)


def best_blocks(problem: Problem) -> tuple[Block, ...]:
    """The cheapest split of the classes into triangular graphs and plain collapse, for `blocks`.

    Triangular graphs come first, then at most one block of plain collapse.

    Examples
    --------
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(12, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> [block.classes for block in best_blocks(problem)]
    [10, 2]
    """
    classes, depth = problem.num_classes, problem.depth
    options = [Block(1)]
    for order in range(3, (1 + math.isqrt(1 + 8 * classes)) // 2 + 1):
        edges = math.comb(order, 2)
        # A share of the last layer in proportion, so that all blocks fit together.
        room = problem.layer_widths[-1] * edges / classes
        options.append(Block(edges, order, best_subset_size(order, depth, room)))
    costs = [option.classes * ell(option.strength(problem), depth) for option in options]
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
def blocks(problem: Problem, split: Sequence[Block] | None = None) -> Optimum:
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
    >>> from collapsemeter.dufm import DUFM
    >>> problem = DUFM(12, 1, 4, feature_decay=0.002, weight_decay=0.002)
    >>> [reference.name for reference in problem.references()][:2]
    ['blocks', 'dnc']
    """
    require_problem(problem, "blocks", **DEEP)
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
    parameters = {f"classes_{i}": float(block.classes) for i, block in enumerate(chosen)}
    words = "upper bound: lower losses are found by descent"
    return _compose(problem, "blocks", chosen, words, f"{SOURCE}, for the blocks", parameters)
