"""Which processes merge, and which rows each numbers, in process groups that are pretended: nothing is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from collapsemeter import CollapseReport, LayerReport
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.members import members_of, numbering_of, twins_among
from collapsemeter_torch.provenance import without_weights
from collapsemeter_torch.ranks import Numbering
from collapsemeter_torch.sharding import copies, mesh_ranks, twins

World = Callable[[int, int], None]


@pytest.fixture
def world() -> Iterator[World]:
    """Take the place of one rank among several."""

    def leave() -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def enter(rank: int, ranks: int) -> None:
        leave()
        distributed.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())

    yield enter
    leave()


def test_a_process_alone_merges_with_nobody(world):
    net = nn.Linear(2, 2)
    assert members_of(True, net) is members_of(False, net) is None
    assert numbering_of(net) == Numbering(0, 1)
    world(0, 1)
    assert members_of(True, net) is None


def test_all_processes_merge_or_those_of_a_group(world):
    net = nn.Linear(2, 2)
    world(1, 3)
    assert members_of(False, net) is None
    every = members_of(True, net)
    assert (every.ranks, every.here) == ([0, 1, 2], Numbering(1, 3))
    assert numbering_of(net) == Numbering(1, 3)
    two = members_of(distributed.new_group([1, 2]), net)
    assert (two.ranks, two.here) == ([1, 2], Numbering(0, 2))
    assert numbering_of(net, two) == Numbering(0, 2)
    others = distributed.new_group([0, 2])
    for stranger in (others, distributed.GroupMember.NON_GROUP_MEMBER):
        with pytest.raises(ValueError, match="sync=: rank 1 is not of this process group"):
            members_of(stranger, net)
    with pytest.raises(ValueError, match="sync=2: choose True, False or 'auto', or pass"):
        members_of(2, net)


def test_a_wrapper_says_which_processes_share_its_gradients(world):
    world(1, 3)
    for ranks, expected in (([1, 2], [1, 2]), ([0, 1, 2], [0, 1, 2])):
        group = distributed.new_group(ranks)
        wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 2), process_group=group)
        assert members_of(True, wrapped).ranks == expected
        assert numbering_of(wrapped) == Numbering(expected.index(1), len(expected))
    alone = nn.parallel.DistributedDataParallel(
        nn.Linear(2, 2), process_group=distributed.new_group([1])
    )
    assert members_of(True, alone) is None


def on_mesh(*placements: Shard | Replicate) -> nn.Module:
    """Return a network whose weight lies on a mesh of two by two."""
    mesh, net = init_device_mesh("cpu", (2, 2)), nn.Linear(4, 4)
    net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, placements))
    return net


def test_ranks_among_which_a_layer_is_split_see_the_same_rows(world):
    """Rank 2 of the mesh [[0, 1], [2, 3]]: along the axes over which the weight is cut."""
    world(2, 4)
    every = members_of(True, nn.Linear(2, 2))
    cases = [
        ((Replicate(), Shard(0)), (2, 3), Numbering(2, 4)),
        ((Shard(0), Replicate()), (0, 2), Numbering(0, 4)),
        ((Shard(0), Shard(1)), (0, 1, 2, 3), Numbering(0, 1)),
        ((Replicate(), Replicate()), (), Numbering(2, 4)),
    ]
    for placements, same, numbering in cases:
        net = on_mesh(*placements)
        assert twins(net) == twins_among(every, net, set()) == same
        assert mesh_ranks(net) == ({0, 1, 2, 3} if same else set())
        assert numbering_of(net) == numbering
    assert mesh_ranks(nn.Linear(2, 2)) == set()
    assert copies(on_mesh(Replicate(), Shard(0)).weight) == [0, 2]  # of the same values
    assert copies(torch.ones(2)) == []


def test_what_an_output_says_of_its_copies_counts_too(world):
    world(2, 4)
    net = nn.Linear(2, 2)
    every = members_of(True, net)
    assert twins_among(every, net, set()) == ()
    assert twins_among(every, net, {2}) == ()
    assert twins_among(every, net, {0, 2}) == (0, 2)
    assert twins_among(members_of(distributed.new_group([2, 3]), net), net, {2, 3}) == (0, 1)


def test_a_report_of_one_rank_says_which(world):
    world(1, 3)
    net, labels = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.arange(12) % 3
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(labels):
        net(torch.randn(12, 4))
    report = meter.compute(sync=False)
    assert report["2"].provenance["rows"] == 12
    assert report.provenance["ranks"] == "rank 1 of 3, not merged"


def test_a_head_whose_weights_are_elsewhere_is_said_to_exist():
    reasons = {"nc3_self_duality": "no_head", "nc1_pinv": "one_class"}
    layers = {name: LayerReport({}, reasons) for name in ("fc", "fc#1", "fc2", "body")}
    report = without_weights(CollapseReport(layers), "fc", "sharded_head")
    elsewhere = reasons | {"nc3_self_duality": "sharded_head"}
    for name, layer in report.items():
        assert layer.reasons == (elsewhere if name in ("fc", "fc#1") else reasons)
    headless = without_weights(CollapseReport(layers), None, "sharded_head")
    assert headless.layers["fc"].reasons == reasons
