"""All metrics of a layer from its moments: how long they take, and the memory that takes.

    python benchmarks/finalise.py
    python benchmarks/finalise.py --beside CHECKOUT   # and those of another checkout of this repository, in turn
    python benchmarks/finalise.py --large             # 50,257 classes besides: minutes
    python benchmarks/finalise.py --textbook          # beside the textbook's formulas; --svds: by svds, too

`measure` gets moments in float64, a head and decisions, and gives every metric: NC1 to NC4 and ranks. It is timed at
three shapes, with one and two threads: of features of full rank; of the same with groups of rows, which intervals come
from; with 2 % dead units and with fewer rows than features (whose targets are factors of full rank). The textbook computes the same metrics, d x d matrices, pseudo-inverses and
C x C grids and all, with the pseudo-inverse of S_B from all its eigenvectors (`pinv`) or from its C - 1 largest
singular vectors by iteration (`svds`). The numbers agree to 1e-6 of the value or of 1, which is checked. Each runs in a
process of its own, whose peak memory is given with what the moments needed before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairwise import CLOCKS, Figure, Sheet, duration, options, peak_gib, ratio

if TYPE_CHECKING:
    import numpy as np
    import textbook

    from collapsemeter import ClassMoments, Decisions, Head
    from collapsemeter.stats.groups import Groups

AGREE = 1e-6
HERE = str(Path(__file__).parents[1])
SHAPES = {(10, 64): ("<= 1.3", 50), (100, 512): ("<= 1.3", 5), (1000, 2048): ("<= 1.8", 1)}
KINDS = {
    "full rank": "",
    "groups of rows": "",
    "2 % dead units": "<= 1.3",
    "fewer rows than features": "<= 2",
}


def given(
    classes: int, width: int, kind: str = "full rank"
) -> tuple[ClassMoments, Head, Decisions]:
    """Return moments that are half collapsed, as of 50 rows a class or fewer, and a head near its means."""
    import numpy as np

    from collapsemeter import ClassMoments, Decisions, Head

    rng = np.random.default_rng(0)
    means = rng.standard_normal((classes, width))
    noise = rng.standard_normal((2 * width, width)) * np.geomspace(1.0, 0.1, width)
    counts = np.full(classes, 50)
    if kind == "2 % dead units":
        dead = rng.choice(width, max(1, width // 50), replace=False)
        means[:, dead] = noise[:, dead] = 0.0
    elif kind == "fewer rows than features":
        counts[:] = 1 + width // (2 * classes)
        counts[0] += 1
        noise = noise[: counts.sum() - classes]
    scatter = noise.T @ noise * (counts.sum() / len(noise))
    spread = (0.5 + rng.random(classes)) * (counts > 1)
    traces = spread / spread.sum() * np.trace(scatter)
    head = Head(means + 0.1 * rng.standard_normal(means.shape), 0.1 * rng.standard_normal(classes))
    kept = np.ones(classes, np.int64)
    decisions = Decisions(kept, kept, kept, sampled=True)
    groups = {}
    if kind == "groups of rows":
        groups["groups"] = groups_of(counts, traces, width)
    return ClassMoments(counts, means, scatter, traces, **groups), head, decisions


def groups_of(counts: np.ndarray, traces: np.ndarray, width: int) -> Groups:
    """Return groups of rows as alike as noise makes them, as many as a layer of this shape keeps."""
    import numpy as np

    from collapsemeter.stats.groups import Groups, affordable_groups

    number = affordable_groups(len(counts), width)
    rows = (counts[:, None] + np.arange(number)) // number
    sums = np.random.default_rng(1).standard_normal((len(counts), number, width))
    sums -= sums.mean(axis=1, keepdims=True)
    sums *= np.sqrt(traces / number / width)[:, None, None]
    return Groups(rows, sums, traces[:, None] * rows / counts[:, None])


def as_textbook(moments: ClassMoments) -> textbook.Layer:
    """Return what the textbook's passes would have found."""
    import textbook
    import torch

    assert moments.scatter is not None
    n, mu, S_W, v = map(
        torch.tensor,
        (
            moments.counts,
            moments.means,
            moments.scatter / moments.rows,
            moments.traces / moments.counts,
        ),
    )
    rows = moments.rows
    return textbook.Layer(n, mu, S_W, v, rows, rows)


def child(
    way: str, kind: str, classes: int, width: int, calls: int, clock: Callable[[], float]
) -> None:
    """Time one way in this process, and print what it took."""
    moments, head, decisions = given(classes, width, kind)
    compute = of_way(way, moments, head, decisions)
    before, seconds, values = peak_gib(), [], {}
    for _ in range(calls):
        start = clock()
        values = compute()
        seconds.append(clock() - start)
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak_gib(), "values": values}))


def of_way(
    way: str, moments: ClassMoments, head: Head, decisions: Decisions
) -> Callable[[], dict[str, float]]:
    """Return a call that computes the metrics."""
    if way == "measure":
        from collapsemeter import measure

        return lambda: dict(measure(moments, head=head, decisions=decisions))
    layer = as_textbook(moments)
    if way == "published":
        import published
        import torch

        weight = torch.tensor(head.weight)
        calls = published.measures(layer.mu, layer.mu.mean(0), layer.v, layer.S_W, weight)
        return lambda: {str(place): float(call() is None) for place, call in enumerate(calls)}
    import textbook

    return lambda: textbook.metrics(layer, head.weight, head.bias, inverse=way)  # type: ignore[arg-type]


def in_child(checkout: str, threads: str | None, *arguments: object) -> dict[str, Any]:
    """Run this script's `child` on a checkout's sources, with so many threads; None: all."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    chosen = {} if threads is None else dict.fromkeys(names, threads)
    environment = {**os.environ, **chosen, "PYTHONPATH": checkout}
    command = [sys.executable, sys.argv[0], "--child", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def shapes(sheet: Sheet, clock: str, beside: str | None, threads_of_runs: list[str]) -> None:
    """Time `measure` at every shape and kind, and beside another checkout, in turn."""
    import numpy as np

    checkouts = [HERE] if beside is None else [HERE, beside]
    for threads in threads_of_runs:
        for (classes, width), (target, calls) in SHAPES.items():
            seconds: dict[str, Any] = {}
            for _ in range(sheet.rounds):
                for kind in KINDS:
                    for checkout in checkouts:
                        if kind == "groups of rows" and not _has_groups(checkout):
                            continue
                        times = in_child(
                            checkout, threads, clock, "measure", kind, classes, width, calls + 1
                        )["seconds"][1:]
                        name = kind if checkout == HERE else f"{kind}, beside"
                        seconds.setdefault(name, []).append(min(times))
            seconds = {name: np.array(times) for name, times in seconds.items()}
            shape = f"C = {classes}, d = {width}, {threads} thread{'s' * (threads != '1')}"
            sheet.add(duration(f"{shape}: full rank", seconds["full rank"]))
            for kind, most in KINDS.items():
                if kind != "full rank":
                    what = f"{shape}: {kind} / full rank"
                    sheet.add(ratio(what, seconds, kind, "full rank", most))
                if f"{kind}, beside" in seconds:
                    what, other = f"{shape}: {kind} / beside", f"{kind}, beside"
                    sheet.add(ratio(what, seconds, kind, other, target if not most else ""))


def _has_groups(checkout: str) -> bool:
    return (Path(checkout) / "collapsemeter" / "stats" / "groups.py").exists()


def compare(
    sheet: Sheet, clock: str, classes: int, width: int, ways: dict[str, tuple[int, str, str]]
) -> None:
    """Time the ways at one shape, with all threads: name -> rounds, target of the time, target of the memory."""
    import numpy as np

    expected: dict[str, float] = {}
    for way, (rounds, in_seconds, in_gib) in ways.items():
        measured = in_child(HERE, None, clock, way, "full rank", classes, width, rounds)
        shape = f"{way}, C = {classes}, d = {width}"
        sheet.add(duration(f"{shape}: time", np.array(measured["seconds"]), in_seconds))
        sheet.add(Figure(f"{shape}: peak", measured["peak"], "GiB", target=in_gib))
        sheet.add(Figure(f"{shape}: peak before", measured["before"], "GiB"))
        if way == "measure":
            expected = measured["values"]
        elif way != "published":
            check(expected, measured["values"])


def check(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Raise unless the metrics are the same; NC4 was given."""
    import textbook

    differing = textbook.disagreement(ours, theirs, AGREE, 0.0)
    assert not differing, differing


def arguments() -> argparse.Namespace:
    """Parse what this script is called with."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--beside", metavar="CHECKOUT", help="time this checkout's measure, too")
    parser.add_argument("--threads", nargs="+", default=["1", "2"], help="of each run: 1 2")
    parser.add_argument("--textbook", action="store_true", help="the textbook's formulas, too")
    parser.add_argument("--svds", action="store_true", help="the textbook by svds, too")
    parser.add_argument("--large", action="store_true", help="50,257 classes, d = 768, too")
    parser.add_argument("--child", nargs=6, help="for this script's own use")
    return parser.parse_args()


def main() -> None:
    """Time all of it."""
    chosen = arguments()
    if chosen.child:
        clock, way, kind, *numbers = chosen.child
        child(way, kind, *map(int, numbers), clock=CLOCKS[clock])
        return
    sheet = Sheet("All metrics from moments", chosen)
    shapes(sheet, chosen.clock, chosen.beside, chosen.threads)
    ways = {"measure": (chosen.rounds, "", ""), "pinv": (1, "", ""), "svds": (1, "", "")}
    if not chosen.svds:
        del ways["svds"]
    if _published():
        ways["published"] = (1, "", "")
    if chosen.textbook or chosen.svds:
        compare(sheet, chosen.clock, 1000, 2048, ways)
    if chosen.large:  # the textbook's C x C grids alone would take 20 GB each
        compare(sheet, chosen.clock, 50_257, 768, {"measure": (1, "<= 90", "<= 4")})
    sheet.save()


def _published() -> bool:
    import published

    return published.is_there()


if __name__ == "__main__":
    main()
