"""What the benchmarks share: calls timed in turn, ratios within rounds, one kind of table and of file.

Two calls are compared by running them one after the other, again and again, and dividing within each
round: what else the machine does then slows both, and the median of the ratios is steadier than the ratio
of two medians. The order moves on by one in every round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Seconds = dict[str, np.ndarray]  # by name, one entry a round
GIB = 2**30
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
_NAMED = ("collapsemeter", "flax", "jax", "keras", "numpy", "scipy", "tensorflow", "torch")


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    steps: int = 1,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[], object] = lambda: None,
) -> Seconds:
    """Time every call in every round, `warm` after one call of each; `wait` is for the device."""
    names = list(calls)
    for call in calls.values() if warm else ():
        call()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for start in range(rounds):
        shift = start % len(names)
        for name in names[shift:] + names[:shift]:
            began = clock()
            for _ in range(steps):
                calls[name]()
            wait()
            seconds[name].append((clock() - began) / steps)
    return {name: np.array(times) for name, times in seconds.items()}


@dataclass(frozen=True)
class Figure:
    """One line of a table: a ratio with its quartiles, a time or a size, beside its target if any."""

    what: str
    value: float
    unit: str = "x"
    quartiles: tuple[float, float] | None = None
    target: str = ""  # "<= 1.3" or ">= 30"
    medians_ms: dict[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met, where there is one."""
        if not self.target:
            return None
        sign, limit = self.target.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)

    def __str__(self) -> str:
        spread = ""
        if self.quartiles:
            spread = f"{self.quartiles[0]:.3g} to {self.quartiles[1]:.3g}"
        verdict = {None: "", True: "met", False: "NOT MET"}[self.met]
        times = ", ".join(f"{name} {ms:,.4g} ms" for name, ms in self.medians_ms.items())
        return (
            f"{self.what:58} {self.value:9,.3g} {self.unit:4} {spread:16} {self.target:8} "
            f"{verdict:7} {times}"
        ).rstrip()


def ratio(what: str, seconds: Seconds, over: str, under: str, target: str = "") -> Figure:
    """Return how many times as long `over` takes as `under`: the median of the rounds' ratios."""
    low, middle, high = np.percentile(seconds[over] / seconds[under], [25, 50, 75])
    medians = {name: 1e3 * float(np.median(seconds[name])) for name in (over, under)}
    return Figure(what, float(middle), "x", (float(low), float(high)), target, medians)


def duration(what: str, seconds: np.ndarray, target: str = "") -> Figure:
    """Return the median of some times, in seconds."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return Figure(what, float(middle), "s", (float(low), float(high)), target)


def share(
    what: str, percent: np.ndarray, seconds: Seconds, names: tuple[str, ...], target: str
) -> Figure:
    """Return the median of the rounds' percentages."""
    low, middle, high = np.percentile(percent, [25, 50, 75])
    medians = {name: 1e3 * float(np.median(seconds[name])) for name in names}
    return Figure(what, float(middle), "%", (float(low), float(high)), target, medians)


class Sheet:
    """Prints figures as they come, and writes them as JSON with what they were measured on."""

    def __init__(self, title: str, chosen: argparse.Namespace) -> None:
        self.title, self.json_path = title, chosen.json
        self.rounds: int = chosen.rounds
        self.clock = CLOCKS[chosen.clock]
        self.machine = machine() | {"clock": chosen.clock}
        self.figures: list[Figure] = []
        print(f"{title}\n  {', '.join(f'{key} {value}' for key, value in self.machine.items())}")
        print(f"{'':58} {'median':>9} {'':4} {'quartiles':16} {'target':8} {'':7} medians")

    def add(self, figure: Figure) -> None:
        """Print a figure."""
        self.figures.append(figure)
        print(figure, flush=True)

    def save(self) -> None:
        """Write the file, if one was asked for."""
        if self.json_path:
            rows = [asdict(figure) | {"met": figure.met} for figure in self.figures]
            content = {"title": self.title, "machine": self.machine, "figures": rows}
            Path(self.json_path).write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Say what figures depend on: versions of what is imported, threads, device, and other work."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in _NAMED:
        if name in sys.modules:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = getattr(sys.modules[name], "__version__", "from source")
    found["cores"] = len(os.sched_getaffinity(0))
    found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "all")
    if "torch" in sys.modules:
        found["torch threads"] = sys.modules["torch"].get_num_threads()
        found["device"] = device_name()
    found["load"] = round(os.getloadavg()[0], 1)
    return found


def device() -> Any:
    """Return the GPU if there is one, else the processor, as a torch.device."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Name the device of `device`."""
    import torch

    return torch.cuda.get_device_name() if device().type == "cuda" else "cpu"


def wait_for_device() -> None:
    """Wait until the GPU has done what PyTorch gave it; on a processor nothing is left to wait for."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def options(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each call is timed")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: time of all threads together, on a busy machine with one thread",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser


def in_child(*arguments: str) -> dict[str, Any]:
    """Run this script again with other arguments; return the JSON object in its last line.

    For what only a process of its own can say, such as its peak memory. The caller must be small: on
    Linux a child starts with the peak of the process that made it.
    """
    done = subprocess.run(
        [sys.executable, sys.argv[0], *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak_gib() -> float:
    """Return the most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
