"""Digits: the layers of a real network's head, beside the deep unconstrained features model.

Sukenik et al. 2023, arXiv 2305.13165, and 2024, arXiv 2405.14468, figure 2 (bottom): a network
with a multi-layer head, decayed as the model is, comes close to a solution of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from reproduction import BLACK, COLOURS, GREY, MARKERS, Numbers, Options, main
from sklearn.datasets import load_digits
from torch import Tensor, nn

from collapsemeter import CollapseReport, compare
from collapsemeter.dufm import DUFM, dnc, lower_bound
from collapsemeter_torch import CollapseMeter

CLASSES, DEPTH, WIDTH = 10, 4, 64
WEIGHT_DECAY, FEATURE_DECAY = 0.005, 0.025  # the latter of a class: n lambda_H
RATE = 2e-3
# Inputs of W_1, ..., W_4; the meter names the last of them after the layer that reads it.
LAYERS = ("features", "head.relu2", "head.relu3", "head.w4")


class Digits(NamedTuple):
    """As many images of every class."""

    images: Tensor
    labels: Tensor
    per_class: int


class Network(nn.Module):
    """A backbone free to place its features, and a head like the model: no bias, no ReLU first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, WIDTH))
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number in range(1, DEPTH):
            layers[f"w{number}"] = nn.Linear(WIDTH, WIDTH, bias=False)
            layers[f"relu{number + 1}"] = nn.ReLU()
        layers[f"w{DEPTH}"] = nn.Linear(WIDTH, CLASSES, bias=False)
        self.head = nn.Sequential(layers)
        for weight in self.weights():
            # With torch's smaller default the decays win, and the network falls to zero.
            nn.init.kaiming_normal_(weight)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.features(images))
        return outputs

    def weights(self) -> list[Tensor]:
        """W_1 to W_L."""
        return list(self.head.parameters())


def digits() -> Digits:
    """The first images of every class, as many as of the rarest."""
    bunch = load_digits()
    count = int(np.bincount(bunch.target).min())
    chosen = np.concatenate([np.flatnonzero(bunch.target == k)[:count] for k in range(CLASSES)])
    images = torch.tensor(bunch.data[chosen] / 16, dtype=torch.float32)
    return Digits(images, torch.tensor(bunch.target[chosen]), count)


def terms(network: Network, data: Digits) -> dict[str, Tensor]:
    """The model's objective, term by term; the backbone itself is not decayed."""
    features = network.features(data.images)
    outputs = network.head(features)
    targets = nn.functional.one_hot(data.labels, CLASSES).to(outputs.dtype)
    found = {"fit": 0.5 * ((outputs - targets) ** 2).sum(1).mean()}
    found["features"] = 0.5 * FEATURE_DECAY / data.per_class * features.square().sum()
    for number, weight in enumerate(network.weights(), start=1):
        found[f"w{number}"] = 0.5 * WEIGHT_DECAY * weight.square().sum()
    # At a stationary point every decay term is half of this.
    found["power"] = (outputs * (targets - outputs)).sum(1).mean()
    return found


def total(found: dict[str, Tensor]) -> Tensor:
    return sum((found[name] for name in found if name != "power"), torch.zeros(()))


def measured(step: int, loss: float, report: CollapseReport) -> Numbers:
    """What is kept of one look at the network."""
    rows: Numbers = {"step": step, "loss": loss, "dnc1": {}, "singular_values": {}}
    for name in LAYERS:
        layer = report[name]
        rows["dnc1"][name] = layer["nc1_trace_ratio"]
        values = layer.vectors["means_singular_values_uncentred"]
        rows["singular_values"][name] = values[:CLASSES]
    return rows


def train(
    options: Options, steps: int, looks: int
) -> tuple[Network, Digits, list[Numbers], CollapseReport]:
    """Full-batch Adam with the step falling to zero; the meter looks at it on the way."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # products this small only wait for each other on more
    data, network = digits(), Network()
    meter = CollapseMeter(network, LAYERS[:-1], num_classes=CLASSES, verbose=False)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    due = set(np.unique(np.geomspace(1, steps, looks).astype(int)).tolist()) | {0}
    history = []
    for step in range(steps + 1):
        loss = total(terms(network, data))
        if step in due:
            seen = meter.observe([(data.images, data.labels)], phase="frozen-train", progress=False)
            history.append(measured(step, loss.item(), seen))
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    meter.close()
    return network, data, history, seen


def effective_decays(found: dict[str, float]) -> dict[str, float]:
    """The decays that the norms imply, lambda = q / ||W||^2, as ratios to those imposed.

    At a stationary point of the model every lambda ||W||^2, and that of the features, equals
    q = <Z, Y - Z> / N.
    """
    names = [name for name in found if name not in ("fit", "power")]
    return {name: found["power"] / (2 * found[name]) for name in names}


def study(options: Options) -> Numbers:
    steps, looks = (80, 4) if options.quick else (6000, 40)
    network, data, history, last = train(options, steps, looks)
    problem = DUFM(
        CLASSES,
        data.per_class,
        DEPTH,
        WIDTH,
        feature_decay=FEATURE_DECAY / data.per_class,
        weight_decay=WEIGHT_DECAY,
    )
    with torch.no_grad():
        ended = {name: value.item() for name, value in terms(network, data).items()}
        right = network(data.images).argmax(1) == data.labels
    reference = dnc(problem)
    values = {n: reference.singular_values(i) for i, n in enumerate(LAYERS, start=1)}
    ratios = effective_decays(ended)
    compared = compare(last, reference, {name: i for i, name in enumerate(LAYERS, start=1)})
    return {
        "settings": {
            "per_class": data.per_class,
            "depth": DEPTH,
            "width": WIDTH,
            "weight_decay": WEIGHT_DECAY,
            "n_feature_decay": FEATURE_DECAY,
            "steps": steps,
            "rate": RATE,
        },
        "history": history,
        "terms": ended,
        "accuracy": right.double().mean().item(),
        "measured_n_feature_decay": ratios["features"] * FEATURE_DECAY,
        "decay_ratios": ratios,
        "verdicts": {name: layer.verdict for name, layer in compared.layers.items()},
        "reference": {
            "loss": reference.loss,
            "best_closed_form": problem.optimum().name,
            "best_closed_form_loss": problem.optimum().loss,
            "lower_bound": lower_bound(problem),
            "singular_values": values,
            "free_layers": [LAYERS[layer - 1] for layer in reference.free_layers],
        },
    }


def root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def report(numbers: Numbers) -> Iterator[str]:
    last, reference = numbers["history"][-1], numbers["reference"]
    yield (
        f"loss {last['loss']:.5f}; of DNC {reference['loss']:.5f} "
        f"({last['loss'] / reference['loss'] - 1:+.2%}), of the best closed form, "
        f"{reference['best_closed_form']}, {reference['best_closed_form_loss']:.5f}; proven lower bound "
        f"{reference['lower_bound']:.5f}"
    )
    yield f"training accuracy {numbers['accuracy']:.4f}"
    yield (
        f"n lambda_H imposed {numbers['settings']['n_feature_decay']:.5f}, measured from the "
        f"norms {numbers['measured_n_feature_decay']:.5f}"
    )
    ratios = ", ".join(f"{name} {ratio:.4f}" for name, ratio in numbers["decay_ratios"].items())
    yield f"measured over imposed decay: {ratios}"
    yield f"{'layer':10} {'DNC1':>8} {'singular values':>16} {'rms':>7} {'DNC has':>8}"
    for name in LAYERS:
        values = last["singular_values"][name]
        expected = root_mean_square(reference["singular_values"][name])
        free = " in the mean square, each is free" if name in reference["free_layers"] else ""
        yield (
            f"{name:10} {last['dnc1'][name]:8.1e} {values[0]:8.4f} {values[-1]:7.4f} "
            f"{root_mean_square(values):7.4f} {expected:8.4f}{free}"
        )
    for name in LAYERS:
        yield f"{name}: {numbers['verdicts'][name]}"


def draw(figure: Figure, numbers: Numbers) -> None:
    figure.set_size_inches(11, 4)
    loss, scatter, spectra = figure.subplots(1, 3, width_ratios=(4, 4, 5))
    draw_loss(loss, numbers)
    history = numbers["history"][1:]  # step 0 has no place on a logarithmic axis
    for name, colour, marker in zip(LAYERS, COLOURS[1:], MARKERS, strict=False):
        x = [row["step"] for row in history]
        y = [row["dnc1"][name] for row in history]
        scatter.plot(x, y, color=colour, marker=marker, ms=3.5, label=label(name))
    scatter.set(xscale="log", yscale="log", xlabel="step", title="DNC1, tr S_W / tr S_B")
    scatter.legend(loc="lower left")
    draw_spectra(spectra, numbers)


def label(name: str) -> str:
    """The layer in the model's terms."""
    layer = LAYERS.index(name) + 1
    return "layer 1, the features" if layer == 1 else f"layer {layer}"


def draw_loss(axes: Axes, numbers: Numbers) -> None:
    history, reference = numbers["history"][1:], numbers["reference"]
    x = [row["step"] for row in history]
    axes.plot(x, [row["loss"] for row in history], color=COLOURS[4], label="network on digits")
    axes.axhline(reference["loss"], color=BLACK, linestyle="--", label="DNC of the model")
    best = f"best closed form, {reference['best_closed_form']}"
    axes.axhline(reference["best_closed_form_loss"], color=COLOURS[5], linestyle=":", label=best)
    axes.axhline(reference["lower_bound"], color=GREY, linewidth=1, label="proven lower bound")
    axes.set(xscale="log", yscale="log", xlabel="step", title="Loss with its decays")
    axes.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5, 1, 2]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper right")


def draw_spectra(axes: Axes, numbers: Numbers) -> None:
    """Singular values of the class means, measured beside those of DNC."""
    last, reference = numbers["history"][-1], numbers["reference"]
    for number, name in enumerate(LAYERS):
        x = number * (CLASSES + 2) + np.arange(CLASSES)
        colour, marker = COLOURS[number + 1], MARKERS[number]
        axes.plot(x, last["singular_values"][name], marker, color=colour, ms=5)
        free = name in reference["free_layers"]
        style: dict[str, Any] = {
            "color": BLACK,
            "linestyle": ":" if free else "--",
            "linewidth": 1.4,
        }
        axes.plot(x, reference["singular_values"][name], **style)
    axes.plot([], [], color=BLACK, linestyle="--", label="DNC")
    axes.plot([], [], color=BLACK, linestyle=":", label="DNC, in the mean square only")
    ticks = [number * (CLASSES + 2) + (CLASSES - 1) / 2 for number in range(len(LAYERS))]
    axes.set_xticks(ticks, [f"layer {number}" for number in range(1, len(LAYERS) + 1)])
    axes.grid(False, axis="x")
    axes.set(ylim=(0, None), title="Singular values of the class means")
    axes.legend(loc="lower right")


if __name__ == "__main__":
    main(__doc__ or "", study, report, draw)
