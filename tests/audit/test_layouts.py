"""What people have on disk: labels in many forms, heads, names of layers, maps and sequences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import collapsemeter as cm
from collapsemeter.audit import Options, Running, audit
from collapsemeter.cli import main
from collapsemeter.metrics.class_centres import ClassCentres


def one_file(data, folder: Path, labels: np.ndarray, **more) -> str:
    path = folder / "acts.npz"
    np.savez(path, conv=data.conv, fc=data.fc, labels=labels, **more)
    return str(path)


FORMS = {
    "uint8": lambda y: y.astype(np.uint8),
    "int32": lambda y: y.astype(np.int32),
    "uint64": lambda y: y.astype(np.uint64),
    "column": lambda y: y[:, None],
    "float32": lambda y: y.astype(np.float32),
    "float16 column": lambda y: y[:, None].astype(np.float16),
    "one-hot": lambda y: np.eye(6)[y],
    "one-hot float16": lambda y: np.eye(6, dtype=np.float16)[y],
    "one-hot bool": lambda y: np.eye(6, dtype=bool)[y],
    "one-hot uint8": lambda y: np.eye(6, dtype=np.uint8)[y],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [6, None])
def test_labels_of_every_form(data, tmp_path, assert_report, form, classes):
    """Without a number of classes it is seen in the labels, one-hot ones too."""
    path = one_file(data, tmp_path, FORMS[form](data.labels))
    assert_report(audit(path, Options(num_classes=classes)), data.oracle(head=False))


def test_rows_that_name_no_single_class_are_left_out_and_counted(data, tmp_path, assert_report):
    """In two shards of two passes and a merge: zeros are not class 0, and several ones not the first."""
    one_hot = np.eye(6, dtype=np.float32)[data.labels]
    one_hot[::50], one_hot[1::80] = 0, 0.5
    for i, part in enumerate(np.array_split(np.arange(400), 2)):
        np.savez(
            tmp_path / f"{i}.npz", conv=data.conv[part], fc=data.fc[part], labels=one_hot[part]
        )
    report = audit(str(tmp_path / "*.npz"))
    remaining = one_hot.max(axis=1) == 1
    for layer, rows in (("conv", data.conv), ("fc", data.fc)):
        m = cm.ClassMoments.from_batch(rows[remaining], data.labels[remaining], 6)
        expected = cm.measure(m, decisions=cm.decide(m, rows[remaining], data.labels[remaining]))
        for metric in ("nc1_pinv", "ncc_accuracy"):
            assert report[layer][metric] == pytest.approx(expected[metric], rel=1e-12)
        assert report[layer].per_class["count"].tolist() == m.counts.tolist()
        actual = report[layer].provenance
        assert (actual["unlabelled_rows"], actual["mixed_rows"], actual["nc4_rows"]) == (8, 5, 387)
        assert set(report[layer].flags) >= {"unlabelled_rows", "mixed_rows"}
    assert [text for text in report.warnings if "fc" in text] == [
        "layer 'fc': rows were left out, 8 because their one-hot label is all zeros and 5 because their "
        "label names several classes or parts of them"
    ]


def test_tokens_as_many_as_classes_are_not_one_hot(tmp_path):
    """The features decide: (3, 3) labels of (3, 3, d) are tokens, of (3, d) one-hot rows."""
    labels = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    np.savez(
        tmp_path / "tokens.npz",
        block=np.random.default_rng(0).normal(size=(3, 3, 4)),
        labels=labels,
    )
    np.savez(tmp_path / "rows.npz", fc=np.random.default_rng(0).normal(size=(3, 4)), labels=labels)
    tokens = audit(str(tmp_path / "tokens.npz"), Options(num_classes=3))
    rows = audit(str(tmp_path / "rows.npz"), Options(num_classes=3))
    assert tokens["block"].per_class["count"].tolist() == [6, 3, 0]
    assert rows["fc"].per_class["count"].tolist() == [1, 1, 1]


def test_labels_apart_for_each_shard(data, tmp_path, assert_report):
    folder = tmp_path / "acts"
    folder.mkdir()
    for i, part in enumerate(np.array_split(np.arange(400), 3)):
        save_file({"conv": data.conv[part], "fc": data.fc[part]}, folder / f"s-{i}.safetensors")
        np.save(tmp_path / f"labels-{i}.npy", data.labels[part])
    options = Options(labels=str(tmp_path / "labels-*.npy"), num_classes=6)
    assert_report(audit(str(folder / "*"), options), data.oracle(head=False))


def test_labels_beside_the_layers_and_the_head_in_the_glob(
    data, tmp_path, assert_report, monkeypatch
):
    data.file_per_layer(tmp_path, "npy")
    monkeypatch.chdir(tmp_path)
    options = Options(labels="./labels.npy", head=str(tmp_path / "head.safetensors"))
    assert_report(audit("*.npy", options), data.oracle())
    assert_report(audit("./*", options), data.oracle())
    # A head that nobody named is not taken for a layer.
    report = audit("./*", Options(labels="labels.npy", num_classes=6))
    assert list(report) == ["conv", "fc"]
    assert "pass it with --head" in report.skipped["weight"]


def test_tokens_with_labels_to_ignore(tmp_path, save_arrays):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(30, 7, 5)).astype(np.float32)
    labels = rng.integers(0, 3, (30, 7))
    labels[rng.random((30, 7)) < 0.2] = -100
    save_arrays(tmp_path / "a.npz", {"block": tokens, "labels": labels})
    report = audit(str(tmp_path / "a.npz"))
    rows, bins = tokens.reshape(-1, 5), labels.ravel()
    m = cm.ClassMoments.from_batch(rows, bins, 3)
    oracle = cm.measure(m, decisions=cm.decide(m, rows, bins, sampled=False))
    for name, value in oracle.items():
        np.testing.assert_allclose(report["block"][name], value, rtol=1e-9)
    assert report.provenance["rows"] == 210
    for i, part in enumerate(np.array_split(np.arange(30), 4)):
        save_arrays(tmp_path / f"s-{i}.npz", {"block": tokens[part], "labels": labels[part]})
    files = str(tmp_path / "s-*.npz")
    split = audit(files, Options(num_classes=3, nc4=50))
    whole = audit(str(tmp_path / "a.npz"), Options(num_classes=3, nc4=50))
    assert split["block"]["ncc_accuracy"] == whole["block"]["ncc_accuracy"]


REDUCTIONS = {
    "mean": lambda x, mask: x.mean(axis=(2, 3)),
    "mean_last": lambda x, mask: x.mean(axis=(1, 2)),
    "flatten": lambda x, mask: x.reshape(len(x), -1),
    "auto": lambda x, mask: x.mean(axis=(2, 3)),
}
SEQUENCES = {
    "first": lambda x, mask: x[:, 0],
    "last": lambda x, mask: x[np.arange(len(x)), mask.sum(axis=1) - 1],
    "mean_last": lambda x, mask: (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None],
    "flatten": lambda x, mask: x.reshape(len(x), -1),
}


@pytest.mark.parametrize(("map_how", "how"), list(zip(REDUCTIONS, SEQUENCES, strict=True)))
def test_maps_and_sequences(tmp_path, save_arrays, map_how, how, monkeypatch):
    monkeypatch.setattr("collapsemeter.audit.piece_rows.CHUNK_BYTES", 2000)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    maps = rng.normal(size=(60, 4, 3, 2)) + labels[:, None, None, None]
    words = rng.normal(size=(60, 5, 4)) + labels[:, None, None]
    mask = (np.arange(5) < rng.integers(1, 6, 60)[:, None]).astype(np.int64)
    save_arrays(tmp_path / "maps.npz", {"conv1": maps, "labels": labels})
    arrays = {"block.1": words, "labels": labels, "attention_mask": mask}
    save_arrays(tmp_path / "words.npz", arrays)
    for name, rows, how_of, file in (
        ("conv1", REDUCTIONS[map_how](maps, None), {"conv*": map_how}, "maps.npz"),
        ("block.1", SEQUENCES[how](words, mask), {"block**": how, "**": "mean"}, "words.npz"),
    ):
        report = audit(str(tmp_path / file), Options(reduction=how_of))[name]
        m = cm.ClassMoments.from_batch(rows, labels, 3)
        oracle = cm.measure(m, decisions=cm.decide(m, rows, labels, sampled=False))
        for metric, value in oracle.items():
            np.testing.assert_allclose(report[metric], value, rtol=1e-9, atol=1e-12)


def test_a_mask_of_its_own_name(tmp_path, save_arrays):
    rng = np.random.default_rng(0)
    words, mask = rng.normal(size=(60, 5, 4)), np.ones((60, 5), np.int64)
    mask[:, 3:] = 0
    labels = rng.integers(0, 3, 60)
    save_arrays(tmp_path / "a.npz", {"h": words, "labels": labels, "m": mask})
    np.save(tmp_path / "mask.npy", mask)
    expected = audit(str(tmp_path / "a.npz"), Options(mask="m", reduction="mean"))
    another = Options(mask=str(tmp_path / "mask.npy"), reduction="mean")
    assert audit(str(tmp_path / "a.npz"), another)["h"].to_dict() == expected["h"].to_dict()
    m = cm.ClassMoments.from_batch(words[:, :3].mean(axis=1), labels, 3)
    np.testing.assert_allclose(expected["h"]["nc1_pinv"], cm.measure(m)["nc1_pinv"], rtol=1e-9)


def test_one_logit(tmp_path, data):
    labels = (data.labels > 1).astype(int)
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(1, 8)), rng.normal(size=1)
    save_file({"fc.weight": weight, "fc.bias": bias}, tmp_path / "head.safetensors")
    z = (data.fc @ weight.T + bias).astype(np.float32)
    path = one_file(data, tmp_path, labels)
    report = audit(path, Options(head=str(tmp_path / "head.safetensors")))
    head = cm.Head.from_single_logit(weight[0], bias)
    m = cm.ClassMoments.from_batch(data.fc, labels, 2)
    decisions = cm.decide(m, data.fc, labels, head=head)
    expected = cm.measure(m, head=head, decisions=decisions)
    for metric, value in expected.items():
        np.testing.assert_allclose(report["fc"][metric], value, rtol=1e-9, atol=1e-12)
    z[3] = np.nan
    for logits in (z, z[:, 0]):
        path = one_file(data, tmp_path, labels, logits=logits)
        actual = audit(path)["fc"]["nc4_agreement"]
        assert actual == ((m_nearest(m, data.fc) == (z[:, 0] > 0)) & ~np.isnan(z[:, 0])).mean()


def m_nearest(moments, rows):
    return ClassCentres(moments).nearest(rows.astype(np.float64))


HEADS = {
    "prefix": ({"model.fc.weight": 0, "model.fc.bias": 1}, {}),
    "kernel": ({"fc.kernel": "T", "fc.bias": 1}, {}),
    "alone": ({"W": 0}, {}),
    "named": ({"a.weight": 2, "fc.weight": 0, "fc.bias": 1}, {"head_name": "fc"}),
    "by layer": ({"weight": 0, "bias": 1}, {"head_layer": "fc"}),
    "whole name": ({"out": 0, "in": 2}, {"head_name": "out"}),
}


@pytest.mark.parametrize("form", HEADS)
def test_heads(data, tmp_path, form):
    names, options = HEADS[form]
    weight = data.head.weight
    known = {0: weight, "T": weight.T, 1: data.head.bias, 2: np.ones((4, 12))}
    arrays = {name: np.ascontiguousarray(known[which]) for name, which in names.items()}
    save_file(arrays, tmp_path / "head.safetensors")
    path = one_file(data, tmp_path, data.labels)
    report = audit(path, Options(head=str(tmp_path / "head.safetensors"), **options))
    bias = data.head.bias if any("bias" in name for name in names) else None
    oracle = cm.measure(
        cm.ClassMoments.from_batch(data.fc, data.labels, 6), head=cm.Head(weight, bias)
    )
    assert report.provenance["head_layer"] == "fc"
    np.testing.assert_allclose(report["fc"]["nc3_self_duality"], oracle["nc3_self_duality"])


def test_the_head_of_a_layer_by_its_name_comes_last(data, tmp_path):
    wide = np.concatenate([data.fc, data.conv[:, :4]], axis=1)  # as wide as conv
    np.savez(tmp_path / "a.npz", block=wide, conv=data.conv, labels=data.labels)
    rng = np.random.default_rng(0)
    save_file({"block.weight": rng.normal(size=(6, 12))}, tmp_path / "head.safetensors")
    head = str(tmp_path / "head.safetensors")
    report = audit(str(tmp_path / "a.npz"), Options(head=head))
    assert list(report) == ["conv", "block"]
    assert report.provenance["head_layer"] == "block"
    ordered = audit(str(tmp_path / "a.npz"), Options(head=head, layers=["b*", "*"]))
    assert list(ordered) == ["block", "conv"]


def test_shards_of_an_array_without_a_name(data, tmp_path, save_arrays, assert_report):
    """Files of one unnamed array are layers, or, with labels that differ, shards of one layer."""
    parts = np.array_split(np.arange(400), 4)
    for i, part in enumerate(parts):
        arrays = {"features": data.fc[part], "labels": data.labels[part]}
        save_arrays(tmp_path / f"train{i}.npz", arrays)
        np.save(tmp_path / f"part{i}.npy", data.fc[part])
    oracle = data.oracle(head=False)["fc"]
    report = audit(str(tmp_path / "train*.npz"), Options(num_classes=6))
    assert_report(report, {"features": oracle})
    np.save(tmp_path / "labels.npy", data.labels)
    options = Options(num_classes=6, labels=str(tmp_path / "labels.npy"))
    assert_report(audit(str(tmp_path / "part*.npy"), options), {"features": oracle})
    for name, rows in data.layers.items():
        save_arrays(tmp_path / f"{name}.npz", {"features": rows, "labels": data.labels})
    layers = audit([str(tmp_path / f"{name}.npz") for name in data.layers], Options(num_classes=6))
    assert_report(layers, data.oracle(head=False))


NAMES = [
    "a/b",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "line\nbreak",
    "émoji 🎉",
    "x" * 300,
    "[0]*",
    "CON",
]


def test_layers_of_any_name(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acts").mkdir()
    for i in range(2):
        arrays = {name: data.fc[i::2] + j for j, name in enumerate(NAMES)}
        save_file(arrays | {"labels": data.labels[i::2]}, tmp_path / f"acts/{i}\n<b>.safetensors")
    arguments = [
        "audit",
        *(f"acts/{i}\n<b>.safetensors" for i in range(2)),
        "--json",
        "--state",
        "S",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert sorted(json.loads(out)["layers"]) == sorted(NAMES)
    for path in (tmp_path / "S").iterdir():
        assert path.name.isascii()
        assert len(path.name) < 150
        assert not set(path.name) & set('<>:"/\\|?*\n ')
    assert main([*arguments, "--resume", "--layers", "[0]*"]) == 0
    assert list(json.loads(capsys.readouterr().out)["layers"]) == ["[0]*"]
    assert main([*arguments[:-3], "--fail-if", "line\nbreak:nc1_pinv>0"]) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1


WRONG = {
    "missing": ({}, 'acts.npz has no array "y"; arrays found: conv (400, 12) float32, fc (400, 8) float32, '
                "labels (400,) int64. Pass --labels NAME, or --labels FILE.", ["--labels", "y"]),
    "range": ({"labels": np.arange(400) % 7}, "label 6 at row 6 is outside 0..5", ["--num-classes", "6"]),
    "negative": ({"labels": np.arange(400) - 1}, "label -1 at row 0 is outside", []),
    "fraction": ({"labels": np.full(400, 2.5)}, "label 2.5 at row 0 is no whole number", []),
    "float16": ({"labels": np.full(400, 2.5, np.float16)}, "labels of dtype float16", ["--num-classes", "6"]),
    "nan": ({"labels": np.full(400, np.nan)}, "hold nan: pass class numbers", []),
    "bool": ({"labels": np.ones(400, bool)}, "labels have dtype bool", ["--num-classes", "6"]),
    "hinge": ({"labels": np.where(np.arange(400) % 2, 1, -1)}, "pass (labels + 1) // 2", []),
    "multi-label": ({"labels": np.ones((400, 3))}, "400 of 400 rows name several classes", []),
    "logits as labels": ({"labels": np.full((400, 3), -7.5)}, "one-hot rows of 3, and hold -7.5", []),
    "short": ({"labels": np.zeros(399, int)}, "labels have 399 rows and the activations 400", []),
    "ignored": ({"labels": np.full(400, -100)}, "there is no labelled row: every label is ignored", []),
    "ignored uint8": ({"labels": np.full(400, 255, np.uint8)}, "there is no labelled row", ["--ignore-index", "255"]),
    "huge": ({"labels": np.arange(400) * 10**9}, "the largest label is 399000000000 and there are 400 rows", []),
    "square": ({"labels": np.zeros((400, 3), int)}, "layer 'conv' gave features of shape (400, 12) and labels "
               "have shape (400, 3)", ["--num-classes", "6"]),
    "zeros": ({"labels": np.zeros((400, 3), int)}, "there is no labelled row", []),
    "predictions": ({"predictions": np.zeros(400)}, "predictions 'predictions' of", []),
    "predictions short": ({"predictions": np.zeros(40, int)}, "predictions have 40 rows", []),
    "predictions from 1 on": ({"predictions": np.arange(400) % 6 + 1}, "predictions 'predictions' of acts.npz: "
                              "prediction 6 at row 5 is outside 0..5 (num_classes=6) and not -1", []),
    "predictions ignored": ({"predictions": np.full(400, -100)}, "prediction -100 at row 0 is outside 0..5", []),
    "logits": ({"logits": np.zeros((400, 2, 3))}, "pass one row of 6 scores for each label", []),
    "logits int": ({"logits": np.zeros((400, 6), int)}, "pass one row of 6 scores", []),
    "narrow logits": ({"logits": np.zeros((400, 5))}, "shape (400, 5), labels (400,), and num_classes=6", []),
    "wide logits": ({"logits": np.zeros((400, 7))}, "if there are 7 classes, pass --num-classes 7", []),
    "a single logit of many": ({"logits": np.zeros(400)}, "pass one row of 6 scores for each label", []),
    "no feature": ({"conv": np.zeros((400, 0)), "fc": np.zeros((400, 0))}, "a layer has a feature or more", []),
    "sequence": ({"words": np.zeros((400, 3, 4))}, "'words'", []),
    "mask": ({"words": np.zeros((400, 3, 4)), "attention_mask": np.ones((400, 2))},
             "a mask must have the shape (batch, positions)", ["--reduction", "words=mean"]),
    "reduction": ({}, "--reduction cnov*=...: no layer is named so; there are conv, fc", ["--reduction", "cnov*=mean"]),
    "reduction name": ({}, "reduction='median': choose auto, flatten", ["--reduction", "median"]),
    "layers": ({}, "--layers x*: no layer is named so; there are conv, fc", ["--layers", "x*"]),
    "no predictions": ({}, 'acts.npz has no array "p"; arrays found: conv', ["--predictions", "p"]),
    "no labels file": ({}, "no file matches 'none.npy'", ["--labels", "none.npy"]),
    "no ending": ({}, "labels.txt is text, which begins '0 1 2': convert it", ["--labels", "labels.txt"]),
    "two heads": ({}, "head.safetensors has no one weight of a head; arrays found: a.weight (6, 8) float32, "
                  "b.weight (6, 8) float32. Pass --head-name NAME", ["--head", "head.safetensors"]),
    "no such head": ({}, "has no head named 'c'", ["--head", "head.safetensors", "--head-name", "c"]),
    "wide head": ({}, "the head takes 5 features (weight (6, 5)) and there is no layer of as many: conv (12), fc (8)",
                  ["--head", "wide.npy"]),
    "head of the wrong layer": ({}, "the head takes 8 features (weight (6, 8)) and there is no layer of as many: "
                                "conv (12)", ["--head", "head.npy", "--head-layer", "conv"]),
    "head layer": ({}, "--head-layer 'x': no such layer; there are conv, fc", ["--head", "head.npy", "--head-layer", "x"]),
    "head layer alone": ({}, "say something of a head: pass --head FILE", ["--head-layer", "fc"]),
    "head classes": ({}, "the head has 6 classes (weight (6, 8)) and num_classes=7: they must agree",
                     ["--head", "head.npy", "--num-classes", "7"]),
    "head transposed": ({}, "the head takes 6 features (weight (8, 6)) and there is no layer of as many: conv (12), "
                        "fc (8); its transpose would fit", ["--head", "transposed.npy"]),
    "single logit transposed": ({}, "(weight (8, 1)) and there is no layer of as many: conv (12), fc (8); its "
                                "transpose would fit", ["--head", "column.npy"]),
    "single logit flat": ({}, "flat.npy has no one weight of a head; arrays found: flat (8,) float32. Pass --head-name "
                          "NAME, for NAME.weight (C, d) and NAME.bias (C,); of a single logit they are (1, d) and (1,).",
                          ["--head", "flat.npy"]),
    "heads": ({}, "--head 'h*.npy' means 2 files: pass one", ["--head", "h*.npy"]),
    "classes": ({}, "num_classes=0: there must be at least one class", ["--num-classes", "0"]),
    "nc4": ({}, "nc4='some': choose auto, exact, none or a number of rows", ["--nc4", "some"]),
    "nc4 zero": ({}, "nc4=0: choose", ["--nc4", "0"]),
    "nc4 negative": ({}, "nc4=-5: choose", ["--nc4", "-5"]),
    "seed": ({}, "seed=-1: pass 0 or more", ["--seed", "-1"]),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_one_sentence(data, tmp_path, refused, what):
    arrays, text, arguments = WRONG[what]
    np.savez(
        tmp_path / "acts.npz",
        **({"conv": data.conv, "fc": data.fc, "labels": data.labels} | arrays),
    )
    (tmp_path / "labels.txt").write_text("0 1 2")
    (tmp_path / "labels").mkdir()  # of the name of the array, and no matter
    w = data.head.weight.astype(np.float32)
    save_file({"a.weight": w, "b.weight": w}, tmp_path / "head.safetensors")
    np.save(tmp_path / "head.npy", w)
    np.save(tmp_path / "h2.npy", w)
    np.save(tmp_path / "wide.npy", np.ones((6, 5)))
    np.save(tmp_path / "transposed.npy", w.T)
    np.save(tmp_path / "column.npy", w[:1].T)
    np.save(tmp_path / "flat.npy", w[0])
    assert text in refused("acts.npz", *arguments)
    assert not list(tmp_path.glob("*.state"))


def test_rows_of_a_late_piece_are_said_to_be_counted_from_there(data, tmp_path, save_arrays):
    files = data.shards(tmp_path / "acts", 2)
    labels = data.labels.copy()
    labels[300] = 9
    np.save(tmp_path / "labels.npy", labels)
    options = Options(labels=str(tmp_path / "labels.npy"), num_classes=6)
    with pytest.raises(ValueError, match=r"label 9 at row 100 .*\(rows are counted from 200 on\)"):
        audit(files, options)


FILES = {
    "two widths": ([{"fc": (5, 3), "labels": 5}, {"fc": (5, 4), "labels": 5}], "layer 'fc' is (5, 3) float64 in"),
    "lengths": ([{"fc": (5, 3), "conv": (6, 3), "labels": 5}], "arrays of one shard have the same number of rows"),
    "a part is missing": ([{"fc": (5, 3), "conv": (5, 3), "labels": 5}, {"fc": (5, 3), "labels": 5}],
                          "layer 'fc' is in 2 files and layer 'conv' in 1 (not in"),
    "no floats": ([{"x": 5, "labels": 5}], "no array of floats with two axes or more was found"),
    "labels in some": ([{"fc": (5, 3), "labels": 5}, {"fc": (5, 3)}], "labels have 5 rows and the activations 5 + 5"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_files_that_do_not_fit_each_other(tmp_path, refused, what):
    files, text = FILES[what]
    for i, shapes in enumerate(files):
        arrays = {
            n: np.arange(s) % 2 if isinstance(s, int) else np.zeros(s) for n, s in shapes.items()
        }
        np.savez(tmp_path / f"a{i}.npz", **arrays)
    assert text in refused("*.npz")


def test_the_labels_of_a_file_with_two_arrays(data, tmp_path, refused):
    np.savez(tmp_path / "acts.npz", fc=data.fc)
    np.savez(tmp_path / "y.npz", a=data.labels, b=data.labels)
    err = refused("acts.npz", "--labels", "y.npz")
    assert 'y.npz has no array "labels"; arrays found: a (400,) int64, b (400,) int64.' in err


def test_the_labels_of_a_file_whose_other_array_is_not_read(data, tmp_path, refused):
    """Labels are missing for want of their name; that an array beside them is refused is not why."""
    np.savez(tmp_path / "acts.npz", fc=data.fc)
    odd = np.array(["a", "b"])
    np.savez(tmp_path / "y.npz", a=data.labels, b=data.labels, odd=odd)
    err = refused("acts.npz", "--labels", "y.npz")
    assert 'y.npz has no array "labels"; arrays found: a (400,) int64, b (400,) int64' in err
    np.savez(tmp_path / "y.npz", odd=odd)
    assert "labels y.npz: array 'odd' " in refused("acts.npz", "--labels", "y.npz")


OPTIONS = {
    "scatter": "full", "nonfinite": "drop", "phase": "dreaming", "convention": "x", "nc4": 1.5,
    "reduction": {"*": len}, "seed": -1, "num_classes": -1,
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_checked_before_the_work(name):
    with pytest.raises(ValueError, match=f"{name}|no convention"):
        Options(**{name: OPTIONS[name]})


def test_running_is_checked(data, tmp_path):
    path = one_file(data, tmp_path, data.labels)
    with pytest.raises(ValueError, match="jobs=0: there must be at least one process"):
        audit(path, running=Running(jobs=0))
    with pytest.raises(ValueError, match="jobs=2 and dask='tcp://x': choose one of them"):
        audit(path, running=Running(jobs=2, dask="tcp://x"))


# The order of shards


def numbered(data, folder, count=12):
    """Write shards whose numbers have one digit or two, and labels of their own, of one file and of as many."""
    (folder / "acts").mkdir()
    np.save(folder / "labels.npy", data.labels)
    parts = np.array_split(np.arange(len(data.labels)), count)
    # Written from the last one on: a folder may list its files in this order.
    for i, part in reversed(list(enumerate(parts))):
        np.save(folder / "acts" / f"fc.shard{i}.npy", data.fc[part])
        np.save(folder / f"y.shard{i}.npy", data.labels[part])
    return [f"acts/fc.shard{i}.npy" for i in range(count)]


@pytest.mark.parametrize("labels", ["labels.npy", "y.shard*.npy"])
def test_shards_pair_with_labels_of_their_own_by_number(data, tmp_path, monkeypatch, labels):
    files = numbered(data, tmp_path)
    monkeypatch.chdir(tmp_path)
    expected = audit(files, Options(labels=labels))["fc"]
    m = cm.ClassMoments.from_batch(data.fc, data.labels, data.labels.max() + 1)
    assert expected["nc1_pinv"] == pytest.approx(cm.measure(m)["nc1_pinv"], rel=1e-9)
    for named in (["acts"], ["acts/*.npy"]):
        actual = audit(named, Options(labels=labels))["fc"]
        assert actual["nc1_pinv"] == expected["nc1_pinv"]
        assert actual.intervals == expected.intervals
    for order in (sorted(files), files[::-1]):  # of a shell, and of a mistake
        with pytest.raises(ValueError, match="pair with the shards by their order"):
            audit(order, Options(labels=labels))


def test_files_of_other_names_keep_the_order_in_which_they_are_named(data, tmp_path):
    files, parts = [], np.array_split(np.arange(len(data.labels)), 3)
    for name, part in zip(("train2", "test10", "extra1"), parts, strict=True):
        files.append(str(tmp_path / f"{name}.npz"))
        np.savez(files[-1], fc=data.fc[part])
    np.save(tmp_path / "labels.npy", data.labels)
    report = audit(files, Options(labels=str(tmp_path / "labels.npy")))
    m = cm.ClassMoments.from_batch(data.fc, data.labels, data.labels.max() + 1)
    layer = report[next(iter(report))]
    assert layer["nc1_pinv"] == pytest.approx(cm.measure(m)["nc1_pinv"], rel=1e-9)
