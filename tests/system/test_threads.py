"""Threads: as many as may be used, results in order, and the same statistics whatever their number."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

from collapsemeter.metrics import pairs
from collapsemeter.system import threads as module
from collapsemeter.system.threads import MOST, threads, usable_threads


@pytest.mark.parametrize(
    ("cores", "chosen", "due"),
    [(4, None, 4), (4, "2", 2), (4, "9", 4), (64, None, MOST), (4, "0", 1), (4, "2,1", 4)],
)
def test_threads_are_as_many_as_may_be_used(cores, chosen, due, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    if chosen is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    assert usable_threads() == due


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for known, due in ((3, 3), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda known=known: known)
        assert usable_threads() == due


@pytest.mark.parametrize("count", [1, 3])
def test_results_are_in_order_and_errors_arrive(count, monkeypatch):
    monkeypatch.setattr(module, "usable_threads", lambda: count)
    with threads() as in_order:
        assert list(in_order(abs, range(-20, 0))) == list(range(20, 0, -1))
        names = set(in_order(lambda _: threading.current_thread().name, range(20)))
        assert (names == {threading.current_thread().name}) == (count == 1)
        with pytest.raises(ZeroDivisionError):
            list(in_order(lambda item: 1 // item, [1, 0]))


@pytest.mark.parametrize("many", [4096, 100])
def test_statistics_of_pairs_do_not_depend_on_threads(many, monkeypatch):
    """To the last bit: bands are what they are, and are added in their order."""
    monkeypatch.setattr(pairs, "_MANY", many)
    monkeypatch.setattr(pairs, "TILE", 64)
    monkeypatch.setattr(pairs, "_BAND", 16)
    monkeypatch.setattr(pairs, "_STRIP", 256)
    rng = np.random.default_rng(0)
    means = rng.normal(size=(150, 9))
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(module, "usable_threads", lambda count=count: count)
        ratio = pairs.VarianceRatio(means, np.ones(150), 0.0)
        found.append((*pairs.pair_statistics(ratio.directions(), beside=[ratio]), ratio.mean))
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(x, y)
