"""Two classes: plain gradient descent on the 4-DUFM reaches deep neural collapse.

Sukenik, Mondelli & Lampert 2023, arXiv 2305.13165: with 50 samples a class, width 64, step 0.5 and
all decays 5e-4, the metrics DNC1 to DNC3 go to zero in every layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from reproduction import COLOURS, MARKERS, Numbers, Options, main

from collapsemeter import ClassMoments, measure
from collapsemeter.dufm import DUFM, Variables, forward, gradient_descent, sample_columns
from collapsemeter.dufm.seeds import gaussian_start

CLASSES, DEPTH, STEP = 2, 4, 0.5
METRICS = {"dnc1": "nc1_trace_ratio", "dnc2": "means_condition", "dnc3": "dnc3_sine"}


def look(problem: DUFM, point: Variables, step: int, gap: float) -> Numbers:
    """DNC1 to DNC3 of the layers that feed W_1 to W_L."""
    labels = sample_columns(problem).labels
    rows: Numbers = {"step": step, "gap": gap, **{name: [] for name in METRICS}}
    for layer, weight in zip(forward(problem, point)[1], point.weights, strict=False):
        found = measure(ClassMoments.from_batch(layer.T, labels, CLASSES), weight=weight)
        for name, metric in METRICS.items():
            rows[name].append(found[metric])
    return rows


def descend(problem: DUFM, options: Options, run: int, steps: int) -> list[Numbers]:
    """One run of descent, looked at on the way at growing distances."""
    point = gaussian_start(problem, options.rng(run))
    closed = problem.optimum().loss
    due = np.unique(np.geomspace(10, steps, 60).astype(int)).tolist()
    rows = []
    for begun, ended in pairwise([0, *due]):
        point, loss, _ = gradient_descent(problem, point, STEP, ended - begun, records=2)
        rows.append(look(problem, point, ended, loss - closed))
    return rows


def study(options: Options) -> Numbers:
    runs, steps = (1, 4000) if options.quick else (3, 100000)
    per_class, width, decay = (5, 32, 0.02) if options.quick else (50, 64, 5e-4)
    problem = DUFM(CLASSES, per_class, DEPTH, width, feature_decay=decay, weight_decay=decay)
    return {
        "settings": {
            "classes": CLASSES,
            "depth": DEPTH,
            "per_class": per_class,
            "width": width,
            "decay": decay,
            "learning_rate": STEP,
            "steps": steps,
        },
        "closed_form": problem.optimum().loss,
        "runs": [descend(problem, options, run, steps) for run in range(runs)],
    }


def report(numbers: Numbers) -> Iterator[str]:
    yield f"closed form {numbers['closed_form']:.9f}; after {numbers['settings']['steps']} steps:"
    layers = " ".join(f"{f'layer {i}':>8}" for i in range(1, DEPTH + 1))
    for number, rows in enumerate(numbers["runs"]):
        last = rows[-1]
        lowest = min(row["gap"] for row in rows)
        yield f"run {number}: gap {last['gap']:.1e}, lowest on the way {lowest:.1e}; {layers}"
        for name, metric in METRICS.items():
            values = " ".join(f"{value:8.3g}" for value in last[name])
            yield f"{f'  {name.upper()} ({metric})':48}{values}"


def draw(figure: Figure, numbers: Numbers) -> None:
    figure.set_size_inches(11, 3.8)
    gap, *panels = figure.subplots(1, 4)
    rows = numbers["runs"][0]
    for run in numbers["runs"]:
        gap.plot([row["step"] for row in run], [row["gap"] for row in run], color=COLOURS[4])
    gap.set_title("Loss above closed form, all runs")
    titles = ("DNC1, tr S_W / tr S_B", "DNC2, condition - 1", "DNC3, sine of rows to means")
    for axes, name, title in zip(panels, METRICS, titles, strict=True):
        for layer in range(DEPTH):
            values = [row[name][layer] - (name == "dnc2") for row in rows]
            style = {"color": COLOURS[layer + 1], "marker": MARKERS[layer], "ms": 3}
            axes.plot([row["step"] for row in rows], values, label=f"layer {layer + 1}", **style)
        axes.set_title(title)
    panels[0].legend(loc="lower left")
    for axes in (gap, *panels):
        axes.set(xscale="log", yscale="log", xlabel="step")


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
