"""Trainers on two processes: every rank reports what one process would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "on_ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    # A trainer that has run in this process leaves its address behind.
    left = ("MASTER_", "RANK", "WORLD_SIZE", "LOCAL_", "NODE_", "GROUP_", "TORCHELASTIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    for command in ([sys.executable], TORCHRUN):
        done = subprocess.run(
            [*command, SCRIPT, folder],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-5000:]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.parametrize(("trainer", "held_out"), [("transformers", "eval"), ("lightning", "val")])
def test_an_evaluation_is_that_of_one_process(records, trainer, held_out):
    alone = records["alone"][trainer][held_out]["layers"]
    for rank in ("0", "1"):
        layers = records[rank][trainer][held_out]["layers"]
        assert list(layers) == list(alone)
        for name, layer in layers.items():
            assert layer["provenance"]["rows"] == 33  # rows that samplers repeat are left out
            # Batches are split otherwise, and float32 rounds them otherwise. After a LayerNorm one direction
            # of the features is rounding alone, and nc1_vci divides by its variance.
            for metric in alone[name]["metrics"].keys() - {"nc1_vci"}:
                value = alone[name]["metrics"][metric]
                assert layer["metrics"][metric] == pytest.approx(value, rel=1e-5, abs=1e-7)
            assert layer["metrics"]["nc4_mismatch"] == alone[name]["metrics"]["nc4_mismatch"]


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_training_is_merged_and_the_same_on_every_rank(records, trainer):
    first, second = (records[rank][trainer]["train"] for rank in ("0", "1"))
    first["provenance"].pop("overhead"), second["provenance"].pop("overhead")
    assert first["layers"] == second["layers"]
    assert first["provenance"]["ranks"] == "2 ranks, merged"
    (rows,) = {layer["provenance"]["rows"] for layer in first["layers"].values()}
    assert rows >= 50  # training runs on what samplers repeat
