"""Processes compute in one thread each; this process goes on in all of its own."""

import os

from collapsemeter.audit.workers import open_workers


def test_processes_have_one_thread_each_and_this_one_keeps_its_own(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with open_workers(jobs=2) as workers:
        values = dict(workers.each(os.getenv, ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]))
        assert "OMP_NUM_THREADS" not in os.environ  # while they are there, too
    assert values == {0: "1", 1: "1"}
