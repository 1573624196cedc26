"""A whole `observe` beside the textbook's three passes: forward passes, statistics and all metrics.

    python benchmarks/observe.py
    python benchmarks/observe.py --networks resnet18 --layers head --rows 2048

Both see the same batches through the same network in eval mode without gradients, watch the same layers
(all blocks and the head's input, or that alone) and end with the same metrics in float64. NC4 is the one
difference: the third pass decides on every row, `observe` on a sample of 4096 unless `--exact`. The numbers
agree, which is checked before anything is timed: to 1e-3 of the value or of 1, whichever is larger, and
shares of rows to 1 % or four standard errors of the sample. The textbook sums in float32, `observe` in float64.

A forward alone is timed too: `three forwards / observe` is the ratio that is left when statistics and
formulas cost nothing but `observe` stays as it is, and `observe / forward` what watching costs a pass. The textbook's
formulas alone are the last time: the fewer the rows, the more they weigh in the ratio.
"""

from __future__ import annotations

import math
from typing import Any

import networks
import textbook
import torch
from networks import CLASSES, Subject
from pairwise import Sheet, device, in_turn, options, ratio, wait_for_device

from collapsemeter_torch import CollapseMeter

# Multiples of the classes and of the batch: of unequal classes some metrics need scatters that are too large.
ROWS = {"mlp": 20_000, "resnet18": 640, "transformer": 640}
TARGETS = {"mlp": ">= 3", "resnet18": ">= 2.5"}
AGREE = 1e-3


def compare(sheet: Sheet, name: str, watched: str, chosen: Any) -> None:
    """Time one network."""
    ours, theirs = networks.subject(name), networks.subject(name)
    layers = ours.layers if watched == "all" else []
    rows = chosen.rows or ROWS[name]
    given = [
        (x.to(device()), y.to(device()))
        for x, y in networks.batches(ours.shape, rows, chosen.batch)
    ]
    meter = CollapseMeter(
        ours.model.to(device()),
        layers=layers or (lambda *_: False),
        head="fc",
        reduction="mean_last" if name == "transformer" else "auto",
        exact=chosen.exact,
        verbose=False,
    )
    plain = networks.subject(name).model.to(device()).eval()
    forward = textbook.hooked(theirs.model.to(device()).eval(), layers)
    found = passes(given, forward)
    check(meter.observe(given, progress=False), found, theirs)

    def bare() -> None:
        with torch.inference_mode():
            for x, _ in given:
                plain(x)

    calls = {
        "textbook": lambda: formulas(passes(given, forward), theirs),
        "observe": lambda: meter.observe(given, progress=False),
        "forward": bare,
        "formulas": lambda: formulas(found, theirs),
    }
    seconds = in_turn(calls, sheet.rounds, warm=False, clock=sheet.clock, wait=wait_for_device)
    seconds["three forwards"] = 3 * seconds["forward"]
    what = f"{name}, {rows} rows, {len(layers) + 1} layer{'s' if layers else ''}"
    target = TARGETS.get(name, "")
    sheet.add(ratio(f"{what}: textbook / observe", seconds, "textbook", "observe", target))
    sheet.add(ratio(f"{what}: three forwards / observe", seconds, "three forwards", "observe"))
    sheet.add(ratio(f"{what}: observe / forward", seconds, "observe", "forward"))
    sheet.add(ratio(f"{what}: formulas / textbook", seconds, "formulas", "textbook"))


def passes(given: Any, forward: textbook.Forward) -> dict[str, textbook.Layer]:
    """Make the textbook's passes."""
    with torch.inference_mode():
        return textbook.three_passes(given, forward, CLASSES)


def formulas(layers: dict[str, textbook.Layer], of: Subject) -> dict[str, dict[str, float]]:
    """Return the textbook's metrics of every layer; the head reads layer ``fc``."""
    head = of.model.get_submodule("fc")
    W, b = (weight.detach().double().cpu().numpy() for weight in (head.weight, head.bias))
    return {
        name: textbook.metrics(layer, W, b) if name == "fc" else textbook.metrics(layer)
        for name, layer in layers.items()
    }


def check(report: Any, found: dict[str, textbook.Layer], of: Subject) -> None:
    """Raise unless both have the same metrics, with the same values."""
    assert list(report) == list(found), (list(report), list(found))
    for name, theirs in formulas(found, of).items():
        layer = report[name]
        ours = {metric: layer[metric] for metric in layer if metric in theirs}
        decided, rows = layer.provenance["nc4_rows"], layer.provenance["rows"]
        share = 0.01 + (4 * math.sqrt(0.25 / decided) if decided < rows else 0.0)
        absent = [metric for metric in layer if metric not in theirs]
        differing = textbook.disagreement(ours, theirs, AGREE, share)
        assert not absent, (name, absent)
        assert not differing, (name, differing)


def main() -> None:
    """Time every network."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--networks", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--layers", nargs="+", choices=["all", "head"], default=["all"])
    parser.add_argument("--rows", type=int, help=f"in place of {ROWS}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--exact", action="store_true", help="decide NC4 on every row")
    chosen = parser.parse_args()
    sheet = Sheet("A whole pass", chosen)
    for name in chosen.networks:
        for watched in chosen.layers:
            compare(sheet, name, watched, chosen)
    sheet.save()


if __name__ == "__main__":
    main()
