"""A run that was killed goes on, and gives bit for bit what an uninterrupted one gives."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from collapsemeter.audit import (
    Options,
    Running,
    audit,
    first_pass,
    job,
    map_files,
    saved_state,
    second_pass,
)
from collapsemeter.cli import main
from collapsemeter.stats import state_file as state_files


def slow_main(arguments: list[str], out: Path) -> None:
    """Run the command line with pieces of some tens of rows, slow enough to be killed anywhere."""
    write = state_files.write_state

    def slowly(*given, **options):
        time.sleep(0.004)
        write(*given, **options)
        time.sleep(0.004)

    job.PIECE_BYTES = 2500
    second_pass.write_state = saved_state.write_state = slowly
    with open(out, "w") as sys.stdout, open(f"{out}.err", "w") as sys.stderr:
        status = main(["audit", *arguments])
    os._exit(status)


class Child:
    """A process of its own that runs `slow_main`; a fork, which starts at once."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.out = folder / f"out-{time.monotonic_ns()}.txt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
            self.pid = os.fork()
        if not self.pid:
            try:
                os.chdir(folder)
                slow_main([str(argument) for argument in arguments], self.out)
            finally:
                os._exit(99)
        self.status: int | None = None

    def running(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def kill(self) -> None:
        if self.running():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> str:
        deadline = time.monotonic() + 60
        while self.running():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return self.out.read_text() if self.out.exists() else ""


@pytest.fixture
def slow(tmp_path):
    children = []

    def start(*arguments) -> Child:
        children.append(Child(tmp_path, *arguments))
        return children[-1]

    yield start
    for child in children:
        child.kill()


def written(folder: Path) -> dict[str, int]:
    actual = {}
    for path in folder.rglob("*"):
        if path.suffix in (".state", ".piece", ".decisions") and not path.is_dir():
            with contextlib.suppress(FileNotFoundError):  # a piece of a shard that is whole now
                actual[path.name] = path.stat().st_mtime_ns
    return actual


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(data, tmp_path, slow, seed):
    """Some hundred files are written, in two passes: killed after a random number of them, until done."""
    rng = random.Random(seed)
    data.shards(tmp_path / "acts", 6)
    data.head_file(tmp_path)
    arguments = ["acts/shard-*", "--head", "head.safetensors", "--json"]
    straight = slow(*arguments, "--state", "other")
    expected = straight.wait()
    assert straight.status == 0
    folder, kills, seen = tmp_path / "S", 0, set()
    for _ in range(200):
        before, new = set(written(folder)), set()  # of pieces that became one state, too
        running = slow(*arguments, "--state", "S", "--resume")
        enough = rng.randrange(1, 9)
        until = time.monotonic() + rng.choice([0.05, 2])
        while len(new) < enough and running.running() and time.monotonic() < until:
            time.sleep(0.0005)
            new |= set(written(folder)) - before
        running.kill()
        if running.status == 0:
            break
        kills += 1
        seen |= {path.suffix for path in folder.iterdir()} if folder.exists() else set()
    assert running.status == 0
    assert running.wait() == expected
    assert kills > 2
    assert seen >= {".state", ".piece", ".decisions", ".merged"}
    # Once more: nothing is counted, and nothing but the merged state is written, again.
    before = written(folder)
    assert slow(*arguments, "--state", "S", "--resume").wait() == expected
    assert written(folder) == before


def test_what_is_finished_is_not_counted_again(data, tmp_path, capsys):
    files = data.shards(tmp_path / "acts", 5)
    options = Options(head=data.head_file(tmp_path))
    folder = tmp_path / "S"
    report = audit(files, options, Running(state=folder))
    before = written(folder)
    next(folder.glob("shard-2*.state")).unlink()
    next(folder.glob("*.decisions")).unlink()
    assert audit(files, options, Running(state=folder, resume=True)).to_json() == report.to_json()
    after = written(folder)
    assert before.keys() == after.keys()
    assert len([name for name in before if before[name] != after[name]]) == 2


CHANGED = {
    "scatter": {"scatter": "pooled"},
    "classes": {"num_classes": 9, "head": None},
    "ignore_index": {"ignore_index": 1},
    "nonfinite": {"nonfinite": "raise"},
    "phase": {"phase": "live"},
    "reduction": {"reduction": {"conv": "flatten"}},
    "labels": {"labels": "other"},
    "layers": {"layers": ["fc"]},
}


@pytest.mark.parametrize("name", CHANGED)
def test_states_that_were_counted_otherwise_are_counted_again(data, tmp_path, name):
    rng = np.random.default_rng(0)
    files = data.shards(tmp_path / "acts", 2, other=rng.integers(0, 6, 400))
    plain = {"head": data.head_file(tmp_path)}
    folder = tmp_path / "S"
    audit(files, Options(**plain), Running(state=folder))
    options = Options(**(plain | CHANGED[name]))
    resumed = audit(files, options, Running(state=folder, resume=True))
    assert resumed.to_json(matrices=True) == audit(files, options).to_json(matrices=True)
    # Both are kept side by side, and neither is lost.
    before = written(folder)
    audit(files, Options(**plain), Running(state=folder, resume=True))
    if name in ("scatter", "classes", "ignore_index", "nonfinite", "phase", "reduction", "labels"):
        return  # the same rows: one file for the newest
    assert written(folder) == before


def test_changed_files_are_counted_again(data, tmp_path, save_arrays):
    numbered = map(Path, data.shards(tmp_path / "acts", 3))
    # Numbers in their names would say which order is meant.
    files = [
        str(path.rename(path.with_stem(name)))
        for path, name in zip(numbered, ("first", "next", "last"), strict=True)
    ]
    labels = tmp_path / "labels.npy"
    predictions = tmp_path / "predictions.npy"
    np.save(labels, data.labels)
    np.save(predictions, data.labels)
    options = Options(labels=str(labels), predictions=str(predictions), num_classes=6)
    running = Running(state=tmp_path / "S", resume=True)
    first = audit(files, options, running)
    for path, array in ((labels, data.labels), (predictions, data.labels)):
        np.save(path, np.roll(array, 1))
        changed = audit(files, options, running)
        assert changed.to_json() == audit(files, options).to_json()
        assert changed.to_json() != first.to_json()
        first = changed
    save_arrays(Path(files[1]), {"conv": data.conv[:133], "fc": data.fc[:133]})
    assert audit(files, options, running).to_json() == audit(files, options).to_json()
    # The same files in another order: labels of all rows belong to others then.
    turned = files[1:2] + files[:1] + files[2:]
    assert audit(turned, options, running).to_json() == audit(turned, options).to_json()


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "garbage", "other"])
def test_damaged_states_are_counted_again(data, tmp_path, damage):
    files = data.shards(tmp_path / "acts", 3)
    options = Options(head=data.head_file(tmp_path))
    running = Running(state=tmp_path / "S", resume=True)
    expected = audit(files, options, running).to_json()
    for path in [p for p in (tmp_path / "S").iterdir() if "shard-0" not in p.name]:
        whole = path.read_bytes()
        path.write_bytes({
            "empty": b"", "cut": whole[:-100], "garbage": b"x" * 300,
            "flipped": whole[:80] + bytes([whole[80] ^ 1]) + whole[81:],
            "other": next((tmp_path / "S").glob("shard-0*")).read_bytes(),
        }[damage])  # fmt: skip
    assert audit(files, options, running).to_json() == expected


def test_maps_of_many_processes_into_one_folder(data, tmp_path, command):
    files = data.shards(tmp_path / "acts", 6)
    head = data.head_file(tmp_path)
    script = "import sys; from collapsemeter.cli import main; sys.exit(main(sys.argv[1:]))"
    call = [sys.executable, "-c", script, "audit", "map", "--head", head, "-o", "S"]
    running = [
        subprocess.Popen(
            [*call, *files[i : i + 2], "--first-row", str(int(data.rows * i / 6))],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
        )
        for i in (0, 2, 4, 4)  # one task runs twice
    ]
    printed = b"".join(task.communicate(timeout=60)[0] for task in running).decode().split()
    assert [task.returncode for task in running] == [0] * 4
    assert len(set(printed)) == 6
    before = {n: t for n, t in written(tmp_path / "S").items() if n.endswith(".state")}
    options = Options(head=head)
    report = audit(files, options, Running(state=tmp_path / "S", resume=True))
    assert report.to_json() == audit(files, options).to_json()
    assert before.items() <= written(tmp_path / "S").items()


def test_the_default_state_folder(data, tmp_path, slow):
    data.shards(tmp_path / "acts", 6)
    data.head_file(tmp_path)
    arguments = ["acts/shard-*", "--head", "head.safetensors", "--json"]
    # Two audits in one folder; both are killed.
    for i, more in enumerate(([], ["--nc4", "none"]), start=1):
        running = slow(*arguments, *more)
        while not (
            len(folders := sorted(tmp_path.glob("collapsemeter-*.state"))) == i
            and all(len(written(folder)) > 5 for folder in folders)
        ):
            assert running.running()
            time.sleep(0.001)
        running.kill()
        assert running.status == -signal.SIGKILL
    left = [written(folder) for folder in folders]
    # One goes on: its folder goes when it is done; the other's stays as it is.
    resumed = slow(*arguments, "--resume")
    out = resumed.wait()
    assert resumed.status == 0
    (another,) = tmp_path.glob("collapsemeter-*.state")
    assert written(another) in left
    assert slow(*arguments).wait() == out
    assert list(tmp_path.glob("collapsemeter-*.state")) == [another]


def test_a_damaged_file_among_good_ones_is_named_before_anything_is_counted(data, tmp_path, cli):
    files = data.shards(tmp_path / "acts", 40, "npz")
    bad = Path(files[23])
    whole = bytearray(bad.read_bytes())
    whole[whole.index(data.fc[235].tobytes())] ^= 1  # the checksum of the archive tells
    bad.write_bytes(whole)
    status, out, err = cli(*files, "--json")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"layer 'fc' in 39 ({bad}: array 'fc' has another checksum (CRC)" in err
    assert not list(tmp_path.glob("collapsemeter-*.state"))


def test_a_hostile_file_among_good_ones(data, tmp_path, cli, save_arrays):
    """The message names it; without it, what was counted is used, though the names given are others."""
    files = data.shards(tmp_path / "acts", 40)
    bad = Path(files[23])
    arrays = {"conv": data.conv[:10] * np.nan, "fc": data.fc[:10], "labels": data.labels[:10]}
    save_arrays(bad, arrays)
    given = ["--num-classes", 6, "--nonfinite", "raise", "--json"]
    status, out, err = cli(*files, *given)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"layer 'conv' has 10 rows that hold NaN or Inf in {bad.name}: pass" in err
    (folder,) = tmp_path.glob("collapsemeter-*.state")
    assert f"what was counted is kept in {folder.name}: use --resume" in err
    counted = set(written(folder).values())
    assert len(counted) >= 23
    bad.unlink()
    good = [file for file in files if file != str(bad)]
    mapped = []
    with pytest.MonkeyPatch.context() as patch:
        real = first_pass.map_piece
        patch.setattr(first_pass, "map_piece", lambda *a: mapped.append(a) or real(*a))
        status, out, err = cli(*good, *given, "--resume")
    assert (status, err) == (0, "")
    assert len(mapped) + len(counted) == 39
    assert not list(tmp_path.glob("collapsemeter-*.state"))
    assert cli(*good, *given)[1] == out


def test_a_worker_that_is_killed(data, tmp_path, slow):
    data.shards(tmp_path / "acts", 30)
    arguments = ["acts/shard-*", "--json", "--jobs", "2"]
    main_guard = tmp_path / "slow_main.py"
    main_guard.write_text(
        "import time\n"
        "from collapsemeter.audit import first_pass\n"
        "real = first_pass.map_piece\n"
        "def slowly(*a):\n"
        "    time.sleep(0.05)\n"
        "    return real(*a)\n"
        "first_pass.map_piece = slowly\n"
        "if __name__ == '__main__':\n"
        "    import sys\n"
        "    from collapsemeter.cli import main\n"
        "    sys.exit(main(['audit', *sys.argv[1:]]))\n"
    )
    running = subprocess.Popen(
        [sys.executable, main_guard, *arguments], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not written(tmp_path):
        time.sleep(0.01)
        assert running.poll() is None
    children = [
        int(pid)
        for task in Path(f"/proc/{running.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    os.kill(children[0], signal.SIGKILL)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (2, "")
    assert err.startswith("collapsemeter: a worker process died")
    assert err.count("\n") == 1
    assert "use --resume" in err
    finished = written(tmp_path)
    assert 0 < len(finished) < 30
    done = subprocess.run(
        [sys.executable, main_guard, *arguments, "--resume", "--state", next(tmp_path.glob("*.state"))],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert finished.items() <= written(tmp_path).items()
    assert json.loads(done.stdout)["provenance"]["rows"] == 400


def test_only_the_states_of_map_wait_for_the_disk(data, tmp_path, monkeypatch):
    """A state of an audit that a crash of the machine damages is counted again, as any damaged one."""
    files, synced, fsync = data.shards(tmp_path / "acts", 3), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(1), fsync(descriptor)))
    audit(files, Options(num_classes=data.C), Running(state=tmp_path / "S"))
    assert not synced
    map_files(files, Options(num_classes=data.C), Running(state=tmp_path / "M"))
    assert len(synced) >= 3


def test_map_needs_a_folder():
    with pytest.raises(ValueError, match="map needs a folder for its states: pass -o FOLDER"):
        map_files(["a.npz"], Options(), Running())


@pytest.mark.parametrize("inside", [False, True])
def test_a_state_folder_that_is_none(data, tmp_path, refused, inside):
    files = data.shards(tmp_path / "acts", 1)
    (tmp_path / "S").write_text("a file")
    err = refused(*files, "--state", "S/inside" if inside else "S")
    expected = "S/inside cannot be written: " if inside else "S is a file: name a folder"
    assert f"--state {expected}" in err
    state = tmp_path / ("S/inside" if inside else "S")
    with pytest.raises(
        ValueError, match=rf"^states cannot be written to {state} .*pass --state FOLDER"
    ):
        audit(files, running=Running(state=state))


def test_a_piece_that_was_left_elsewhere(data, tmp_path, cli, monkeypatch, save_arrays):
    """Pieces of a shard that an earlier run counted are taken over from its folder, too."""
    monkeypatch.setattr(job, "PIECE_BYTES", 2000)
    files = data.shards(tmp_path / "acts", 4)
    bad = {"conv": data.conv, "fc": data.fc * np.nan, "labels": data.labels}
    save_arrays(Path(files[2]), bad)
    given = ["--num-classes", 6, "--nonfinite", "raise", "--json"]
    assert cli(*files, *given)[0] == 2
    rest = [*files[:2], files[3]]
    mapped = []
    real = first_pass.map_piece
    monkeypatch.setattr(first_pass, "map_piece", lambda *a: mapped.append(a) or real(*a))
    status, out, _ = cli(*rest, *given, "--resume")
    assert status == 0
    counted = len(mapped)
    assert cli(*rest, *given)[1] == out
    assert counted < len(mapped) - counted
    assert not list(tmp_path.glob("*.state"))
