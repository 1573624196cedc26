"""Trainers on two processes: every rank reports what one process would."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "on_ranks.py"
PYTHON = [sys.executable]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# `--multi_gpu` is how accelerate starts several processes, on a CPU too, where the script asks for it.
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]
LAUNCH += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
OF_LIGHTNING, OF_ACCELERATE = (
    ["lightning", "idle rank", "resumption"],
    ["transformers", "resumed transformers", "accelerate"],
)


def run(command: list[str], folder: Path, names: list[str]) -> dict[str, dict]:
    # A trainer that has run in this process leaves its address behind.
    left = ("MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "NODE_", "GROUP_", "TORCHELASTIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if command is LAUNCH:
        command = [*command, "--main_process_port", port]
    done = subprocess.run(
        [*PYTHON, *command, SCRIPT, folder, *names],
        env=environment | {"HF_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Return what each rank has written: of Lightning under torchrun, of the others under accelerate launch."""
    torchrun, launch, alone = map(tmp_path_factory.mktemp, ("torchrun", "launch", "alone"))
    of_lightning = run(TORCHRUN, torchrun, OF_LIGHTNING)
    of_accelerate = run(LAUNCH, launch, OF_ACCELERATE)
    merged = {rank: of_lightning[rank] | of_accelerate[rank] for rank in ("0", "1")}
    shutil.copy(torchrun / "within.ckpt", alone)
    shutil.copytree(launch / "checkpoint-2", alone / "checkpoint-2")
    return merged | run([], alone, ["transformers", "lightning", "accelerate", "other processes"])


@pytest.mark.parametrize(
    ("trainer", "held_out"),
    [
        ("transformers", "eval"),
        ("lightning", "val"),
        ("idle rank", "val"),
        ("accelerate", "eval"),
    ],
)
def test_an_evaluation_is_that_of_one_process(records, trainer, held_out):
    alone = records["alone"].get(trainer, records["alone"]["lightning"])[held_out]["layers"]
    for rank in ("0", "1"):
        layers = records[rank][trainer][held_out]["layers"]
        assert list(layers) == list(alone)
        for name, layer in layers.items():
            assert layer["provenance"]["rows"] == 33  # rows that samplers repeat are left out
            # Batches are split otherwise, and float32 rounds them otherwise. After a LayerNorm one direction
            # of the features is rounding alone, and nc1_vci divides by its variance.
            for metric in alone[name]["metrics"].keys() - {"nc1_vci"}:
                value, found = alone[name]["metrics"][metric], layer["metrics"][metric]
                if value is None:  # of classes of one size some metrics have no value
                    assert found is None, metric
                else:
                    assert found == pytest.approx(value, rel=1e-5, abs=1e-7), metric
            assert layer["metrics"]["nc4_mismatch"] == alone[name]["metrics"]["nc4_mismatch"]


@pytest.mark.parametrize("trainer", ["transformers", "lightning", "accelerate"])
def test_training_is_merged_and_the_same_on_every_rank(records, trainer):
    first, second = (records[rank][trainer]["train"] for rank in ("0", "1"))
    first["provenance"].pop("overhead"), second["provenance"].pop("overhead")
    assert first["layers"] == second["layers"]
    assert first["provenance"]["ranks"] == "2 ranks, merged"
    (rows,) = {layer["provenance"]["rows"] for layer in first["layers"].values()}
    assert rows >= 50  # training runs on what samplers repeat


def test_a_resumption_within_an_epoch_goes_on_with_the_counts_of_every_process(records):
    for rank in ("0", "1"):
        report = records[rank]["resumption"]["train"]
        # Two of four steps were counted; the loader begins anew, and gives its first two again.
        assert report["layers"]["2"]["provenance"]["rows"] == 64
        assert report["provenance"]["rows_of_ranks"] == [32, 32]
        assert report["warnings"] == []
        assert report["layers"] == records["0"]["resumption"]["train"]["layers"]
        for trainer, name in (("resumed transformers", "whole"), ("accelerate", "train")):
            whole, resumed = records[rank][trainer][name], records[rank][trainer]["resumed"]
            assert resumed["layers"] == whole["layers"], trainer
            assert resumed["provenance"]["rows_of_ranks"] == whole["provenance"]["rows_of_ranks"]


def test_what_other_processes_have_saved_is_said_to_be_missing(records):
    for report in records["alone"]["other processes"].values():
        (said,) = report["warnings"]
        assert said.startswith("the state is that of 2 processes and there is 1: resume on as many")
        assert said.endswith("(the next report is of the rows from here on)")
