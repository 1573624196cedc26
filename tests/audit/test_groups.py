"""Rows are dealt to groups by their number in the whole data set: intervals do not depend on how it was cut and counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.audit import Options, Running, audit, map_files, merge_files
from collapsemeter.audit.saved_state import FORMAT, SavedState
from collapsemeter.stats.groups import Groups
from collapsemeter.stats.state_file import read_state, write_state

NAMES = ("nc1_trace_ratio", "separation", "nc1_cdnv", "nc2_etf_error", "nc2_equinorm")


@pytest.fixture(scope="module")
def ragged(data):
    """The data with labels that are left out, so that a row's place is not its number, and a row of NaN."""
    labels, fc = data.labels.copy(), data.fc.copy()
    labels[::7] = -100
    labels[200:240] = -100
    fc[5] = np.nan
    return dataclasses.replace(data, labels=labels, fc=fc)


@pytest.fixture
def assert_intervals(ragged):
    """Compare with the core's own, of all rows at once."""

    def compare(report: cm.CollapseReport) -> None:
        for name, rows in ragged.layers.items():
            moments = cm.ClassMoments.from_batch(rows, ragged.labels, ragged.C)
            truth, layer = cm.measure(moments), report[name]
            assert layer.intervals.keys() & set(NAMES) == truth.intervals.keys() & set(NAMES)
            assert truth.intervals.keys() >= {"nc1_trace_ratio", "separation"}
            for ends in ("estimates", "intervals"):
                values, expected = getattr(layer, ends), getattr(truth, ends)
                for metric in expected.keys() & set(NAMES):
                    np.testing.assert_allclose(
                        values[metric], expected[metric], rtol=1e-9, err_msg=metric
                    )
        assert not [said for said in report.warnings if "numbers" in said]

    return compare


@pytest.mark.parametrize(("shards", "jobs"), [(1, 1), (3, 2), (7, 1)])
def test_any_cut_has_the_same_intervals(
    ragged, tmp_path, assert_intervals, monkeypatch, shards, jobs
):
    files = ragged.shards(tmp_path / "acts", shards)
    assert_intervals(audit(files, running=Running(jobs=jobs)))
    monkeypatch.setattr("collapsemeter.audit.job.PIECE_BYTES", 3000)
    assert_intervals(audit(files, running=Running(jobs=jobs)))


def test_shards_that_are_mapped_one_by_one(ragged, tmp_path, assert_intervals):
    files, options, first = ragged.shards(tmp_path / "acts", 5), Options(num_classes=6), 0
    bounds = np.linspace(0, ragged.rows, 6).astype(int)
    for file, a, b in zip(files, bounds, bounds[1:], strict=False):
        given = dataclasses.replace(options, first_row=first)
        map_files([file], given, Running(state=tmp_path / "S"))
        first += int((ragged.labels[a:b] >= 0).sum())
    assert_intervals(merge_files([str(tmp_path / "S/*.state")], tmp_path / "m", options))
    assert_intervals(audit(files, options, Running(state=tmp_path / "S", resume=True)))


def test_numbers_that_come_twice_are_said(ragged, tmp_path):
    files, options = ragged.shards(tmp_path / "acts", 3), Options(num_classes=6)
    for file in files:
        map_files([file], options, Running(state=tmp_path / "S"))
    merged = merge_files([str(tmp_path / "S/*.state")], tmp_path / "m", options)
    resumed = audit(files, options, Running(state=tmp_path / "S", resume=True))
    for report, of in ((merged, "shard-0"), (resumed, "shard-1")):
        (said,) = [said for said in report.warnings if "numbers" in said]
        assert said.startswith(f"rows of {of}.safetensors, shard-")
        assert said.endswith("pass --first-row to audit map")
        assert report["fc"].intervals["nc1_trace_ratio"]


def test_no_groups_and_few(ragged, tmp_path, cli):
    files = ragged.shards(tmp_path / "acts", 2)
    report = audit(files, Options(groups=0))
    assert report["fc"].no_interval["nc1_trace_ratio"] == "no_groups"
    status, out, _ = cli(*files, "--groups", 0, "--json")
    assert (status, '"nc1_trace_ratio": "no_groups"' in out) == (0, True)
    four = cm.ClassMoments.from_batch(ragged.fc, ragged.labels, 6, groups=4)
    interval = audit(files, Options(groups=4))["fc"].intervals["nc1_trace_ratio"]
    np.testing.assert_allclose(interval, cm.measure(four).intervals["nc1_trace_ratio"], rtol=1e-9)
    with pytest.raises(ValueError, match="groups=5: pass 16, 8, 4, or 0 for no intervals"):
        Options(groups=5)
    with pytest.raises(ValueError, match="first_row=-1: pass 0 or more"):
        Options(first_row=-1)


def test_states_of_older_versions_load_and_have_no_intervals(ragged, tmp_path):
    files, options = ragged.shards(tmp_path / "acts", 2), Options(num_classes=6)
    states = [str(path) for path in map_files(files, options, Running(state=tmp_path / "S"))]
    header, arrays = read_state(states[0], FORMAT)
    del header["key"]["groups"]
    for entry in header["layers"]:
        del entry["groups"]
    for record in header["shards"]:
        del record["first_row"]
    older = {name: array for name, array in arrays.items() if "group_" not in name}
    assert len(older) < len(arrays)
    write_state(states[0], header, older, FORMAT)
    report = merge_files(states, tmp_path / "m", options)
    assert report["fc"].no_interval["nc1_trace_ratio"] == "no_groups"
    assert report["fc"].provenance["rows"] == (ragged.labels >= 0).sum() - 1
    assert SavedState(states[0]).moments("fc").groups is None
    assert isinstance(SavedState(states[1]).moments("fc").groups, Groups)
    # They are counted again where a run resumes.
    resumed = audit(files, options, Running(state=tmp_path / "S", resume=True))
    assert resumed["fc"].intervals["nc1_trace_ratio"]


def test_groups_that_do_not_add_up_are_a_damaged_state(ragged, tmp_path):
    files, options = ragged.shards(tmp_path / "acts", 1), Options(num_classes=6)
    (path,) = map_files(files, options, Running(state=tmp_path / "S"))
    header, arrays = read_state(path, FORMAT)
    arrays["0.group_counts"] = arrays["0.group_counts"] + 1
    write_state(path, header, arrays, FORMAT)
    with pytest.raises(cm.CorruptStateError, match="its groups do not add up to its classes"):
        SavedState(path).moments("conv")


def test_what_an_audit_of_other_files_counted_is_counted_again(ragged, tmp_path):
    """The third shard's rows have other numbers where the second one is not there; the first one's have not."""
    files, options = ragged.shards(tmp_path / "acts", 3), Options(num_classes=6)
    running = Running(state=tmp_path / "S", resume=True)
    audit(files, options, running)
    remaining = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "S").glob("*.state")}
    rest = [files[0], files[2]]
    assert audit(rest, options, running).to_json() == audit(rest, options).to_json()
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "S").glob("*.state")}
    changed = [name for name, time in now.items() if remaining[name] != time]
    assert [name[:7] for name in changed] == ["shard-2"]


def test_a_bad_label_is_named_before_anything_is_counted(data, tmp_path, refused, save_arrays):
    files = data.shards(tmp_path / "acts", 3)
    save_arrays(tmp_path / "acts/shard-1.npz", {**data.layers, "labels": np.full(400, 77)})
    error = refused(files[0], tmp_path / "acts/shard-1.npz", files[2], "--num-classes", 6)
    assert "shard-1.npz: label 77 at row 0 is outside 0..5" in error
    assert not list(tmp_path.glob("collapsemeter-*.state"))
