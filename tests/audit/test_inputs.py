"""What people name: dumps with manifests, of ranks and of epochs, globs, URLs; and what they cost."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.activations import Writer
from collapsemeter.audit import Options, Running, audit, audit_steps, run


def test_a_dump_may_be_moved_and_its_paths_are_its_own(data, tmp_path, assert_report, monkeypatch):
    shutil.move(data.dump(tmp_path / "acts"), tmp_path / "moved")
    assert_report(audit(str(tmp_path / "moved")), data.oracle())
    assert_report(audit(str(tmp_path / "moved" / "manifest.json")), data.oracle())
    monkeypatch.chdir(tmp_path / "moved")
    assert_report(audit("manifest.json"), data.oracle())
    assert_report(audit("."), data.oracle())


def test_states_of_a_dump_that_was_moved_are_used(data, tmp_path):
    running = Running(state=tmp_path / "S", resume=True)
    audit(data.dump(tmp_path / "acts"), running=running)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "S").glob("*.state")}
    shutil.move(tmp_path / "acts", tmp_path / "moved")
    report = audit(str(tmp_path / "moved"), running=running)
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "S").glob("*.state")}
    assert report.to_json() == audit(str(tmp_path / "moved")).to_json()
    assert all("moved" in file["path"] for file in report.provenance["files"])


@pytest.mark.parametrize("what", ["shard-00001.safetensors", "head.safetensors"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_was_changed_is_refused(data, tmp_path, what, jobs):
    folder = Path(data.dump(tmp_path / "acts"))
    whole = bytearray((folder / what).read_bytes())
    whole[-1] ^= 1
    (folder / what).write_bytes(whole)
    text = rf"{what} has SHA-256 \w+\.\.\., the manifest says \w+\.\.\.: it was changed or damaged"
    with pytest.raises(ValueError, match=text):
        audit(str(folder), running=Running(jobs=jobs))


def test_ranks_of_one_step_are_measured_together(data, tmp_path, assert_report):
    for rank in range(2):
        with Writer(tmp_path / f"rank-{rank}", num_classes=6, step=3, head=data.head) as writer:
            writer.write({"conv": data.conv[rank::2], "fc": data.fc[rank::2]}, data.labels[rank::2])
    report = audit(str(tmp_path / "rank-*"))
    assert_report(report, data.oracle())
    assert report.provenance["shards"] == 2


OTHER = {
    "layers": {"layers": ["fc"]},
    "num_classes": {"num_classes": 7, "head": None},
    "phase": {"phase": "live"},
    "ignore_index": {"ignore_index": 5},
    "head": {"head": cm.Head(np.eye(6, 8))},
}


@pytest.mark.parametrize("what", OTHER)
def test_dumps_of_one_step_that_are_not_of_one_network(data, tmp_path, what):
    for rank, changes in enumerate(({}, OTHER[what])):
        options = {"num_classes": 6, "head": data.head, "step": 1} | changes
        layers = options.pop("layers", ["conv", "fc"])
        with Writer(tmp_path / f"rank-{rank}", **options) as writer:
            writer.write({name: data.layers[name] for name in layers}, data.labels)
    text = "different heads" if what == "head" else f"are of the same step and differ in {what}"
    with pytest.raises(ValueError, match=text):
        audit(str(tmp_path / "rank-*"))


def test_a_dump_twice(data, tmp_path, refused):
    data.dump(tmp_path / "acts")
    assert "a shard is counted once" in refused("acts", "acts/manifest.json")


def epochs(data, tmp_path, steps=(10, 2, 1)) -> None:
    for step in steps:
        with Writer(tmp_path / f"epoch-{step}", num_classes=6, head=data.head, step=step) as writer:
            rows = {name: rows + step * data.labels[:, None] for name, rows in data.layers.items()}
            writer.write(rows, data.labels)


def test_steps_are_a_history(data, tmp_path):
    epochs(data, tmp_path)
    history = audit_steps(str(tmp_path / "epoch-*"))
    assert [step for step, _ in history] == [1, 2, 10]
    for step, report in history:
        assert report.to_json() == audit(str(tmp_path / f"epoch-{step}")).to_json()
    with pytest.raises(ValueError, match="holds the steps 1, 2, 10: pass one, or call audit_steps"):
        audit(str(tmp_path / "epoch-*"))
    running = Running(state=tmp_path / "S", resume=True)
    first = audit_steps(str(tmp_path / "epoch-*"), running=running)
    assert sorted(p.name for p in (tmp_path / "S").iterdir()) == ["step-1", "step-10", "step-2"]
    again = audit_steps(str(tmp_path / "epoch-*"), running=running)
    assert [r.to_json() for _, r in first] == [r.to_json() for _, r in again]


def test_steps_on_the_command_line(data, tmp_path, cli, refused):
    epochs(data, tmp_path)
    status, out, _ = cli("epoch-1", "epoch-2", "epoch-10", "--json")
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["step"] for record in records] == [1, 2, 10]
    (tmp_path / "h.jsonl").write_text(out)
    # What training wrote, and one more epoch; the same epoch takes the place of the old one.
    status, out, _ = cli("epoch-2", "--history", "h.jsonl", "--json")
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 2, 10]
    data.shards(tmp_path / "loose", 1)
    status, out, _ = cli("loose", "--history", "h.jsonl", "--json", "--num-classes", 6)
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 2, 10, 11]
    status, out, _ = cli("loose", "--history", "h.jsonl", "--step", 5, "--json", "--num-classes", 6)
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 2, 5, 10]
    status, out, _ = cli(
        "--epoch", 3, "loose", "--epoch", -1, "loose/shard-0.safetensors", "--json"
    )
    assert [json.loads(line)["step"] for line in out.splitlines()] == [-1, 3]
    status, out, _ = cli("epoch-1", "epoch-2", "--html", "page.html")
    assert status == 0
    assert "epoch 2, the last of 2 reports" in out
    assert (tmp_path / "page.html").read_text().lower().startswith("<!doctype html>")
    assert "there are 2 steps; use --epoch" in refused("epoch-1", "epoch-2", "--step", 4)
    assert "--epoch 3 is given twice" in refused("--epoch", 3, "loose", "--epoch", 3, "loose/*")
    assert "--epoch x a: write a step and its files" in refused("--epoch", "x", "a")
    assert "--epoch 3: write a step and its files" in refused("--epoch", "3")
    assert "h.jsonl holds no report of phase 'live'" in refused(
        "loose", "--history", "h.jsonl", "--phase", "live"
    )
    assert "none.jsonl: No such file or directory: check the path" in refused(
        "loose", "--history", "none.jsonl"
    )


INPUTS = {
    "nothing": ([], "name the files to audit, or --epoch STEP FILE ..."),
    "no match": (["none/*.npz"], "no file matches 'none/*.npz': check the path, and quote its wildcards"),
    "missing": (["none.npz"], "no file matches 'none.npz'"),
    "empty folder": (["empty"], "folder empty holds no manifest.json and no file that ends in .safetensors"),
    "twice": (["loose/shard-0.safetensors", "loose/*"], "is given twice: its rows would count twice"),
    "mixed": (["acts", "loose/shard-0.safetensors"], "is no manifest and acts/manifest.json is one"),
    "other json": (["other.json"], "other.json is not a manifest of activations"),
    "an ending": (["a.txt"], "a.txt is text, which begins 'a': convert it"),
    "no bytes": (["zero.npz"], "zero.npz"),
    "garbage": (["garbage.safetensors"], "garbage.safetensors"),
    "a name of two lines": (["two\nlines.npz"], "two\\nlines.npz"),
    "a folder as a file": (["folder.npz"], "folder.npz"),
}  # fmt: skip


def test_files_that_are_all_asked_for_as_something_else(data, tmp_path, refused):
    np.save(tmp_path / "y.npy", data.labels)
    err = refused("y.npy", "--labels", "y.npy")
    assert "no file of activations is left beside those of labels and head" in err


def test_a_file_that_shrank_after_it_was_looked_at(data, tmp_path, monkeypatch):
    (path,) = data.shards(tmp_path / "acts", 1)
    real = run.plan_shards

    def then_shrink(*arguments):
        plan = real(*arguments)
        data.shards(tmp_path / "less", 2)
        shutil.copy(tmp_path / "less" / "shard-0.safetensors", path)
        return plan

    monkeypatch.setattr(run, "plan_shards", then_shrink)
    with pytest.raises(
        ValueError, match=r"'labels' of .*shard-0.safetensors ends at row 200 of 400"
    ):
        audit(path)


@pytest.mark.parametrize("what", INPUTS)
def test_what_cannot_be_audited_is_one_sentence(data, tmp_path, refused, what):
    data.shards(tmp_path / "loose", 1)
    data.dump(tmp_path / "acts")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "a.txt").write_text("a")
    for name in ("zero.npz", "two\nlines.npz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "garbage.safetensors").write_bytes(b"\xff" * 100)
    arguments, text = INPUTS[what]
    assert text in refused(*arguments)
    assert not list(tmp_path.glob("collapsemeter-*"))


def test_a_glob_of_a_dump_takes_the_head_for_what_it_is(data, tmp_path, assert_report):
    folder = data.dump(tmp_path / "acts")
    report = audit(folder + "/*.safetensors", Options(num_classes=6))
    assert_report(report, data.oracle(head=False))
    assert "pass it with --head" in report.skipped["weight"]


# Elsewhere
@pytest.fixture
def server(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{started.server_address[1]}"
        started.shutdown()
        thread.join()


def test_urls(data, tmp_path, server, assert_report):
    data.file_per_layer(tmp_path)
    data.dump(tmp_path / "acts")
    apart = {"labels": f"{server}/labels.npy", "head": f"{server}/head.safetensors"}
    urls = [f"{server}/{name}.safetensors" for name in ("conv", "fc")]
    assert_report(audit(urls, Options(**apart)), data.oracle())
    assert_report(audit(f"{server}/acts/manifest.json", running=Running(jobs=2)), data.oracle())
    local = [f"file://{tmp_path}/{name}.safetensors" for name in ("conv", "fc")]
    options = Options(
        labels=f"file://{tmp_path}/labels.npy", head=f"file://{tmp_path}/head.safetensors"
    )
    assert_report(audit(local, options), data.oracle())
    with zipfile.ZipFile(tmp_path / "acts.zip", "w") as archive:
        for path in (tmp_path / "acts").iterdir():
            archive.write(path, path.name)
    inside = f"zip://shard-*.safetensors::file://{tmp_path}/acts.zip"
    options = Options(head=f"zip://head.safetensors::file://{tmp_path}/acts.zip")
    assert_report(audit(inside, options), data.oracle())


def test_a_url_that_is_not_there(server, refused):
    assert "none.npz" in refused(f"{server}/none.npz")


def test_memory_is_bounded(tmp_path):
    """400 MB of rows: the peak stays below 200 MB above that of the imports."""
    script = textwrap.dedent("""
        import re, sys
        from pathlib import Path
        from collapsemeter.audit import Options, audit
        import collapsemeter.activations.safetensors_format, safetensors.numpy

        def peak():  # of this program: what getrusage says begins with the parent's
            status = Path("/proc/self/status").read_text()
            return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

        before = peak()
        report = audit(sys.argv[1], Options(nc4=20_000))
        assert report.provenance["rows"] == 400_000
        print(peak() - before)
    """)
    rng = np.random.default_rng(0)
    block = rng.normal(size=(40_000, 250)).astype(np.float32)
    header = {
        "fc": {"dtype": "F32", "shape": [400_000, 250], "data_offsets": [0, 400_000_000]},
        "labels": {"dtype": "I64", "shape": [400_000], "data_offsets": [400_000_000, 403_200_000]},
    }
    text = json.dumps(header).encode().ljust(256)
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(10):
            file.write(block.tobytes())
        file.write((np.arange(400_000) % 10).tobytes())
    del block
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a.safetensors"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 1 < float(done.stdout) < 200
