"""Names of layers and files that would move a cursor or have no encoding: an audit of them ends well."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.activations import Writer
from collapsemeter.cli import main
from collapsemeter.report.figure import plot
from collapsemeter.sinks import TensorBoardSink

from ..hostile_names import HOSTILE, unsafe

LABELS = np.arange(60) % 3
ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype("f4") + LABELS[:, None]
IN_FILES = sorted(HOSTILE.keys() - {"surrogate", "bytes"})  # no file of arrays can hold those
AS_FILES = sorted(HOSTILE.keys() - {"surrogate", "nul"})  # nor a file system those


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_layers_of_an_audit(capsys: pytest.CaptureFixture[str]) -> None:
    names = [HOSTILE[kind] for kind in IN_FILES]
    save_file(dict.fromkeys(names, ROWS) | {"labels": LABELS}, "a.safetensors")
    for options in (
        ["--out", "r.json", "--html", "r.html"],
        ["--quiet"],
        ["--json"],
        ["--layers", "no"],
    ):
        status = main(["audit", "a.safetensors", *options])
        out, error = capsys.readouterr()
        assert status == (2 if "no" in options else 0), error
        assert unsafe(out) == unsafe(error) == []
        if "--json" in options:
            assert sorted(json.loads(out)["layers"]) == sorted(names)
    measured = CollapseReport.load("r.json")
    page = Path("r.html").read_text(encoding="utf-8")
    assert unsafe(page) == []
    plot([(0, measured), (1, measured)], "r.svg")
    assert unsafe(Path("r.svg").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_folders_and_tags_of_event_files(kind: str) -> None:
    for run in ("first", HOSTILE[kind]):
        with TensorBoardSink("events", run=run) as sink:
            sink.write(0, CollapseReport({HOSTILE[kind]: LayerReport({"nc1_pinv": 0.5})}))
        assert sink.failures == 0
    parts = [part for file in Path("events").rglob("*") for part in file.parts]
    assert all(re.fullmatch(r"[\w.\-]+", part, re.ASCII) for part in parts)


@pytest.mark.parametrize("kind", AS_FILES)
def test_files_of_an_audit(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    stem = HOSTILE[kind].replace("/", "_")
    np.savez("a.npz", fc=ROWS, labels=LABELS)
    os.rename("a.npz", f"./{stem}.npz")
    for command in (
        ["audit", f"./{stem}.npz", f"--out=./{stem}.json"],
        ["audit", f"./{stem}.npz", f"./{stem}-missing.npz"],
        ["audit", f"./{stem}.npz", f"--labels=./{stem}-missing.npy"],
    ):
        status = main(command)
        out, error = capsys.readouterr()
        assert status == (2 if "missing" in command[-1] else 0), error
        assert unsafe(out) == unsafe(error) == []
    assert "fc" in CollapseReport.load(f"./{stem}.json")


@pytest.mark.parametrize("command", [["audit", "a.safetensors", "--out", "r.json"], ["show", "r.json"], ["compare", "r.json", "r.json"], ["dufm", "--classes", "3", "--depth", "2", "--weight-decay", "1e-3"], ["audit", "--help"]])  # fmt: skip
def test_a_pipe_that_knows_ascii_alone_fails_nothing(command: list[str]) -> None:
    name = "\x1b[31mcafé \N{GRINNING FACE}"
    save_file({name: ROWS, "labels": LABELS}, "a.safetensors")
    assert main(["audit", "a.safetensors", "--out", "r.json", "--quiet"]) == 0
    done = subprocess.run(
        [Path(sys.executable).with_name("collapsemeter"), *command],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "COLUMNS": "80"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    if command[0] in ("audit", "show") and "--help" not in command:
        assert rb"\x1b[31mcaf\xe9" in done.stdout


def test_a_name_that_no_file_can_hold_is_refused_before_anything_is_counted() -> None:
    with Writer("acts", num_classes=3) as writer:
        with pytest.raises(
            ValueError, match=r"layer '\\ud800evil' has half a character in its name"
        ):
            writer.write({"\ud800evil": ROWS}, LABELS)
        writer.write({"fc": ROWS}, LABELS)
