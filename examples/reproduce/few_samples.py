"""Few rows a class: the plain value, the estimate and its interval against the truth.

Rows are drawn with known class means and covariance: Gaussian, heavy-tailed (Student's t with 4 degrees of freedom), of random
size a row, anisotropic (variances 1/j), and of classes that differ in size; and from the features of a network trained on
scikit-learn's digits, whose whole training set is the truth there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib.figure import Figure
from reproduction import COLOURS, GREY, MARKERS, Numbers, Options, legend_below, main

import collapsemeter as cm

ROWS = (2, 3, 4, 8, 16, 32, 128)
CLASSES, WIDTH = 10, 64
METRICS = ("nc1_trace_ratio", "separation", "nc1_cdnv", "nc2_etf_error", "nc2_equinorm")
PLAIN = ("nc1_pinv", "nc1_vci", "nc1_vci_shrunk")
SHAPES = {"unequal": (1, 1, 1, 2, 2, 3, 4, 6, 10, 20)}  # n times these, over 5
WIDTHS, SEPARATIONS = (64, 512, 2048), (4.0, 1.0, 0.25, 0.0625)
WITHIN = 0.1  # of the truth
RARE = 0.05  # of the data sets: an estimate of so few says nothing of its bias

Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def noise(kind: str) -> Draw:
    """Rows of noise (N, d) for labels, of variance 1 a feature on average."""

    def draw(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        shape = (len(labels), WIDTH)
        if kind == "heavy-tailed":
            return np.asarray(rng.standard_t(4, shape) / math.sqrt(2))
        rows = rng.normal(size=shape)
        if kind == "row-scaled":
            rows *= np.sqrt(rng.gamma(1, 1, (len(labels), 1)))
        rows *= np.sqrt(variances(kind))
        return rows

    return draw


def variances(kind: str) -> np.ndarray:
    if kind != "anisotropic":
        return np.ones(WIDTH)
    falling = 1 / np.arange(1, WIDTH + 1)
    return np.asarray(falling * WIDTH / falling.sum())


def truth(means: np.ndarray, covariance: np.ndarray, counts: np.ndarray) -> cm.LayerReport:
    """The metrics of the population, weighted as these counts weight classes."""
    counts = 1000 * counts
    moments = cm.ClassMoments(
        counts=counts,
        means=means,
        scatter=counts[:, None, None] * covariance,
        traces=counts * float(np.trace(covariance)),
        phase="reference",
    )
    return cm.measure(moments)


def measured(features: np.ndarray, labels: np.ndarray) -> cm.LayerReport:
    moments = cm.ClassMoments.from_batch(features, labels, CLASSES)
    return cm.measure(moments, decisions=cm.decide(moments, features, labels))


def summary(layers: list[cm.LayerReport], known: cm.LayerReport) -> Numbers:
    """Means over data sets, as multiples of the truth, and how often intervals hold it."""

    def mean(values: list[float]) -> float | None:
        finite = [value for value in values if math.isfinite(value)]
        return float(np.mean(finite)) if finite else None

    found: Numbers = {
        "noise": float(np.mean(["between_scatter_not_above_noise" in x.flags for x in layers])),
        "ncc": mean([x["ncc_accuracy"] for x in layers]),
        "ncc_loo": mean([x["ncc_accuracy_loo"] for x in layers]),
    }
    for name in (*METRICS, *PLAIN):
        ends = [x.intervals[name] for x in layers if name in x.intervals]
        right = known["nc1_vci" if name == "nc1_vci_shrunk" else name]
        found[name] = {
            "truth": right,
            "plain": mean([x[name] / right for x in layers]),
            "estimate": mean([x.estimates.get(name, math.nan) / right for x in layers]),
            "estimates": float(np.mean([name in x.estimates for x in layers])),
            "intervals": len(ends) / len(layers),
            "cover": float(np.mean([low <= right <= high for low, high in ends])) if ends else None,
            "width": float(np.median([high - low for low, high in ends])) / right if ends else None,
        }
    return found


def simulated(options: Options, kind: str, rows: int, sets: int) -> Numbers:
    rng = options.rng(len(kind), rows)
    means = rng.normal(size=(CLASSES, WIDTH))
    counts = np.full(CLASSES, rows)
    if kind in SHAPES:
        counts = np.maximum(2, np.array(SHAPES[kind]) * rows // 5)
    labels = np.repeat(np.arange(CLASSES), counts)
    draw, layers = noise(kind), []
    for _ in range(sets):
        shuffled = rng.permutation(labels)
        layers.append(measured(means[shuffled] + draw(rng, shuffled), shuffled))
    known = truth(means, np.diag(variances(kind)), counts)
    return {"kind": kind, "rows": rows, **summary(layers, known)}


def real(options: Options, rows: int, sets: int) -> Numbers:
    features, labels = digits_features(options.seed)
    known = cm.measure(cm.ClassMoments.from_batch(features, labels, CLASSES, groups=0))
    members = [np.flatnonzero(labels == c) for c in range(CLASSES)]
    rng, layers = options.rng(99, rows), []
    for _ in range(sets):
        chosen = rng.permutation(np.concatenate([rng.choice(m, rows, False) for m in members]))
        layers.append(measured(features[chosen], labels[chosen]))
    return {"kind": "digits", "rows": rows, **summary(layers, known)}


_FEATURES: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def digits_features(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The last hidden layer of a network trained on the digits, about twelve epochs long."""
    if seed not in _FEATURES:
        import torch
        from sklearn.datasets import load_digits

        torch.manual_seed(seed)
        pixels, labels = load_digits(return_X_y=True)
        x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
        hidden = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, WIDTH), torch.nn.ReLU()
        )
        head = torch.nn.Linear(WIDTH, CLASSES)
        optimiser = torch.optim.Adam([*hidden.parameters(), *head.parameters()], 1e-3)
        for _ in range(12):
            for part in torch.randperm(len(x)).split(64):
                loss = torch.nn.functional.cross_entropy(head(hidden(x[part])), y[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            _FEATURES[seed] = hidden(x).double().numpy(), labels
    return _FEATURES[seed]


def pure_noise(options: Options, rows: int, sets: int) -> Numbers:
    """Rows without classes: how often the flag is up, and what the plain values say."""
    rng = options.rng(7, rows)
    labels = np.repeat(np.arange(CLASSES), rows)
    layers = [measured(rng.normal(size=(len(labels), 512)), labels) for _ in range(sets)]
    names = ("nc1_pinv", "nc1_trace_ratio", "nc2_etf_error", "ncc_accuracy", "ncc_accuracy_loo")
    return {
        "rows": rows,
        "flagged": float(np.mean(["between_scatter_not_above_noise" in x.flags for x in layers])),
        **{name: float(np.mean([x[name] for x in layers])) for name in names},
    }


def needed(width: int, separation: float) -> Numbers:
    """Rows a class of Gaussian isotropic noise for the trace ratio, plain and estimated, to be within a tenth."""

    def plain(n: int) -> float:
        between = separation + (1 - 1 / CLASSES) / n
        return abs((1 - 1 / n) * separation / between - 1)

    def half_width(n: int) -> float:
        f, x, trace = CLASSES * (n - 1), 1 / width, (CLASSES - 1) / n
        variance = 4 * separation / width / n * CLASSES + 2 * x * trace**2 / (CLASSES - 1)
        variance = (variance + 2 * x * trace**2 / f) / CLASSES**2
        return 1.96 * math.sqrt(variance / separation**2 + 2 * x / f)

    return {
        "width": width,
        "separation": separation,
        "plain": next(n for n in range(2, 10**5) if plain(n) <= WITHIN),
        "estimate": next(n for n in range(2, 10**5) if half_width(n) <= WITHIN),
    }


def study(options: Options) -> Numbers:
    sets, rows = (12, (2, 8)) if options.quick else (200, ROWS)
    kinds = ("gaussian", "heavy-tailed", "row-scaled", "anisotropic", "unequal")
    used = kinds[:1] if options.quick else kinds
    return {
        "settings": {"sets": sets, "classes": CLASSES, "width": WIDTH},
        "simulated": [simulated(options, kind, n, sets) for kind in used for n in rows],
        "real": [real(options, n, sets) for n in rows if n <= 32],
        "noise": [pure_noise(options, n, sets // 4) for n in rows if n <= 32],
        "needed": [needed(d, s) for d in WIDTHS for s in SEPARATIONS],
    }


def report(numbers: Numbers) -> Iterator[str]:
    settings = numbers["settings"]
    yield (
        f"{settings['sets']} data sets each, C = {settings['classes']}, d = {settings['width']}: plain value and estimate as "
        f"multiples of the truth, cover of the interval; - where fewer than {RARE:.0%} of the sets have one"
    )
    yield f"{'rows a class':16}" + "".join(f"{name:>20}" for name in METRICS) + "  ncc  loo"
    for row in (*numbers["simulated"], *numbers["real"]):
        cells = "".join(f"{said(row[name]):>20}" for name in METRICS)
        yield f"{row['kind']:13}{row['rows']:3}{cells} {row['ncc']:.3f} {row['ncc_loo']:.3f}"
    yield f"{'rows a class':16}" + "".join(f"{name:>16}" for name in PLAIN)
    for row in (*numbers["simulated"], *numbers["real"]):
        if row["rows"] in (4, 16):
            cells = "".join(f"{shown(row[name]['plain']):>16}" for name in PLAIN)
            yield f"{row['kind']:13}{row['rows']:3}{cells}"
    for row in numbers["noise"]:
        yield (
            f"pure noise, d = 512, {row['rows']:2} rows a class: flagged {row['flagged']:.0%}; nc1_pinv {row['nc1_pinv']:.3f}, "
            f"etf_error {row['nc2_etf_error']:.3f}, ncc {row['ncc_accuracy']:.3f}, loo {row['ncc_accuracy_loo']:.3f}"
        )
    yield (
        f"rows a class until the trace ratio is within {WITHIN:.0%}: plain value (bias) / estimate (95 % interval)"
    )
    for width in WIDTHS:
        needs = (
            f"{row['separation']:g}: {row['plain']} / {row['estimate']}"
            for row in numbers["needed"]
            if row["width"] == width
        )
        yield f"d = {width:4}, separation {', '.join(needs)}"


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def said(found: Numbers) -> str:
    estimate = found["estimate"] if found["estimates"] >= RARE else None
    cover = found["cover"] if found["intervals"] >= RARE else None
    return f"{shown(found['plain'])} {shown(estimate)} {shown(cover)}"


def draw(figure: Figure, numbers: Numbers) -> None:
    figure.set_size_inches(11, 4.2)
    left, middle, right = figure.subplots(1, 3)
    gaussian = [row for row in numbers["simulated"] if row["kind"] == "gaussian"]
    rows = [row["rows"] for row in gaussian]
    for number, name in enumerate(METRICS[:4]):
        style = {"color": COLOURS[number + 1], "marker": MARKERS[number]}
        left.plot(rows, [row[name]["plain"] for row in gaussian], "--", alpha=0.6, **style)
        estimates = [row[name]["estimate"] for row in gaussian]
        points = [(n, value) for n, value in zip(rows, estimates, strict=True) if value is not None]
        left.plot(*zip(*points, strict=True), label=name, **style)
    left.axhline(1, color=GREY, linewidth=1)
    left.set(xscale="log", yscale="log", xlabel="rows a class", ylabel="mean / truth")
    left.set_title("Plain values (dashed) and estimates, Gaussian")
    legend_below(left, 2)
    kinds = list(dict.fromkeys(row["kind"] for row in (*numbers["simulated"], *numbers["real"])))
    for number, kind in enumerate(kinds):
        chosen = [r for r in (*numbers["simulated"], *numbers["real"]) if r["kind"] == kind]
        points = [
            (r["rows"], r["nc1_trace_ratio"]["cover"])
            for r in chosen
            if r["nc1_trace_ratio"]["cover"] is not None
        ]
        middle.plot(
            *zip(*points, strict=True), color=COLOURS[number], marker=MARKERS[number], label=kind
        )
    middle.axhspan(0.92, 0.99, color=GREY, alpha=0.15)
    middle.set(xscale="log", ylim=(0.8, 1.005), xlabel="rows a class")
    middle.set_title("Cover of 95 % intervals, nc1_trace_ratio")
    legend_below(middle, 3)
    for number, separation in enumerate(SEPARATIONS):
        chosen = [row for row in numbers["needed"] if row["separation"] == separation]
        style = {"color": COLOURS[number + 1], "marker": MARKERS[number]}
        widths = [row["width"] for row in chosen]
        right.plot(widths, [row["plain"] for row in chosen], "--", alpha=0.6, **style)
        label = f"separation {separation:g}"
        right.plot(widths, [row["estimate"] for row in chosen], label=label, **style)
    right.set(xscale="log", yscale="log", xlabel="features d")
    right.set_title(f"Rows a class to be within {WITHIN:.0%}")
    legend_below(right, 2)


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
