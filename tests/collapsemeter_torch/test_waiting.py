"""Small batches wait for each other: nothing is lost, and nothing depends on when they are added."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from collapsemeter import ClassMoments
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.moments import EPS
from collapsemeter.stats.sampling import reservoir_slots
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.device_sums import DeviceSums
from collapsemeter_torch.waiting import (
    MOST_ENTRIES,
    MOST_ENTRIES_ON_DEVICE,
    MOST_ROWS,
    WaitingRows,
    most_rows,
)

WIDTH, CLASSES = 24, 5


def data(rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % CLASSES
    means = torch.randn(CLASSES, WIDTH, generator=generator) + 10
    return (means[labels] + 1e-2 * torch.randn(rows, WIDTH, generator=generator)).to(dtype), labels


def filled(sizes: list[int], rows: torch.Tensor, labels: torch.Tensor, **options) -> DeviceSums:
    state = DeviceSums(rows[:1], Settings(CLASSES, **options), "pooled", 8)
    for part in torch.split(torch.arange(len(rows)), sizes):
        state.update(rows[part], labels[part], part.numpy())
    return state


# Batches that wait, ones that fill the block to its end, and ones that are a block of their own.
SIZES = [[400] * 25, [2048] * 4 + [1808], [4000, 28, 2400, 2048, 1524], [1] * 50 + [9950]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_sizes_of_batches_give_the_moments_of_all_rows(sizes, dtype):
    rows, labels = data(10_000, dtype)
    found = ClassMoments.from_sums(filled(sizes, rows, labels).host_sums(), "float32", "live")
    truth = ClassMoments.from_batch(rows.double().numpy(), labels.numpy(), CLASSES)
    np.testing.assert_array_equal(found.counts, truth.counts)
    # Sums of n residuals lose at most n eps of their magnitudes; the shift is near the mean.
    atol = 4 * 10_000 * EPS["float32"] * truth.coarsen("pooled").scatter.max()
    np.testing.assert_allclose(found.scatter, truth.coarsen("pooled").scatter, rtol=0, atol=atol)


def test_what_waits_may_be_looked_at_before_more_comes():
    rows, labels = data(1200)
    state = filled([400, 400], rows[:800], labels[:800])
    assert len(state.waiting.held()[1].labels) == 800  # as a checkpoint within an epoch does
    state.update(rows[800:], labels[800:], np.arange(800, 1200))
    assert len(state.waiting.held()[1].labels) == 1200
    found = ClassMoments.from_sums(state.host_sums(), "float32", "live")
    np.testing.assert_array_equal(found.counts, np.bincount(labels))


@pytest.mark.parametrize("sizes", SIZES)
def test_any_sizes_of_batches_give_the_sample_of_all_rows(sizes):
    """A batch that is a block of its own overtakes the rows that wait: the later row keeps its slot."""
    rows, labels = data(10_000)
    state = filled(sizes, rows, labels)
    state.flush()
    slots = np.full(9, -1)
    for number in range(10_000):  # algorithm R, one row after the other
        slots[reservoir_slots(np.array([number]), 8, 0)] = number
    assert state.sample_ids[:-1].tolist() == slots[:-1].tolist()
    assert torch.equal(state.sample_rows[:-1], rows[slots[:-1]])
    assert torch.equal(state.sample_labels[:-1], labels[slots[:-1]])


def test_a_look_at_the_sums_adds_what_waits_and_changes_no_count():
    rows, labels = data(300)
    state = filled([100] * 3, rows, labels)
    assert state.waiting.count == 300
    assert int(state.sums.counts.sum()) == 300
    assert state.waiting.count == 0
    state.update(rows, labels, range(300))
    assert int(state.host_sums().counts.sum()) == 600
    state.update(rows, labels, range(300))
    state.clear()
    assert int(state.sums.counts.sum()) == 0


def test_memory_is_bounded_at_any_width():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert most_rows(16, cpu) == MOST_ROWS
    assert most_rows(65536, cpu) * 65536 == MOST_ENTRIES
    assert most_rows(65536, gpu) * 65536 == MOST_ENTRIES_ON_DEVICE
    assert WaitingRows(most_rows(2 * MOST_ENTRIES, cpu)).most == 0
    gathered = WaitingRows(MOST_ROWS)
    gathered.put(torch.ones(3, 4, dtype=torch.float16), torch.zeros(3).long(), range(3))
    assert gathered.nbytes == MOST_ROWS * 4 * 4 + 3 * 8


def test_rows_wait_as_they_were_when_they_came():
    """A loop may write into its activations once the forward is over."""
    rows, labels = data(100)
    own = rows.clone()
    state = filled([100], rows, labels)
    rows.fill_(torch.nan)
    assert int(state.sums.nonfinite) == 0
    expected = filled([100], own, labels)
    assert torch.equal(state.sums.scatter, expected.sums.scatter)


@pytest.mark.parametrize("propagate", [False, True])
def test_rows_that_are_not_finite_are_found_when_they_are_added(propagate):
    rows, labels = data(60)
    rows[7, 3], labels[11] = torch.inf, -100
    nonfinite = "propagate" if propagate else "skip"
    sums = filled([20] * 3, rows, labels, nonfinite=nonfinite).host_sums()
    assert (int(sums.nonfinite), int(sums.ignored)) == (1, 1)
    assert int(sums.counts.sum()) == (59 if propagate else 58)
    assert np.isnan(sums.by_class().squares).tolist() == [
        propagate and c == 2 for c in range(CLASSES)
    ]


@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("settled", [False, True])
def test_parts_that_stay_in_the_caches_give_the_sums_of_the_whole(
    kind, propagate, settled, monkeypatch
):
    """Once every class has its shift a block is added in tiles, but for those that hold NaN or Inf."""
    rows, labels = data(1000)
    first, known = rows[:100].clone(), labels[:100].clone()
    rows[700, 3], labels[11], labels[500] = torch.inf, -100, CLASSES + 2
    moments = []
    for rows_at_once, parts in ((1000, 1), (110, 10)):  # the last part is shorter
        cached = rows_at_once * WIDTH * 8
        monkeypatch.setattr("collapsemeter_torch.device_sums.CACHED_BYTES", cached)
        monkeypatch.setattr("collapsemeter_torch.tiles.LEAST_ROWS", 1)
        monkeypatch.setattr("collapsemeter_torch.tiles.TILE_ENTRIES", rows_at_once * WIDTH)
        nonfinite = "propagate" if propagate else "skip"
        settings = Settings(CLASSES, sketch_rows=16, nonfinite=nonfinite)
        state = DeviceSums(rows[:1], settings, kind, 8, wide=True)
        assert len(state._parts(rows)) == parts
        if settled:
            state.update(first, known, range(1000, 1100))
            state.flush()
        state.update(rows, labels, range(1000))
        sums = state.host_sums()
        assert (int(sums.nonfinite), int(sums.ignored), int(sums.invalid)) == (1, 1, 1)
        moments.append(ClassMoments.from_sums(sums, "float32", "live"))
    whole, in_parts = moments
    assert whole.counts.sum() == 997 + propagate + 100 * settled
    np.testing.assert_array_equal(in_parts.counts, whole.counts)
    for name in ("means", "traces", "scatter", "sketch"):
        if getattr(whole, name) is not None:
            found, due = getattr(in_parts, name), getattr(whole, name)
            largest = np.abs(due[np.isfinite(due)]).max(initial=0.0)
            atol = 1e-12 * largest  # in float64, of sums of a thousand residuals
            np.testing.assert_allclose(found, due, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("groups", [0, 16])
@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
def test_tiles_give_the_sums_of_the_update_that_all_frameworks_share(kind, groups, monkeypatch):
    rows, labels = data(3000)
    labels[1500:1600], labels[1700], rows[2900, 0] = -100, CLASSES, torch.nan
    sums = []
    for tiles in (True, False):
        if not tiles:
            monkeypatch.setattr("collapsemeter_torch.tiles.Tiles.know", lambda *_: False)
        monkeypatch.setattr("collapsemeter_torch.tiles.TILE_ENTRIES", 600 * WIDTH)
        state = DeviceSums(rows[:1], Settings(CLASSES), kind, 64, groups=groups, wide=True)
        for part in torch.arange(3000).split(1000):
            state.update(rows[part], labels[part], part.numpy())
            state.flush()
        sums.append((state.host_sums(), state.sample_rows, state.sample_ids))
    (tiled, *sample), (plain, *due) = sums
    assert all(torch.equal(a, b) for a, b in zip(sample, due, strict=True))
    for name in (
        "counts",
        "group_counts",
        "ignored",
        "invalid",
        "nonfinite",
        "unlabelled",
        "mixed",
    ):
        np.testing.assert_array_equal(getattr(tiled, name), getattr(plain, name), err_msg=name)
    for name in ("shift", "sums", "squares"):
        np.testing.assert_allclose(getattr(tiled, name), getattr(plain, name), rtol=0, atol=1e-9)
    if kind != "trace":  # of the upper triangle nothing counts
        found, expected = np.tril(tiled.scatter), np.tril(plain.scatter)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_report_under_autocast_is_that_without():
    rows, labels = data(200)
    net = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, CLASSES))
    reports = []
    for autocast in (False, True):
        with CollapseMeter(net, layers=["0"], verbose=False) as meter:
            for x, y in zip(rows.split(50), labels.split(50), strict=True):
                with meter.batch(y):
                    net(x)
            with torch.autocast("cpu", enabled=autocast, dtype=torch.bfloat16):
                reports.append(meter.compute())
    assert dict(reports[0]["0"]) == dict(reports[1]["0"])
