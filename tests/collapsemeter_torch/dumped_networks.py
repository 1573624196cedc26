"""Real networks with data, for tests of what is dumped: each is observed and dumped by one meter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from collapsemeter.cli import demo
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.demo import DigitsNet, _loss


class Watched(NamedTuple):
    meter: CollapseMeter
    batches: list[Any]


def digits(dtype: torch.dtype, epochs: int, batch: int = 600) -> Watched:
    """The demo's network, trained for some epochs."""
    images, labels = demo.digits()
    x, y = torch.from_numpy(images)[:, None].to(dtype), torch.from_numpy(labels)
    targets = nn.functional.one_hot(y, 10).to(dtype)
    torch.manual_seed(0)
    net = DigitsNet().to(dtype)
    descent = torch.optim.SGD(net.parameters(), 0.02, momentum=0.9, weight_decay=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            descent.zero_grad()
            _loss(net(x[rows]), targets[rows]).backward()
            descent.step()
    layers = ["conv1", "conv2", "conv3", "hidden"]
    meter = CollapseMeter(net, layers=layers, num_classes=10, verbose=False)
    return Watched(meter, list(zip(x.split(batch), y.split(batch), strict=True)))


class Tagger(nn.Module):
    """A transformer that labels every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True) for _ in range(2)
        )
        self.fc = nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.embedding(tokens)
        for block in self.blocks:
            rows = block(rows)
        logits: Tensor = self.fc(rows)
        return logits


def tagger() -> Watched:
    """Labels (B, T), a fifth of them ignored, in batches of two lengths."""
    torch.manual_seed(0)
    batches = []
    for length in (12, 9, 12):
        tokens = torch.randint(20, (16, length))
        labels = torch.where(torch.rand(16, length) < 0.2, -100, tokens % 4)
        batches.append((tokens, labels))
    return Watched(CollapseMeter(Tagger(), num_classes=4, verbose=False), batches)


class Twice(nn.Module):
    """A network whose one block runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        for _ in range(2):
            x = torch.tanh(self.block(x))
        logits: Tensor = self.fc(x)
        return logits


def vectors(count: int = 90) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 6, generator=generator), torch.arange(count) % 3
    return list(zip(x.split(20), y.split(20), strict=True))


def twice() -> Watched:
    torch.manual_seed(0)
    meter = CollapseMeter(Twice(), layers=["stem", "block"], num_classes=3, verbose=False)
    return Watched(meter, vectors())


def headless() -> Watched:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    return Watched(CollapseMeter(net, head=None, num_classes=3, verbose=False), vectors())


def one_logit() -> Watched:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    batches = [(x, y % 2) for x, y in vectors()]
    return Watched(CollapseMeter(net, num_classes=2, verbose=False), batches)


NETWORKS: dict[str, Callable[[], Watched]] = {
    "float32": lambda: digits(torch.float32, epochs=2),
    "collapsing": lambda: digits(torch.float32, epochs=25),
    "float64": lambda: digits(torch.float64, epochs=1),
    "bfloat16": lambda: digits(torch.bfloat16, epochs=1),
    "tokens": tagger,
    "twice": twice,
    "headless": headless,
    "one logit": one_logit,
}
