"""What a watched step costs beside an unwatched one, a minimal hook and the products alone.

    python benchmarks/step_costs.py
    python benchmarks/step_costs.py --network tiny --rounds 40

prints every figure of docs/overhead.md: four networks of PyTorch by functions of this file, then by
`overhead.py` the convolutional network and the MLP of Keras on its three backends, the networks of NNX, and the one of
linen's tutorial. Each is a process of its own with one thread; one that fails or takes too long is said and passed
over. ``--network`` prints one network of PyTorch in this process.

The minimal hook does the same sums: it copies rows into a block, and of a
full block adds counts, class sums, squares and products of the residuals about the first means. Nothing
else is asked, so it breaks in every loop that is not this one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import networks
import numpy as np
import torch
from pairwise import Figure, Sheet, in_child, in_turn, options, peak_gib, ratio
from torch import Tensor, nn

from collapsemeter_torch import CollapseMeter

CLASSES = networks.CLASSES
# Rows of a batch, steps of a round, rounds: of narrow layers a round is one block of 4096 rows.
SIZES = {"tiny": (64, 64, 24), "wide": (64, 64, 10), "resnet18": (16, 1, 10), "vit": (8, 1, 10)}
MINUTES = 5  # that one network may take
# What `overhead.py` is asked for, and the backend of Keras.
OTHERS = [
    *(
        (backend, ["keras", "--network", net])
        for backend in ("tensorflow", "jax", "torch")
        for net in ("convnet", "mlp")
    ),
    *(("", ["flax", "--network", net]) for net in ("convnet", "mlp", "tutorial")),
]
MOST_ROWS = 4096


def network(name: str) -> tuple[nn.Module, list[str], Tensor]:
    """Return a network, the layers that are watched besides the head's input, and a batch."""
    torch.manual_seed(0)
    rows = SIZES[name][0]
    if name in ("tiny", "wide"):
        inputs, width = (64, 64) if name == "tiny" else (784, 512)
        net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        layers = ["0", "1", "2"] if name == "wide" else ["1"]
        return net.append(nn.Linear(width, CLASSES)), layers, torch.randn(rows, inputs)
    if name == "resnet18":
        net, layers, shape = networks.subject("resnet18")
        return net, layers, torch.randn(rows, *shape)
    net = networks.Transformer(depth=12)
    return net, [f"blocks.{i}" for i in range(12)], torch.randn(rows, 3, 32, 32)


def step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train on one batch."""
    nn.functional.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        for weight in net.parameters():
            weight -= 1e-3 * weight.grad
            weight.grad = None


class Minimal:
    """The sums of one layer, as short as can be."""

    def __init__(self, width: int, kind: str) -> None:
        self.rows = torch.empty(MOST_ROWS, width)
        self.labels = torch.empty(MOST_ROWS, dtype=torch.int64)
        self.filled, self.kind = 0, kind
        self.shift: Tensor | None = None
        self.sums, self.squares = torch.zeros(CLASSES, width), torch.zeros(CLASSES)
        self.counts = torch.zeros(CLASSES, dtype=torch.int64)
        each = (CLASSES,) if kind == "class" else ()
        self.scatter = torch.zeros(*each, width, width)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Copy a batch into the block."""
        end = self.filled + rows.shape[0]
        self.rows[self.filled : end].copy_(rows)
        self.labels[self.filled : end].copy_(labels)
        self.filled = end
        if end + rows.shape[0] > MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        """Add the block."""
        rows, labels = self.rows[: self.filled], self.labels[: self.filled]
        counts, self.filled = torch.bincount(labels, minlength=CLASSES), 0
        if self.shift is None:
            self.shift = torch.zeros_like(self.sums).index_add_(0, labels, rows)
            self.shift /= counts.clamp(min=1)[:, None]
        residuals = rows - self.shift.index_select(0, labels)
        self.counts += counts
        self.sums.index_add_(0, labels, residuals)
        self.squares.index_add_(0, labels, torch.linalg.vector_norm(residuals, dim=1).square_())
        if self.kind != "class":
            self.scatter.addmm_(residuals.t(), residuals)
            return
        parts = residuals.index_select(0, labels.argsort()).split(counts.tolist())
        for scatter, part in zip(self.scatter, parts, strict=True):
            scatter.addmm_(part.t(), part)


class MinimalHooks:
    """Minimal sums of some layers; labels must be set before each forward."""

    def __init__(self, net: nn.Module, kinds: dict[str, tuple[int, str]], head: str) -> None:
        self.labels = torch.zeros(0)
        self.sums = {name: Minimal(width, kind) for name, (width, kind) in kinds.items()}
        for name, sums in self.sums.items():
            module = net.get_submodule(name)
            if name == head:
                module.register_forward_pre_hook(lambda m, a, s=sums: self.see(s, a[0]))
            else:
                module.register_forward_hook(lambda m, a, o, s=sums: self.see(s, o))

    def see(self, sums: Minimal, output: Tensor) -> None:
        """Average over space or positions."""
        rows = output.detach()
        if rows.ndim > 2:
            rows = rows.mean((2, 3) if rows.ndim == 4 else 1)
        sums.add(rows, self.labels)


def rounds_of(name: str) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Return what a round does, by what is timed, and what adds the rows that wait after the last one."""
    rows, steps, _ = SIZES[name]
    y = torch.arange(rows) % CLASSES
    plain, _, x = network(name)
    watched, layers, _ = network(name)
    hooked, _, _ = network(name)
    ungrouped, _, _ = network(name)
    meter = CollapseMeter(watched, layers, example=x, verbose=False)
    with meter.batch(y):
        watched(x)
    states = meter._recorder.live.layers
    kinds = {layer: (state.width, state.kind) for (layer, _), state in states.items()}
    head = meter.selection.head
    assert head is not None
    minimal = MinimalHooks(hooked, kinds, head)
    minimal.labels = y
    blocks = [
        (torch.randn(rows * steps, width), torch.zeros(width, width)) for width, _ in kinds.values()
    ]
    meter.reset()

    def run_plain() -> None:
        for _ in range(steps):
            step(plain, x, y)

    def run_minimal() -> None:
        for _ in range(steps):
            step(hooked, x, y)

    def flush_minimal() -> None:
        for sums in minimal.sums.values():
            if sums.filled:
                sums.flush()

    without = CollapseMeter(ungrouped, layers, example=x, groups=0, verbose=False)

    def run_watched(meter: CollapseMeter, net: nn.Module) -> None:
        for _ in range(steps):
            with meter.batch(y):
                step(net, x, y)

    def run_products() -> None:
        for block, total in blocks:
            total.addmm_(block.t(), block)

    calls: dict[str, Callable[[], object]] = {
        "plain": run_plain,
        "minimal": run_minimal,
        "watched": lambda: run_watched(meter, watched),
        "groups=0": lambda: run_watched(without, ungrouped),
        "products": run_products,
    }
    flushes: dict[str, Callable[[], object]] = {
        "minimal": flush_minimal,
        "watched": meter._recorder.live.flush,
        "groups=0": without._recorder.live.flush,
    }
    return calls, flushes


def trained(name: str, watched: bool, steps: int = 3) -> dict[str, object]:
    """Train in a process of its own; return its peak memory, and what the weights are in the end."""
    net, layers, x = network(name)
    y = torch.arange(len(x)) % CLASSES
    meter = CollapseMeter(net, layers, verbose=False) if watched else None
    for _ in range(steps):
        if meter is None:
            step(net, x, y)
        else:
            with meter.batch(y):
                step(net, x, y)
    bits = hashlib.sha256()
    for tensor in net.state_dict().values():
        bits.update(tensor.numpy().tobytes())
    return {"peak": peak_gib(), "bits": bits.hexdigest()}


def table(chosen: argparse.Namespace) -> None:
    """Print the figures of a network of PyTorch."""
    name = chosen.network
    rows, steps, rounds = SIZES[name]
    plain, watched = (
        in_child("--network", name, "--trained", *extra) for extra in ((), ("--watched",))
    )
    torch.set_num_threads(1)
    sheet = Sheet("What watching adds to a training step of PyTorch", chosen)
    calls, flushes = rounds_of(name)
    for call in calls.values():
        call()
    rounds = chosen.rounds or rounds
    seconds = in_turn(calls, rounds, clock=sheet.clock)
    for what, flush in flushes.items():  # every round bears its share of the rows that still wait
        began = sheet.clock()
        flush()
        seconds[what] += (sheet.clock() - began) / rounds
    add_figures(sheet, f"{name}, batch {rows}", {k: t / steps for k, t in seconds.items()})
    more = 1024 * (float(watched["peak"]) - float(plain["peak"]))
    sheet.add(Figure(f"{name}: peak memory more than unwatched", more, "MiB"))
    sheet.add(Figure(f"{name}: ends in the same bits", plain["bits"] == watched["bits"], ""))
    sheet.save()


def add_figures(sheet: Sheet, what: str, seconds: dict[str, np.ndarray]) -> None:
    """Print what each adds to the unwatched step, and what watching adds beyond its products."""
    plain = seconds["plain"]
    added = {name: seconds[name] - plain for name in ("minimal", "watched")}
    added["products alone"] = seconds["products"]
    added["watched, beyond the products"] = added["watched"] - seconds["products"]
    for name, more in added.items():
        low, middle, high = np.percentile(100 * more / plain, [25, 50, 75])
        medians = {"plain": 1e3 * float(np.median(plain)), "more": 1e3 * float(np.median(more))}
        sheet.add(Figure(f"{what}: {name}", middle, "%", (low, high), medians_ms=medians))
    times = float(np.median(added["watched"]) / np.median(added["minimal"]))
    sheet.add(Figure(f"{what}: watched / minimal", times))
    sheet.add(ratio(f"{what}: 16 groups / groups=0", seconds, "watched", "groups=0"))


def run_all(rounds: int) -> None:
    """Print every table, each by a process of its own; go on after one that fails, and fail in the end."""
    folder = Path(__file__).parent
    asked = [("", "step_costs.py", ["--network", name]) for name in SIZES]
    asked += [(backend, "overhead.py", arguments) for backend, arguments in OTHERS]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    failed = []
    for backend, script, arguments in asked:
        environment = os.environ | threads | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        if backend:
            environment["KERAS_BACKEND"] = backend
        if rounds or script == "overhead.py":
            arguments = [*arguments, "--rounds", str(rounds or 10)]
        command = [sys.executable, str(folder / script), *arguments, "--clock", "processor"]
        what = " ".join([backend, *arguments]).strip()
        print(f"\n{what}", flush=True)
        try:
            subprocess.run(command, env=environment, check=True, timeout=60 * MINUTES)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = "failed" if isinstance(error, subprocess.CalledProcessError) else "too long"
            print(f"{what}: {reason}", flush=True)
            failed.append(what)
    if failed:
        sys.exit(f"without figures: {'; '.join(failed)}")


def main() -> None:
    """Print one table, or all."""
    parser = options(__doc__, rounds=0)
    parser.add_argument("--network", choices=SIZES)
    parser.add_argument("--trained", action="store_true", help=argparse.SUPPRESS)  # a child
    parser.add_argument("--watched", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.trained:
        torch.set_num_threads(1)
        print(json.dumps(trained(chosen.network, chosen.watched)))
    elif chosen.network:
        chosen.clock = "processor"
        table(chosen)
    else:
        run_all(chosen.rounds)


if __name__ == "__main__":
    main()
