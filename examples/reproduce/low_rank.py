"""Ten classes, four layers: networks of low rank have a lower loss than deep neural collapse.

Sukenik, Lampert & Mondelli 2024, arXiv 2405.14468, figure 2 (top): gradient descent on the
4-DUFM with all decays 0.004, step 0.5 and width 30 ends below the loss of deep neural collapse.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reproduction import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    VERMILION,
    Numbers,
    Options,
    legend_below,
    main,
)

from collapsemeter.dufm import DUFM, dnc, solve, srg

CLASSES, DEPTH, DECAY, WIDTH, STEP = 10, 4, 0.004, 30, 0.5
PER_CLASS = 50  # the caption of the paper leaves it open
RANK_TOLERANCE = 0.01  # of the largest singular value: descent leaves the small ones unfinished
KINDS = {  # what each kind of point is called and how it is drawn
    "gd": ("gradient descent", "o", SKY),
    "random": ("L-BFGS, random start", "^", BLUE),
    "best": ("best found by solve", "*", VERMILION),
    "dnc": ("DNC", "s", BLACK),
    "srg": ("SRG, best subsets", "D", GREEN),
    "srg s=2": ("SRG, s = 2", "P", ORANGE),
}


def point(kind: str, found: Any) -> Numbers:
    """Loss, and rank and singular values of the class means, of a closed form or a solution."""
    layers = range(2, DEPTH + 2)
    ranks = [found.rank(layer, True, RANK_TOLERANCE) for layer in layers]
    values = [found.singular_values(layer, before_activation=True) for layer in layers]
    return {"kind": kind, "loss": found.loss, "ranks": ranks, "singular_values": values}


def descent(problem: DUFM, options: Options, run: int, steps: int) -> tuple[Numbers, Numbers]:
    """One run of gradient descent: where it ended, and its path."""
    found = solve(problem, "gd", rng=options.rng(1, run), steps=steps, learning_rate=STEP)
    path = found.trajectory
    assert path is not None  # gradient descent always records it
    within = path.within[-1]
    return point("gd", found), {"step": path.step, "loss": path.loss, "dnc1": within}


def study(options: Options) -> Numbers:
    problem = DUFM(CLASSES, PER_CLASS, DEPTH, WIDTH, feature_decay=DECAY, weight_decay=DECAY)
    runs, steps, random, iterations = (1, 300, 1, 60) if options.quick else (10, 10000, 6, 2000)
    closed = {"dnc": dnc(problem), "srg": srg(problem), "srg s=2": srg(problem, size=2)}
    points = [point(kind, reference) for kind, reference in closed.items()]
    ended, paths = zip(*(descent(problem, options, i, steps) for i in range(runs)), strict=True)
    points += ended
    for i in range(random):
        rng = options.rng(2, i)
        found = solve(problem, restarts=1, structured=0, rng=rng, steps=iterations)
        points.append(point("random", found))
    # The best of random starts and of starts near graphs of few vertices.
    found = solve(
        problem, restarts=random, structured=2 * random, rng=options.rng(3), steps=iterations
    )
    points.append(point("best", found))
    return {
        "settings": {
            "classes": CLASSES,
            "depth": DEPTH,
            "decay": DECAY,
            "width": WIDTH,
            "per_class": PER_CLASS,
            "step": STEP,
            "steps": steps,
            "rank_tolerance": RANK_TOLERANCE,
            "iterations": iterations,
            "random_starts": random,
            "structured_starts": 2 * random,
        },
        "srg_subsets": closed["srg"].parameters["s"],
        "points": points,
        "paths": list(paths),
        "lower_bound": found.lower_bound,
        "residual": found.residual.generalised,
    }


def of_kind(numbers: Numbers, kind: str) -> list[Numbers]:
    return [row for row in numbers["points"] if row["kind"] == kind]


def report(numbers: Numbers) -> Iterator[str]:
    collapsed = of_kind(numbers, "dnc")[0]["loss"]
    yield f"{'':22} {'loss':>9} {'/ DNC':>7}  ranks of layers 2 to {DEPTH + 1}, before the ReLU"
    for kind, (name, _, _) in KINDS.items():
        for row in sorted(of_kind(numbers, kind), key=lambda row: float(row["loss"])):
            ranks = " ".join(map(str, row["ranks"]))
            yield f"{name:22} {row['loss']:9.6f} {row['loss'] / collapsed:7.4f}  {ranks}"
    below = sum(row["loss"] < collapsed for row in of_kind(numbers, "gd"))
    yield f"gradient descent below DNC: {below} of {len(of_kind(numbers, 'gd'))} runs"
    worst = max(value for path in numbers["paths"] for value in path["dnc1"])
    yield f"within over between scatter of these runs, worst layer: {worst:.1e}"
    yield (
        f"proven lower bound {numbers['lower_bound']:.6f}, generalised gradient at the best "
        f"{numbers['residual']:.1e}"
    )


def draw(figure: Figure, numbers: Numbers) -> None:
    losses, ranks, spectra = figure.subplots(1, 3, width_ratios=(4, 5, 4))
    draw_paths(losses, numbers)
    draw_ranks(ranks, numbers)
    draw_spectra(spectra, numbers)


def draw_paths(axes: Axes, numbers: Numbers) -> None:
    for path in numbers["paths"]:
        axes.plot(path["step"], path["loss"], color=SKY, linewidth=1)
    for kind in ("dnc", "srg s=2", "srg", "best"):
        name, _, colour = KINDS[kind]
        axes.axhline(of_kind(numbers, kind)[0]["loss"], color=colour, linewidth=1.4, label=name)
    axes.plot([], [], color=SKY, label="gradient descent")
    collapsed = of_kind(numbers, "dnc")[0]["loss"]
    axes.set(ylim=(0.75 * collapsed, 1.35 * collapsed), xlabel="step", title="Loss")
    axes.legend(loc="upper right")


def draw_ranks(axes: Axes, numbers: Numbers) -> None:
    """Loss against the rank of the narrowest hidden layer."""
    collapsed = of_kind(numbers, "dnc")[0]["loss"]
    for number, (kind, (name, marker, colour)) in enumerate(KINDS.items()):
        rows = of_kind(numbers, kind)
        # Side by side within a rank, for they would hide each other.
        x = [min(row["ranks"]) + 0.08 * (number - 2.5) for row in rows]
        y = [row["loss"] / collapsed for row in rows]
        size = 13 if marker == "*" else 7
        style: dict[str, Any] = {"color": colour, "ms": size, "mec": "white", "linestyle": "none"}
        axes.plot(x, y, marker, label=name, **style)
    axes.axhline(1, color=BLACK, linewidth=1)
    axes.set(xlabel="least rank of a layer", ylabel="loss / DNC loss", title="Loss against rank")
    axes.set_xticks(range(4, CLASSES + 1))
    axes.grid(False, axis="x")
    legend_below(axes, 2)


def draw_spectra(axes: Axes, numbers: Numbers) -> None:
    """Singular values of the second layer, as shares of the largest."""
    for kind in ("dnc", "srg", "best", "gd"):
        name, marker, colour = KINDS[kind]
        row = min(of_kind(numbers, kind), key=lambda row: float(row["loss"]))
        values = row["singular_values"][1][:CLASSES]
        x = range(1, len(values) + 1)
        y = [value / values[0] for value in values]
        fill: dict[str, Any] = {"mfc": "none", "ms": 11} if kind == "srg" else {}
        axes.plot(x, y, marker=marker, color=colour, label=name, **fill)
    axes.axhline(RANK_TOLERANCE, color=GREY, linestyle="--", linewidth=1)
    axes.set(
        ylim=(-0.03, 1.08), xlabel="singular value", title="Class means of layer 3, largest = 1"
    )
    axes.set_xticks(range(1, CLASSES + 1))
    legend_below(axes, 2)


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
