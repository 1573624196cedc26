"""The manifest: what it refuses, and that it is read back as it was written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from collapsemeter.activations import ActivationsError
from collapsemeter.activations import manifest as module
from collapsemeter.activations.manifest import FileRecord, Manifest, sha256_of, sha256_of_path

RECORD = FileRecord("shard-0.safetensors", 10, sha256_of(b"a"))
PLAIN = Manifest((RECORD, replace(RECORD, path="ranks/1/b.npz")), ("conv", "fc"), 10)
FULL = replace(PLAIN, head=RECORD, head_layer="fc", step=3, phase="live", ignore_index=255)


@pytest.mark.parametrize("manifest", [PLAIN, FULL, replace(PLAIN, layers=("a\n<b>🎉",))])
def test_round_trip(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    assert Manifest.load(tmp_path / "manifest.json") == manifest


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../a.npz", "a/../../b", "..", "", ".", "C:\\a", "C:a", "a\\..\\b", "\\\\host\\a",
     "http://x/a", "//host/a", "a/..", "./../a", "a\0b", "a\nb"],
)  # fmt: skip
@pytest.mark.parametrize("where", ["files", "head"])
def test_paths_that_lead_out_of_the_folder(path, where):
    record = replace(RECORD, path=path)
    changed = replace(PLAIN, files=(record,)) if where == "files" else replace(PLAIN, head=record)
    with pytest.raises(
        ActivationsError, match=r"m\.json is not a manifest of activations: "
    ) as caught:
        Manifest.parse(changed.to_json(), "m.json")
    assert "leads out of the folder" in str(caught.value)
    assert "\n" not in str(caught.value)


def _changed(**changes):
    return {**json.loads(FULL.to_json()), **changes}


BAD = {
    "version": (_changed(version=2), "has manifest version 2, this collapsemeter reads up to 1: upgrade"),
    "version text": (_changed(version="2"), "is not a manifest"),
    "version none": (_changed(version=None), "is not a manifest"),
    "version bool": (_changed(version=True), "is not a manifest"),
    "format": (_changed(format="other"), "its format is 'other'"),
    "list": ([1], "is not a manifest"),
    "null": (None, "is not a manifest"),
    "files": (_changed(files=3), "is not a manifest"),
    "no files": (_changed(files=[]), "it names no file"),
    "files text": (_changed(files=["a"]), "is not a manifest"),
    "twice": (_changed(files=[_changed()["files"][0]] * 2), "'shard-0.safetensors' is named twice"),
    "layers": (_changed(layers=[3]), "3 is not a text"),
    "layers text": (_changed(layers="fc"), "'fc' is not a list"),
    "classes": (_changed(num_classes=-1), "-1 is not a natural number"),
    "no classes": (_changed(num_classes=0), "0 is not a natural number"),
    "classes bool": (_changed(num_classes=True), "True is not a natural number"),
    "classes float": (_changed(num_classes=2.0), "2.0 is not a natural number"),
    "ignore": (_changed(ignore_index="x"), "'x' is not a whole number"),
    "ignore float": (_changed(ignore_index=1.5), "1.5 is not a whole number"),
    "step": (_changed(step=1.5), "1.5 is not a whole number"),
    "phase": (_changed(phase="dreaming"), "phase 'dreaming'"),
    "sha": (_changed(files=[{"path": "a", "bytes": 1, "sha256": "ab"}]), "'ab' is not a SHA-256"),
    "bytes": (_changed(files=[{"path": "a", "bytes": "1", "sha256": "0" * 64}]), "'1' is not a natural"),
    "head": (_changed(head=3), "is not a manifest"),
    "head layer": (_changed(head_layer=3), "3 is not a text"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_manifest(what):
    record, text = BAD[what]
    with pytest.raises(ActivationsError, match=r"m\.json") as caught:
        Manifest.parse(json.dumps(record), "m.json")
    assert text in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": "a\\nb"}', b'{"version": 1e999}', b"NaN",
     b'{"format": "collapsemeter.activations", "version": 1, "files": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_garbage_is_one_sentence(text):
    with pytest.raises(ActivationsError, match=r"m\.json is not a manifest") as caught:
        Manifest.parse(text, "m.json")
    assert "\n" not in str(caught.value)


def test_every_field_is_needed():
    for name in _changed().keys() - {"format"}:
        left = {key: value for key, value in _changed().items() if key != name}
        with pytest.raises(ActivationsError, match=f"KeyError: '{name}'"):
            Manifest.parse(json.dumps(left), "m.json")


def test_what_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 10)
    (tmp_path / "m.json").write_text(FULL.to_json())
    with pytest.raises(ActivationsError, match=r"m\.json is larger than any manifest"):
        Manifest.load(tmp_path / "m.json")
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "none.json")


def test_the_digest_of_a_folder_is_that_of_what_is_in_it(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        np.save(tmp_path / folder / "inner" / "x.npy", np.arange(3))
        (tmp_path / folder / "y").write_bytes(b"abc")
    assert sha256_of_path(tmp_path / "a") == sha256_of_path(tmp_path / "b")
    assert sha256_of_path(tmp_path / "a" / "y") == hashlib.sha256(b"abc").hexdigest()
    (tmp_path / "a" / "y").rename(tmp_path / "a" / "z")
    assert sha256_of_path(tmp_path / "a") != sha256_of_path(tmp_path / "b")
