"""Ten classes, four layers: the wider the network, the more often descent ends in collapse.

Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, figure 3 (right): the share of runs of gradient
descent that end in deep neural collapse, against the width, for L = 4 and K = 10.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from reproduction import BLACK, BLUE, GREY, ORANGE, SKY, Numbers, Options, legend_below, main

from collapsemeter.dufm import DUFM, dnc, solve, srg

CLASSES, DEPTH = 10, 4
EQUIVALENT = {"per_class": 50, "decay": 0.004}  # the problem of `low_rank.py`
STEP = 0.25  # with 0.5 the widest networks diverge
RANK_TOLERANCE = 0.01  # of the largest singular value
NEAR = 0.02  # relative distance from the DNC loss: descent is still a little above
WIDTHS = (10, 14, 20, 28, 40, 56, 80, 112)


def model(width: int) -> DUFM:
    """One sample a class, and the one decay equivalent to those of `low_rank.py`."""
    count, decay = EQUIVALENT["per_class"], EQUIVALENT["decay"]
    full = DUFM(CLASSES, int(count), DEPTH, feature_decay=decay, weight_decay=decay)
    same = full.canonical_decay
    return DUFM(CLASSES, 1, DEPTH, width, feature_decay=same, weight_decay=same)


def run(options: Options, width: int, number: int, steps: int) -> Numbers:
    """Where one run of descent ended."""
    problem = model(width)
    rng = options.rng(width, number)
    found = solve(problem, "gd", rng=rng, steps=steps, learning_rate=STEP)
    ranks = [found.rank(layer, True, RANK_TOLERANCE) for layer in range(2, DEPTH + 2)]
    ratio = found.loss / dnc(problem).loss
    return {
        "width": width,
        "ratio": ratio,
        "ranks": ranks,
        "collapsed": min(ranks) == CLASSES and abs(ratio - 1) < NEAR,
        "below": ratio < 1 - 1e-3 and min(ranks) < CLASSES,
    }


def study(options: Options) -> Numbers:
    runs, steps, widths = (2, 4000, (14, 80)) if options.quick else (10, 12000, WIDTHS)
    rows = [run(options, width, number, steps) for width in widths for number in range(runs)]
    problem = model(max(widths))
    return {
        "settings": {
            "classes": CLASSES,
            "depth": DEPTH,
            "canonical_decay": problem.canonical_decay,
            "equivalent": EQUIVALENT,
            "step": STEP,
            "steps": steps,
            "runs": runs,
            "rank_tolerance": RANK_TOLERANCE,
            "near": NEAR,
        },
        "srg_ratio": srg(problem).loss / dnc(problem).loss,
        "runs": rows,
    }


def by_width(numbers: Numbers) -> list[Numbers]:
    """Shares and means of the runs of one width."""
    found = []
    for width in sorted({row["width"] for row in numbers["runs"]}):
        rows = [row for row in numbers["runs"] if row["width"] == width]
        means = {name: np.mean([row[name] for row in rows]) for name in ("collapsed", "below")}
        rank = np.mean([min(row["ranks"]) for row in rows])
        ratios = [row["ratio"] for row in rows]
        found.append({"width": width, **means, "rank": rank, "ratios": ratios})
    return found


def report(numbers: Numbers) -> Iterator[str]:
    yield f"{numbers['settings']['runs']} runs a width, {numbers['settings']['steps']} steps"
    yield f"{'width':>5} {'DNC':>5} {'below':>6} {'neither':>8} {'least rank':>11} {'loss / DNC':>16}"
    for row in by_width(numbers):
        neither = 1 - row["collapsed"] - row["below"]
        low, high = min(row["ratios"]), max(row["ratios"])
        yield (
            f"{row['width']:5d} {row['collapsed']:5.0%} {row['below']:6.0%} {neither:8.0%} "
            f"{row['rank']:11.1f} {low:7.3f} .. {high:.3f}"
        )
    yield f"SRG / DNC {numbers['srg_ratio']:.4f}"


def draw(figure: Figure, numbers: Numbers) -> None:
    shares, losses = figure.subplots(1, 2)
    rows = by_width(numbers)
    x = [row["width"] for row in rows]
    shares.plot(x, [row["collapsed"] for row in rows], "o-", color=BLUE, label="in DNC")
    below = [row["below"] for row in rows]
    shares.plot(x, below, "s--", color=ORANGE, label="below DNC, of lower rank")
    shares.set(ylim=(-0.03, 1.06), title="Where the runs end")
    shares.yaxis.set_major_formatter(PercentFormatter(1.0))
    for row in rows:
        losses.plot([row["width"]] * len(row["ratios"]), row["ratios"], "o", color=SKY, mec=GREY)
    losses.axhline(1, color=BLACK, linewidth=1.2, label="DNC")
    losses.axhline(numbers["srg_ratio"], color=ORANGE, linewidth=1.2, label="SRG")
    losses.plot([], [], "o", color=SKY, mec=GREY, label="one run")
    losses.set(ylabel="loss / DNC loss", title="Loss at the end")
    for axes in (shares, losses):
        legend_below(axes, 3)
        axes.set(xscale="log", xlabel="width")
        axes.xaxis.set_major_locator(FixedLocator(x))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:.0f}")


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
