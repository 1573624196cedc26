"""Many processes: every rank reports what one process would that saw all rows; one that does not come is named."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import collapsemeter as cm
from collapsemeter_torch import CollapseMeter

from . import on_ranks

LIVE, FROZEN = 1e-5, 1e-12  # relative: float32 sums in another order, and float64 ones
NC4 = ("nc4_mismatch", "nc4_agreement", "ncc_accuracy")
PROVENANCE = ("rows", "classes_present", "ignored_rows", "nonfinite_rows", "nc4_rows", "scatter")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run every case on two processes."""
    cases = [case.__name__ for case in on_ranks.CASES if case not in on_ranks.ALONE]
    return run(2, tmp_path_factory.mktemp("two"), *cases)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Run every case on three, but those whose libraries take seconds to import."""
    cases = [case.__name__ for case in on_ranks.CASES if case not in on_ranks.SLOW + on_ranks.ALONE]
    return run(3, tmp_path_factory.mktemp("three"), *cases)


@pytest.fixture(params=["two", "three"])
def results(request):
    """Return what each rank has seen."""
    return request.getfixturevalue(request.param)


def run(ranks: int, folder: Path, *names: str) -> list[dict]:
    """Start processes as people do, and return the results of each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", on_ranks.__file__, str(folder), *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(ranks)]


def assert_same(
    report: cm.CollapseReport,
    reference: cm.CollapseReport,
    relative: float,
    *,
    intervals: bool = False,
) -> None:
    assert list(report) == list(reference)
    for name, expected in reference.items():
        layer = report[name]
        if intervals:
            for ends in ("estimates", "intervals"):
                same, values = getattr(layer, ends), getattr(expected, ends)
                assert list(same) == list(values)
                for metric in values:
                    np.testing.assert_allclose(
                        same[metric], values[metric], rtol=relative, atol=relative, err_msg=metric
                    )
        assert layer.reasons == expected.reasons
        assert {key: layer.provenance[key] for key in PROVENANCE} == {
            key: expected.provenance[key] for key in PROVENANCE
        }
        for metric in NC4:
            assert layer[metric] == expected[metric], metric
        for metric, value in expected.items():
            np.testing.assert_allclose(
                layer[metric], value, rtol=relative, atol=relative / 10, err_msg=metric
            )


@pytest.mark.parametrize("name", on_ranks.LIVE)
def test_a_live_report_is_that_of_one_process(results, name):
    split, options = on_ranks.LIVE[name]
    meter = on_ranks.live_meter(on_ranks.in_one_process(split, len(results)), **options)
    reference = meter.compute()
    for result in results:
        report = result[f"live {name}"]
        # Of other splits rows of one process have other numbers, and so lie in other groups.
        assert_same(report, reference, LIVE, intervals=split is on_ranks.taking_turns)
        rows = report.provenance["rows_of_ranks"]
        assert sum(rows) == report.provenance["rows"] == reference.provenance["rows"]
        assert report.provenance["ranks"] == f"{len(results)} ranks, merged"
    sampled = reference.final.provenance["nc4_sampled"]
    assert sampled == (name == "sampled")


@pytest.mark.parametrize("name", ["padded", "same rows", "frozen, one idle"])
def test_a_frozen_report_is_that_of_one_process(results, name):
    data = [on_ranks.padded_set()[:]]
    reference = CollapseMeter(on_ranks.net(torch.float64), verbose=False).observe(
        data, progress=False
    )
    for rank, result in enumerate(results):
        report = result[name]
        assert_same(report, reference, FROZEN, intervals=name != "frozen, one idle")
        said = f"rank {rank} of {len(results)}, not merged"
        if name != "same rows":
            said = f"{len(results)} ranks, merged"
        assert report.provenance["ranks"] == said
    repeated = -on_ranks.PADDED % len(results) if name == "padded" else 0
    assert report.provenance.get("repeated_rows", 0) == repeated


def test_every_rank_gets_the_same_bits(results):
    names = [name for name in results[0] if name.startswith("live ")]
    for name in [*names, "padded", "again", "resumed"]:
        texts = {result[name].to_json(matrices=True) for result in results}
        assert len(texts) == 1, name
    for result in results:
        first, second = (r.to_dict(matrices=True)["layers"] for r in result["twice"])
        assert first == second == result["live uneven"].to_dict(matrices=True)["layers"]


def test_moments_are_merged_too(results):
    split, options = on_ranks.LIVE["sketch"]
    meter = on_ranks.live_meter(on_ranks.in_one_process(split, len(results)), **options)
    reference = meter.moments("1")
    for result in results:
        moments = result["moments"]
        assert moments.counts.tolist() == reference.counts.tolist()
        assert moments.seeds == reference.seeds
        assert moments.groups.counts.tolist() == reference.groups.counts.tolist()
        for part in ("sums", "squares"):
            np.testing.assert_allclose(
                getattr(moments.groups, part),
                getattr(reference.groups, part),
                rtol=LIVE,
                atol=LIVE,
            )
        for part in ("means", "traces", "sketch", "signs"):
            np.testing.assert_allclose(
                getattr(moments, part), getattr(reference, part), rtol=LIVE, atol=LIVE
            )


def test_a_training_under_ddp_counts_the_rows_of_all(two):
    check_ddp(two)


def check_ddp(results):
    rows, labels = (
        torch.cat(part).numpy() for part in zip(*(r["ddp rows"][0] for r in results), strict=True)
    )
    moments = cm.ClassMoments.from_batch(rows.astype(np.float64), labels, on_ranks.CLASSES)
    head = cm.Head(*(p.numpy().astype(np.float64) for p in results[0]["ddp head"]))
    reference = cm.measure(moments, head=head)
    assert len({result["ddp"].to_json(matrices=True) for result in results}) == 1
    for result in results:
        layer = result["ddp"].final
        assert layer.provenance["rows"] == layer.provenance["nc4_rows"] == 240
        for metric in ("nc1_pinv", "nc1_trace_ratio", "nc2_etf_error", "nc3_self_duality"):
            np.testing.assert_allclose(layer[metric], reference[metric], rtol=LIVE)
    report = results[0]["rank 0 observes"]  # the others are elsewhere, and DDP would wait for them
    assert report.provenance["rows"] == on_ranks.PADDED
    within = results[0]["rank 0 observes within"]
    assert within.final["nc1_pinv"] == report.final["nc1_pinv"]
    for result in results:
        assert_same(result["all observe"], report, LIVE)
        assert result["buffers"]


def test_the_page_says_what_happens(two):
    for result in two:
        report, frozen = result["page"]
        assert report.provenance["rows"] == 102  # with the one that the sampler repeats
        assert frozen.provenance["rows"] == 101
        assert frozen.provenance["repeated_rows"] == 1
        assert frozen.provenance["ranks"] == "2 ranks, merged"
        assert frozen.final["nc3_self_duality"] == two[0]["page"][1].final["nc3_self_duality"]


def test_a_rank_that_does_not_come_is_named(results):
    ranks = ", ".join(map(str, range(1, len(results))))
    plural = "s" * (len(results) > 2)
    said = results[0]["alone"]
    assert said.startswith("TimeoutError: compute() of the meter made at on_ranks.py:")
    assert f"rank 0 waited 0.2 seconds for rank{plural} {ranks}" in said
    assert "sync=False" in said
    for result in results[1:]:
        assert f"rank 0 waited 0.2 seconds for rank{plural} {ranks}" in result["too late"]
    assert results[0]["local"].provenance["rows"] == 240 // len(results)


def test_after_an_absence_all_is_as_before(results):
    batches = on_ranks.in_one_process(on_ranks.taking_turns, len(results))
    reference = on_ranks.live_meter(batches).compute()
    for result in results:
        assert_same(result["again"], reference, LIVE)


def test_a_report_of_one_rank_says_so_and_warns_once(results):
    for rank, result in enumerate(results):
        report = result["not merged"]
        assert report.provenance["ranks"] == f"rank {rank} of {len(results)}, not merged"
        assert report.provenance["rows"] == 240 // len(results)
        # Rank 0 has asked before.
        assert len(result["said of not merged"]) == (rank > 0)
        assert all("sync=False" in said for said in result["said of not merged"])
        assert len(result["said of opaque"]) == 1
        assert "sync=True" in result["said of opaque"][0]
        assert "not merged" in result["opaque"].provenance["ranks"]


def test_ranks_that_do_not_ask_for_the_same_are_told_so(results):
    for result in results:
        assert "was last in compute() of the meter made at on_ranks.py:" in result["other order"]
        assert "ranks do not measure the same network" in result["other layers"]
        assert "rank 0 is in moments('1') and rank 1 in compute()" in result["other calls"]
        assert "layer '5' has counted nothing" in result["no such layer"]
        assert "nonfinite='skip'" in result["raised"]
    others = [result["failed pass"] for rank, result in enumerate(results) if rank != 1]
    assert results[1]["failed pass"].startswith("ValueError: ")
    assert all("rank 1 failed (ValueError: " in said for said in others)


def test_a_resumed_training_goes_on_with_the_counts_of_every_rank(results):
    batches = on_ranks.in_one_process(on_ranks.taking_turns, len(results))
    reference = on_ranks.live_meter(batches, sample_rows=64).compute()
    for result in results:
        assert_same(result["resumed"], reference, LIVE)
        assert "rank 1 has loaded what rank 0 of" in result["state of rank 0"]


@pytest.mark.nightly
def test_three_ranks_train_under_ddp(tmp_path):
    check_ddp(run(3, tmp_path, "ddp"))


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", [2, 3])
def test_sharded_networks_report_what_one_process_would(ranks, tmp_path):
    results = run(ranks, tmp_path, "sharded")
    meter = on_ranks.trained(on_ranks.blocks(), on_ranks.taking_turns(0, 1), head="2")
    reference = meter.compute()
    held_out = meter.observe([on_ranks.data(on_ranks.PADDED)], progress=False)
    for kind in on_ranks.SHARDED:
        assert len({result[kind].to_json(matrices=True) for result in results}) == 1
        for result in results:
            report = result[kind]
            if kind == "tensor parallel":  # its first layer is split among the processes
                assert report["0"].reasons["nc1_pinv"] == "unpaired_rows"
                assert any("features on this rank" in said for said in report.warnings)
                report = cm.CollapseReport({"2": report["2"]})
                assert_same(report, cm.CollapseReport({"2": reference["2"]}), LIVE)
                continue
            assert_same(report, reference, LIVE)
            assert_same(result[f"{kind}, observed"], held_out, LIVE)
            local = result[f"{kind}, local"]
            assert local["2"].reasons["nc3_self_duality"] == "sharded_head"
            assert "not merged" in local.provenance["ranks"]


@pytest.mark.nightly
def test_ranks_of_a_mesh_that_see_the_same_rows_count_once(tmp_path):
    results = run(4, tmp_path, "meshed")
    batches = on_ranks.taking_turns(0, 1)
    reference = on_ranks.trained(on_ranks.blocks(), batches, head="2").compute()
    sampled = on_ranks.trained(on_ranks.blocks(), batches, head="2", sample_rows=64).compute()
    meter = CollapseMeter(on_ranks.blocks(), verbose=False, head="2")
    held_out = meter.observe([on_ranks.data(on_ranks.PADDED)], progress=False)
    still = meter.observe([on_ranks.data(240)], progress=False)
    last = cm.CollapseReport({"2": reference["2"]})
    for rank, result in enumerate(results):
        report = result["spread and split"]
        assert report["0"].reasons["nc1_pinv"] == "unpaired_rows"
        assert_same(cm.CollapseReport({"2": report["2"]}), last, LIVE, intervals=True)
        assert report.provenance["ranks"] == "4 ranks, merged"
        assert report.provenance["rows_of_ranks"] == [120, 120]
        for name in ("whole outputs", "a wrapper of some"):
            assert_same(result[name], sampled, LIVE, intervals=True)
        for name in ("a group", "a dimension", "distributed rows", "a split head"):
            report = result[name]
            assert report.provenance["rows"] == 240
            for layer, values in still.items():
                for metric in ("nc1_pinv", "nc2_etf_error", *values.keys() & {"nc3_self_duality"}):
                    assert report[layer][metric] == pytest.approx(values[metric], rel=LIVE)
            if name == "a split head":  # no rank has all scores
                assert report["2"].reason("nc4_mismatch")
            else:
                assert report["2"]["nc4_mismatch"] == still["2"]["nc4_mismatch"]
        assert "spreads its data over 2 ranks, and 4 ranks merge" in result["spread over fewer"]
        assert_same(result["observed"], held_out, LIVE, intervals=True)
        assert "sync='dp': choose True, False or 'auto', or pass the process" in result["no group"]
        said = f"rank {rank} is not of this process group"
        assert (said in result["not of the group"]) == (rank > 1)
    assert len({result["spread and split"].to_json(matrices=True) for result in results}) == 1


@pytest.mark.nightly
def test_a_rank_that_was_killed_is_named(tmp_path):
    """Without the agent of torchrun, which ends the other ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "3",
    }
    command = [sys.executable, on_ranks.__file__, str(tmp_path), "killed"]
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(3)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, -signal.SIGKILL]
    for rank in range(2):
        said = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())["killed"]
        assert said.startswith("TimeoutError: compute() of the meter made at on_ranks.py:")
        assert "waited 1 seconds for rank 2 (rank 2 was last in compute()" in said
        assert "sync=False" in said
