"""Files of several epochs are never pooled by mistake; honest shards are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collapsemeter.activations import Writer
from collapsemeter.audit import Options, audit
from collapsemeter.audit.epochs import what_numbers_count

C = 4


@pytest.fixture
def epochs():
    """Features of three epochs of the same rows: (epoch, features, labels)."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % C
    means = rng.normal(size=(C, 8))
    return [
        (epoch, (means[labels] + noise * rng.normal(size=(80, 8)) + epoch).astype("f4"), labels)
        for epoch, noise in ((1, 2.0), (5, 1.0), (20, 0.3))
    ]


NAMES = ("epoch-{:03}", "run/epoch={}/acts", "ckpt_{}", "step{}", "{}", "e{}", "model.{}")
NO_SHARDS = "have the same labels, as files of several epochs have, which are no shards of one"


@pytest.mark.parametrize("name", NAMES)
def test_epochs_are_refused_whatever_they_are_called(epochs, tmp_path, save_arrays, refused, name):
    files = []
    for epoch, features, labels in epochs:
        files.append(Path(name.format(epoch) + ".npz"))
        (tmp_path / files[-1]).parent.mkdir(parents=True, exist_ok=True)
        save_arrays(tmp_path / files[-1], {"feat": features, "labels": labels})
    err = refused(*files)
    assert f"{files[0]} and {files[1]} {NO_SHARDS}: audit them with --epoch STEP FILE" in err
    assert "pass --one-epoch if they are of one" in err
    assert not list(tmp_path.glob("*.state"))


@pytest.mark.parametrize("ending", ["safetensors", "npz", "zarr", "h5"])
@pytest.mark.parametrize("named", [True, False])
def test_epochs_are_refused_in_every_format(epochs, tmp_path, save_arrays, refused, ending, named):
    for epoch, features, labels in epochs:
        arrays = {"feat" if named else "features": features, "labels": labels}
        save_arrays(tmp_path / f"epoch-{epoch}.{ending}", arrays)
    files = [f"epoch-{epoch}.{ending}" for epoch, *_ in epochs]
    err = refused(*files)
    words = NO_SHARDS if named else "would be two layers, and are called like two epochs"
    assert words in err
    assert "--epoch STEP FILE" in err


def test_epochs_with_labels_of_their_own(epochs, tmp_path, refused):
    for epoch, features, labels in epochs:
        (tmp_path / f"epoch-{epoch}").mkdir()
        np.save(tmp_path / f"epoch-{epoch}" / "fc.npy", features)
        np.save(tmp_path / f"epoch-{epoch}" / "labels.npy", labels)
    err = refused("epoch-*/fc.npy", "--labels", "epoch-*/labels.npy")
    assert f"epoch-1/fc.npy and epoch-5/fc.npy {NO_SHARDS}" in err


def test_shuffled_epochs_are_told_by_their_names(epochs, tmp_path, save_arrays, refused):
    rng = np.random.default_rng(1)
    for epoch, features, labels in epochs:
        order = rng.permutation(len(labels))
        for name in (f"epoch-{epoch}", f"x{epoch}"):
            arrays = {"feat": features[order], "labels": labels[order]}
            save_arrays(tmp_path / f"{name}.npz", arrays)
    assert NO_SHARDS in refused("epoch-*.npz")
    assert audit(str(tmp_path / "x*.npz")).provenance["shards"] == 3  # nothing tells


def test_dumps_without_a_step(epochs, tmp_path, refused, cli):
    for epoch, features, labels in epochs:
        with Writer(tmp_path / f"dump-{epoch}", num_classes=C) as writer:
            writer.write({"fc": features}, labels)
    assert NO_SHARDS in refused("dump-1", "dump-5", "dump-20")
    status, out, _ = cli("--epoch", 1, "dump-1", "--epoch", 5, "dump-5", "--json")
    assert status == 0
    assert [json.loads(line)["step"] for line in out.splitlines()] == [1, 5]


def test_states_of_several_epochs_do_not_merge(epochs, tmp_path, save_arrays, refused, cli):
    for epoch, features, labels in epochs:
        save_arrays(tmp_path / f"{epoch}.npz", {"fc": features, "labels": labels})
        assert cli("map", f"{epoch}.npz", "-o", "st", "--num-classes", C)[0] == 0
    assert NO_SHARDS in refused("map", "1.npz", "5.npz", "-o", "both", "--num-classes", C)
    assert not (tmp_path / "both").exists()
    assert NO_SHARDS in refused("merge", "st/*.state", "-o", "m.state")
    assert not (tmp_path / "m.state").exists()
    status, out, _ = cli("merge", "st/*.state", "-o", "m.state", "--one-epoch", "--json")
    assert (status, json.loads(out)["provenance"]["rows"]) == (0, 240)


def test_shards_of_many_pieces(epochs, tmp_path, save_arrays, refused, cli, monkeypatch):
    monkeypatch.setattr("collapsemeter.audit.job.PIECE_BYTES", 500)
    for epoch, features, labels in epochs:
        save_arrays(tmp_path / f"{epoch}.npz", {"fc": features, "labels": labels})
        assert cli("map", f"{epoch}.npz", "-o", "st", "--num-classes", C)[0] == 0
    assert NO_SHARDS in refused("merge", "st/*.state", "-o", "m.state")


HONEST = {
    "shard": "shard-{}", "part": "train.part{}", "rank": "rank-{}/acts", "of": "fc-0000{}-of-00003",
    "of one epoch": "epoch-7/shard-{}",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_shards_with_the_same_labels_are_pooled(epochs, tmp_path, save_arrays, cli, name):
    for i, (_, features, labels) in enumerate(epochs):
        path = tmp_path / (HONEST[name].format(i) + ".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, {"feat": features, "labels": labels})
    files = [HONEST[name].format(i) + ".npz" for i in range(3)]
    status, out, err = cli(*files, "--json")
    assert (status, err) == (0, "")
    about = json.loads(out)["provenance"]
    assert (about["rows"], about["shards"]) == (240, 3)
    assert cli("map", *files, "-o", "st", "--num-classes", C)[0] == 0
    assert cli("merge", "st/*.state", "-o", "m.state", "--quiet")[0] == 0


def test_other_honest_files(epochs, tmp_path, save_arrays, cli, refused):
    """Files of one class each; slices of one array of labels; whatever else, where that is said."""
    features = epochs[0][1]
    for i in range(4):
        arrays = {"feat": features[20 * i : 20 * i + 20], "labels": np.full(20, i // 2)}
        save_arrays(tmp_path / f"class{i}.npz", arrays)
        np.save(tmp_path / f"part-{i}.npy", features[20 * i : 20 * i + 20])
        arrays = {"feat": features[20 * i : 20 * i + 20], "labels": np.arange(20) % C}
        save_arrays(tmp_path / f"{'abcd'[i]}.npz", arrays)
    np.save(tmp_path / "labels.npy", np.arange(80) % C)
    assert cli("class*.npz", "--quiet")[0] == 0
    assert cli("part-*.npy", "--labels", "labels.npy", "--quiet")[0] == 0
    assert NO_SHARDS in refused("[abcd].npz")
    status, out, _ = cli("[abcd].npz", "--one-epoch", "--json")
    assert (status, json.loads(out)["provenance"]["rows"]) == (0, 80)


def test_each_epoch_has_its_head(epochs, tmp_path, save_arrays, cli, refused):
    rng = np.random.default_rng(2)
    calls, heads = [], []
    for epoch, features, labels in epochs:
        save_arrays(tmp_path / f"{epoch}.npz", {"fc": features, "labels": labels})
        np.save(tmp_path / f"head{epoch}.npy", rng.normal(size=(C, 8)))
        calls += ["--epoch", epoch, f"{epoch}.npz"]
        heads += ["--head", f"{epoch}=head{epoch}.npy"]
    err = refused(*calls, "--head", "head1.npy")
    assert "--head head1.npy: it is the head of one epoch, and there are 3 (1, 5, 20)" in err
    assert "pass --head STEP=FILE for each epoch that has one" in err
    assert "there is no epoch 7, but 1, 5, 20" in refused(*calls, "--head", "7=head1.npy")
    assert "STEP=FILE once for each epoch" in refused(*calls, *heads, "--head", "head1.npy")
    status, out, _ = cli(*calls, *heads[2:], "--json")
    assert status == 0
    records = [json.loads(line) for line in out.splitlines()]
    measured = ["nc3_self_duality" in record["layers"]["fc"]["metrics"] for record in records]
    assert measured == [False, True, True]
    for record, (epoch, *_) in list(zip(records, epochs, strict=True))[1:]:
        itself = audit(
            str(tmp_path / f"{epoch}.npz"), Options(head=str(tmp_path / f"head{epoch}.npy"))
        )
        expected = itself["fc"]["nc3_self_duality"]
        assert record["layers"]["fc"]["metrics"]["nc3_self_duality"] == expected
    status, out, _ = cli(*calls, *heads)
    assert status == 0
    assert out.startswith("The final layer over 3 epochs\n\nepoch ")
    assert [line.split()[0] for line in out.splitlines()[4:7]] == ["1", "5", "20"]


def test_the_step_of_a_manifest_is_not_overruled(epochs, tmp_path, refused):
    with Writer(tmp_path / "dump", num_classes=C, step=5) as writer:
        writer.write({"fc": epochs[0][1]}, epochs[0][2])
    assert "--epoch 3 dump: the manifest says step 5; leave --epoch out" in refused(
        "--epoch", 3, "dump"
    )


def test_every_result_begins_with_what_it_is_of(data, tmp_path, cli, capsys):
    from collapsemeter.cli import main

    files = data.shards(tmp_path / "acts", 2)
    begin = (
        "400 rows of 6 classes in 2 shards, from 2 files: shard-0.safetensors, shard-1.safetensors"
    )
    hint = "no head: NC3 and NC4 are not measured; pass --head FILE"
    status, out, _ = cli(*files, "--out", "r.json", "--html", "r.html")
    assert status == 0
    assert " ".join(out.split()).startswith(f"{begin} {hint}")
    assert cli(*files, "--quiet")[1].startswith(f"{begin}; fc (frozen-eval): ")
    page = (tmp_path / "r.html").read_text()
    assert page.index(begin) < page.index('<p class="summary">')
    assert hint in page
    assert list(json.loads((tmp_path / "r.json").read_text()))[3] == "provenance"
    assert main(["show", "r.json"]) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{begin} {hint}")
    assert main(["show", "r.json", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(f"{begin}; fc (frozen-eval): ")
    assert hint not in cli(*files, "--head", data.head_file(tmp_path))[1]
    # Its own decisions are enough for NC4.
    decided = data.shards(tmp_path / "more", 2, predictions=data.labels)
    assert "no head: NC3 is not measured" in " ".join(cli(*decided)[1].split())


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("epoch-1.npz", "epoch-2.npz", "epochs"),
        ("shard-1-of-2.npz", "shard-2-of-2.npz", "shards"),
        ("train/epoch-1.npz", "test/epoch-2.npz", "unknown"),
        ("epoch-1.npz", "epoch-1-2.npz", "unknown"),
        ("epoch-1.npz", "epoch-1.npz", "unknown"),
    ],
)
def test_numbers_tell_apart_only_paths_that_are_alike_otherwise(first, second, kind):
    assert what_numbers_count(first, second) == kind
