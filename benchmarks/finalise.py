"""All metrics of a layer from its moments, and the memory that takes.

    python benchmarks/finalise.py
    python benchmarks/finalise.py --svds         # and as the first notebooks inverted S_B: minutes
    python benchmarks/finalise.py --large        # 50,257 classes besides: minutes

`measure` gets moments in float64, a head and decisions, and gives every metric: NC1 to NC3, ranks, NC4.
Beside it the textbook computes the same metrics, d x d matrices, pseudo-inverses and C x C grids and all,
with the pseudo-inverse of S_B from all its eigenvectors (`pinv`), and from its C - 1 largest singular vectors
by iteration (`svds`). The numbers agree to 1e-6 of the value or of 1, which is
checked. Each runs in a process of its own, whose peak memory is given with what the moments needed before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from pairwise import CLOCKS, Figure, Sheet, duration, in_child, options, peak_gib

if TYPE_CHECKING:
    import textbook

    from collapsemeter import ClassMoments, Decisions, Head

AGREE = 1e-6


def given(classes: int, width: int) -> tuple[ClassMoments, Head, Decisions]:
    """Return moments that are half collapsed, as of 50 rows a class, and a head near its means."""
    import numpy as np

    from collapsemeter import ClassMoments, Decisions, Head

    rng = np.random.default_rng(0)
    means = rng.standard_normal((classes, width))
    noise = rng.standard_normal((2 * width, width)) * np.geomspace(1.0, 0.1, width)
    counts = np.full(classes, 50)
    scatter = noise.T @ noise * (counts.sum() / (2 * width))
    spread = 0.5 + rng.random(classes)
    traces = spread / spread.sum() * np.trace(scatter)
    head = Head(means + 0.1 * rng.standard_normal(means.shape), 0.1 * rng.standard_normal(classes))
    kept = np.ones(classes, np.int64)
    decisions = Decisions(kept, kept, kept, sampled=True)
    return ClassMoments(counts, means, scatter, traces), head, decisions


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


def child(way: str, classes: int, width: int, rounds: int, clock: Callable[[], float]) -> None:
    """Time one way in this process, and print what it took."""
    moments, head, decisions = given(classes, width)
    if way == "published":
        compute = of_published(moments, head)
    elif way == "measure":
        from collapsemeter import measure

        def compute() -> dict[str, float]:
            report = measure(moments, head=head, decisions=decisions)
            return {name: report[name] for name in report}
    else:
        import textbook

        layer = as_textbook(moments)

        def compute() -> dict[str, float]:
            return textbook.metrics(layer, head.weight, head.bias, inverse=way)  # type: ignore[arg-type]

    before, seconds, values = peak_gib(), [], {}
    for _ in range(rounds):
        start = clock()
        values = compute()
        seconds.append(clock() - start)
    print(json.dumps({"seconds": seconds, "before": before, "peak": peak_gib(), "values": values}))


def of_published(moments: ClassMoments, head: Head) -> object:
    """Return a call of the published tool's measures."""
    import published
    import torch

    layer = as_textbook(moments)
    calls = published.measures(
        layer.mu, layer.mu.mean(0), layer.v, layer.S_W, torch.tensor(head.weight)
    )

    def compute() -> dict[str, float]:
        for call in calls:
            call()
        return {}

    return compute


def compare(sheet: Sheet, classes: int, width: int, ways: dict[str, tuple[int, str, str]]) -> None:
    """Time the ways at one shape: name -> rounds, target of the time, target of the memory."""
    import numpy as np

    expected: dict[str, float] = {}
    for way, (rounds, in_seconds, in_gib) in ways.items():
        found = in_child(
            "--clock", sheet.machine["clock"], "--child", way, str(classes), str(width), str(rounds)
        )
        shape = f"{way}, C = {classes}, d = {width}"
        sheet.add(duration(f"{shape}: time", np.array(found["seconds"]), in_seconds))
        sheet.add(Figure(f"{shape}: peak", found["peak"], "GiB", target=in_gib))
        sheet.add(Figure(f"{shape}: peak before", found["before"], "GiB"))
        if way == "measure":
            expected = found["values"]
        elif found["values"]:
            check(expected, found["values"])


def check(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Raise unless the metrics are the same; NC4 was given."""
    import textbook

    differing = textbook.disagreement(ours, theirs, AGREE, 0.0)
    assert not differing, differing


def main() -> None:
    """Time both shapes."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--svds", action="store_true", help="the textbook by svds, too")
    parser.add_argument("--large", action="store_true", help="50,257 classes, d = 768, too")
    parser.add_argument("--child", nargs=4, help="for this script's own use")
    chosen = parser.parse_args()
    if chosen.child:
        way, *numbers = chosen.child
        child(way, *map(int, numbers), CLOCKS[chosen.clock])
        return
    sheet = Sheet("All metrics from moments", chosen)
    ways = {"measure": (chosen.rounds, "<= 1.5", ""), "pinv": (1, "", "")}
    if chosen.svds:
        ways["svds"] = (1, "", "")
    if _published():
        ways["published"] = (1, "", "")
    compare(sheet, chosen.classes, chosen.width, ways)
    if chosen.large:  # the textbook's C x C grids alone would take 20 GB each
        compare(sheet, 50_257, 768, {"measure": (1, "<= 60", "<= 4")})
    sheet.save()


def _published() -> bool:
    import published

    return published.is_there()


if __name__ == "__main__":
    main()
