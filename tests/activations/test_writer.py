"""The writer: what it writes is read back bit for bit, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.activations import Writer, open_arrays
from collapsemeter.activations.manifest import RESERVED, Manifest, sha256_of_path
from collapsemeter.audit import audit
from collapsemeter.stats.sums import MIXED, UNLABELLED


def read_back(folder) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    for record in Manifest.load(folder / "manifest.json").files:
        assert sha256_of_path(folder / record.path) == record.sha256
        assert (folder / record.path).stat().st_size == record.bytes
        with open_arrays(folder / record.path) as file:
            for name, array in file.arrays.items():
                parts.setdefault(name, []).append(np.array(file.read(name, 0, array.shape[0])))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shard_bytes", [1, 700, 2**28])
def test_bit_for_bit(tmp_path, dtype, shard_bytes):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 3, 2)).astype(dtype)
    labels, logits = rng.integers(0, 4, 50), rng.normal(size=(50, 4)).astype(np.float32)
    head = cm.Head(rng.normal(size=(4, 6)), rng.normal(size=4))
    with Writer(
        tmp_path / "d", num_classes=4, head=head, shard_bytes=shard_bytes, step=7
    ) as writer:
        for i in range(0, 50, 9):
            part = slice(i, i + 9)
            writer.write({"a/b\n": rows[part]}, labels[part], logits=logits[part])
    actual = read_back(tmp_path / "d")
    assert actual["a/b\n"].tobytes() == rows.tobytes()
    assert actual["a/b\n"].dtype == rows.dtype
    np.testing.assert_array_equal(actual["labels"], labels)
    np.testing.assert_array_equal(actual["logits"], logits)
    manifest = Manifest.load(tmp_path / "d" / "manifest.json")
    assert (manifest.step, manifest.head_layer, manifest.layers) == (7, "a/b\n", ("a/b\n",))
    assert len(manifest.files) == {1: 6, 700: 3 if dtype == "float64" else len(manifest.files)}.get(
        shard_bytes, 1
    )
    with open_arrays(tmp_path / "d" / manifest.head.path) as file:
        np.testing.assert_array_equal(file.read("weight", 0, 4), head.weight)
        np.testing.assert_array_equal(file.read("bias", 0, 4), head.bias)


def test_the_caller_may_use_its_buffer_again(tmp_path):
    buffer, labels = np.zeros((2, 3)), np.zeros(2, int)
    with Writer(tmp_path / "d", num_classes=9) as writer:
        for i in range(4):
            buffer[:], labels[:] = i, i
            writer.write({"fc": buffer}, labels)
    np.testing.assert_array_equal(read_back(tmp_path / "d")["fc"][:, 0], np.arange(4).repeat(2))
    np.testing.assert_array_equal(read_back(tmp_path / "d")["labels"], np.arange(4).repeat(2))


def test_labels_of_tokens_and_one_hot_ones(tmp_path):
    with Writer(tmp_path / "t", num_classes=3) as writer:
        writer.write({"h": np.zeros((2, 4, 5))}, [[0, 1, -100, 2], [2, 2, 2, -100]])
    np.testing.assert_array_equal(
        read_back(tmp_path / "t")["labels"], [[0, 1, -100, 2], [2, 2, 2, -100]]
    )
    with Writer(tmp_path / "o", num_classes=3) as writer:
        writer.write({"h": np.zeros((3, 5))}, np.eye(3))
    np.testing.assert_array_equal(read_back(tmp_path / "o")["labels"], [0, 1, 2])


def test_labels_that_name_no_single_class_are_read_back_as_such(tmp_path):
    labels = np.eye(4)[[0, 1, 2, 3, 3]]
    labels[0], labels[2] = 0, [0.5, 0.5, 0, 0]
    with Writer(tmp_path / "d", num_classes=4) as writer:
        writer.write({"fc": np.eye(5)}, labels, predictions=np.zeros(5, bool))
        writer.write(
            {"fc": np.eye(5)}, np.array([[0.0], [1], [3], [2], [0]]), predictions=np.ones(5, bool)
        )
    actual = read_back(tmp_path / "d")["labels"]
    assert actual.tolist() == [UNLABELLED, 1, MIXED, 3, 3, 0, 1, 3, 2, 0]
    provenance = audit(str(tmp_path / "d"))["fc"].provenance
    assert [provenance[name] for name in ("rows", "unlabelled_rows", "mixed_rows", "nc4_rows")] == [
        8,
        1,
        1,
        8,
    ]


def test_tokens_as_many_as_classes_are_written_as_they_are(tmp_path):
    tokens = [[0, 1, 0], [1, 0, 0]]
    with Writer(tmp_path / "t", num_classes=3) as writer:
        writer.write({"h": np.zeros((2, 3, 5))}, tokens)
    assert read_back(tmp_path / "t")["labels"].tolist() == tokens
    with Writer(tmp_path / "o", num_classes=3) as writer:
        writer.write({"h": np.zeros((2, 3, 5)), "pooled": np.zeros((2, 5))}, tokens)
    assert read_back(tmp_path / "o")["labels"].tolist() == [1, 0]


GOOD = {"fc": np.zeros((2, 3))}
BAD = {
    "a shape": ({"fc": np.zeros((2, 4))}, [0, 1], {}, "the batch holds fc (N, 4) float64, labels, the batches "
                "before fc (N, 3) float64, labels: every batch holds the same arrays"),
    "a dtype": ({"fc": np.zeros((2, 3), np.float32)}, [0, 1], {}, "fc (N, 3) float32"),
    "a layer": ({**GOOD, "conv": np.zeros((2, 3))}, [0, 1], {}, "conv (N, 3) float64"),
    "predictions": (GOOD, [0, 1], {"predictions": [0, 1]}, "labels, predictions, the batches before"),
    "lengths": (GOOD, [0, 1, 1], {}, "layer 'fc' has shape (2, 3) and dtype float64, labels have shape (3,)"),
    "one axis": ({"fc": np.zeros(2)}, [0, 1], {}, "pass one row of floats for each label"),
    "integers": ({"fc": np.zeros((2, 3), int)}, [0, 1], {}, "dtype int64"),
    "texts": ({"fc": np.array([["a"], ["b"]])}, [0, 1], {}, "dtype <U1"),
    "no layer": ({}, [0, 1], {}, "the batch has no layer"),
    "a label": (GOOD, [0, 3], {}, "label 3 at row 1 is outside 0..2"),
    "short predictions": (GOOD, [0, 1], {"predictions": [0]}, "predictions have shape (1,) and labels (2,)"),
    "short logits": (GOOD, [0, 1], {"logits": np.zeros((1, 3))}, "logits have shape (1, 3) and labels (2,)"),
    "float predictions": (GOOD, [0, 1], {"predictions": [0.5, 1]}, "predictions have dtype float64"),
    "int logits": (GOOD, [0, 1], {"logits": np.zeros((2, 3), int)}, "logits have dtype int64"),
    "wide logits": (GOOD, [0, 1], {"logits": np.zeros((2, 4))}, "logits have shape (2, 4), and num_classes=3"),
    "predictions of no class": (GOOD, [0, 1], {"predictions": [1, 3]}, "prediction 3 at row 1 is outside 0..2"),
    "no feature": ({"fc": np.zeros((2, 0))}, [0, 1], {}, "layer 'fc' has shape (2, 0)"),
    "flat logits": (GOOD, [0, 1], {"logits": np.zeros(2)}, "logits have shape (2,)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_batch_that_does_not_fit_is_not_written(tmp_path, what):
    layers, labels, extras, text = BAD[what]
    with Writer(tmp_path / "d", num_classes=3) as writer:
        writer.write(GOOD, [0, 1])
        with pytest.raises(ValueError, match=r".+") as caught:
            writer.write(layers, labels, **extras)
        assert text in str(caught.value)
        writer.write(GOOD, [1, 2])
    actual = read_back(tmp_path / "d")
    np.testing.assert_array_equal(actual["labels"], [0, 1, 1, 2])
    assert actual["fc"].shape == (4, 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_classes": 0}, "num_classes=0: there must be at least one class"),
        ({"phase": "dreaming"}, "phase='dreaming': choose one of"),
        (
            {"phase": "reference"},
            "phase='reference': choose one of live, frozen-train, frozen-eval",
        ),
        ({"shard_bytes": 0}, "shard_bytes=0"),
        ({"head_layer": "fc"}, "head_layer='fc' says which layer a head reads: pass head, too"),
        ({"head": cm.Head(np.eye(4))}, r"head weight has shape \(4, 4\) and num_classes=3"),
    ],
)
def test_choices_are_checked_at_once(tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        Writer(tmp_path / "d", **({"num_classes": 3} | options))
    assert not (tmp_path / "d").exists()


def test_a_head_layer_that_is_not_written(tmp_path):
    writer = Writer(tmp_path / "d", num_classes=3, head=cm.Head(np.eye(3)), head_layer="out")
    with pytest.raises(ValueError, match="head_layer='out' is not among the layers: fc"):
        writer.write(GOOD, [0, 1])


def test_nothing_was_written(tmp_path):
    writer = Writer(tmp_path / "d", num_classes=3)
    with pytest.raises(ValueError, match=r"no batch was written to .*d: write at least one"):
        writer.close()


def test_after_close(tmp_path):
    with Writer(tmp_path / "d", num_classes=3) as writer:
        writer.write(GOOD, [0, 1])
    with pytest.raises(ValueError, match="is closed"):
        writer.write(GOOD, [0, 1])
    before = (tmp_path / "d/manifest.json").read_bytes()
    writer.close()
    assert (tmp_path / "d/manifest.json").read_bytes() == before


def test_a_dump_is_never_overwritten_and_an_unfinished_one_is(tmp_path):
    folder = tmp_path / "d"

    def stop(writer):
        for _ in range(5):
            writer.write(GOOD, [0, 1])
        raise RuntimeError("stop")

    with (
        pytest.raises(RuntimeError, match="stop"),
        Writer(folder, num_classes=3, shard_bytes=1) as w,
    ):
        stop(w)
    assert not (folder / "manifest.json").exists()
    assert len(list(folder.glob("shard-*"))) == 5
    with Writer(folder, num_classes=3) as writer:
        writer.write(GOOD, [0, 1])
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "shard-00000.safetensors"]
    with pytest.raises(ValueError, match="holds a dump already: choose another folder"):
        Writer(folder, num_classes=3)


def die_before_change(number: int, folder: Path) -> None:
    """Kill this process before it opens or renames one more file of a folder than so many."""
    changes = iter(range(number))

    def hook(event: str, arguments: tuple) -> None:
        change = event in ("open", "os.mkdir", "os.rename")
        if change and str(arguments[0]).startswith(str(folder)) and next(changes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def test_killed_at_any_moment_there_is_a_whole_dump_or_none(tmp_path):
    whole, killed = [], True
    while killed:
        folder = tmp_path / str(len(whole))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests
            pid = os.fork()
        if not pid:
            try:
                die_before_change(len(whole), folder)
                with Writer(folder, num_classes=3, shard_bytes=1) as writer:
                    for _ in range(4):
                        writer.write({"fc": np.zeros((2, 1000))}, [0, 1])
            finally:
                os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        whole.append((folder / "manifest.json").exists())
        if whole[-1]:
            assert read_back(folder)["fc"].shape == (8, 1000)
    assert whole[-1]
    assert whole.count(False) > 8  # four shards and the manifest, each opened and renamed
    assert whole == sorted(whole)


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"writing activations needs safetensors: pip install"):
        Writer(tmp_path / "d", num_classes=3)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("name", RESERVED)
def test_a_layer_may_be_called_like_another_array(tmp_path, name):
    rows, labels = np.eye(3, 5).repeat(4, axis=0), np.arange(3).repeat(4)
    with Writer(tmp_path, num_classes=3, head=cm.Head(np.eye(3, 5))) as writer:
        writer.write({"conv": rows, name: 2 * rows}, labels, predictions=labels)
    report = audit(str(tmp_path))
    assert list(report) == ["conv", name]
    assert report[name].per_class["mean_norm"] == pytest.approx(
        2 * report["conv"].per_class["mean_norm"]
    )
    assert report[name]["nc4_mismatch"] == 0
