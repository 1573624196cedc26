"""However the same rows are saved and whoever counts them, the report is the core's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collapsemeter import ClassMoments, measure
from collapsemeter.audit import Options, Running, audit, map_files, merge_files
from collapsemeter.audit.saved_state import SavedState
from collapsemeter.stats.sketch import derived_seed


@pytest.mark.parametrize("ending", ["safetensors", "npz", "npy", "h5", "zarr"])
def test_one_file_for_each_layer(data, tmp_path, assert_report, ending):
    files = data.file_per_layer(tmp_path, ending)
    options = Options(
        labels=str(tmp_path / "labels.npy"), head=str(tmp_path / "head.safetensors"),
        num_classes=6,
    )  # fmt: skip
    report = audit(files, options)
    assert_report(report, data.oracle())
    assert report.provenance["rows"] == 400
    assert report.provenance["shards"] == 1


@pytest.mark.parametrize("ending", ["safetensors", "npz", "h5", "zarr"])
def test_many_layers_in_each_file_with_the_labels_inside(data, tmp_path, assert_report, ending):
    files = data.shards(tmp_path / "acts", 3, ending)
    report = audit(files, Options(head=data.head_file(tmp_path)))
    assert_report(report, data.oracle())
    assert report.provenance["shards"] == 3


def test_a_hundred_shards_in_two_processes_and_labels_apart(data, tmp_path, assert_report):
    data.shards(tmp_path / "acts", 100)
    np.save(tmp_path / "labels.npy", data.labels)
    options = Options(labels=str(tmp_path / "labels.npy"), head=data.head_file(tmp_path))
    report = audit(str(tmp_path / "acts" / "*"), options)
    assert_report(report, data.oracle())
    again = audit(str(tmp_path / "acts" / "*"), options, Running(jobs=2))
    assert again.to_json(matrices=True) == report.to_json(matrices=True)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_the_writer_wrote(data, tmp_path, assert_report, jobs):
    report = audit(data.dump(tmp_path / "acts"), running=Running(jobs=jobs))
    assert_report(report, data.oracle())
    assert report.provenance["shards"] > 3


def test_no_head_and_no_second_pass(data, tmp_path, assert_report):
    files = data.file_per_layer(tmp_path)
    options = Options(labels=str(tmp_path / "labels.npy"), num_classes=6)
    assert_report(audit(files, options), data.oracle(head=False))
    report = audit(files, Options(labels=str(tmp_path / "labels.npy"), nc4="none"))
    assert report["fc"].reason("nc4_mismatch") is not None
    assert report["fc"]["nc1_pinv"] == audit(files, options)["fc"]["nc1_pinv"]


@pytest.mark.parametrize("scatter", ["class", "pooled", "trace"])
def test_every_scatter(data, tmp_path, assert_report, scatter):
    folder = data.dump(tmp_path / "acts")
    assert_report(audit(folder, Options(scatter=scatter)), data.oracle(scatter=scatter))


def test_a_sketch_is_the_same_however_rows_were_cut(data, tmp_path, monkeypatch):
    """Rows are hashed by their number through all shards: the sketch is that of all rows in one batch."""
    options = Options(scatter="sketch", sketch_rows=64)
    whole = ClassMoments.from_batch(
        data.layers["fc"], data.labels, 6, scatter="sketch", sketch_rows=64
    )
    assert whole.rows > 64  # rows share buckets
    expected, exact = measure(whole), data.oracle(scatter="pooled")["fc"]

    def assert_same(layer):
        assert layer.intervals.keys() >= expected.intervals.keys()
        values = {name: layer[name] for name in expected}
        assert values == pytest.approx(dict(expected), nan_ok=True, rel=1e-9)
        for name in expected.intervals:
            np.testing.assert_allclose(
                layer.intervals[name], expected.intervals[name], rtol=1e-9, err_msg=name
            )

    for shards in (1, 3, 5):
        files = data.shards(tmp_path / f"acts{shards}", shards)
        assert_same(audit(files, options)["fc"])
    assert_same(audit(files, options, Running(jobs=2, state=tmp_path / "S"))["fc"])
    monkeypatch.setattr("collapsemeter.audit.job.PIECE_BYTES", 3000)
    layer = audit(files, options)["fc"]
    assert_same(layer)
    assert abs(layer["nc1_pinv"] - exact["nc1_pinv"]) < 5 * layer.standard_errors["nc1_pinv"]
    assert layer["nc1_cdnv"] == pytest.approx(exact["nc1_cdnv"], rel=1e-9)
    assert layer.reason("nc1_vci") == "only_a_sketch"
    # Shards that were mapped with the same numbers are hashed apart, and so are those of older states.
    for file in files:
        map_files(
            [file], dataclasses.replace(options, num_classes=6), Running(state=tmp_path / "M")
        )
    paths = sorted((tmp_path / "M").glob("*.state"))
    assert {state.moments("fc").seeds for state in map(SavedState, paths)} == {frozenset([0])}
    merged = merge_files([str(path) for path in paths], tmp_path / "m", options)["fc"]
    assert abs(merged["nc1_pinv"] - exact["nc1_pinv"]) < 5 * merged.standard_errors["nc1_pinv"]
    seeds = SavedState(tmp_path / "m").moments("fc").seeds
    assert seeds == {0, *(derived_seed(SavedState(path).shards[0].id) for path in paths[1:])}


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_predictions_and_logits(data, tmp_path, assert_report, ending):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(400, 6)).astype(np.float32)
    predictions = logits.argmax(axis=1)
    oracle = data.oracle(predictions)
    head = data.head_file(tmp_path)
    for i, more in enumerate(({"predictions": predictions}, {"logits": logits})):
        files = data.shards(tmp_path / f"acts{i}", 3, ending, **more)
        assert_report(audit(files, Options(head=head)), oracle)  # they come before the head's
    renamed = data.shards(tmp_path / "renamed", 2, ending, decided=predictions, z=logits)
    assert_report(audit(renamed, Options(head=head, logits="z")), oracle)
    files = data.shards(tmp_path / "apart", 3, ending)
    np.save(tmp_path / "logits.npy", logits)
    apart = Options(head=head, logits=str(tmp_path / "logits.npy"))
    assert_report(audit(files, apart, Running(jobs=2)), oracle)


def test_pieces_of_a_shard(data, tmp_path, assert_report, monkeypatch):
    monkeypatch.setattr("collapsemeter.audit.job.PIECE_BYTES", 3000)
    monkeypatch.setattr("collapsemeter.audit.piece_rows.CHUNK_BYTES", 500)
    files = data.shards(tmp_path / "acts", 2)
    state = tmp_path / "state"
    report = audit(files, Options(head=data.head_file(tmp_path)), Running(state=state))
    assert_report(report, data.oracle())
    assert report.provenance["shards"] == 2
    assert len(list(state.glob("*.state"))) == 2
    assert not list(state.glob("*.piece"))
    assert len(list(state.glob("*.decisions"))) > 4


def test_a_sample_of_rows_is_the_same_however_it_is_drawn(data, tmp_path, monkeypatch):
    options = Options(head=data.head_file(tmp_path), nc4=150, seed=3)
    single = audit(data.shards(tmp_path / "one", 1), options)
    many = audit(data.shards(tmp_path / "many", 7), options, Running(jobs=2))
    interval = single["fc"].intervals["nc4_agreement"]
    assert 0 < interval[0] < single["fc"]["nc4_agreement"] < interval[1] < 1
    for name in ("nc4_agreement", "ncc_accuracy"):
        assert [single[layer][name] for layer in single] == [many[layer][name] for layer in many]
    chosen = np.sort(np.random.default_rng(3).choice(400, 150, replace=False))
    import collapsemeter as cm

    m = cm.ClassMoments.from_batch(data.fc, data.labels, 6)
    expected = cm.decide(m, data.fc[chosen], data.labels[chosen], head=data.head, sampled=True)
    assert single["fc"]["nc4_agreement"] == expected.agree.sum() / expected.rows.sum()
    assert audit(str(tmp_path / "one/*"), Options(
        head=data.head_file(tmp_path), nc4=150, seed=4
    ))["conv"]["ncc_accuracy"] != single["conv"]["ncc_accuracy"]  # fmt: skip
    # As many as there are, or more, is all.
    exact = audit(str(tmp_path / "one/*"), Options(head=options.head, nc4=400))
    assert "nc4_agreement" not in exact["fc"].intervals
    # And a budget that is too small for all draws a sample by itself.
    monkeypatch.setattr("collapsemeter.audit.second_pass.EXACT_PRODUCTS", 1e3)
    monkeypatch.setattr("collapsemeter.audit.second_pass.SAMPLE_ROWS", 150)
    auto = audit(str(tmp_path / "one/*"), Options(head=options.head, seed=3))
    assert auto["fc"].intervals["nc4_agreement"] == interval
    exact = audit(str(tmp_path / "one/*"), Options(head=options.head, nc4="exact"))
    assert "nc4_agreement" not in exact["fc"].intervals


def test_files_in_another_order_are_equal_to_round_off(data, tmp_path, assert_report):
    files = data.shards(tmp_path / "acts", 5)
    head = data.head_file(tmp_path)
    report = audit([files[i] for i in (3, 0, 4, 2, 1)], Options(head=head))
    assert_report(report, data.oracle())


def test_more_classes_than_features_absent_ones_and_not_a_number(tmp_path, save_arrays):
    import collapsemeter as cm

    rng = np.random.default_rng(5)
    labels = rng.integers(0, 40, 300) * 2
    rows = rng.normal(size=(300, 5)) + rng.normal(size=(80, 5))[labels]
    rows[labels == 10, 2] = np.nan
    rows[7] = np.inf
    for i, part in enumerate(np.array_split(np.arange(300), 4)):
        save_arrays(tmp_path / f"shard-{i}.npz", {"fc": rows[part], "labels": labels[part]})
    report = audit(str(tmp_path / "*.npz"), Options(num_classes=100))["fc"]
    m = cm.ClassMoments.from_batch(rows, labels, 100)
    oracle = cm.measure(m, decisions=cm.decide(m, rows, labels, sampled=False))
    for name, value in oracle.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-9, err_msg=name)
    assert "etf_infeasible" in report.flags
    np.testing.assert_array_equal(report.per_class["count"], m.counts)
    propagated = audit(
        str(tmp_path / "*.npz"), Options(num_classes=100, nonfinite="propagate", scatter="class")
    )["fc"]
    clean = sorted(set(range(100)) - {10, labels[7]})  # other classes are untouched
    for column in ("count", "variance"):
        np.testing.assert_allclose(
            propagated.per_class[column][clean], report.per_class[column][clean], rtol=1e-9
        )
    with pytest.raises(ValueError, match=r"layer 'fc' has \d+ rows that hold NaN or Inf in shard-"):
        audit(str(tmp_path / "*.npz"), Options(nonfinite="raise"))
