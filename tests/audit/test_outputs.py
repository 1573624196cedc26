"""No output of the command line overwrites an input, a state, another output, or a file of another kind."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import CollapseReport
from collapsemeter.audit import Options, merge_files
from collapsemeter.cli import main
from collapsemeter.cli.outputs import OutputFile, check_outputs
from collapsemeter.sinks.json_lines import JsonlSink


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of everything that a command reads; refused commands leave it as it is."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        _make()
    return folder


@pytest.fixture
def folder(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def copy(made, tmp_path, monkeypatch):
    """A folder that may be written to."""
    shutil.copytree(made, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def _make():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    features = (rng.normal(size=(60, 8)) + 3 * labels[:, None]).astype("f4")
    np.savez("acts.npz", feat=features, labels=labels)
    np.save("feat.npy", features)
    np.save("labels.npy", labels)
    np.save("head.npy", rng.normal(size=(3, 8)))
    for i in range(3):
        part = slice(20 * i, 20 * i + 20)
        np.savez(f"shard-{i}.npz", feat=features[part], labels=labels[part])
        assert main(["audit", "map", f"shard-{i}.npz", "-o", "st", "--num-classes", "3"]) == 0
    os.rename(next(Path("st").glob("shard-2*")), "other.state")
    import zarr

    group = zarr.open_group("z.zarr", mode="w")
    group.create_array("feat", data=features)
    group.create_array("labels", data=labels)
    report = CollapseReport({"fc": cm.measure(cm.ClassMoments.from_batch(features, labels, 3))})
    Path("report.json").write_text(report.to_json(matrices=True))
    JsonlSink("history.jsonl").write(1, report)
    Path("notes.txt").write_text("mine")
    Path("train.py").write_text("print()")
    Path("page.html").write_text("<!doctype html><title>mine</title>")
    os.symlink("acts.npz", "link.npz")
    os.link("acts.npz", "hard.npz")
    os.mkdir("sub")


AUDIT = ["audit", "acts.npz"]
APART = ["audit", "feat.npy", "--labels", "labels.npy", "--head", "head.npy"]
MERGE = ["audit", "merge", "st/*.state"]
MAP = ["audit", "map", "acts.npz", "--num-classes", "3"]
SHOW = ["show", "report.json"]
REFUSED = {
    "input": ([*AUDIT, "--out", "acts.npz"], "--out acts.npz is an input, too"),
    "short option": ([*AUDIT, "-o", "acts.npz"], "--out acts.npz is an input, too"),
    "page": ([*AUDIT, "--html", "acts.npz"], "--html acts.npz is an input, too"),
    "labels": ([*APART, "--html", "labels.npy"], "--html labels.npy is --labels, too"),
    "head": ([*APART, "--out", "head.npy"], "--out head.npy is --head, too"),
    "history": ([*AUDIT, "--history", "history.jsonl", "--out", "history.jsonl"], "is --history, too"),
    "epoch": (["audit", "--epoch", "1", "acts.npz", "--out", "acts.npz"], "is --epoch, too"),
    "glob": (["audit", "shard-*.npz", "--out", "shard-1.npz"], "--out shard-1.npz is an input, too"),
    "spelling": ([*AUDIT, "--out", "sub/../acts.npz"], "is an input, too"),
    "symbolic link": ([*AUDIT, "--out", "link.npz"], "--out link.npz is an input, too"),
    "hard link": ([*AUDIT, "--out", "hard.npz"], "--out hard.npz is an input, too"),
    "link as input": (["audit", "link.npz", "--out", "acts.npz"], "is an input, too"),
    "file url": (["audit", "file://{cwd}/acts.npz", "--out", "acts.npz"], "is an input, too"),
    "two outputs": ([*AUDIT, "--out", "new", "--html", "sub/../new"], "--html sub/../new are one file"),
    "state and page": ([*AUDIT, "--state", "new", "--html", "new"], "are one file"),
    "zarr": (["audit", "z.zarr", "--out", "z.zarr"], "is an input, too"),
    "in zarr": ([*AUDIT, "--html", "z.zarr/page.html"], "lies in the Zarr array"),
    "state in zarr": ([*AUDIT, "--state", "z.zarr"], "lies in the Zarr array"),
    "folder": ([*AUDIT, "--out", "sub"], "--out sub is a folder: name a file to write"),
    "empty": ([*AUDIT, "--out", ""], "--out '' is a folder"),
    "device": ([*AUDIT, "--out", "/dev/null"], "is no regular file"),
    "url": ([*AUDIT, "--html", "s3://bucket/page.html"], "outputs are local files"),
    "notes": ([*AUDIT, "--out", "notes.txt"], "--out notes.txt exists and is not a report"),
    "code": ([*AUDIT, "--html", "train.py"], "--html train.py exists and is not an HTML report"),
    "another page": ([*AUDIT, "--html", "page.html"], "exists and is not an HTML report"),
    "another array": ([*AUDIT, "--out", "feat.npy"], "exists and is not a report"),
    "a history": ([*AUDIT, "--out", "history.jsonl"], "exists and is not a report"),
    "under a file": ([*AUDIT, "--out", "notes.txt/r.json"], "notes.txt is not a folder to write to"),
    "map onto a file": ([*MAP, "-o", "acts.npz"], "--out acts.npz is an input, too"),
    "map onto another file": ([*MAP, "--out", "feat.npy"], "--out feat.npy is a file: name a folder"),
    "merge, expanded": (["audit", "merge", "-o", "st/0", "st/1"], "which the states to merge do not hold"),
    "merge, a state of its own": ([*MERGE, "-o", "st/0"], "--out st/0 is an input, too"),
    "merge, another state": ([*MERGE, "-o", "other.state"], "which the states to merge do not hold"),
    "merge, no state": ([*MERGE, "-o", "acts.npz"], "exists and is not a state"),
    "merge, report": ([*MERGE, "-o", "m.state", "--report", "other.state"], "is not a report"),
    "merge, page": ([*MERGE, "-o", "m.state", "--html", "m.state"], "are one file"),
    "merge, head": ([*MERGE, "-o", "head.npy", "--head", "head.npy"], "is --head, too"),
    "merge, two outputs": ([*MERGE, "-o", "m.state", "--out", "r.json"], "given twice: pass it once"),
    "show": ([*SHOW, "--html", "report.json"], "--html report.json is an input, too"),
    "show, other": ([*SHOW, "--html", "feat.npy"], "exists and is not an HTML report"),
    "show what is none": (["show", "acts.npz", "--html", "feat.npy"], "is not an HTML report"),
    "compare": (["compare", "report.json", "history.jsonl", "--html", "history.jsonl"], "an input, too"),
    "dufm": (["dufm", "--classes", "2", "--depth", "2", "--weight-decay", "1e-3", "--plot", "feat.npy"],
             "--plot feat.npy exists and is not a figure"),
    "demo": (["demo", "--out", "notes.txt"], "--out notes.txt is a file: name a folder"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_outputs_that_would_destroy_something(folder, refused_untouched, what):
    arguments, words = REFUSED[what]
    known = dict(zip(("st/0", "st/1"), sorted(map(str, Path("st").iterdir())), strict=True))
    given = [known.get(text, text.replace("{cwd}", str(folder))) for text in arguments]
    for name, path in known.items():
        words = words.replace(name, path)
    assert words in refused_untouched(folder, *given)


def test_outputs_of_an_earlier_run_are_replaced(copy):
    audit = [*AUDIT, "--out", "r.json", "--html", "new/r.html"]
    merge = [*MERGE, "--out", "m.state", "--report", "m.json"]
    dufm = ["dufm", "--classes", "2", "--depth", "2", "--weight-decay", "1e-3"]
    calls = [audit, merge, [*SHOW, "--html", "s.html"], *([*dufm, "--plot", f"f.{e}"] for e in ("svg", "png"))]  # fmt: skip
    for call in calls:
        assert main(call) == 0
    written = ("r.json", "new/r.html", "m.state", "m.json", "s.html", "f.svg", "f.png")
    before = {name: Path(name).stat().st_mtime_ns for name in written}
    for call in calls:
        assert main(call) == 0
    assert all(Path(name).stat().st_mtime_ns > before[name] for name in written)
    Path("r.json").write_text("")  # as mktemp makes one
    assert main(audit) == 0
    # More states: the merged one of before holds nothing else.
    shutil.move("other.state", "st/other.state")
    assert main(merge) == 0


def test_merging_from_python_is_as_careful(folder):
    states = sorted(map(str, Path("st").iterdir()))
    for target, words in ((states[0], "is a state to merge, too"),
                          ("other.state", "which the states to merge do not hold: it would be lost")):  # fmt: skip
        before = Path(target).read_bytes()
        with pytest.raises(ValueError, match=words):
            merge_files(states, target, Options())
        assert Path(target).read_bytes() == before


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"cannot be written: .* is not a folder to write to"):
        check_outputs([OutputFile("--out", str(tmp_path / "a/r.json"), "report")], {})
