"""Many classes: the strongly regular graph solution beats deep neural collapse from K = 10 or 6 on.

Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, figure 3 (left): the ratio of the two losses
against the order r of the graph, K = r (r - 1) / 2 classes, for L = 3, 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from matplotlib.figure import Figure
from reproduction import BLACK, COLOURS, MARKERS, Numbers, Options, legend_below, main

from collapsemeter.dufm import (
    DUFM,
    DoesNotApply,
    blocks,
    class_loss_and_gradient,
    dnc,
    srg,
    srg_effective_classes,
)

DEPTHS = (3, 4, 5)
STRENGTH = 0.02  # of the canonical problem, c K: far from the threshold


def canonical(classes: int, depth: int, width: int) -> DUFM:
    """One sample a class, and one decay that leaves c K as it is."""
    decay = STRENGTH / classes
    return DUFM(classes, 1, depth, width, feature_decay=decay, weight_decay=decay)


def graph(order: int, depth: int) -> Numbers:
    """The ratio with two vertices a subset, and with the best size."""
    classes = order * (order - 1) // 2
    problem = canonical(classes, depth, max(classes, math.comb(order, order // 2)))
    collapsed, two, best = dnc(problem), srg(problem, size=2), srg(problem)
    through = class_loss_and_gradient(problem, best.variables)[0]
    size = int(best.parameters["s"])
    return {
        "order": order,
        "classes": classes,
        "depth": depth,
        "ratio_two": two.loss / collapsed.loss,
        "ratio": best.loss / collapsed.loss,
        "subset_size": size,
        "effective_ratio": srg_effective_classes(order, size, depth) / classes,
        "network_error": abs(through - best.loss),
    }


def split(classes: int, depth: int) -> Numbers:
    """The ratio for any number of classes, split into graphs and collapsed classes."""
    problem = canonical(classes, depth, 1000)
    collapsed = dnc(problem).loss
    found = []
    for build in (dnc, srg, blocks):
        try:
            found.append(build(problem).loss)
        except DoesNotApply:
            continue  # no such graph, or a single block
    return {"classes": classes, "depth": depth, "ratio": min(found) / collapsed}


def study(options: Options) -> Numbers:
    orders = range(3, 6 if options.quick else 11)
    most = 15 if options.quick else 46
    graphs = [graph(order, depth) for depth in DEPTHS for order in orders]
    splits = [split(classes, depth) for depth in DEPTHS for classes in range(2, most)]
    return {"settings": {"strength": STRENGTH}, "graphs": graphs, "splits": splits}


def least_beaten(rows: list[Numbers]) -> int | None:
    """The fewest classes from which on all rows are below collapse."""
    above = [row["classes"] for row in rows if row["ratio"] >= 1 - 1e-12]
    beaten = [row["classes"] for row in rows if row["classes"] > max(above, default=0)]
    return min(beaten, default=None)


def of_depth(rows: list[Numbers], depth: int) -> list[Numbers]:
    return [row for row in rows if row["depth"] == depth]


def report(numbers: Numbers) -> Iterator[str]:
    yield f"loss / DNC loss at c K = {numbers['settings']['strength']}; s: size of the subsets"
    yield "  r   K " + " ".join(f"{f'L={d}: s=2':>10} {'best (s)':>11}" for d in DEPTHS)
    for row in of_depth(numbers["graphs"], DEPTHS[0]):
        same = [r for r in numbers["graphs"] if r["order"] == row["order"]]
        cells = (f"{r['ratio_two']:10.4f} {r['ratio']:7.4f} ({r['subset_size']})" for r in same)
        yield f"{row['order']:3d} {row['classes']:3d} " + " ".join(cells)
    for depth in DEPTHS:
        graphs = least_beaten(of_depth(numbers["graphs"], depth))
        splits = least_beaten(of_depth(numbers["splits"], depth))
        yield f"L={depth}: graphs beat DNC from K={graphs} on, blocks of graphs from K={splits} on"
    worst = max(row["network_error"] for row in numbers["graphs"])
    yield f"formula and explicit network differ by at most {worst:.1e}"


def draw(figure: Figure, numbers: Numbers) -> None:
    left, right = figure.subplots(1, 2)
    for depth, colour, marker in zip(DEPTHS, COLOURS[3:], MARKERS, strict=False):
        rows = of_depth(numbers["graphs"], depth)
        x = [row["order"] for row in rows]
        style = {"color": colour, "marker": marker, "ms": 5}
        left.plot(x, [row["ratio"] for row in rows], label=f"L = {depth}, best s", **style)
        two = [row["ratio_two"] for row in rows]
        left.plot(x, two, label=f"L = {depth}, s = 2", linestyle="--", mfc="white", **style)
        rows = of_depth(numbers["splits"], depth)
        style["ms"] = 3
        ratios = [row["ratio"] for row in rows]
        right.plot([row["classes"] for row in rows], ratios, label=f"L = {depth}", **style)
    left.set(
        xlabel="order r of the graph", ylabel="loss / DNC loss", title="SRG, r (r - 1)/2 classes"
    )
    left.set_xticks(sorted({row["order"] for row in numbers["graphs"]}))
    right.set(xlabel="classes K", title="Any K: best split into graphs and collapsed classes")
    for axes, columns in ((left, 3), (right, 3)):
        axes.axhline(1, color=BLACK, linewidth=1)
        legend_below(axes, columns)


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
