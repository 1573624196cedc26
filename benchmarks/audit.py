"""An audit's throughput beside reading the file and multiplying X^T X with NumPy, in turn, in one process.

    python benchmarks/audit.py --rows 400000 --width 512 --classes 10 1000

The bare loop does what no audit can do without: it reads every chunk of the file, makes it float64 and adds
its X^T X, which NumPy computes as a symmetric product. The audit also checks the file's SHA-256, rows and
labels, keeps the sums of each class, and writes its state. Medians of the ratios of neighbouring runs. The
second pass (NC4) is timed apart: it reads the file again. On a busy machine the ratio of processor time, of all
threads together, is the steadier one. For information the last column multiplies in the file's own
float32, which the audit never does: near collapse its digits are not enough.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from collapsemeter.activations import Writer, open_arrays
from collapsemeter.audit import Options, audit

CHUNK = 16_384


def write(folder: Path, rows: int, width: int, classes: int) -> Path:
    """Write one file of float32 activations."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((classes, width), np.float32)
    with Writer(folder, num_classes=classes, shard_bytes=2**40) as writer:
        for start in range(0, rows, CHUNK):
            labels = rng.integers(0, classes, min(CHUNK, rows - start))
            noise = rng.standard_normal((len(labels), width), np.float32)
            writer.write({"layer": means[labels] + 0.3 * noise}, labels)
    return folder / "shard-00000.safetensors"


def bare(path: Path, dtype: type[np.floating]) -> float:
    """Read the file and add X^T X, nothing else."""
    with open_arrays(path) as file:
        rows, width = file.arrays["layer"].shape
        total = np.zeros((width, width), dtype)
        for start in range(0, rows, CHUNK):
            x = file.read("layer", start, min(start + CHUNK, rows)).astype(dtype, copy=False)
            total += x.T @ x
    return float(total[0, 0])


class Cost(NamedTuple):
    """Seconds on the clock, and of all processors together."""

    clock: float
    processor: float


def timed(call: Callable[[], object]) -> Cost:
    """Return what a call took."""
    start = Cost(time.perf_counter(), time.process_time())
    call()
    return Cost(time.perf_counter() - start.clock, time.process_time() - start.processor)


def compare(rows: int, width: int, classes: int, repeats: int) -> dict[str, float]:
    """Time the audit's first pass, both passes and the bare loops in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "acts"
        path = write(folder, rows, width, classes)

        def run(nc4: str) -> Callable[[], object]:
            return lambda: audit(str(folder), Options(nc4=nc4))

        bare(path, np.float64)  # the file is in memory from here on, for all alike
        seconds = [
            (
                timed(lambda: bare(path, np.float64)),
                timed(run("none")),
                timed(run("exact")),
                timed(lambda: bare(path, np.float32)),
            )
            for _ in range(repeats)
        ]
    bare64, first, both, bare32 = zip(*seconds, strict=True)

    def median(costs: Sequence[Cost]) -> float:
        return statistics.median(cost.clock for cost in costs)

    def ratio(a: Sequence[Cost], b: Sequence[Cost], of: str) -> float:
        return statistics.median(getattr(x, of) / getattr(y, of) for x, y in zip(a, b, strict=True))

    return {
        "rows": rows,
        "width": width,
        "classes": classes,
        "file_gb": rows * width * 4 / 1e9,
        "bare_s": median(bare64),
        "audit_s": median(first),
        "audit_nc4_s": median(both),
        "bare_float32_s": median(bare32),
        "throughput": ratio(bare64, first, "clock"),
        "throughput_of_processor": ratio(bare64, first, "processor"),
        "throughput_float32": ratio(bare32, first, "clock"),
    }


def main() -> None:
    """Print a table, and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--width", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"numpy {np.__version__}, {len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS={threads}"
    )
    print(
        "  width classes     GB   bare s  audit s  throughput  of processor  with NC4 s  of float32"
    )
    found = []
    for width in options.width:
        for classes in options.classes:
            rows = options.rows * min(options.width) // width  # files of one size
            figures = compare(rows, width, classes, options.repeats)
            found.append(figures)
            print(
                f"{width:7d} {classes:7d} {figures['file_gb']:6.2f} {figures['bare_s']:8.2f} "
                f"{figures['audit_s']:8.2f} {figures['throughput']:11.0%} "
                f"{figures['throughput_of_processor']:13.0%} {figures['audit_nc4_s']:11.2f} "
                f"{figures['throughput_float32']:11.0%}",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
