"""An audit's throughput beside reading the files and multiplying X^T X with NumPy, in turn, on the same cores.

    python benchmarks/audit.py --rows 1000000 --width 512 --classes 10 1000

The bare loop does what no audit can do without: it reads every chunk of the files, makes it float64 and adds
its X^T X, which NumPy computes as a symmetric product, with all threads. The audit also checks the files'
SHA-256, rows and labels, keeps the sums of each class, writes its states and measures. It is timed in one
process with all threads, as it is by default, and with ``--jobs`` of as many processes of one thread as there
are cores, their start included. Medians of the ratios of neighbouring runs. The second pass (NC4), which reads the files
again, is timed once, with ``--jobs``. For information the last column multiplies in the files' own float32, which the
audit never does: near collapse its digits are not enough.
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

import numpy as np

from collapsemeter.activations import Writer, open_arrays
from collapsemeter.audit import Options, Running, audit

CHUNK = 16_384


def write(folder: Path, rows: int, width: int, classes: int) -> list[Path]:
    """Write files of float32 activations, of about 256 MB."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((classes, width), np.float32)
    with Writer(folder, num_classes=classes, shard_bytes=2**28) as writer:
        for start in range(0, rows, CHUNK):
            labels = rng.integers(0, classes, min(CHUNK, rows - start))
            noise = rng.standard_normal((len(labels), width), np.float32)
            writer.write({"layer": means[labels] + 0.3 * noise}, labels)
    return sorted(folder.glob("*.safetensors"))


def bare(paths: Sequence[Path], dtype: type[np.floating]) -> float:
    """Read the files and add X^T X, nothing else."""
    total: np.ndarray | float = 0.0
    for path in paths:
        with open_arrays(path) as file:
            rows = file.arrays["layer"].shape[0]
            for start in range(0, rows, CHUNK):
                x = file.read("layer", start, min(start + CHUNK, rows)).astype(dtype, copy=False)
                total += x.T @ x
    return float(np.trace(np.asarray(total)))


def seconds(call: Callable[[], object]) -> float:
    """Return what a call took on the clock."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(rows: int, width: int, classes: int, jobs: int, repeats: int) -> dict[str, float]:
    """Time the audit's first pass, in one process and in several, and the bare loops in turn."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "acts"
        paths = write(folder, rows, width, classes)

        def run(jobs: int, nc4: str = "none") -> float:
            return seconds(lambda: audit(str(folder), Options(nc4=nc4), Running(jobs=jobs)))

        def loop(dtype: type[np.floating]) -> float:
            return seconds(lambda: bare(paths, dtype))

        loop(np.float64)  # the files are in memory from here on, for all alike
        measured = [(loop(np.float64), run(1), run(jobs), loop(np.float32)) for _ in range(repeats)]
        decided = run(jobs, "exact")
    bare64, one, several, bare32 = zip(*measured, strict=True)

    def ratio(a: Sequence[float], b: Sequence[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    return {
        "rows": rows,
        "width": width,
        "classes": classes,
        "jobs": jobs,
        "gb": rows * width * 4 / 1e9,
        "bare_s": statistics.median(bare64),
        "audit_s": statistics.median(one),
        "audit_jobs_s": statistics.median(several),
        "audit_jobs_nc4_s": decided,
        "bare_float32_s": statistics.median(bare32),
        "throughput": ratio(bare64, one),
        "throughput_jobs": ratio(bare64, several),
        "throughput_jobs_float32": ratio(bare32, several),
    }


def main() -> None:
    """Print a table, and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the narrowest layer")
    parser.add_argument("--width", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(
        f"numpy {np.__version__}, {len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS={threads}"
    )
    print(
        f"  width classes     GB   bare s  audit s  throughput  --jobs {options.jobs} s  throughput  with NC4 s"
        "  of float32"
    )
    found = []
    for width in options.width:
        for classes in options.classes:
            rows = options.rows * min(options.width) // width  # files of one size
            figures = compare(rows, width, classes, options.jobs, options.repeats)
            found.append(figures)
            print(
                f"{width:7d} {classes:7d} {figures['gb']:6.2f} {figures['bare_s']:8.2f} "
                f"{figures['audit_s']:8.2f} {figures['throughput']:11.0%} "
                f"{figures['audit_jobs_s']:11.2f} {figures['throughput_jobs']:11.0%} "
                f"{figures['audit_jobs_nc4_s']:11.2f} {figures['throughput_jobs_float32']:11.0%}",
                flush=True,
            )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
