"""What an audit of a language model's last layer needs: 50,257 classes, 768 features, ten million rows.

    python benchmarks/scale.py                 # writes 15 GB to a temporary folder, and takes it away
    python benchmarks/scale.py --rows 200000   # the same, small

The rows are synthetic: class means and noise, labels as frequent as words are (Zipf), float16 in files of
1 GB. The audit is the command, in a process of its own, whose peak memory the system reports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from collapsemeter import Head
from collapsemeter.activations import Writer

BATCH = 20_000


def write(folder: Path, rows: int, classes: int, width: int, seed: int = 0) -> int:
    """Write synthetic activations; return the bytes of their files."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((classes, width), np.float32)
    noise = 0.3 * rng.standard_normal((BATCH, width), np.float32)
    frequency = 1.0 / np.arange(1, classes + 1)
    frequency /= frequency.sum()
    head = Head(means, -0.5 * (means.astype(np.float64) ** 2).sum(axis=1))
    with Writer(folder, num_classes=classes, head=head, shard_bytes=2**30) as writer:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            labels = rng.choice(classes, count, p=frequency)
            if start == 0:
                labels[: min(count, classes)] = rng.permutation(classes)[:count]
            shift = int(rng.integers(width))
            features = means[labels] + np.roll(noise, shift, axis=1)[:count]
            writer.write({"final": features.astype(np.float16)}, labels)
    return sum(record.bytes for record in writer.manifest.files)


def main() -> None:
    """Write, audit, print a table, and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--classes", type=int, default=50_257)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        size = write(folder / "acts", options.rows, options.classes, options.width)
        print(f"{size / 1e9:.1f} GB of activations written", flush=True)
        command = [sys.executable, "-m", "collapsemeter", "audit", str(folder / "acts"), "--json"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, "--state", str(folder / "state")], capture_output=True, text=True, check=True
        )
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        states = sum(
            path.stat().st_size for path in (folder / "state").rglob("*") if path.is_file()
        )
    layer = json.loads(done.stdout)["layers"]["final"]
    figures = {
        "rows": options.rows,
        "classes": options.classes,
        "width": options.width,
        "file_gb": size / 1e9,
        "state_gb": states / 1e9,
        "seconds": seconds,
        "peak_gib": peak / 2**30,
        "nc1_pinv": layer["metrics"]["nc1_pinv"],
        "ncc_accuracy": layer["metrics"]["ncc_accuracy"],
        "nc4_rows": layer["provenance"]["nc4_rows"],
        "cores": len(os.sched_getaffinity(0)),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    for name, value in figures.items():
        print(f"{name:14} {value:,.6g}" if isinstance(value, int | float) else f"{name:14} {value}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
