"""Two classes: no start beats deep neural collapse, and it vanishes at once at the threshold.

Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165: for K = 2 every global optimum is deep neural
collapse if n lambda_H lambda_1 ... lambda_L is below a threshold, and zero above it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from reproduction import COLOURS, GREY, MARKERS, Numbers, Options, main

from collapsemeter.dufm import DUFM, Solution, collapse_threshold, ell_minimiser, solve

PER_CLASS = 10
HIT = 1e-6  # a start within this of the closed form has found it
SIDE = 1e-6  # how near to the threshold both of its sides are visited


def problem_at(ratio: float, depth: int) -> DUFM:
    """The problem whose product of decays is this multiple of the threshold."""
    product = ratio * collapse_threshold(2, depth)
    decay = (product / PER_CLASS) ** (1 / (depth + 1))
    return DUFM(2, PER_CLASS, depth, feature_decay=decay, weight_decay=decay)


def fit_of(solution: Solution) -> float:
    """The t of the outputs t I; 0 for the zero network."""
    return float(solution.singular_values(solution.problem.depth + 1)[0])


def random_starts(options: Options, depth: int, ratio: float, starts: int) -> Numbers:
    """Gaps of random starts, half of them in a wide and half in a narrow network."""
    problem = problem_at(ratio, depth)
    found = solve(problem, restarts=starts, structured=0, rng=options.rng(1, depth))
    closed = problem.optimum()
    gaps = np.array([start.loss - closed.loss for start in found.starts])
    return {
        "depth": depth,
        "ratio": ratio,
        "optimum": closed.name,
        "closed_form": closed.loss,
        "best_gap": found.gap,
        "gaps": gaps,
        "hit_rate": float(np.mean(gaps < HIT)),
        "starts": starts,
    }


def beside_threshold(options: Options, depth: int, ratio: float, starts: int) -> Numbers:
    """What descent finds at one distance from the threshold."""
    problem = problem_at(ratio, depth)
    found = solve(problem, restarts=starts, structured=1, rng=options.rng(2, depth))
    return {
        "depth": depth,
        "ratio": ratio,
        "fit": fit_of(found),
        "loss": found.loss,
        "gap": found.gap,
        "predicted": problem.optimum().name,
    }


def study(options: Options) -> Numbers:
    depths = (1, 3) if options.quick else range(1, 7)
    starts = 4 if options.quick else 12
    ratios = (0.5,) if options.quick else (0.01, 0.5)
    around = (1 - SIDE, 1 + SIDE) if options.quick else (0.5, 0.9, 1 - SIDE, 1 + SIDE, 1.1, 1.5)
    few = 1 if options.quick else 2
    return {
        "settings": {"per_class": PER_CLASS, "hit": HIT, "side": SIDE, "starts": starts},
        "random": [random_starts(options, d, r, starts) for d in depths for r in ratios],
        "threshold": [beside_threshold(options, d, r, few) for d in depths for r in around],
    }


def report(numbers: Numbers) -> Iterator[str]:
    yield f"{'L':>2} {'starts':>6} {'best gap':>9} {'hits':>5} {'t below':>8} {'above':>6} {'(L-1)/L':>8}"
    for depth in depths_of(numbers):
        rows = [row for row in numbers["random"] if row["depth"] == depth]
        below, above = sides(numbers, depth)
        total = sum(row["starts"] for row in rows)
        hits = sum(row["hit_rate"] * row["starts"] for row in rows) / total
        best = min(row["best_gap"] for row in rows)
        yield (
            f"{depth:2d} {total:6d} {best:9.1e} {hits:5.0%} {below['fit']:8.4f} "
            f"{above['fit']:6.4f} {(depth - 1) / depth:8.4f}"
        )
    lowest = min(min(min(row["gaps"]) for row in numbers["random"]), 0.0)
    yield f"lowest gap of any start {lowest:.1e}: negative means below the closed form"


def depths_of(numbers: Numbers) -> list[int]:
    return sorted({row["depth"] for row in numbers["random"]})


def sides(numbers: Numbers, depth: int) -> tuple[Numbers, Numbers]:
    """What was found just below and just above the threshold."""
    rows = [row for row in numbers["threshold"] if row["depth"] == depth]
    near = sorted(rows, key=lambda row: float(abs(row["ratio"] - 1)))[:2]
    below, above = sorted(near, key=lambda row: float(row["ratio"]))
    return below, above


def draw(figure: Figure, numbers: Numbers) -> None:
    gaps, hits, jump = figure.subplots(1, 3, width_ratios=(4, 3, 5))
    depths = depths_of(numbers)
    shown = numbers["settings"]["hit"]
    for depth, colour in zip(depths, COLOURS, strict=False):
        rows = [row for row in numbers["random"] if row["depth"] == depth]
        losses = np.concatenate([row["gaps"] for row in rows])
        spread = np.linspace(-0.25, 0.25, losses.size)
        # A gap of rounding errors is drawn at their size: a logarithm has no zero.
        gaps.plot(depth + spread, np.maximum(losses, 1e-17), "o", color=colour, ms=3.5, alpha=0.8)
        hits.bar(depth, np.mean(losses < shown), color=colour, width=0.7)
        line(jump, depth, colour)
        tried = [row for row in numbers["threshold"] if row["depth"] == depth]
        points = ([row["ratio"] for row in tried], [row["fit"] for row in tried])
        jump.plot(*points, MARKERS[depth - 1], color=colour, ms=5, label=f"L = {depth}")
    gaps.axhline(shown, color=GREY, linestyle="--", linewidth=1)
    gaps.text(depths[0] - 0.4, shown * 1.5, "counted as a hit below", color=GREY, fontsize=8)
    gaps.set(yscale="log", ylim=(5e-18, 2), xlabel="depth L", title="Loss above the closed form")
    hits.set(ylim=(0, 1.05), xlabel="depth L", title="Starts that hit it")
    hits.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (gaps, hits):
        axes.set_xticks(depths)
    jump.axvline(1, color=GREY, linestyle=":", linewidth=1)
    jump.set(xlabel="product of the decays / threshold", ylabel="t, fit of the best network")
    jump.set_title("At the threshold t jumps from (L - 1)/L to 0")
    jump.legend(loc="upper right", bbox_to_anchor=(1.0, 0.98))


def line(axes: Axes, depth: int, colour: str) -> None:
    """The closed-form fit up to the threshold, and zero beyond."""
    ratios = np.linspace(0.3, 1 - 1e-9, 200)
    strengths = [2 * problem_at(float(ratio), depth).canonical_decay for ratio in ratios]
    fits = [ell_minimiser(strength, depth) for strength in strengths]
    # Not a number breaks the line: a jump has no middle.
    axes.plot([*ratios, np.nan, 1.0, 1.6], [*fits, np.nan, 0.0, 0.0], color=colour, linewidth=1.3)


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
