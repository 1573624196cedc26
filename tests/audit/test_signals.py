"""An audit that is ended leaves no process and no temporary folder, and keeps what was counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """\
import time
from collapsemeter.audit import first_pass
real = first_pass.map_piece
def slowly(*given):
    time.sleep(0.3)
    return real(*given)
first_pass.map_piece = slowly
if __name__ == "__main__":
    import os, signal, sys, threading
    from collapsemeter.cli import main
    def end_with_the_tests():  # the other end of this pipe is theirs alone
        os.read(int(os.environ["TESTS_RUN"]), 1)
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=end_with_the_tests, daemon=True).start()
    # As a terminal starts a command: `nohup` and `&` of a script leave these two ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
"""


def in_session(session: int) -> dict[int, str]:
    """Return the processes of a session, by number: whoever their parent is by now."""
    actual = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != session:
            try:
                if os.getsid(int(folder.name)) == session:
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z":
                        actual[int(folder.name)] = (folder / "cmdline").read_text()
            except (ProcessLookupError, FileNotFoundError):
                continue
    return actual


@pytest.fixture
def start(data, tmp_path):
    """Start a command in a session of its own, with a folder for what is temporary; it ends with the tests."""
    running, ends = [], []

    def start(*arguments: object) -> subprocess.Popen:
        (tmp_path / "temporary").mkdir()
        (tmp_path / "slow.py").write_text(SCRIPT)
        theirs, ours = os.pipe()
        ends.append(ours)
        running.append(subprocess.Popen(
            [sys.executable, tmp_path / "slow.py", *map(str, arguments)], cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"TMPDIR": str(tmp_path / "temporary"), "TESTS_RUN": str(theirs)},
            pass_fds=[theirs],
        ))  # fmt: skip
        os.close(theirs)
        return running[-1]

    yield start
    for process in running:
        for number in (process.pid, *in_session(process.pid)):
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.communicate()
    for end in ends:
        os.close(end)


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


ENDS = [
    ("SIGTERM", 2),
    ("SIGINT", 2),
    pytest.param("SIGHUP", 2, marks=pytest.mark.nightly),
    pytest.param("SIGTERM", 1, marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("name", "jobs"), ENDS)
def test_an_audit_that_is_told_to_end(data, tmp_path, start, cli, name, jobs):
    files = data.shards(tmp_path / "acts", 30)
    running = start("audit", *files, "--jobs", jobs, "--json")
    until(lambda: len(list(tmp_path.glob("*.state/*.state"))) > 1)
    if name == "SIGINT":  # of the terminal, to all its processes
        os.killpg(running.pid, signal.SIGINT)
    else:
        running.send_signal(getattr(signal, name))
    out, err = running.communicate(timeout=30)  # the pipe is let go of, too
    assert (running.returncode, out) == (2, "")
    why = "interrupted" if name == "SIGINT" else f"ended by {name}"
    (folder,) = tmp_path.glob("*.state")
    assert err == (
        f"collapsemeter: {why} (what was counted is kept in {folder.name}: use --resume)\n"
    )
    until(lambda: not in_session(running.pid), 10)
    assert not list((tmp_path / "temporary").iterdir())
    assert {path.suffix for path in folder.iterdir()} == {".state"}  # and no half of one
    assert cli(*files, "--json", "--resume")[1] == cli(*files, "--json")[1]


@pytest.mark.parametrize("command", ["audit", pytest.param("dufm", marks=pytest.mark.nightly)])
def test_processes_end_with_a_parent_that_is_killed(data, tmp_path, start, command):
    if command == "audit":
        arguments = ["audit", *data.shards(tmp_path / "acts", 30), "--jobs", 2]
    else:
        arguments = ["dufm", "--classes", 40, "--depth", 4, "--weight-decay", "1e-3", "--solve",
                     "--restarts", 40, "--jobs", 2]  # fmt: skip
    running = start(*arguments)
    until(lambda: sum("spawn_main" in words for words in in_session(running.pid).values()) == 2)
    running.kill()
    running.communicate(timeout=30)
    until(lambda: not in_session(running.pid), 10)


def test_a_solver_that_is_told_to_end(tmp_path, start):
    running = start(
        "dufm", "--classes", 40, "--depth", 4, "--weight-decay", "1e-3", "--solve", "--restarts", 40,
        "--jobs", 2, "--quiet",
    )  # fmt: skip
    until(lambda: sum("spawn_main" in words for words in in_session(running.pid).values()) == 2)
    running.terminate()
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (2, "", "collapsemeter: ended by SIGTERM\n")
    until(lambda: not in_session(running.pid), 10)
