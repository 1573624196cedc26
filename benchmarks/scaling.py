"""How the update and the metrics scale: in rows, width and classes, with the slopes of their logarithms.

One of N, d and C doubles while the others stay; every size is timed in every round. A slope of 1 is
linear, 0 is a cost that does not grow. The update is PyTorch's, of one batch; in C it should be 0, because a
batch has no more classes than rows. Metrics are all of `measure`: pairs of classes make them quadratic in C in
the end, decompositions cubic in d.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from finalise import given
from pairwise import Figure, Sheet, device, in_turn, options, wait_for_device

from collapsemeter import measure
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import update
from collapsemeter_torch.device_sums import DeviceSums
from collapsemeter_torch.namespace import TorchNamespace

Shape = tuple[int, int, int]  # rows, width, classes
UPDATES: dict[str, tuple[int, list[Shape]]] = {  # the axis that grows, and the shapes
    "N": (0, [(n, 512, 1000) for n in (128, 256, 512, 1024, 2048)]),
    "d": (1, [(256, d, 1000) for d in (256, 512, 1024, 2048, 4096)]),
    "C": (2, [(256, 512, c) for c in (100, 400, 1600, 6400, 25600)]),
}
METRICS: dict[str, tuple[int, list[Shape]]] = {
    "d": (1, [(0, d, 100) for d in (128, 256, 512, 1024)]),
    "C": (2, [(0, 256, c) for c in (128, 256, 512, 1024, 2048)]),
}


def updating(shape: Shape) -> Callable[[], object]:
    """Return a call that adds one batch."""
    rows, width, classes = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).to(device())
    y = torch.randint(classes, (rows,), generator=generator).to(device())
    state = DeviceSums(x, Settings(classes, groups=0), "pooled", 1)
    namespace = TorchNamespace(torch.float32)
    return lambda: update(state.sums, x, y, namespace)


def measuring(shape: Shape) -> Callable[[], object]:
    """Return a call that computes all metrics."""
    _, width, classes = shape
    moments, head, decisions = given(classes, width)
    return lambda: measure(moments, head=head, decisions=decisions)


def slope(
    sheet: Sheet, what: str, calls: dict[int, Callable[[], object]], rounds: int, steps: int
) -> None:
    """Time the sizes of one axis and fit the slope: of the medians, and of every round alone."""
    named = {str(size): call for size, call in calls.items()}
    seconds = in_turn(named, rounds, steps=steps, clock=sheet.clock, wait=wait_for_device)
    sizes = np.log([float(size) for size in named])
    slopes = np.polyfit(sizes, np.log(np.stack(list(seconds.values()))), 1)[0]
    medians = {size: 1e3 * float(np.median(times)) for size, times in seconds.items()}
    low, middle, high = np.percentile(slopes, [25, 50, 75])
    sheet.add(Figure(what, float(middle), "", (float(low), float(high)), medians_ms=medians))


def main() -> None:
    """Print the slopes."""
    chosen = options(__doc__, rounds=5).parse_args()
    sheet = Sheet("Slopes of log time", chosen)
    for name, (axis, shapes) in UPDATES.items():
        calls = {shape[axis]: updating(shape) for shape in shapes}
        slope(sheet, f"update, in {name}", calls, chosen.rounds, steps=4)
    for name, (axis, shapes) in METRICS.items():
        calls = {shape[axis]: measuring(shape) for shape in shapes}
        slope(sheet, f"all metrics, in {name}", calls, max(2, chosen.rounds // 2), steps=1)
    sheet.save()


if __name__ == "__main__":
    main()
