"""The networks of the benchmarks, in PyTorch, as they are used on images of 32 x 32."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

CLASSES = 10


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
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class MLP(nn.Module):
    """Four hidden layers of width 512 on 784 inputs, the multilayer perceptron of MNIST."""

    def __init__(self, inputs: int = 784, width: int = 512, depth: int = 4) -> None:
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes))
        )
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.fc(self.blocks(x))
        return logits


class Transformer(nn.Module):
    """A small vision transformer: patches of 4 x 4, four blocks of width 192, and a class token."""

    def __init__(self, width: int = 192, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        logits: Tensor = self.fc(self.norm(self.blocks(tokens))[:, 0])
        return logits


class Subject(NamedTuple):
    """A network with the layers that are watched besides the head's input, and an input's shape."""

    model: nn.Module
    layers: list[str]
    shape: tuple[int, ...]


def subject(name: str) -> Subject:
    """Return ``mlp``, ``resnet18`` or ``transformer`` with weights that are always the same."""
    torch.manual_seed(0)
    image = (3, 32, 32)
    if name == "mlp":  # the last hidden layer is the head's input
        return Subject(MLP(), [f"blocks.{i}" for i in range(3)], (784,))
    if name == "resnet18":
        return Subject(ResNet18(), ["stem", *(f"blocks.{i}" for i in range(8))], image)
    return Subject(Transformer(), [f"blocks.{i}" for i in range(4)], image)


def batches(shape: tuple[int, ...], rows: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return balanced classes, each a pattern of its own under noise, in an order at random."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, *shape, generator=generator)
    labels = torch.arange(rows)[torch.randperm(rows, generator=generator)] % CLASSES
    inputs = patterns[labels] + torch.randn(rows, *shape, generator=generator)
    return list(zip(inputs.split(size), labels.split(size), strict=True))
