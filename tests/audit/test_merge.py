"""States of shards merge to one, if they are of one audit and no shard is in two of them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from collapsemeter import CorruptStateError
from collapsemeter.audit import Options, Running, audit, map_files, merge_files
from collapsemeter.audit.saved_state import FORMAT, SavedState
from collapsemeter.stats.state_file import read_state, write_state


def mapped(files, folder, **options) -> list[str]:
    given = Options(**({"num_classes": 6} | options))
    return [str(path) for path in map_files(files, given, Running(state=folder))]


def test_merged_states_give_what_an_audit_gives(data, tmp_path):
    files, head = data.shards(tmp_path / "acts", 5), data.head_file(tmp_path)
    states = mapped(files, tmp_path / "S", head=head)
    merged = merge_files([str(tmp_path / "S/*.state")], tmp_path / "m.state", Options(head=head))
    expected = audit(files, Options(head=head, nc4="none"))
    assert merged.to_json(matrices=True) == expected.to_json(matrices=True)
    # What is merged merges on, as long as no shard is in two of them.
    first = merge_files(states[:3], tmp_path / "a", Options(head=head))
    again = merge_files([str(tmp_path / "a"), *states[3:]], tmp_path / "b", Options(head=head))
    assert first.provenance["shards"] == 3
    assert again.provenance["rows"] == 400
    for order in itertools.islice(itertools.permutations(states), 0, 120, 40):
        another = merge_files(list(order), tmp_path / "o", Options(head=head))
        for layer, metric in itertools.product(("conv", "fc"), ("nc1_pinv", "nc2_etf_error")):
            np.testing.assert_allclose(another[layer][metric], expected[layer][metric], rtol=1e-10)


def test_states_hold_the_causes_and_those_without_them_load(data, tmp_path):
    one_hot = np.eye(6)[data.labels]
    one_hot[:3], one_hot[7] = 0, 0.5
    for i, part in enumerate((slice(0, 200), slice(200, 400))):
        np.savez(tmp_path / f"{i}.npz", fc=data.fc[part], labels=one_hot[part])
    states = mapped([str(tmp_path / "0.npz"), str(tmp_path / "1.npz")], tmp_path / "S")
    merged = merge_files(states, tmp_path / "m.state", Options())
    provenance = merged["fc"].provenance
    assert (provenance["unlabelled_rows"], provenance["mixed_rows"], provenance["rows"]) == (
        3,
        1,
        396,
    )
    header, arrays = read_state(states[1], FORMAT)
    for entry in header["layers"]:
        del entry["unlabelled"], entry["mixed"]
    write_state(states[1], header, arrays, FORMAT)
    again = merge_files(states, tmp_path / "again.state", Options())
    assert again.to_json(matrices=True) == merged.to_json(matrices=True)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "npy", "h5"])
def test_a_shard_twice_under_whatever_name(data, tmp_path, ending, refused):
    if ending == "npy":
        (tmp_path / "acts").mkdir()
        files = [str(tmp_path / "acts/shard-0.npy")]
        np.save(files[0], data.fc)
        np.save(tmp_path / "labels.npy", data.labels)
    else:
        files = data.shards(tmp_path / "acts", 1, ending)
    copy = tmp_path / f"renamed-1.{ending}"
    shutil.copy(files[0], copy)
    options = {"labels": str(tmp_path / "labels.npy")} if ending == "npy" else {}
    options["layers"] = ["*"]
    states = mapped(files, tmp_path / "S", **options)
    states += mapped([str(copy)], tmp_path / "T", **options)
    if ending == "npy":  # its name was the file's
        assert SavedState(states[0]).layers != SavedState(states[1]).layers
        assert SavedState(states[0]).shards[0].id == SavedState(states[1]).shards[0].id
    err = refused("merge", *states, "-o", tmp_path / "m")
    assert "holds the rows of" in err
    assert "a shard is counted once; leave one of them out" in err
    if ending != "npy":
        assert "renamed-1" in refused(*files, copy, "--num-classes", 6)


CHANGED = [
    ({"num_classes": 7}, "num_classes=6, the other with 7"),
    ({"phase": "live"}, "phase='frozen-eval', the other with 'live'"),
    ({"ignore_index": 0}, "ignore_index=-100, the other with 0"),
    ({"nonfinite": "propagate"}, "nonfinite='skip', the other with 'propagate'"),
    ({"sketch_rows": 64}, "sketch_rows=512, the other with 64"),
    ({"scatter": "trace"}, "scatter='auto', the other with 'trace'"),
    ({"labels": "other"}, "labels='labels', the other with 'other'"),
    ({"reduction": {"fc": "flatten"}}, "reductions={'conv': 'auto', 'fc': 'auto'}, the other with"),
    ({"layers": ["fc", "conv"]}, None),
    ({"layers": ["fc"]}, "the other with {'fc': 'auto'}"),
]


@pytest.mark.parametrize(("options", "text"), CHANGED)
def test_other_options_are_refused_by_name(data, tmp_path, options, text):
    files = data.shards(tmp_path / "acts", 2, other=data.labels[::-1])
    a = mapped(files[:1], tmp_path / "S")
    b = mapped(files[1:], tmp_path / "T", **options)
    if text is None:  # the order of layers does not matter
        assert merge_files(a + b, tmp_path / "m", Options()).provenance["rows"] == 400
        return
    with pytest.raises(ValueError, match="cannot be merged: one state was counted with") as caught:
        merge_files(a + b, tmp_path / "m", Options())
    assert text in str(caught.value)


def test_other_layers_are_refused(data, tmp_path, save_arrays):
    files = data.shards(tmp_path / "acts", 1)
    another = tmp_path / "other.npz"
    save_arrays(another, {"conv": data.conv[:, :5], "fc": data.fc, "labels": data.labels})
    states = mapped(files, tmp_path / "S") + mapped([str(another)], tmp_path / "T")
    text = r"one state has layers conv \(6, 12\), fc \(6, 8\), the other conv \(6, 5\), fc \(6, 8\)"
    with pytest.raises(ValueError, match=text):
        merge_files(states, tmp_path / "m", Options())


def test_a_file_that_was_changed_between_the_states(data, tmp_path, save_arrays):
    files = data.shards(tmp_path / "acts", 2)
    before = mapped(files, tmp_path / "S")
    save_arrays(Path(files[0]), {**data.layers, "labels": data.labels})
    mapped(files[:1], tmp_path / "S")
    assert len(list((tmp_path / "S").glob("*.state"))) == len(before) + 1
    with pytest.raises(ValueError, match=r"shard-0\.safetensors was changed between the states"):
        merge_files([str(tmp_path / "S/*.state")], tmp_path / "m", Options())


def test_empty_shards_and_missing_classes(data, tmp_path, save_arrays, assert_report):
    order = np.argsort(data.labels, kind="stable")
    fc, conv, labels = data.fc[order], data.conv[order], data.labels[order]
    bounds = [0, 0, 80, 80, 200, 400, 400]
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        arrays = {"conv": conv[a:b], "fc": fc[a:b], "labels": labels[a:b]}
        save_arrays(tmp_path / f"shard-{i}.npz", arrays)
    options = Options(head=data.head_file(tmp_path))
    folder = tmp_path / "S"
    report = audit(str(tmp_path / "*.npz"), options, Running(state=folder))
    assert_report(report, data.oracle())
    running = Running(state=folder, resume=True)
    assert audit(str(tmp_path / "*.npz"), options, running).to_json() == report.to_json()


@pytest.mark.parametrize("how", ["flatten", "mean", "mean_last", "tokens"])
def test_empty_shards_of_maps(tmp_path, save_arrays, how):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(20, 3, 2, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (20, 3, 2) if how == "tokens" else 20)
    for i, part in enumerate((slice(0, 0), slice(0, 20))):
        save_arrays(tmp_path / f"shard-{i}.npz", {"m": maps[part], "labels": labels[part]})
    report = audit(str(tmp_path / "*.npz"), Options(reduction=how, num_classes=3))
    assert report.provenance["rows"] == labels.size


def test_nothing_to_merge():
    with pytest.raises(ValueError, match="there is no state to merge"):
        merge_files([], "m", Options())


def crafted(path: Path, change) -> Path:
    """Return a state with a right checksum whose header was changed."""
    source = SavedState(path)
    header = json.loads(json.dumps(source.header))
    arrays = {name: source._file.read(name) for name in source._file.names}
    change(header, arrays)
    write_state(
        path, {k: v for k, v in header.items() if k not in ("format", "version")}, arrays, FORMAT
    )
    return path


def _set(*keys):
    def change(header, arrays):
        place = header
        for key in keys[:-2]:
            place = place[key]
        if keys[-1] is KeyError:
            del place[keys[-2]]
        else:
            place[keys[-2]] = keys[-1]

    return change


def _absurd(header, arrays):
    """Say 10^9 classes wherever they are said."""
    for place in (header["key"], *header["layers"]):
        place["num_classes"] = 10**9


@pytest.mark.parametrize(
    "change",
    [
        _set("layers", 3), _set("layers", []), _set("layers", KeyError), _set("layers", [{}]),
        _set("layers", 0, "name", 5), _set("layers", 0, "name", "fc"), _set("layers", 0, "width", "x"),
        _set("layers", 0, "width", 5), _set("layers", 0, "kind", "class "), _set("layers", 0, "phase", "?"),
        _set("layers", 0, "shards", 5), _set("layers", 0, "num_classes", 5),
        _set("shards", None), _set("shards", [3]), _set("shards", 0, "id", 5), _set("shards", 0, "rows", -1),
        _set("shards", 0, "files", []), _set("shards", 0, "extra", 1), _set("shards", 0, "files", "a", 5),
        _set("key", KeyError), _set("key", 5), _set("key", "num_classes", "x"), _set("key", "phase", "?"),
        _set("key", "nonfinite", "?"), _set("key", "ignore_index", KeyError),
        _set("layers", 0, "num_classes", 10**9), _set("key", "num_classes", 10**9), _absurd,
        lambda header, arrays: arrays.pop("0.counts"),
        lambda header, arrays: arrays.pop("0.scatter"),
        lambda header, arrays: arrays.update({"0.means": np.zeros((1, 2))}),
        lambda header, arrays: arrays.update({"0.counts": np.zeros(6)}),
        lambda header, arrays: arrays.update({"0.counts": np.ones((6, 2), np.int64)}),
        lambda header, arrays: arrays.update({"0.traces": np.array(["a"])}),
    ],
)  # fmt: skip
def test_states_that_were_crafted(data, tmp_path, change, refused):
    (path,) = mapped(data.shards(tmp_path / "acts", 1), tmp_path / "S")
    crafted(Path(path), change)
    with pytest.raises(CorruptStateError, match=r"is not the state of an audit|is not a state"):
        SavedState(path).moments("conv")
    assert "is not" in refused("merge", path, "-o", tmp_path / "m")
    # An audit counts again; what it sees only when it merges, it says.
    running = Running(state=tmp_path / "S", resume=True)
    options = Options(num_classes=6)
    files = str(tmp_path / "acts/*")
    try:
        report = audit(files, options, running)
    except CorruptStateError as error:
        assert path in str(error)  # noqa: PT017  # or it does not raise
    else:
        assert report.to_json() == audit(files, options).to_json()
