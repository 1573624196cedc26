"""ClearML, Comet and Neptune as they are, offline, each in a process of its own; what they keep is read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.nightly
WRITES = """
from collapsemeter import CollapseReport, LayerReport
from collapsemeter.sinks import Fan
def write(logger):
    with Fan(logger) as sink:
        for step in (1, 2):
            layer = LayerReport({"nc1_pinv": step / 8, "nc2_etf_error": float("nan")})
            sink.write(step, CollapseReport({"block.1": layer}))
    assert sink.failures == 0
"""


def run(code: str, folder: Path) -> None:
    clean = {"HOME": str(folder), "CLEARML_OFFLINE_MODE": "1", "NEPTUNE_MODE": "offline"}
    command = [sys.executable, "-c", WRITES + textwrap.dedent(code)]
    environment = {**os.environ, **clean}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def test_clearml(tmp_path: Path) -> None:
    run(
        """
        from clearml import Task
        task = Task.init("p", "t", auto_connect_frameworks=False, auto_resource_monitoring=False)
        write(task.get_logger())
        task.close()
        """,
        tmp_path,
    )
    (file,) = tmp_path.rglob("metrics.jsonl")
    found = [event for events in lines(file.read_text()) for event in events]
    assert [(e["metric"], e["variant"], e["iter"], e["value"]) for e in found] == [
        ("nc1_pinv", "block.1", 1, 0.125),
        ("nc1_pinv", "block.1", 2, 0.25),
    ]


def test_comet(tmp_path: Path) -> None:
    run(
        """
        import comet_ml
        experiment = comet_ml.OfflineExperiment(
            offline_directory=".", project_name="p", workspace="w", log_code=False, log_env_details=False
        )
        write(experiment)
        experiment.end()
        """,
        tmp_path,
    )
    (archive,) = tmp_path.glob("*.zip")
    messages = lines(zipfile.ZipFile(archive).read("messages.json").decode())
    metrics = [m["payload"]["metric"] for m in messages if m["type"] == "metric_msg"]
    found = [m for m in metrics if "/" in m["metricName"]]  # not those of Comet itself
    assert [(m["metricName"], m["step"], m["metricValue"]) for m in found] == [
        ("nc1_pinv/block.1", 1, 0.125),
        ("nc1_pinv/block.1", 2, 0.25),
    ]


def test_neptune(tmp_path: Path) -> None:
    run(
        """
        import neptune
        run = neptune.init_run(mode="offline", capture_hardware_metrics=False, source_files=[])
        write(run)
        run.stop()
        """,
        tmp_path,
    )
    (file,) = tmp_path.rglob("data-1.log")
    found = [o["obj"] for o in lines(file.read_text()) if o["obj"]["type"] == "LogFloats"]
    assert [(o["path"], o["values"][0]["step"], o["values"][0]["value"]) for o in found] == [
        (["nc1_pinv", "block.1"], 1, 0.125),
        (["nc1_pinv", "block.1"], 2, 0.25),
    ]
