"""Unequal classes: small ones are lost one after the other, and softmax drifts to SELI.

Dang et al. 2023: the deep linear model with squared loss has a general orthogonal frame (GOF) as
its optimum, and a class below a threshold size is not learned. Thrampoulidis et al. 2022: one
layer with cross-entropy tends to simplex-encoded labels (SELI) as its ridge vanishes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from reproduction import COLOURS, GREY, MARKERS, Numbers, Options, main

from collapsemeter.dufm import (
    DUFM,
    convex,
    ell_minimiser,
    gof,
    minority_threshold,
    seli_grams,
    solve,
)
from collapsemeter.dufm.closed.bounds import class_strengths

COUNTS = (200, 100, 50, 50)  # of the synthetic experiment of Dang et al., as is the depth of 6
DEPTHS = (2, 6)
SKEWED = (20, 5, 2)
SIDE = 1e-6
RIDGES = tuple(float(10.0**power) for power in range(-2, -9, -1))


def linear_model(depth: int, decay: float) -> DUFM:
    """The deep linear model with one decay for all."""
    return DUFM(
        len(COUNTS), COUNTS, depth, feature_decay=decay, weight_decay=decay, activation="linear"
    )


def fits(problem: DUFM) -> list[float]:
    """The t_k of the general orthogonal frame; 0 for a class that is not learned."""
    return [ell_minimiser(float(g), problem.depth) for g in class_strengths(problem)]


def vanishing(count: int, depth: int) -> float:
    """The decay at which a class of this size is exactly at the threshold."""
    # The threshold is proportional to the decay to the power (L + 1) / L.
    at_one = minority_threshold(linear_model(depth, 1.0))
    return float((count / at_one) ** (depth / (depth + 1)))


def threshold(count: int, depth: int) -> Numbers:
    """The fit of a class of this size just below and just above its decay."""
    decay = vanishing(count, depth)
    place = COUNTS.index(count)
    beside = [fits(linear_model(depth, decay * (1 + side)))[place] for side in (-SIDE, SIDE)]
    return {"count": count, "depth": depth, "decay": decay, "below": beside[0], "above": beside[1]}


def sweep(depth: int, decays: NDArray[np.float64]) -> Numbers:
    rows = [fits(linear_model(depth, float(decay))) for decay in decays]
    return {"depth": depth, "decays": decays, "fits": rows}


def minimised(options: Options, depth: int, share: float, starts: int) -> Numbers:
    """What descent finds at a share of the decay that removes the largest class.

    Beyond its threshold a class remains a local minimum for a while, and random starts, which
    begin at a weak decay, stay there: one start near the frame is added to them.
    """
    problem = linear_model(depth, share * vanishing(max(COUNTS), depth))
    closed = gof(problem)
    found = solve(problem, restarts=starts, structured=1, rng=options.rng(depth))
    random = [start.loss for start in found.starts if start.kind == "random"]
    return {
        "depth": depth,
        "decay": problem.feature_decay,
        "gap": found.loss - closed.loss,
        "gap_of_random_starts": min(random) - closed.loss,
        "fits": np.abs(np.diagonal(found.class_means(depth + 1))),
        "expected": fits(problem),
    }


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def softmax(ridge: float) -> Numbers:
    """The certified optimum of one layer beside SELI."""
    problem = DUFM(len(SKEWED), SKEWED, 1, feature_decay=ridge, weight_decay=ridge, loss="ce")
    best = convex(problem)
    weight = best.weights[0]
    head, means = seli_grams(np.array(SKEWED, dtype=np.float64))
    return {
        "ridge": ridge,
        "status": best.status,
        "relative_duality_gap": best.parameters["gap"] / best.loss,
        "cosine_head": cosine(weight @ weight.T, head),
        "cosine_means": cosine(best.gram(1), means),
    }


def study(options: Options) -> Numbers:
    points, starts = (40, 2) if options.quick else (400, 6)
    depths = DEPTHS[:1] if options.quick else DEPTHS
    shares = (0.5, 0.8) if options.quick else (0.3, 0.5, 0.65, 0.8, 0.95)
    top = {depth: 1.15 * vanishing(max(COUNTS), depth) for depth in depths}
    return {
        "settings": {"counts": COUNTS, "skewed": SKEWED, "side": SIDE},
        "sweeps": [sweep(d, np.linspace(top[d] / points, top[d], points)) for d in depths],
        "thresholds": [threshold(n, d) for d in depths for n in sorted(set(COUNTS))],
        "minimised": [minimised(options, d, s, starts) for d in depths for s in shares],
        "softmax": [softmax(ridge) for ridge in (RIDGES[:4] if options.quick else RIDGES)],
    }


def report(numbers: Numbers) -> Iterator[str]:
    yield f"deep linear, squared loss, n = {numbers['settings']['counts']}:"
    for row in numbers["thresholds"]:
        yield (
            f"L={row['depth']}: a class of {row['count']:3d} is lost at decay {row['decay']:.6g}, "
            f"where t jumps from {row['below']:.4f} to {row['above']:.4f}"
        )
    for row in numbers["minimised"]:
        found, expected = (" ".join(f"{t:.4f}" for t in row[n]) for n in ("fits", "expected"))
        yield (
            f"L={row['depth']} decay {row['decay']:.4f}: t = {found} (GOF {expected}); loss above "
            f"GOF {row['gap']:.0e}, of random starts alone {row['gap_of_random_starts']:.0e}"
        )
    yield f"one layer, cross-entropy, n = {numbers['settings']['skewed']}, cosine with SELI:"
    for row in numbers["softmax"]:
        yield (
            f"decays {row['ridge']:.0e}: classifier {row['cosine_head']:.5f}, class means "
            f"{row['cosine_means']:.5f}; {row['status']}, gap {row['relative_duality_gap']:.0e}"
        )


def draw(figure: Figure, numbers: Numbers) -> None:
    sweeps = numbers["sweeps"]
    figure.set_size_inches(11, 4)
    *panels, right = figure.subplots(1, len(sweeps) + 1)
    sizes = sorted(set(COUNTS), reverse=True)
    for axes, found in zip(panels, sweeps, strict=True):
        depth = found["depth"]
        tried = [row for row in numbers["minimised"] if row["depth"] == depth]
        for number, size in enumerate(sizes):
            place, colour = COUNTS.index(size), COLOURS[number + 4]
            x, y = found["decays"], [row[place] for row in found["fits"]]
            axes.plot(x, y, color=colour, label=f"class of {size}")
            dots = [row["fits"][place] for row in tried]
            x = [row["decay"] for row in tried]
            axes.plot(x, dots, MARKERS[number], color=colour, ms=7, mec="white")
        for row in numbers["thresholds"]:
            if row["depth"] == depth:
                axes.axvline(row["decay"], color=GREY, linestyle=":", linewidth=1)
        axes.set(ylim=(-0.03, 1.03), xlabel="decay of every layer", ylabel="fit t")
        axes.set_title(f"Minority collapse, deep linear, L = {depth}")
    handles, labels = panels[0].get_legend_handles_labels()
    handles += [Line2D([], [], color=GREY, marker="o", linestyle="none")]
    handles += [Line2D([], [], color=GREY, linestyle=":")]
    panels[0].legend(handles, [*labels, "L-BFGS", "threshold"], loc="upper right")
    x = [row["ridge"] for row in numbers["softmax"]]
    for number, (name, what) in enumerate((("head", "classifier"), ("means", "class means"))):
        y = [1 - row[f"cosine_{name}"] for row in numbers["softmax"]]
        style = {"color": COLOURS[number + 3], "marker": MARKERS[number], "label": what}
        right.plot(x, y, **style)
    right.set(xscale="log", yscale="log", xlabel="ridge, both decays")
    right.set_title("SELI: 1 - cosine of Gram matrices")
    right.legend(loc="upper left")


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
