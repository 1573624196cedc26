"""The PyTorch adapter passes the conformance kit, eager and compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments, testing
from collapsemeter_torch import CollapseMeter


class ChannelsFirst(nn.Module):
    """(B, H, W, d) -> (B, d, H, W), as PyTorch has its maps."""

    def forward(self, x):
        return x.movedim(-1, 1)


def network(spec: testing.Spec) -> nn.Sequential:
    """The body passes its input on; the layer named body is watched."""
    body: dict[str, nn.Module] = {"body": nn.Identity()}
    if len(spec.shape) == 3:
        body = {"turn": ChannelsFirst(), **body}
        body |= {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    head = nn.Linear(spec.width, spec.num_classes)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(spec.weight))
        head.bias.copy_(torch.tensor(spec.bias))
    net = nn.Sequential()
    for name, module in (body | {"head": head}).items():
        net.add_module(name, module)
    return net.to(getattr(torch, spec.dtype))


class Written(nn.Module):
    """A network as people write theirs: the head is declared first, and nothing says in what order layers run."""

    def __init__(self, spec: testing.Spec) -> None:
        super().__init__()
        self.form, self.pooled = spec.form, spec.pooled
        first, second = (2.0, 0.5) if spec.form == "reversed" else (1.0, 1.0)
        shift = 0.125 if spec.form == "two_heads" else 0.0
        self.head = linear(spec.weight + np.float32(shift), spec.bias)
        self.other = linear(spec.weight - np.float32(shift), spec.bias)
        self.second = linear(second * np.eye(spec.width))
        self.first = linear(first * np.eye(spec.width))

    def forward(self, x):
        x = self.first(x)
        if self.form == "reversed":
            x = self.second(x)
        elif self.form == "repeated":
            x = self.first(x)
        scores = self.head(x.mean(1) if self.pooled else x)
        if self.form == "two_heads":
            return (scores + self.other(x)) / 2
        if self.form == "functional_tail":
            return scores.log_softmax(1)
        return scores.sigmoid() if self.form == "one_score" else scores


def linear(weight, bias=None) -> nn.Linear:
    layer = nn.Linear(*weight.shape[::-1], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


class TorchDriver:
    """A training loop that takes no step."""

    device = "cpu"

    def __init__(self, spec: testing.Spec) -> None:
        self.spec = spec
        net = network(spec) if spec.form == "plain" else Written(spec)
        self.net = net.to(self.device)
        self.model: nn.Module = self.net
        self.batches: list[tuple[torch.Tensor, np.ndarray]] = []  # of a frozen pass

    def attach(self) -> None:
        self.meter = CollapseMeter(
            self.model,
            layers=["body"] if self.spec.form == "plain" else "auto",
            num_classes=self.spec.num_classes,
            strict=True,
            verbose=False,
            **self.spec.options,
        )

    def feed(self, features, labels) -> None:
        inputs = torch.tensor(features).to(self.device, getattr(torch, self.spec.dtype))
        if self.spec.phase == "frozen-eval":
            self.batches.append((inputs, labels))
            return
        with self.meter.batch(torch.tensor(labels)):
            logits = self.model(inputs)
        logits.sum().backward()
        self.net.zero_grad()

    def report(self):
        if self.spec.phase == "frozen-eval":
            return self.meter.observe(self.batches, progress=False)
        return self.meter.compute()

    def moments(self) -> ClassMoments:
        try:
            return self.meter.moments("head")
        except ValueError:  # nothing was fed
            return ClassMoments.empty(self.spec.num_classes, self.spec.width)

    def reset(self) -> None:
        self.meter.reset()

    def merge(self, other: TorchDriver) -> ClassMoments:
        return self.moments().merge(other.moments())

    def save(self, path) -> None:
        torch.save(self.meter.state_dict(), path)

    def load(self, path) -> None:
        self.meter.load_state_dict(torch.load(path, weights_only=True))

    def fingerprint(self):
        attributes = {
            name: {key: _plain(value) for key, value in vars(module).items()}
            for name, module in self.net.named_modules()
        }
        weights = {
            name: t.double().cpu().numpy().tobytes() for name, t in self.net.state_dict().items()
        }
        return attributes, weights

    def close(self) -> None:
        self.meter.close()


def _plain(value):
    """Hook tables by their entries; modules and parameters by identity."""
    return list(value.items()) if isinstance(value, dict) else value


class CompiledDriver(TorchDriver):
    def __init__(self, spec: testing.Spec) -> None:
        super().__init__(spec)
        torch.compiler.reset()
        self.model = torch.compile(self.net, backend="aot_eager")


@pytest.mark.parametrize("case", testing.CASES)
def test_eager(case):
    case(TorchDriver)


# All of them pass; a graph for each driver and shape takes minutes.
COMPILED = ("ragged_batches", "ignored_labels", "float16", "sample_spans_a_batch", "no_trace")


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name):
    testing.check_adapter(CompiledDriver, [c for c in testing.CASES if c.__name__ == name])
