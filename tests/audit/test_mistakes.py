"""Honest mistakes at the command line: one sentence each, before anything is counted, and nothing is touched."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from collapsemeter.cli import main


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        _make(data, folder)
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def _make(data, folder: Path) -> None:
    data.shards(folder / "acts", 3)
    np.savez("one.npz", conv=data.conv, fc=data.fc, labels=data.labels)
    np.savez("named.npz", fc=data.fc, targets=data.labels)
    w = data.head.weight.astype(np.float32)
    save_file({"encoder.weight": w, "fc.weight": w}, "head.safetensors")
    np.save("head.npy", w)
    assert main(["audit", "one.npz", "--out", "report.json", "--quiet"]) == 0
    assert main(["audit", "map", "acts/shard-0.safetensors", "-o", "st", "--num-classes", "6"]) == 0


ONE = ["audit", "one.npz"]
DUFM = ["dufm", "--classes", "3", "--depth", "2", "--weight-decay", "1e-3"]
MISTAKES = {
    "layer": ([*ONE, "--layers", "conf"], "no layer is named so; there are conv, fc; did you mean 'conv'?"),
    "threshold's layer": ([*ONE, "--fail-if", "cnov:nc1_pinv>1"], "did you mean 'conv'?"),
    "threshold's metric": ([*ONE, "--fail-if", "fc:nc1_pin>1"], "did you mean 'nc1_pinv'?"),
    "threshold": ([*ONE, "--fail-if", "fc nc1_pinv 1"], "write LAYER:METRIC>NUMBER"),
    "array": (["audit", "named.npz", "--labels", "target"], "did you mean 'targets'?"),
    "labels": (["audit", "named.npz"], 'named.npz has no array "labels"; arrays found: fc (400, 8) float32'),
    "head's name": ([*ONE, "--head", "head.safetensors", "--head-name", "fcc"], "did you mean 'fc'?"),
    "head's layer": ([*ONE, "--head", "head.npy", "--head-layer", "fcs"], "did you mean 'fc'?"),
    "head of nothing": ([*ONE, "--head-layer", "fc"], "pass --head FILE, too"),
    "reduction": ([*ONE, "--reduction", "convv=mean"], "did you mean 'conv'?"),
    "reduction's name": ([*ONE, "--reduction", "maen"], "reduction='maen': choose auto"),
    "convention": ([*ONE, "--convention", "papyan202"], "did you mean 'papyan2020'?"),
    "scatter": ([*ONE, "--scatter", "pool"], "did you mean 'pooled'?"),
    "option": ([*ONE, "--htlm", "r.html"], "unrecognized arguments: --htlm r.html; did you mean '--html'?"),
    "abbreviation": ([*ONE, "--lab", "y"], "unrecognized arguments: --lab y"),
    "command": (["adit", "one.npz"], "did you mean 'audit'?"),
    "option twice": ([*ONE, "--labels", "a", "--labels", "b"], "argument --labels: given twice: pass it once"),
    "no value": ([*ONE, "--html"], "argument --html: expected one argument"),
    "files after layers": (["audit", "--layers", "fc", "one.npz"], "(--layers took 'one.npz': put files first)"),
    "jobs 0": ([*ONE, "--jobs", "0"], "jobs=0: there must be at least one process"),
    "jobs negative": ([*ONE, "--jobs", "-2"], "jobs=-2: there must be at least one process"),
    "jobs many": ([*ONE, "--jobs", "1000000000"], "jobs=1000000000: this machine has"),
    "jobs word": ([*ONE, "--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
    "classes": ([*ONE, "--num-classes", "0"], "num_classes=0: there must be at least one class"),
    "classes negative": ([*ONE, "--num-classes", "-3"], "num_classes=-3: there must be"),
    "classes few": ([*ONE, "--num-classes", "3"], "is outside 0..2 (num_classes=3)"),
    "classes many": ([*ONE, "--num-classes", "10000000"], "num_classes=10000000: at most 1048576 classes are measured"),
    "classes absurd": ([*ONE, "--num-classes", str(10**30)], "at most 1048576 classes"),
    "classes of map": (["audit", "map", "one.npz", "-o", "S", "--num-classes", "1000000000"], "at most 1048576 classes"),
    "classes of dufm": (["dufm", "--classes", "1000000000", "--depth", "2", "--weight-decay", "1"], "GiB of memory"),
    "depth of dufm": (["dufm", "--classes", "3", "--depth", "1000000000", "--weight-decay", "1"], "pass 1000 or less"),
    "jobs of dufm": ([*DUFM, "--jobs", "1000000000"], "this machine has"),
    "decay of dufm": (["dufm", "--classes", "3", "--depth", "2", "--weight-decay", "nan"], "must be positive"),
    "figure of dufm": ([*DUFM, "--plot", "a.pdf"], "written as .svg or .png"),
    "sweep of dufm": ([*DUFM, "--sweep", "decay=1:2:3"], "sweep one of weight_decay"),
    "ignored": ([*ONE, "--ignore-index", "x"], "argument --ignore-index: invalid int value"),
    "sketch": ([*ONE, "--sketch-rows", "1"], "sketch_rows=1: a sketch has at least two rows"),
    "seed": ([*ONE, "--seed", "-1"], "seed=-1: pass 0 or more"),
    "nc4": ([*ONE, "--nc4", "most"], "nc4='most': choose auto, exact, none or a number of rows"),
    "nc4 number": ([*ONE, "--nc4", "1e4"], "nc4='1e4': choose"),
    "step": ([*ONE, "--step", "x"], "argument --step: invalid int value"),
    "epoch": (["audit", "--epoch", "one.npz"], "--epoch one.npz: write a step and its files"),
    "epoch twice": (["audit", "--epoch", "1", "one.npz", "--epoch", "1", "one.npz"], "--epoch 1 is given twice"),
    "width": ([*ONE, "--dufm", "weight_decay=1e-3", "width=x"], "--dufm width=x: 'x' is not a whole number"),
    "width 0": ([*ONE, "--dufm", "weight_decay=1e-3", "width=0"], "--dufm: width of layer 1 must be at least 1"),
    "decay": ([*ONE, "--dufm", "weight_decay=nan"], "--dufm: weight_decay of layer 1 must be positive and finite"),
    "loss": ([*ONE, "--dufm", "weight_decay=1", "loss=mes"], "--dufm: unknown loss 'mes': pass one of mse, ce"),
    "depth": ([*ONE, "--dufm", "weight_decay=1", "depth=1000000000"], "--dufm depth=1000000000: pass 1000 or less"),
    "problem": ([*ONE, "--dufm", "weigth_decay=1"], "did you mean 'weight_decay'?"),
    "missing": (["audit", "none.npz"], "no file matches 'none.npz'"),
    "history": ([*ONE, "--history", "none.jsonl"], "none.jsonl: No such file or directory: check the path"),
    "a report as activations": (["audit", "report.json"], "report.json"),
    "a state as activations": (["audit", "st/*.state"], "is an .npz archive: name it"),
    "activations as states": (["audit", "merge", "one.npz", "-o", "m"], "one.npz"),
    "metric of show": (["show", "report.json", "--metrics", "nc1"], "no metric is named 'nc1'"),
    "metric close": (["show", "report.json", "--metrics", "nc1_pin"], "did you mean 'nc1_pinv'?"),
    "phase of show": (["show", "report.json", "--phase", "frozen-evil"], "did you mean 'frozen-eval'?"),
    "no report": (["show", "none.json"], "none.json: No such file or directory: check the path"),
    "folder as a report": (["compare", "report.json", "."], ".: Is a directory: check the path"),
    "activations as a report": (["show", "one.npz"], "one.npz is not JSON, but binary"),
    "epochs": (["demo", "--epochs", "x"], "argument --epochs: invalid int value"),
    "dask and jobs": ([*ONE, "--jobs", "2", "--dask", "tcp://x"], "choose one of them"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_honest_mistakes(folder, refused_untouched, what):
    arguments, words = MISTAKES[what]
    assert words in refused_untouched(folder, *arguments)
    assert not list(folder.glob("collapsemeter-*"))


@pytest.mark.parametrize("classes", [10**7, 10**9])
def test_absurd_classes_of_a_manifest(data, tmp_path, capsys, classes):
    manifest = Path(data.dump(tmp_path / "dump")) / "manifest.json"
    record = json.loads(manifest.read_text())
    assert record["num_classes"] == 6
    manifest.write_text(json.dumps(record | {"num_classes": classes, "head": None}))
    assert main(["audit", str(tmp_path / "dump")]) == 2
    assert f"num_classes={classes}: at most 1048576 classes are measured" in capsys.readouterr().err


def test_a_width_is_one_that_a_reference_takes(folder, capsys):
    assert main([*ONE, "--dufm", "weight_decay=1e-3", "width=16", "depth=2", "--quiet"]) == 0
