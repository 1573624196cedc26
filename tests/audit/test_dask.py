"""On a Dask cluster: the same report, and a worker that dies changes nothing."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest
from distributed import LocalCluster

from collapsemeter.audit import Options, Running, audit, workers

# Dask warns of its own future (of asyncio, of ports in use): nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


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
    due = audit(files, options).to_json(matrices=True)
    running = Running(dask=cluster.scheduler_address)
    assert audit(files, options, running).to_json(matrices=True) == due
    # Pieces of shards, and a state folder that keeps what was decided.
    monkeypatch.setattr("collapsemeter.audit.shard.PIECE_BYTES", 1000)
    due = audit(files, options).to_json(matrices=True)
    running = Running(dask=cluster.scheduler_address, state=tmp_path / "S", resume=True)
    report = audit(files, options, running)
    assert report.to_json(matrices=True) == due
    assert report.provenance["shards"] == 12
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "S").glob("*.decisions")}
    assert len(kept) > 12
    assert audit(files, options, running).to_json(matrices=True) == due
    assert kept == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "S").glob("*.decisions")}


def test_a_worker_that_is_killed(data, tmp_path, cluster, monkeypatch):
    data.shards(tmp_path / "acts", 40)
    options = Options(head=data.head_file(tmp_path))
    files = str(tmp_path / "acts/*")
    due = audit(files, options).to_json(matrices=True)
    killed = []

    def slowly(
        function, *arguments
    ):  # a local function travels by value: workers cannot import this file
        time.sleep(0.04)
        return function(*arguments)

    def submit(self, function, *arguments):
        return self.client.submit(slowly, function, *arguments, pure=False)

    monkeypatch.setattr(workers.Dask, "submit", submit)

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
    assert report.to_json(matrices=True) == due


def test_an_error_on_the_cluster_is_the_same_sentence(data, tmp_path, cluster, save_arrays):
    data.shards(tmp_path / "acts", 6)
    with pytest.raises(ValueError, match=r"shard-\d.safetensors: label [45] at row \d+ is outside"):
        audit(
            str(tmp_path / "acts/*"),
            Options(num_classes=4),
            Running(dask=cluster.scheduler_address),
        )


def test_nobody_answers(data, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(workers, "DASK_PATIENCE", "0.3s")
    files = data.shards(tmp_path / "acts", 1)
    err = refused(*files, "--dask", "tcp://127.0.0.1:9")
    assert (
        "no Dask scheduler answers at 'tcp://127.0.0.1:9': start one with `dask scheduler`" in err
    )
    assert "no Dask scheduler answers at 'nonsense://x'" in refused(
        *files, "--dask", "nonsense://x"
    )


def test_workers_that_die_over_the_same_task(data, tmp_path, cluster, refused, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(workers.Dask, "submit", lambda self, *_: self.client.submit(os._exit, 1))
    files = data.shards(tmp_path / "acts", 1)
    err = refused(*files, "--dask", cluster.scheduler_address)
    assert "workers of the Dask cluster died over the same task again and again" in err


def test_without_dask(data, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    files = data.shards(tmp_path / "acts", 1)
    err = refused(*files, "--dask", "tcp://x")
    assert "an audit on tcp://x needs Dask: pip install 'collapsemeter[dask]'" in err
