"""Small networks that run, of every kind that a meter meets; most declare their layers in another order."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.downsample = (
            None if into == out else nn.Sequential(nn.Conv2d(into, out, 1), nn.BatchNorm2d(out))
        )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """With the classifier declared first, and stages in reverse."""

    def __init__(self, w: int = 4) -> None:
        super().__init__()
        self.fc, self.avgpool = nn.Linear(8 * w, 10), nn.AdaptiveAvgPool2d(1)
        self.layer4 = nn.Sequential(BasicBlock(4 * w, 8 * w), BasicBlock(8 * w, 8 * w))
        self.layer3 = nn.Sequential(BasicBlock(2 * w, 4 * w), BasicBlock(4 * w, 4 * w))
        self.layer2 = nn.Sequential(BasicBlock(w, 2 * w), BasicBlock(2 * w, 2 * w))
        self.layer1 = nn.Sequential(BasicBlock(w, w), BasicBlock(w, w))
        self.maxpool = nn.MaxPool2d(2)
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, w, 3), nn.BatchNorm2d(w), nn.ReLU()

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class PlainNet(nn.Module):
    """Two hidden layers, the classifier declared first; ``tail`` makes scores of what they give."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, classes)
        self.second, self.first = nn.Linear(8, 8), nn.Linear(4, 8)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))))

    def forward(self, x):
        return self.classifier(self.features(x))


class Scaled(PlainNet):
    def forward(self, x):
        return super().forward(x).log_softmax(-1) / 2.0


class Adjusted(PlainNet):
    def forward(self, x):
        return super().forward(x) + torch.tensor([0.0, 1.0, 2.0])


class Capped(PlainNet):
    def forward(self, x):
        return 30 * torch.tanh(super().forward(x) / 30).clamp(-5, 5)


class Permuted(PlainNet):
    def forward(self, x):
        return super().forward(x)[:, [2, 0, 1]]


class Functional(PlainNet):
    def forward(self, x):
        return F.linear(self.features(x), self.classifier.weight)


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Averaged(PlainNet):
    def __init__(self) -> None:
        super().__init__()
        self.distilled = nn.Linear(8, 3)

    def forward(self, x):
        features = self.features(x)
        return (self.classifier(features) + self.distilled(features)) / 2


class Exits(Averaged):
    def forward(self, x):
        early = F.relu(self.first(x))
        return self.distilled(early), self.classifier(F.relu(self.second(early)))


class Probability(PlainNet):
    """One score behind a sigmoid that is a function."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x):
        return torch.sigmoid(super().forward(x)).squeeze(-1)


class Repeated(PlainNet):
    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        for _ in range(3):
            x = F.relu(self.second(x))
        return x


class Undifferentiable(PlainNet):
    def forward(self, x):
        return super().forward(x.round().detach()).detach()


class DependsOnData(PlainNet):
    def forward(self, x):
        return super().forward(x if x.sum().item() < 1e9 else -x)


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(8, 5), nn.LayerNorm(8)
        self.blocks = nn.ModuleList([TransformerBlock() for _ in range(3)])
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.cls, self.positions = (
            nn.Parameter(torch.zeros(1, 1, 8)),
            nn.Parameter(torch.ones(1, 17, 8)),
        )

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class TransformerBlock(nn.Module):
    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Tokens(nn.Module):
    """A sequence with one label."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.embedding = nn.Linear(8, 4), nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids):
        return self.fc(self.encoder(self.embedding(ids)).mean(1))


class Recurrent(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(8, 8, batch_first=True)

    def forward(self, ids):
        return self.fc(self.encoder(self.embedding(ids))[0][:, -1])


class SqueezeNet(nn.Module):
    """A classifier that is a 1x1 convolution, with pooling after it."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(8, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())

    def forward(self, x):
        return self.classifier(self.features(x)).flatten(1)


def vgg() -> nn.Module:
    features = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2)),
    )
    classifier = nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout()),
        nn.Linear(16, 10),
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(8, 3)),
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(8, 10)),
    )


def deep_linear() -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise([4] * 6)))


def images() -> Tensor:
    return torch.randn(6, 3, 16, 16)


def vectors() -> Tensor:
    return torch.randn(6, 4)


def tokens() -> Tensor:
    return torch.randint(0, 20, (6, 5))
