"""What sums in float64 cost a frozen pass: `observe` with float32 and float64 sums, in turn, in one process.

``python benchmarks/frozen_pass.py`` prints medians of processor time of one thread, and quartiles of the
ratios of neighbouring passes, for the demo's network and a ResNet-18 for images of 32 x 32.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

import collapsemeter_torch.meter
from collapsemeter.demo import digits
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.demo import DigitsNet
from collapsemeter_torch.scope import Store


class Block(nn.Module):
    """The residual block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        return torch.relu(self.main(x) + self.skip(x))


class ResNet18(nn.Module):
    """ResNet-18 as it is used on images of 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(
            *(Block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths))
        )
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def compare(name: str, meter: CollapseMeter, batches: Any, pairs: int) -> None:
    """Print what passes with either kind of sums take."""

    def seconds(wide: bool) -> float:
        # The only place where the choice is made; there is no option for it.
        collapsemeter_torch.meter.Store = lambda **_: Store(wide=wide)  # type: ignore[attr-defined]
        start = time.process_time()
        meter.observe(batches, progress=False)
        return time.process_time() - start

    seconds(True), seconds(False)
    times = []
    for i in range(pairs):
        order = (True, False) if i % 2 else (False, True)
        times.append({wide: seconds(wide) for wide in order})
    collapsemeter_torch.meter.Store = Store  # type: ignore[attr-defined]
    narrow, wide = (1e3 * statistics.median(t[kind] for t in times) for kind in (False, True))
    low, middle, high = statistics.quantiles([t[True] / t[False] for t in times], n=4)
    print(
        f"{name}: {narrow:.0f} -> {wide:.0f} ms a pass, {middle - 1:+.1%} "
        f"(quartiles {low - 1:+.1%} to {high - 1:+.1%})",
        flush=True,
    )


def main() -> None:
    """Compare both networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    images, labels = digits()
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    blocks = ["conv1", "conv2", "conv3", "hidden"]
    meter = CollapseMeter(DigitsNet(), layers=blocks, num_classes=10, verbose=False)
    batches = list(zip(x.split(600), y.split(600), strict=True))
    compare("the demo's network, 1,797 images, five layers", meter, batches, 4 * pairs)
    noise = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers = ["stem", *(f"blocks.{i}" for i in range(7))]
    meter = CollapseMeter(ResNet18(), layers=layers, num_classes=10, verbose=False)
    batches = list(zip(noise.split(64), (torch.arange(256) % 10).split(64), strict=True))
    compare("ResNet-18, 256 images of 32 x 32, nine layers", meter, batches, pairs)


if __name__ == "__main__":
    main()
