"""What a watched step costs beside an unwatched one, a minimal hook and the products alone.

    python benchmarks/step_costs.py
    python benchmarks/step_costs.py --network tiny --rounds 40

prints every figure of docs/overhead.md: networks of PyTorch (`torch_steps.py`), of Keras on its three backends
(`keras_steps.py`), of NNX and of linen (`flax_steps.py`). Each is a process of its own, on one core, with one thread, whose
allocator keeps its memory: a large step else pays for new pages or not, as luck has it. A network that fails or takes too long is
said and passed over.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys

import numpy as np
from pairwise import Figure, Sheet, in_child, in_turn, options, ratio

TORCH = ("tiny", "wide", "resnet18", "vit")
KERAS = {
    f"keras-{network}-{backend}": backend
    for backend in ("tensorflow", "jax", "torch")
    for network in ("convnet", "mlp")
}
FLAX = ("nnx-convnet", "nnx-mlp", "linen-tutorial", "linen-tiny")
NETWORKS = (*TORCH, *KERAS, *FLAX)
MINUTES = 5  # that one network may take
KEPT = str(2**32)  # bytes that the allocator of the C library does not give back


def table(chosen: argparse.Namespace) -> None:
    """Print the figures of a network."""
    name = chosen.network
    children = []
    if name in TORCH:
        children = [
            in_child("--network", name, "--trained", *extra) for extra in ((), ("--watched",))
        ]
    framework = name.split("-")[0] if name in KERAS else "flax" if name in FLAX else "torch"
    steps = importlib.import_module(f"{framework}_steps").steps_of(name)
    for _ in range(2):  # JAX compiles a second time for what a first step gives back
        for call in steps.calls.values():
            call()
    sheet = Sheet(f"What watching adds to a training step: {name}", chosen)
    rounds = chosen.rounds or steps.rounds
    each = 1 if steps.whole_rounds else steps.steps
    seconds = in_turn(steps.calls, rounds, steps=each, clock=sheet.clock)
    for what, flush in steps.flushes.items():  # every round bears its share of the rows that wait
        began = sheet.clock()
        flush()
        seconds[what] += (sheet.clock() - began) / rounds
    if steps.whole_rounds:
        seconds = {what: times / steps.steps for what, times in seconds.items()}
    else:
        seconds["products"] = seconds["products"] - seconds["plain"]
    add_figures(sheet, f"{name}, batch {steps.rows}", seconds)
    if children:
        plain, watched = children
        more = 1024 * (float(watched["peak"]) - float(plain["peak"]))
        sheet.add(Figure(f"{name}: peak memory more than unwatched", more, "MiB"))
        sheet.add(Figure(f"{name}: ends in the same bits", plain["bits"] == watched["bits"], ""))
    sheet.save()


def add_figures(sheet: Sheet, what: str, seconds: dict[str, np.ndarray]) -> None:
    """Print what each adds to the unwatched step, and what watching adds beyond its products."""
    plain = seconds["plain"]
    tiny = "tiny" in what
    added = {name: seconds[name] - plain for name in ("minimal", "watched")}
    added["products alone"] = seconds["products"]
    added["minimal, beyond the products"] = added["minimal"] - seconds["products"]
    added["watched, beyond the products"] = added["watched"] - seconds["products"]
    for name, more in added.items():
        low, middle, high = np.percentile(100 * more / plain, [25, 50, 75])
        medians = {"plain": 1e3 * float(np.median(plain)), "more": 1e3 * float(np.median(more))}
        target = "<= 5" if name == "watched, beyond the products" and not tiny else ""
        sheet.add(Figure(f"{what}: {name}", middle, "%", (low, high), target, medians))
    times = float(np.median(added["watched"]) / np.median(added["minimal"]))
    sheet.add(Figure(f"{what}: watched / minimal", times, target="<= 2" if tiny else ""))
    if "groups=0" in seconds:
        sheet.add(ratio(f"{what}: 16 groups / groups=0", seconds, "watched", "groups=0"))


def run(networks: tuple[str, ...], rounds: int) -> None:
    """Print tables, each by a process of its own; go on after one that fails, and fail in the end."""
    if hasattr(os, "sched_setaffinity"):  # what JAX and TensorFlow take for the number of threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    threads = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    kept = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), KEPT)
    failed = []
    for name in networks:
        environment = os.environ | threads | kept | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        if name in KERAS:
            environment["KERAS_BACKEND"] = KERAS[name]
        command = [sys.executable, __file__, "--network", name, "--rounds", str(rounds), "--here"]
        print(flush=True)
        try:
            subprocess.run(command, env=environment, check=True, timeout=60 * MINUTES)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            reason = "failed" if isinstance(error, subprocess.CalledProcessError) else "too long"
            print(f"{name}: {reason}", flush=True)
            failed.append(name)
    if failed:
        sys.exit(f"without figures: {'; '.join(failed)}")


def main() -> None:
    """Print one table, or all."""
    parser = options(__doc__, rounds=0)
    parser.add_argument("--network", choices=NETWORKS)
    for child in ("--here", "--trained", "--watched"):
        parser.add_argument(child, action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.trained:
        torch_steps = importlib.import_module("torch_steps")
        print(json.dumps(torch_steps.trained(chosen.network, chosen.watched)))
    elif chosen.here:
        chosen.clock = "processor"
        table(chosen)
    else:
        run((chosen.network,) if chosen.network else NETWORKS, chosen.rounds)


if __name__ == "__main__":
    main()
