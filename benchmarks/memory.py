"""The most memory that a run holds with the meter, over the same without: live, and a frozen pass.

A process trains for a few steps, or passes batches through the network, and reports its peak; another does
the same under `meter.batch`, or by `observe`, and reports its own. The meter's share is their difference,
beside what its state must hold: the sums of every layer and the sampled rows. PyTorch alone takes a few hundred
MiB of either. Allocators keep what is free, so a difference can be smaller than the state; on a GPU
the peak is that of its allocator.
"""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext
from typing import Any

from pairwise import GIB, Figure, Sheet, in_child, options, peak_gib

MIB = 2**20
NETWORKS = ("mlp", "resnet18", "transformer")


def child(network: str, mode: str, metered: bool, steps: int) -> dict[str, float]:
    """Train or observe, and say what was held."""
    import networks
    import torch
    from pairwise import device

    from collapsemeter_torch import CollapseMeter

    of = networks.subject(network)
    model = of.model.to(device())
    batches = [
        (x.to(device()), y.to(device())) for x, y in networks.batches(of.shape, 128 * steps, 128)
    ]
    how = "mean_last" if network == "transformer" else "auto"
    meter = None
    if metered:
        meter = CollapseMeter(model, layers=of.layers, head="fc", reduction=how, verbose=False)
    if mode == "live":
        train(model, batches, meter)
    elif meter is not None:
        meter.observe(batches, progress=False)
    else:
        with torch.inference_mode():
            for x, _ in batches:
                model.eval()(x)
    states = meter._recorder.live.layers.values() if meter is not None else ()
    held = sum(t.nbytes for state in states for t in state.tensors().values())
    held += sum(state.waiting.nbytes for state in states)
    on_gpu = torch.cuda.is_available()
    return {
        "peak": torch.cuda.max_memory_allocated() / GIB if on_gpu else peak_gib(),
        "state": held,
    }


def train(model: Any, batches: Any, meter: Any) -> None:
    """Take a step of gradient descent on every batch."""
    import torch

    for x, y in batches:
        with meter.batch(y) if meter is not None else nullcontext():
            loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1e-3 * weight.grad
                weight.grad = None
    if meter is not None:
        meter.compute()


def main() -> None:
    """Measure every network in both modes."""
    parser = options(__doc__, rounds=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--child", nargs=3, help="for this script's own use")
    chosen = parser.parse_args()
    if chosen.child:
        network, mode, metered = chosen.child
        print(json.dumps(child(network, mode, metered == "metered", chosen.steps)))
        return
    import numpy as np

    sheet = Sheet("Peak memory, batches of 128 rows", chosen)
    for network, mode in itertools.product(chosen.networks, ("live", "observe")):
        peaks: dict[str, list[float]] = {"bare": [], "metered": []}
        state = 0.0
        for _ in range(chosen.rounds):
            for metered in peaks:
                found = in_child("--steps", str(chosen.steps), "--child", network, mode, metered)
                peaks[metered].append(found["peak"])
                state = max(state, found["state"])
        bare, with_meter = (np.array(peaks[metered]) for metered in peaks)
        low, middle, high = np.percentile((with_meter - bare) * GIB / MIB, [25, 50, 75])
        what = f"{network}, {mode}"
        sheet.add(Figure(f"{what}: without", float(np.median(bare)) * GIB / MIB, "MiB"))
        sheet.add(
            Figure(f"{what}: the meter adds", float(middle), "MiB", (float(low), float(high)))
        )
        if state:
            sheet.add(Figure(f"{what}: its state", state / MIB, "MiB"))
    sheet.save()


if __name__ == "__main__":
    main()
