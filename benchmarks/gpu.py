"""What watching costs on a GPU: steps of ResNet-50, and the update as a share of the device's rate.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts update --shapes 1000x2048 --rows 4096

`overhead`: three copies of torchvision's ResNet-50 take the same training steps in turn, bfloat16 autocast,
channels last, 224 x 224, descent with momentum; one is not watched, one at its head's input alone, one at the layers
that the meter finds. The device is waited for once a round, not in every step.

`update`: a batch's update beside X^T X of the same rows in plain float32, TF32 off: with as many operations as
the update's own product, their ratio is the share of the device's float32 rate that the update reaches. The rate
itself is printed, too. `hooked` is what a hook calls: small batches wait until they make a block, a sample of rows
is kept, and new classes are not looked for once the host knows that there are none: every class has as many
rows as any, so that all are seen where the rows are as many. `widened` is the update where the user allows TF32 and its products are in float64.
Launched from Python, short kernels wait for the host; `graphs` times the same calls recorded as CUDA graphs,
which leaves the device's own time. `compiled` is the update as torch.compile fuses it.

`kernels` counts what a watched step launches and how long the device is busy with it, by PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pairwise import Figure, Sheet, in_turn, options, share, wait_for_device
from torch import Tensor, nn

from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import update
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.device_sums import DeviceSums
from collapsemeter_torch.namespace import TorchNamespace
from collapsemeter_torch.waiting import MOST_ROWS

CLASSES, SAMPLE = 1000, 4096
Call = Callable[[], object]


# Training steps


def steps(batch: int, chosen: argparse.Namespace) -> dict[str, Call]:
    """Return a training step of each copy."""
    from torchvision.models import resnet50

    device = torch.device(chosen.device)
    torch.manual_seed(0)
    first = resnet50(weights=None).to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, chosen.size, chosen.size, device=device)
    x = x.to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (batch,), device=device)
    watched: dict[str, Any] = {"head": lambda *_: False, "blocks": "auto"}

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def call(name: str) -> Call:
        model = copy.deepcopy(first)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        if name == "plain":
            return lambda: step(model, optimizer)
        meter = CollapseMeter(model, layers=watched[name], strict=True, verbose=False)

        def counted() -> None:
            with meter.batch(y):
                step(model, optimizer)

        return counted

    return {name: call(name) for name in ("plain", *watched)}


def overhead(sheet: Sheet, chosen: argparse.Namespace) -> None:
    """Time watched and unwatched steps."""
    for batch in chosen.batches:
        calls = steps(batch, chosen)
        warm_up(calls)
        seconds = in_turn(
            calls, sheet.rounds, steps=chosen.steps, clock=sheet.clock, wait=wait_for_device
        )
        for name, layers in {"head": "the head's input", "blocks": "all blocks"}.items():
            what = f"ResNet-50, batch {batch}, {layers}: a step"
            more = 100 * (seconds[name] / seconds["plain"] - 1)
            sheet.add(share(what, more, seconds, ("plain", name), "<= 3"))


def kernels(sheet: Sheet, chosen: argparse.Namespace) -> None:
    """Count kernels of one step, and the time that the device is busy with them."""
    from torch.profiler import ProfilerActivity, profile

    calls = steps(chosen.batches[0], chosen)
    warm_up(calls)
    for name, call in calls.items():
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            wait_for_device()
        ran = [event for event in seen.key_averages() if event.self_device_time_total > 0]
        busy = sum(event.self_device_time_total for event in ran) / 1e3
        sheet.add(Figure(f"{name}: kernels a step", sum(event.count for event in ran), ""))
        sheet.add(Figure(f"{name}: device busy in a step", busy, "ms"))


# The update alone


def shapes(chosen: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Return C, d and rows of every measurement."""
    sizes = [tuple(map(int, text.split("x"))) for text in chosen.shapes]
    return [(classes, width, rows) for classes, width in sizes for rows in chosen.rows]


def updates(
    shape: tuple[int, int, int], device: torch.device, fused: bool = False
) -> dict[str, Call]:
    """Return the product and the updates of a few batches, so that no cache holds all their rows."""
    classes, width, rows = shape
    generator = torch.Generator(device).manual_seed(0)
    order = torch.randperm(4 * rows, device=device, generator=generator)
    given = [
        (torch.randn(rows, width, device=device, generator=generator), y)
        for y in (order % classes).split(rows)
    ]
    total = torch.zeros(width, width, device=device)

    def product() -> None:
        for x, _ in given:
            torch.mm(x.T, x, out=total)

    def updated(widen: bool) -> Call:
        sums = DeviceSums(given[0][0], Settings(classes, groups=0), "pooled", SAMPLE).sums
        namespace = TorchNamespace(torch.float32, widen)

        def add(x: Tensor, y: Tensor) -> None:
            update(sums, x, y, namespace)

        run = torch.compile(add, dynamic=False) if fused else add

        def call() -> None:
            for x, y in given:
                run(x, y)

        return call

    state = DeviceSums(given[0][0], Settings(classes, groups=0), "pooled", SAMPLE)
    not_sampled = np.full(rows, -1)

    def hooked() -> None:
        for x, y in given:
            state.update(x, y, not_sampled)

    calls = {"X^T X": product, "update": updated(False), "widened": updated(True)}
    return calls if fused else calls | {"hooked": hooked}


def recorded(call: Call) -> Call:
    """Record a call as a CUDA graph; return its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Call = graph.replay
    return replay


def rates(sheet: Sheet, chosen: argparse.Namespace, form: str = "launched") -> None:
    """Time the updates of every shape."""
    for shape in shapes(chosen):
        classes, width, rows = shape
        calls = updates(shape, torch.device(chosen.device), fused=form == "compiled")
        warm_up(calls)
        if form == "graphs":
            del calls["hooked"]  # decides on the host, which a graph does not
            calls = {name: recorded(call) for name, call in calls.items()}
        steps = max(5, 4 * MOST_ROWS // rows)  # a round makes several blocks
        seconds = in_turn(calls, sheet.rounds, steps=steps, clock=sheet.clock, wait=wait_for_device)
        seconds = {name: times / 4 for name, times in seconds.items()}  # of one batch
        what = f"{form}, C = {classes}, d = {width}, {rows} rows"
        rate = 2 * rows * width**2 / seconds["X^T X"] / 1e12
        middle = np.percentile(rate, [25, 50, 75])
        sheet.add(
            Figure(f"{what}: X^T X", float(middle[1]), "TF/s", (float(middle[0]), float(middle[2])))
        )
        for name, target in {"update": ">= 70", "hooked": ">= 70", "widened": ""}.items():
            if name not in calls:
                continue
            part = 100 * seconds["X^T X"] / seconds[name]
            sheet.add(share(f"{what}: {name}'s rate", part, seconds, ("X^T X", name), target))


def warm_up(calls: dict[str, Call]) -> None:
    """Choose algorithms, compile, and fill the allocator's pools."""
    for _ in range(3):
        for call in calls.values():
            call()
    wait_for_device()


PARTS: dict[str, Callable[[Sheet, argparse.Namespace], None]] = {
    "overhead": overhead,
    "update": rates,
    "graphs": lambda sheet, chosen: rates(sheet, chosen, "graphs"),
    "compiled": lambda sheet, chosen: rates(sheet, chosen, "compiled"),
    "kernels": kernels,
}


def main() -> None:
    """Measure every part."""
    parser = options(__doc__, rounds=15)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS][:3])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 256], help="of ResNet-50")
    parser.add_argument("--size", type=int, default=224, help="of an image")
    parser.add_argument("--steps", type=int, default=10, help="training steps a round")
    parser.add_argument("--shapes", nargs="+", default=["100x2048", "1000x2048", "20000x768"])
    parser.add_argument("--rows", nargs="+", type=int, default=[256, 1024, 4096, 16384])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try it")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no GPU")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision(
        "highest"
    )  # the product beside the update is in full float32
    sheet = Sheet("On a GPU", chosen)
    for part in chosen.parts:
        PARTS[part](sheet, chosen)
    sheet.save()


if __name__ == "__main__":
    main()
