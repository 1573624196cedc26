"""What `step_costs.py` times of PyTorch: a minimal hook, and steps that are watched, unwatched or hooked.

The minimal hook does the same sums: it copies rows into a block, and of a
full block adds counts, class sums, squares and products of the residuals about the first means. Nothing
else is asked, so it breaks in every loop that is not this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import networks
import torch
from pairwise import peak_gib
from steps import Steps
from torch import Tensor, nn

from collapsemeter_torch import CollapseMeter

CLASSES = networks.CLASSES
# Rows of a batch, steps of a round, rounds: of narrow layers a round is one block of 4096 rows.
SIZES = {"tiny": (64, 64, 24), "wide": (64, 64, 10), "resnet18": (16, 1, 10), "vit": (8, 1, 10)}
MOST_ROWS = 4096


def network(name: str) -> tuple[nn.Module, list[str], Tensor]:
    """Return a network, the layers that are watched besides the head's input, and a batch."""
    torch.manual_seed(0)
    rows = SIZES[name][0]
    if name in ("tiny", "wide"):
        inputs, width = (64, 64) if name == "tiny" else (784, 512)
        net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        layers = ["0", "1", "2"] if name == "wide" else ["1"]
        return net.append(nn.Linear(width, CLASSES)), layers, torch.randn(rows, inputs)
    if name == "resnet18":
        net, layers, shape = networks.subject("resnet18")
        return net, layers, torch.randn(rows, *shape)
    net = networks.Transformer(depth=12)
    return net, [f"blocks.{i}" for i in range(12)], torch.randn(rows, 3, 32, 32)


def step(net: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train on one batch."""
    nn.functional.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        for weight in net.parameters():
            weight -= 1e-3 * weight.grad
            weight.grad = None


class Minimal:
    """The sums of one layer, as short as can be."""

    def __init__(self, width: int, kind: str) -> None:
        self.rows = torch.empty(MOST_ROWS, width)
        self.labels = torch.empty(MOST_ROWS, dtype=torch.int64)
        self.filled, self.kind = 0, kind
        self.shift: Tensor | None = None
        self.sums, self.squares = torch.zeros(CLASSES, width), torch.zeros(CLASSES)
        self.counts = torch.zeros(CLASSES, dtype=torch.int64)
        each = (CLASSES,) if kind == "class" else ()
        self.scatter = torch.zeros(*each, width, width)

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Copy a batch into the block."""
        end = self.filled + rows.shape[0]
        self.rows[self.filled : end].copy_(rows)
        self.labels[self.filled : end].copy_(labels)
        self.filled = end
        if end + rows.shape[0] > MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        """Add the block."""
        rows, labels = self.rows[: self.filled], self.labels[: self.filled]
        counts, self.filled = torch.bincount(labels, minlength=CLASSES), 0
        if self.shift is None:
            self.shift = torch.zeros_like(self.sums).index_add_(0, labels, rows)
            self.shift /= counts.clamp(min=1)[:, None]
        residuals = rows - self.shift.index_select(0, labels)
        self.counts += counts
        self.sums.index_add_(0, labels, residuals)
        self.squares.index_add_(0, labels, torch.linalg.vector_norm(residuals, dim=1).square_())
        if self.kind != "class":
            self.scatter.addmm_(residuals.t(), residuals)
            return
        parts = residuals.index_select(0, labels.argsort()).split(counts.tolist())
        for scatter, part in zip(self.scatter, parts, strict=True):
            scatter.addmm_(part.t(), part)


class MinimalHooks:
    """Minimal sums of some layers; labels must be set before each forward."""

    def __init__(self, net: nn.Module, kinds: dict[str, tuple[int, str]], head: str) -> None:
        self.labels = torch.zeros(0)
        self.sums = {name: Minimal(width, kind) for name, (width, kind) in kinds.items()}
        for name, sums in self.sums.items():
            module = net.get_submodule(name)
            if name == head:
                module.register_forward_pre_hook(lambda m, a, s=sums: self.see(s, a[0]))
            else:
                module.register_forward_hook(lambda m, a, o, s=sums: self.see(s, o))

    def see(self, sums: Minimal, output: Tensor) -> None:
        """Average over space or positions."""
        rows = output.detach()
        if rows.ndim > 2:
            rows = rows.mean((2, 3) if rows.ndim == 4 else 1)
        sums.add(rows, self.labels)


def steps_of(name: str) -> Steps:
    """Return what a round does, and what adds the rows that wait after the last one."""
    torch.set_num_threads(1)
    rows, steps, rounds = SIZES[name]
    y = torch.arange(rows) % CLASSES
    plain, _, x = network(name)
    watched, layers, _ = network(name)
    hooked, _, _ = network(name)
    ungrouped, _, _ = network(name)
    meter = CollapseMeter(watched, layers, example=x, verbose=False)
    with meter.batch(y):
        watched(x)
    states = meter._recorder.live.layers
    kinds = {layer: (state.width, state.kind) for (layer, _), state in states.items()}
    head = meter.selection.head
    assert head is not None
    minimal = MinimalHooks(hooked, kinds, head)
    minimal.labels = y
    blocks = [
        (torch.randn(rows * steps, width), torch.zeros(width, width)) for width, _ in kinds.values()
    ]
    meter.reset()

    def run_plain() -> None:
        for _ in range(steps):
            step(plain, x, y)

    def run_minimal() -> None:
        for _ in range(steps):
            step(hooked, x, y)

    def flush_minimal() -> None:
        for sums in minimal.sums.values():
            if sums.filled:
                sums.flush()

    without = CollapseMeter(ungrouped, layers, example=x, groups=0, verbose=False)

    def run_watched(meter: CollapseMeter, net: nn.Module) -> None:
        for _ in range(steps):
            with meter.batch(y):
                step(net, x, y)

    def run_products() -> None:
        for block, total in blocks:
            total.addmm_(block.t(), block)

    calls: dict[str, Callable[[], object]] = {
        "plain": run_plain,
        "minimal": run_minimal,
        "watched": lambda: run_watched(meter, watched),
        "groups=0": lambda: run_watched(without, ungrouped),
        "products": run_products,
    }
    flushes: dict[str, Callable[[], object]] = {
        "minimal": flush_minimal,
        "watched": meter._recorder.live.flush,
        "groups=0": without._recorder.live.flush,
    }
    return Steps(rows, steps, rounds, calls, flushes)


def trained(name: str, watched: bool, steps: int = 3) -> dict[str, object]:
    """Train in a process of its own; return its peak memory, and what the weights are in the end."""
    net, layers, x = network(name)
    y = torch.arange(len(x)) % CLASSES
    meter = CollapseMeter(net, layers, verbose=False) if watched else None
    for _ in range(steps):
        if meter is None:
            step(net, x, y)
        else:
            with meter.batch(y):
                step(net, x, y)
    bits = hashlib.sha256()
    for tensor in net.state_dict().values():
        bits.update(tensor.numpy().tobytes())
    return {"peak": peak_gib(), "bits": bits.hexdigest()}
