"""What watching costs a training step of PyTorch: watched and unwatched steps in turn, in one process.

    python benchmarks/overhead.py torch
    python benchmarks/overhead.py torch --network resnet18
    python benchmarks/overhead.py torch --network mlp --steps 64

Two copies of a network take the same steps, loss, gradients and descent, one of them watched; a round is a
few steps of each. `convnet` is a small convolutional network on images of 32 x 32, `mlp` has four hidden
layers of 512 on 784 inputs: both are watched at the head's input alone, which is 512 wide. `resnet18` is watched at its stem, all
eight blocks and the head's input. A block of 4096 rows, of 64
steps, is added at once: a round of fewer steps has it or has it not, and the median does not see it. `step_costs.py` has other
frameworks, minimal hooks and products.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pairwise import Sheet, in_turn, options, share, wait_for_device

WIDTH, CLASSES, BATCH = 512, 10, 64
INPUTS = 784  # of the MLP
Steps = tuple[str, Callable[[], object], Callable[[], object]]  # name, unwatched, watched


def data(network: str) -> tuple[np.ndarray, np.ndarray]:
    """One batch of noise: what a step costs does not depend on it."""
    shape = (INPUTS,) if network == "mlp" else (32, 32, 3)
    images = np.random.default_rng(0).normal(size=(BATCH, *shape))
    return images.astype("float32"), np.arange(BATCH) % CLASSES


def in_torch(network: str) -> Steps:
    import networks
    import torch
    from pairwise import device
    from torch import nn

    from collapsemeter_torch import CollapseMeter

    def net() -> nn.Module:
        torch.manual_seed(0)
        if network != "convnet":
            return networks.subject(network).model.to(device())
        return nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
            *(nn.Flatten(), nn.Linear(512, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)),
        ).to(device())

    images, labels = data(network)
    x, y = torch.tensor(np.moveaxis(images, -1, 1).copy()).to(device()), torch.tensor(labels)
    y = y.to(device())
    plain, watched = net(), net()
    blocks = networks.subject(network).layers if network == "resnet18" else lambda *_: False
    meter = CollapseMeter(watched, layers=blocks, verbose=False)

    def step(model: nn.Module) -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1e-3 * weight.grad
                weight.grad = None

    def counted() -> None:
        with meter.batch(y):
            step(watched)

    return "torch", lambda: step(plain), counted


def main() -> None:
    """Print what the meter adds to a step: the median of the rounds, in percent."""
    parser = options(__doc__, rounds=30)
    parser.add_argument("framework", choices=["torch"])
    parser.add_argument("--network", choices=("convnet", "mlp", "resnet18"), default="convnet")
    parser.add_argument("--steps", type=int, default=5, help="steps a round")
    chosen = parser.parse_args()
    name, plain, watched = in_torch(chosen.network)
    plain(), watched()
    sheet = Sheet(f"What the meter adds to a training step, batch {BATCH}", chosen)
    calls = {"plain": plain, "watched": watched}
    seconds = in_turn(
        calls, chosen.rounds, steps=chosen.steps, clock=sheet.clock, wait=wait_for_device
    )
    layers = "10 layers" if chosen.network == "resnet18" else "the head's input"
    percent = 100 * (seconds["watched"] / seconds["plain"] - 1)
    target = "<= 5" if chosen.network != "convnet" else ""
    sheet.add(share(f"{name}, {chosen.network}, {layers}", percent, seconds, (*calls,), target))
    sheet.save()


if __name__ == "__main__":
    main()
