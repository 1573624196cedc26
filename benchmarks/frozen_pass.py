"""What sums in float64 cost a frozen pass: `observe` with float32 and float64 sums, in turn, in one process.

``python benchmarks/frozen_pass.py`` prints medians of the processor time of one thread, and quartiles of the
ratios of neighbouring passes, for the demo's network and a ResNet-18 for images of 32 x 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from networks import subject
from pairwise import Sheet, in_turn, options, ratio

import collapsemeter_torch.meter
from collapsemeter.cli.demo import digits
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.demo import DigitsNet
from collapsemeter_torch.state import Store


def compare(sheet: Sheet, what: str, meter: CollapseMeter, batches: Any, rounds: int) -> None:
    """Time passes with either kind of sums."""

    def observing(wide: bool) -> Callable[[], None]:
        def observe() -> None:
            # The only place where the choice is made; there is no option for it.
            collapsemeter_torch.meter.Store = lambda settings, plan, **_: Store(
                settings, plan, wide=wide
            )  # type: ignore[attr-defined]
            meter.observe(batches, progress=False)

        return observe

    calls = {"float32": observing(False), "float64": observing(True)}
    seconds = in_turn(calls, rounds, clock=sheet.clock)
    collapsemeter_torch.meter.Store = Store  # type: ignore[attr-defined]
    sheet.add(ratio(what, seconds, "float64", "float32"))


def main() -> None:
    """Compare both networks."""
    parser = options(__doc__, rounds=9)
    parser.set_defaults(clock="processor")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sheet = Sheet("Processor time of a pass with float64 sums over float32", chosen)
    images, labels = digits()
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    blocks = ["conv1", "conv2", "conv3", "hidden"]
    meter = CollapseMeter(DigitsNet(), layers=blocks, num_classes=10, verbose=False)
    batches = list(zip(x.split(600), y.split(600), strict=True))
    compare(sheet, "demo's network, 1,797 images, 5 layers", meter, batches, 4 * chosen.rounds)
    resnet = subject("resnet18")
    noise = torch.randn(256, *resnet.shape, generator=torch.Generator().manual_seed(0))
    meter = CollapseMeter(resnet.model, layers=resnet.layers[:-1], num_classes=10, verbose=False)
    batches = list(zip(noise.split(64), (torch.arange(256) % 10).split(64), strict=True))
    compare(sheet, "ResNet-18, 256 images of 32 x 32, 9 layers", meter, batches, chosen.rounds)
    sheet.save()


if __name__ == "__main__":
    main()
