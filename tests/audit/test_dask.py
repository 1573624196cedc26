"""On a Dask cluster: the same report, and a worker that dies changes nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from collapsemeter.audit import Options, Running, audit
from collapsemeter.audit.cluster import DaskWorkers

# Dask warns of its own future (of asyncio, of ports in use): nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def nightly(*values):
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True, silence_logs=50
    ) as started:
        yield started


def test_a_cluster_gives_the_same_report(data, tmp_path, cluster, monkeypatch):
    data.shards(tmp_path / "acts", 12)
    options = Options(head=data.head_file(tmp_path), nc4=200)
    files = str(tmp_path / "acts/*")
    expected = audit(files, options).to_json(matrices=True)
    running = Running(dask=cluster.scheduler_address)
    assert audit(files, options, running).to_json(matrices=True) == expected
    # Pieces of shards, and a state folder that keeps what was decided.
    monkeypatch.setattr("collapsemeter.audit.job.PIECE_BYTES", 1000)
    expected = audit(files, options).to_json(matrices=True)
    running = Running(dask=cluster.scheduler_address, state=tmp_path / "S", resume=True)
    report = audit(files, options, running)
    assert report.to_json(matrices=True) == expected
    assert report.provenance["shards"] == 12
    remaining = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "S").glob("*.decisions")}
    assert len(remaining) > 12
    assert audit(files, options, running).to_json(matrices=True) == expected
    assert remaining == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "S").glob("*.decisions")}


def test_a_worker_that_is_killed(data, tmp_path, cluster, monkeypatch):
    data.shards(tmp_path / "acts", 40)
    options = Options(head=data.head_file(tmp_path))
    files = str(tmp_path / "acts/*")
    expected = audit(files, options).to_json(matrices=True)
    killed = []

    def slowly(
        function, *arguments
    ):  # a local function travels by value: workers cannot import this file
        time.sleep(0.04)
        return function(*arguments)

    def submit(self, function, *arguments):
        return self.client.submit(slowly, function, *arguments, pure=False)

    monkeypatch.setattr(DaskWorkers, "submit", submit)

    def kill():
        time.sleep(0.4)
        worker = next(iter(cluster.workers.values()))
        killed.append(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    report = audit(files, options, Running(dask=cluster.scheduler_address))
    thread.join()
    assert killed
    assert report.to_json(matrices=True) == expected


def test_an_error_on_the_cluster_is_the_same_sentence(data, tmp_path, cluster, save_arrays):
    data.shards(tmp_path / "acts", 6)
    with pytest.raises(ValueError, match=r"shard-\d.safetensors: label [45] at row \d+ is outside"):
        audit(
            str(tmp_path / "acts/*"),
            Options(num_classes=4),
            Running(dask=cluster.scheduler_address),
        )


@contextlib.contextmanager
def within_ten_seconds():
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "kind", ["closed port", "web server", "scheme", *nightly("mute server", "no such host")]
)
def test_nobody_answers(data, tmp_path, refused, kind):
    files = data.shards(tmp_path / "acts", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        address = {
            "closed port": "tcp://127.0.0.1:9", "mute server": f"tcp://127.0.0.1:{port}",
            "web server": f"tcp://127.0.0.1:{port}", "no such host": "tcp://nowhere.invalid:8786",
            "scheme": "nonsense://x",
        }[kind]  # fmt: skip
        if kind == "web server":

            def answer():
                with contextlib.suppress(OSError):
                    while True:
                        mute.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100)

            threading.Thread(target=answer, daemon=True).start()
        with within_ten_seconds():
            err = refused(*files, "--dask", address)
    assert f"no Dask scheduler answers at {address!r}: start one with `dask scheduler`" in err
    assert not list(tmp_path.glob("*.state"))


@pytest.mark.parametrize("address", ["nonsense", "http://localhost:8786"])
def test_an_address_that_does_not_read_is_one_sentence_to_the_end_of_the_process(
    data, tmp_path, address
):
    (file,) = data.shards(tmp_path / "acts", 1)
    command = [sys.executable, "-m", "collapsemeter", "audit", file, "--dask", address]
    with within_ten_seconds():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"collapsemeter: no Dask scheduler answers at {address!r}")
    assert done.stderr.count("\n") == 1


def test_a_cluster_without_a_worker(data, tmp_path, refused):
    files = data.shards(tmp_path / "acts", 1)
    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as empty:
        address = empty.scheduler_address
        with within_ten_seconds():
            err = refused(*files, "--dask", address)
        assert f"{address} has no worker: start some with `dask worker {address}`" in err


def test_a_worker_without_the_package(data, tmp_path, refused):
    """A real worker, that finds every installed package but this one."""
    site = tmp_path / "site"
    site.mkdir()
    for folder in [Path(path) for path in sys.path if path.endswith("-packages")]:
        for entry in folder.iterdir():
            if "collapsemeter" not in entry.name and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    files = data.shards(tmp_path / "acts", 1)
    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as started:
        address = started.scheduler_address
        worker = subprocess.Popen(
            [sys.executable, "-S", "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not started.scheduler.workers:
                assert time.monotonic() < deadline
                assert worker.poll() is None
                time.sleep(0.05)
            with within_ten_seconds():
                err = refused(*files, "--dask", address)
        finally:
            worker.kill()
            worker.wait()
    assert "of the Dask cluster needs collapsemeter" in err
    assert "No module named 'collapsemeter'" in err
    assert "install it where the workers run" in err


@pytest.mark.parametrize("how", ["scheduler dies", *nightly("scheduler stops", "workers die")])
def test_a_cluster_that_goes_away(data, tmp_path, refused, cli, how):
    """What was counted is kept, and the audit goes on from there."""
    files = data.shards(tmp_path / "acts", 30)
    expected = cli(*files, "--json")[1]
    processes = start_cluster(tmp_path)
    scheduler, worker = processes
    address = (tmp_path / "address").read_text()
    gone = []

    def slowly(function, *arguments):
        time.sleep(0.2)
        return function(*arguments)

    def go_away():
        while len(list(tmp_path.glob("collapsemeter-*.state/*.state"))) < 3:
            time.sleep(0.01)
        victim = worker if how == "workers die" else scheduler
        victim.send_signal(signal.SIGSTOP if how == "scheduler stops" else signal.SIGKILL)
        gone.append(time.monotonic())

    thread = threading.Thread(target=go_away)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                DaskWorkers,
                "submit",
                lambda self, f, *a: self.client.submit(slowly, f, *a, pure=False),
            )
            thread.start()
            err = refused(*files, "--dask", address, "--json")
            assert time.monotonic() - gone[0] < 10
    finally:
        for process in processes:
            process.kill()
            process.wait()
        thread.join()
    words = "has no worker" if how == "workers die" else "does not answer any more"
    assert words in err
    (folder,) = tmp_path.glob("collapsemeter-*.state")
    assert f"(what was counted is kept in {folder.name}: use --resume)" in err
    remaining = len(list(folder.glob("*.state")))
    assert 3 <= remaining < 30
    assert cli(*files, "--json", "--resume")[1] == expected


def start_cluster(folder: Path) -> list[subprocess.Popen]:
    """Start a scheduler and a worker as processes of their own."""
    script = (
        "import asyncio, sys\n"
        "from distributed import Scheduler, Worker\n"
        "async def main():\n"
        "    if sys.argv[1] == 'scheduler':\n"
        "        async with Scheduler(port=0, host='127.0.0.1', dashboard=False) as s:\n"
        "            print(s.address, flush=True)\n"
        "            await s.finished()\n"
        "    else:\n"
        "        async with Worker(sys.argv[2], nthreads=1, dashboard=False) as w:\n"
        "            print(w.address, flush=True)\n"
        "            await w.finished()\n"
        "asyncio.run(main())\n"
    )
    started: list[subprocess.Popen] = []
    address = ""
    for role in ("scheduler", "worker"):
        process = subprocess.Popen(
            [sys.executable, "-c", script, role, address], cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
        line = process.stdout.readline().strip()
        assert line.startswith("tcp://")
        address = address or line
    (folder / "address").write_text(address)
    return started


def test_workers_that_die_over_the_same_task(data, tmp_path, cluster, refused, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(DaskWorkers, "submit", lambda self, *_: self.client.submit(os._exit, 1))
    files = data.shards(tmp_path / "acts", 1)
    err = refused(*files, "--dask", cluster.scheduler_address)
    assert "workers of the Dask cluster died over the same task again and again" in err


def test_without_dask(data, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    files = data.shards(tmp_path / "acts", 1)
    err = refused(*files, "--dask", "tcp://x")
    assert "an audit on tcp://x needs Dask: pip install 'collapsemeter[dask]'" in err
