"""What every process of a torchrun does: each case in turn, its results written for the tests to compare.

Each rank sees its part of one data set, so that one process that sees all of it must report the same.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from collapsemeter import CollapseReport
from collapsemeter_torch import CollapseMeter

CLASSES, WIDTH, ROUND = 4, 6, 24  # rows of all ranks in a step
SPLIT = 12  # features that two, three or four ranks have equal parts of
Batches = list[tuple[Tensor, Tensor]]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
    return nn.Sequential(*body, nn.Linear(8, CLASSES)).to(dtype)


def data(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    labels = torch.arange(rows) * 7 % 11 % CLASSES
    noise = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return torch.eye(CLASSES, WIDTH, dtype=dtype)[labels] * 3 + noise, labels


# How the rows of one data set go to ranks: batches of one rank, and, of all ranks together, those of one process.


def taking_turns(rank: int, ranks: int, rows: int = 240) -> Batches:
    """Of every 24 rows each rank has its own, one after another."""
    x, y = data(rows)
    steps = range(0, rows, ROUND)
    return [(x[s : s + ROUND][rank::ranks], y[s : s + ROUND][rank::ranks]) for s in steps]


def uneven(rank: int, ranks: int) -> Batches:
    """Rank 0 has most, the last rank a batch of one row."""
    x, y = data(101)
    ends = [0, 60, 100, 101] if ranks == 3 else [0, 100, 101]
    mine = slice(ends[rank], ends[rank + 1])
    return list(zip(x[mine].split(13), y[mine].split(13), strict=True))


def by_class(rank: int, ranks: int) -> Batches:
    """Class 3 is on the last rank alone, which has no other."""
    x, y = data(120)
    mine = (y == 3) if rank == ranks - 1 else (y < 3) & (torch.arange(120) % (ranks - 1) == rank)
    return list(zip(x[mine].split(9), y[mine].split(9), strict=True))


def one_idle(rank: int, ranks: int) -> Batches:
    """Rank 0 has no data."""
    return [] if rank == 0 else taking_turns(rank - 1, ranks - 1, 120)


def with_ignored(rank: int, ranks: int) -> Batches:
    """Some labels are ignored: their rows have no number."""
    batches = taking_turns(rank, ranks)
    return [(x, torch.where(x[:, 0] > 1, -100, y)) for x, y in batches]


LIVE: dict[str, tuple[Callable[[int, int], Batches], dict[str, Any]]] = {
    "sampled": (taking_turns, {"sample_rows": 64}),
    "sketch": (taking_turns, {"scatter": "sketch", "sketch_rows": 16}),
    "pooled": (uneven, {"scatter": "pooled"}),
    "uneven": (uneven, {}),
    "by class": (by_class, {}),
    "one idle": (one_idle, {}),
    "ignored": (with_ignored, {}),
    "exact": (uneven, {"exact": True, "sample_rows": 8}),
}
PADDED = 50  # rows, of which no 3 or 4 ranks have equal parts


def in_one_process(split: Callable[[int, int], Batches], ranks: int) -> Batches:
    """Return the batches of all ranks, those of a step together, in the order of their rows' numbers."""
    parts = [split(rank, ranks) for rank in range(ranks)]
    if split is not taking_turns:
        return [batch for part in parts for batch in part]
    x, y = data(240)
    return list(zip(x.split(ROUND), y.split(ROUND), strict=True))


def live_meter(batches: Batches, **options: Any) -> CollapseMeter:
    model = net()
    meter = CollapseMeter(model, verbose=False, **options)
    for x, y in batches:
        with meter.batch(y):
            model(x)
    return meter


def padded_set() -> TensorDataset:
    return TensorDataset(*data(PADDED, torch.float64))


# Cases of more than one process


def ranks_in_a_group() -> tuple[int, int]:
    return distributed.get_rank(), distributed.get_world_size()


def live(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    for name, (split, options) in LIVE.items():
        meter = live_meter(split(rank, ranks), **options)
        yield f"live {name}", meter.compute()
        if name == "sketch":
            yield "moments", meter.moments("1")
        if name == "uneven":
            yield "twice", (meter.compute(), meter.compute())


def frozen(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    rows = padded_set()
    meter = CollapseMeter(net(torch.float64), verbose=False)
    sampler = DistributedSampler(rows, shuffle=False)
    yield "padded", meter.observe(DataLoader(rows, 5, sampler=sampler), progress=False)
    yield "same rows", meter.observe(DataLoader(rows, 5), progress=False)
    shard = [] if rank == 0 else [rows[rank - 1 :: ranks - 1]]
    yield "frozen, one idle", meter.observe(iter(shard), progress=False, sync=True)
    with noted() as said:
        yield "opaque", meter.observe(iter([rows[rank::ranks]]), progress=False)
    yield "said of opaque", said


def ddp(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """A training as it is written: unused parameters, gradients of several steps, batch norm."""
    torch.manual_seed(rank)  # DDP starts all ranks from the weights of rank 0
    inner = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    inner.register_parameter("unused", nn.Parameter(torch.zeros(3)))
    model = DistributedDataParallel(inner, find_unused_parameters=True)
    meter = CollapseMeter(model, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = inner[3].register_forward_pre_hook(
        lambda module, given: seen.append((given[0].detach().clone(), labels))
    )
    for step, (x, labels) in enumerate(taking_turns(rank, ranks)):
        accumulates = step % 2 == 0
        with model.no_sync() if accumulates else nullcontext():
            with meter.batch(labels):
                loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
        if not accumulates:
            optimizer.step()
            optimizer.zero_grad()
    handle.remove()
    yield "ddp", meter.compute()
    yield "ddp rows", [tuple(torch.cat(part) for part in zip(*seen, strict=True))]
    yield "ddp head", [p.detach() for p in inner[3].parameters()]
    if rank == 0:
        x, y = data(PADDED)
        yield "rank 0 observes", meter.observe([(x, y)], progress=False)
        holder = CollapseMeter(nn.Sequential(model), verbose=False)
        yield "rank 0 observes within", holder.observe([(x, y)], progress=False)
        holder.close()
    buffers = [buffer.clone() for buffer in inner.buffers()]
    rows = TensorDataset(*data(PADDED))
    loader = DataLoader(rows, 5, sampler=DistributedSampler(rows, shuffle=False))
    yield "all observe", meter.observe(loader, progress=False)
    yield "buffers", all(map(torch.equal, buffers, inner.buffers()))


def absent(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """Rank 0 asks alone; then all do, and it works as if nothing had been."""
    meter = live_meter(taking_turns(rank, ranks))
    if rank == 0:
        yield "alone", error_of(lambda: meter.compute(timeout=0.2))
        yield "local", meter.compute(sync=False)
    distributed.barrier()
    if rank > 0:
        yield "too late", error_of(meter.compute)
    yield "again", meter.compute()
    with noted() as said:
        yield "not merged", [meter.compute(sync=False) for _ in range(2)][1]
    yield "said of not merged", said


def confused(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """Ranks that do not ask for the same are told so."""
    meters = [live_meter(taking_turns(rank, ranks)) for _ in range(2)]
    first = meters[rank % 2]
    yield "other order", error_of(lambda: first.compute(timeout=0.5))
    distributed.barrier()
    for meter in meters:  # ranks that never asked have this behind them, too
        if meter is not first:
            error_of(lambda meter=meter: meter.compute(timeout=0.5))
    distributed.barrier()
    meter = live_meter(taking_turns(rank, ranks), layers=["1", "3"][: 1 + rank % 2])
    yield "other layers", error_of(meter.compute)
    meter = live_meter(taking_turns(rank, ranks))
    yield "other calls", error_of(meter.compute if rank else lambda: meter.moments("1"))
    yield "no such layer", error_of(lambda: meter.moments("5"))
    rows = padded_set()
    loader = DataLoader(rows, 5, sampler=DistributedSampler(rows))
    yield "failed pass", error_of(lambda: frozen_with_fault(loader, rank))
    meter = live_meter(
        [(x * torch.nan if rank else x, y) for x, y in taking_turns(rank, ranks)], nonfinite="raise"
    )
    yield "raised", error_of(meter.compute)


def frozen_with_fault(loader: Any, rank: int) -> CollapseReport:
    model = net(torch.float64)
    meter = CollapseMeter(model, verbose=False)
    if rank == 1:
        loader.collate_fn = lambda rows: (torch.stack([x for x, _ in rows]), None)
    return meter.observe(loader, progress=False)


def resumed(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """Every rank saves its state and goes on from it; rank 0's own is no state for all."""
    batches = taking_turns(rank, ranks)
    state = live_meter(batches[:4], sample_rows=64).state_dict()
    model = net()
    meter = CollapseMeter(model, verbose=False, sample_rows=64)
    meter.load_state_dict(state)
    for x, y in batches[4:]:
        with meter.batch(y):
            model(x)
    yield "resumed", meter.compute()
    states = [state]
    distributed.broadcast_object_list(states, 0)
    meter = CollapseMeter(net(), verbose=False, sample_rows=64)
    meter.load_state_dict(states[0])
    yield "state of rank 0", error_of(meter.compute)


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Linear(into, SPLIT), nn.ReLU()) for into in (WIDTH, SPLIT)]
    return nn.Sequential(*body, nn.Linear(SPLIT, CLASSES))


def wrapped(kind: str, ranks: int) -> nn.Module:
    """Return the same network with parameters that are spread over processes, or split among them."""
    model = blocks()
    if kind.startswith("fsdp1"):
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({nn.Linear}),
            device_id=torch.device("cpu"),
            use_orig_params=kind.endswith("original"),
        )
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (ranks,))
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for block in model:
            fully_shard(block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    return parallelize_module(model, mesh, {"0.0": ColwiseParallel(), "1.0": RowwiseParallel()})


def trained(model: nn.Module, batches: Batches, **options: Any) -> CollapseMeter:
    """Train for some steps; ranks that sum gradients take the mean over their rows."""
    meter = CollapseMeter(model, verbose=False, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        with meter.batch(y):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return meter


SHARDED = ("fsdp1", "fsdp1 original", "fsdp2", "tensor parallel")


def sharded(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    for kind in SHARDED:
        split = kind == "tensor parallel"
        batches = taking_turns(0, 1) if split else taking_turns(rank, ranks)
        meter = trained(wrapped(kind, ranks), batches, head="2")
        yield kind, meter.compute()
        yield f"{kind}, local", meter.compute(sync=False)
        if not split:
            loader = DataLoader(
                TensorDataset(*data(PADDED)),
                5,
                sampler=DistributedSampler(range(PADDED), shuffle=False),
            )
            yield f"{kind}, observed", meter.observe(loader, progress=False)


def meshed(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """Layers are split along one dimension of a mesh, and rows are spread along the other."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("dp", "tp"))
    part = mesh.get_local_rank("dp"), 2
    whole = {"output_layouts": Replicate()}

    def split(plan: dict[str, Any]) -> nn.Module:
        return parallelize_module(blocks(), mesh["tp"], plan)

    def spread(model: nn.Module) -> nn.Module:
        for block in model:
            fully_shard(block, mesh=mesh["dp"])
        return fully_shard(model, mesh=mesh["dp"])

    model = spread(split({"0.0": ColwiseParallel(), "1.0": RowwiseParallel()}))
    yield "spread and split", trained(model, taking_turns(*part), head="2").compute()
    model = spread(split({name: ColwiseParallel(**whole) for name in ("0.0", "1.0", "2")}))
    meter = trained(model, taking_turns(*part), head="2", sample_rows=64)
    yield "whole outputs", meter.compute()
    model = DistributedDataParallel(blocks(), process_group=mesh["dp"].get_group())
    yield (
        "a wrapper of some",
        trained(model, taking_turns(*part), head="2", sample_rows=64).compute(),
    )

    def still(model: nn.Module, batches: Batches) -> CollapseMeter:
        meter = CollapseMeter(model, verbose=False, head="2")
        for x, y in batches:
            with meter.batch(y):
                model(x)
        return meter

    meter = still(blocks(), taking_turns(*part))
    yield "a group", meter.compute(sync=mesh["dp"].get_group())
    yield "a dimension", meter.compute(sync=mesh["dp"])
    rows = TensorDataset(*data(PADDED))
    loader = DataLoader(rows, 5, sampler=DistributedSampler(rows, part[1], part[0], shuffle=False))
    yield "spread over fewer", error_of(lambda: meter.observe(loader, progress=False))
    yield "observed", meter.observe(loader, progress=False, sync=mesh["dp"])
    yield "no group", error_of(lambda: meter.compute(sync="dp"))
    other = distributed.new_group([0, 1])
    yield "not of the group", error_of(lambda: meter.compute(sync=other))
    model = split({"2": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)})
    yield "a split head", still(model, taking_turns(*part)).compute()
    model, along = distribute_module(blocks(), mesh), [Shard(0), Replicate()]
    x, y = (distribute_tensor(each, mesh, along) for each in data(240))
    yield "distributed rows", still(model, [(x, y)]).compute()


def page(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """The code of docs/distributed.md."""
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    yield "page", (names["report"], names["frozen"])


def killed(rank: int, ranks: int) -> Iterator[tuple[str, Any]]:
    """The last rank dies, and the others ask."""
    meter = live_meter(taking_turns(rank, ranks))
    meter.compute()
    if rank == ranks - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    yield "killed", error_of(lambda: meter.compute(timeout=1))


CASES = (live, frozen, ddp, page, absent, confused, resumed, sharded, meshed, killed)
SLOW = (ddp, page, sharded)
ALONE = (sharded, meshed, killed)  # by themselves


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect what is warned of."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(warning.message) for warning in caught]


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, ranks = ranks_in_a_group()
    results: dict[str, Any] = {}
    for case in CASES:
        if case.__name__ in names or not names:
            results |= case(rank, ranks)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(results))
    if "killed" not in names:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
