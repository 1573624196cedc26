"""The demo's network and training loop in PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from collapsemeter.adapter.epoch import Epoch

from .meter import CollapseMeter

BATCH = 32
LEARNING_RATE = 0.02
WEIGHT_DECAY = 1e-2


class DigitsNet(nn.Module):
    """Three convolutional blocks, a hidden block, 64 features and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_conv(1, 8))
        self.conv2 = nn.Sequential(*_conv(8, 16), nn.MaxPool2d(2))
        self.conv3 = nn.Sequential(*_conv(16, 32), nn.MaxPool2d(2), nn.Flatten())
        self.hidden = nn.Sequential(*_dense(128, 256))
        self.features = nn.Sequential(*_dense(256, 64))
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        maps = self.conv3(self.conv2(self.conv1(images)))
        logits: Tensor = self.fc(self.features(self.hidden(maps)))
        return logits


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


def train(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    epochs: int,
    seed: int,
    dump: Path | None = None,
) -> Iterator[Epoch]:
    """Train and yield every epoch's measurements, the untrained network's first.

    The loss is the squared error to one-hot targets, under which collapse comes within a minute
    (Han, Papyan & Donoho 2022). Activations and head of the trained network go to the folder ``dump``.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # products this small only wait for each other on more
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    targets = nn.functional.one_hot(y, 10).float()
    frozen = list(zip(x.split(600), y.split(600), strict=True))

    model = DigitsNet()
    # The output of `features` is the input of `fc`, which is watched under that name.
    meter = CollapseMeter(model, layers=["conv1", "conv2", "conv3", "hidden"], num_classes=10)
    steps = epochs * -(-len(x) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def observe() -> Any:
        return meter.observe(frozen, phase="frozen-train", progress=False)

    with torch.no_grad():
        logits = model.eval()(x)
    untrained = float((logits.argmax(1) != y).float().mean())
    yield Epoch(0, float(_loss(logits, targets)), untrained, None, observe())
    for number in range(1, epochs + 1):
        model.train()
        loss, wrong = 0.0, 0
        for batch in torch.randperm(len(x)).split(BATCH):
            with meter.batch(y[batch]):  # the meter's only line in the loop
                logits = model(x[batch])
            error = _loss(logits, targets[batch])
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            schedule.step()
            loss += float(error.detach()) * len(batch)
            wrong += int((logits.argmax(1) != y[batch]).sum())
        live = meter.compute()
        meter.reset()
        yield Epoch(number, loss / len(x), wrong / len(x), live, observe())
    if dump is not None:
        meter.dump(frozen, dump, phase="frozen-train", step=epochs, progress=False)
    meter.close()


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return ((logits - targets) ** 2).sum(1).mean()
