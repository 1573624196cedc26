"""Cross-entropy: opposite pairs of classes beat deep neural collapse from K = 4 or 6 on.

Garrod & Keating 2024, arXiv 2410.23169: in the deep linear model collapse is not optimal, and in
the deep ReLU network it is not from K = 16 (L = 4) or K = 10 (L >= 5) on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduction import BLACK, COLOURS, GREY, MARKERS, Numbers, Options, legend_below, main

from collapsemeter.dufm import (
    DUFM,
    Optimum,
    class_loss_and_gradient,
    dnc,
    linear_ce_dnc,
    linear_ce_pairs,
    linear_ce_polygon,
    pairs,
    solve,
)

Build = Callable[[DUFM], Optimum]

WEAK = 1e-7  # the decay c at which the limit is shown; where pairs win still depends on it
DECAYS = (1e-5, 1e-4, 1e-3, 3e-3, 6e-3, 1e-2)
MINIMISED_DECAY = 3e-3
SIX = (6, 3)  # classes and depth of the panel against the decay
CASES = ((3, 3), (4, 3), (6, 2), (6, 3), (10, 3))  # classes and depth that are also minimised


def model(classes: int, depth: int, decay: float, activation: str = "linear") -> DUFM:
    """Cross-entropy, one sample a class, one decay."""
    linear = activation == "linear"
    return DUFM(
        classes,
        1,
        depth,
        feature_decay=decay,
        weight_decay=decay,
        loss="ce",
        activation="linear" if linear else "relu",
    )


def ratio(problem: DUFM, build: Build, collapse: Build) -> float:
    return build(problem).loss / collapse(problem).loss


def linear_row(classes: int, depth: int, decay: float) -> Numbers:
    """Pairs and polygon beside collapse in the deep linear model."""
    problem = model(classes, depth, decay)
    return {
        "classes": classes,
        "depth": depth,
        "decay": decay,
        "pairs": ratio(problem, linear_ce_pairs, linear_ce_dnc),
        "polygon": ratio(problem, linear_ce_polygon, linear_ce_dnc),
    }


def relu_row(classes: int, depth: int) -> Numbers:
    """Pairs through ReLU layers, beside the collapse that a ReLU allows and the linear one.

    Collapse costs less in the linear model, whose layers may all hold a simplex of K - 1
    directions; a ReLU keeps no simplex, so all layers but the last need K.
    """
    problem = model(classes, depth, WEAK, "relu")
    found = pairs(problem)
    cheaper = linear_ce_dnc(model(classes, depth, WEAK))
    through = class_loss_and_gradient(problem, found.variables)[0]
    return {
        "classes": classes,
        "depth": depth,
        "pairs": found.loss / dnc(problem).loss,
        "pairs_to_linear": found.loss / cheaper.loss,
        "network_error": abs(through - found.loss),
    }


def minimised(options: Options, classes: int, depth: int, starts: int) -> Numbers:
    """What descent finds from random starts, beside the closed forms."""
    problem = model(classes, depth, MINIMISED_DECAY)
    found = solve(problem, restarts=starts, structured=0, rng=options.rng(classes, depth))
    collapsed = linear_ce_dnc(problem).loss
    losses = np.array([start.loss for start in found.starts])
    return {
        "classes": classes,
        "depth": depth,
        "loss": found.loss,
        "rank": found.rank(depth + 1),
        "dnc": collapsed,
        "pairs": linear_ce_pairs(problem).loss,
        "polygon": linear_ce_polygon(problem).loss,
        "starts": starts,
        "starts_at_dnc": int(np.sum(np.abs(losses - collapsed) < 1e-6)),
    }


def study(options: Options) -> Numbers:
    most, depths = (8, (2, 3)) if options.quick else (24, (2, 3, 4, 5))
    deep, starts = ((4, 5), 2) if options.quick else ((3, 4, 5, 6), 8)
    cases = CASES[3:4] if options.quick else CASES
    classes = range(3, most + 1)
    return {
        "settings": {"weak_decay": WEAK, "minimised_decay": MINIMISED_DECAY},
        "linear": [linear_row(k, depth, WEAK) for depth in depths for k in classes],
        "decays": [linear_row(*SIX, decay) for decay in DECAYS],
        "relu": [relu_row(k, depth) for depth in deep for k in range(4, 31, 2)],
        "minimised": [minimised(options, k, depth, starts) for k, depth in cases],
    }


def of_depth(rows: list[Numbers], depth: int) -> list[Numbers]:
    return [row for row in rows if row["depth"] == depth]


def first_win(rows: list[Numbers], name: str = "pairs") -> str:
    """From how many classes on pairs have the lower loss."""
    lost = max((row["classes"] for row in rows if row[name] >= 1 - 1e-12), default=0)
    won = min((row["classes"] for row in rows if row["classes"] > lost), default=None)
    return "nowhere here" if won is None else f"from K={won} on"


def ranges(found: list[int]) -> str:
    """Integers, with runs of them as first..last."""
    starts = [k for k in found if k - 1 not in found]
    ends = [k for k in found if k + 1 not in found]
    return ", ".join(f"{a}..{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))


def report(numbers: Numbers) -> Iterator[str]:
    weak = numbers["settings"]["weak_decay"]
    for depth in depths_of(numbers["linear"]):
        rows = of_depth(numbers["linear"], depth)
        round_ones = [row["classes"] for row in rows if row["polygon"] < row["pairs"] - 1e-12]
        where = f"at K={ranges(round_ones)}" if round_ones else "nowhere here"
        yield (
            f"deep linear, L={depth}, c={weak:g}: pairs beat DNC {first_win(rows)}, "
            f"the polygon beats pairs {where}"
        )
    for depth in depths_of(numbers["relu"]):
        rows = of_depth(numbers["relu"], depth)
        yield (
            f"deep ReLU, L={depth}, c={weak:g}, K even: pairs beat DNC {first_win(rows)}, "
            f"and the linear model's DNC {first_win(rows, 'pairs_to_linear')}"
        )
    worst = max(row["network_error"] for row in numbers["relu"])
    yield f"formula and explicit network of pairs differ by at most {worst:.1e}"
    decay = numbers["settings"]["minimised_decay"]
    yield f"deep linear at c={decay:g}, random starts of L-BFGS:"
    yield (
        f"{'K':>3} {'L':>2} {'DNC':>9} {'pairs':>9} {'polygon':>9} {'found':>9} {'rank':>4}  at DNC"
    )
    for row in numbers["minimised"]:
        losses = " ".join(f"{row[name]:9.6f}" for name in ("dnc", "pairs", "polygon", "loss"))
        stuck = f"{row['starts_at_dnc']} of {row['starts']}"
        yield f"{row['classes']:3d} {row['depth']:2d} {losses} {row['rank']:4d}  {stuck}"


def depths_of(rows: list[Numbers]) -> list[int]:
    return sorted({row["depth"] for row in rows})


def draw(figure: Figure, numbers: Numbers) -> None:
    figure.set_size_inches(11, 4.2)
    linear, decays, relu = figure.subplots(1, 3)
    weak = numbers["settings"]["weak_decay"]
    curves(linear, numbers["linear"], f"Deep linear, c = {weak:g}")
    curves(relu, numbers["relu"], f"Deep ReLU, c = {weak:g}, K even")
    x = [row["decay"] for row in numbers["decays"]]
    for number, name in enumerate(("pairs", "polygon")):
        style: dict[str, Any] = {
            "color": COLOURS[4 + number],
            "marker": MARKERS[number],
            "label": name,
        }
        decays.plot(x, [row[name] for row in numbers["decays"]], **style)
    decays.set(xscale="log", xlabel="decay c", title=f"Deep linear, K = {SIX[0]}, L = {SIX[1]}")
    decays.axhline(1, color=BLACK, linewidth=1)
    legend_below(decays, 2)
    linear.set_ylabel("loss / DNC loss")


def curves(axes: Axes, rows: list[Numbers], title: str) -> None:
    """Pairs, and the polygon where there is one, against the number of classes."""
    for number, depth in enumerate(depths_of(rows)):
        found = of_depth(rows, depth)
        x = [row["classes"] for row in found]
        style: dict[str, Any] = {"color": COLOURS[number + 1], "marker": MARKERS[number], "ms": 4}
        axes.plot(x, [row["pairs"] for row in found], label=f"pairs, L = {depth}", **style)
        if "polygon" in found[0]:
            y = [row["polygon"] for row in found]
            axes.plot(x, y, color=COLOURS[number + 1], linestyle=":")
    if "polygon" in rows[0]:
        axes.plot([], [], color=GREY, linestyle=":", label="polygon, same colours")
        axes.set_ylim(0.55, 1.35)  # at small depth the polygon's loss grows with K
    axes.axhline(1, color=BLACK, linewidth=1)
    axes.set(xlabel="classes K", title=title)
    legend_below(axes, 2)


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
