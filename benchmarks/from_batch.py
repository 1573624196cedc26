"""NumPy rows to class moments: `ClassMoments.from_batch` and `Accumulator.update` beside the bare product X^T X.

    OMP_NUM_THREADS=1 python benchmarks/from_batch.py
    OMP_NUM_THREADS=2 python benchmarks/from_batch.py --rounds 15

The product is of the same rows, in the dtype that they come in, while sums are kept in float64. Batches of a stream
have 256 rows. Targets are of the time before moments kept groups of rows: `groups=0` is shown, too. Calls take turns within one run, and a ratio is the median of those of the rounds.
"""

from __future__ import annotations

import numpy as np
from pairwise import Sheet, in_turn, options, ratio

from collapsemeter import Accumulator, ClassMoments

BATCHES = [  # rows, width, classes, dtype, target
    (8192, 512, 10, "float64", "<= 1.6"),
    (8192, 512, 100, "float64", "<= 1.6"),
    (8192, 512, 10, "float32", "<= 3"),
    (8192, 512, 100, "float32", "<= 3"),
    (65536, 64, 10, "float64", "<= 2"),
    (4096, 2048, 1000, "float64", "<= 1.8"),
    (8192, 768, 20_000, "float64", "<= 5"),
]
STREAMS = [  # width, classes, target
    (512, 10, "<= 2"),
    (512, 100, "<= 2"),
    (768, 20_000, "<= 4"),
]
STREAM_BATCHES, STREAM_ROWS = 32, 256


def data(rows: int, width: int, classes: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rows about random class means, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    features = rng.standard_normal((classes, width))[labels] + rng.standard_normal((rows, width))
    return features.astype(dtype), labels


def batch(sheet: Sheet, rows: int, width: int, classes: int, dtype: str, target: str) -> None:
    """Time one batch."""
    x, y = data(rows, width, classes, dtype)
    calls = {
        "X^T X": lambda: x.T @ x,
        "from_batch": lambda: ClassMoments.from_batch(x, y, classes),
        "groups=0": lambda: ClassMoments.from_batch(x, y, classes, groups=0),
    }
    seconds = in_turn(calls, sheet.rounds, clock=sheet.clock)
    what = f"from_batch ({rows}, {width}), C = {classes}, {dtype}"
    sheet.add(ratio(what, seconds, "from_batch", "X^T X", target))
    sheet.add(ratio("  without groups of rows", seconds, "groups=0", "X^T X", target))
    sheet.add(ratio("  what groups of rows cost", seconds, "from_batch", "groups=0", "<= 1.2"))


def stream(sheet: Sheet, width: int, classes: int, target: str) -> None:
    """Time a stream of small batches, after which no row waits to be added."""
    x, y = data(STREAM_BATCHES * STREAM_ROWS, width, classes, "float64")
    parts = list(zip(np.split(x, STREAM_BATCHES), np.split(y, STREAM_BATCHES), strict=True))
    accumulator = Accumulator(classes, width)

    def products() -> None:
        for rows, _ in parts:
            rows.T @ rows

    def updates() -> None:
        for rows, labels in parts:
            accumulator.update(rows, labels)
        accumulator.flush()

    seconds = in_turn({"X^T X": products, "update": updates}, sheet.rounds, clock=sheet.clock)
    what = f"stream of {STREAM_ROWS} rows, d = {width}, C = {classes}, float64"
    sheet.add(ratio(what, seconds, "update", "X^T X", target))


def main() -> None:
    """Time every shape."""
    sheet = Sheet("NumPy rows to class moments", options(__doc__, rounds=9).parse_args())
    for shape in BATCHES:
        batch(sheet, *shape)
    for shape in STREAMS:
        stream(sheet, *shape)
    sheet.save()


if __name__ == "__main__":
    main()
