"""State files: bit-for-bit round trips, and every kind of damage told in one exception."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import ClassMoments, CorruptStateError
from collapsemeter.stats.state_file import _digest, read_state, write_state

KINDS = ("class", "pooled", "sketch", "trace")


def small(kind="pooled") -> ClassMoments:
    rng = np.random.default_rng(0)
    rows = (1e6 + rng.normal(size=(9, 2))).astype(np.float32)
    rows[0] = np.nan
    labels = np.array([0, 1, -100, 0, 1, 0, 1, 0, 0])
    return ClassMoments.from_batch(rows, labels, 3, scatter=kind, phase="live", shard="a/é\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poisoned", [False, True])
def test_round_trip_bit_for_bit(tmp_path, kind, poisoned):
    m = small(kind)
    if poisoned:
        m = m.merge(ClassMoments.from_batch(
            [[np.nan, 1.0]], [1], 3, scatter=kind, phase="live", nonfinite="propagate", seed=1
        ))  # fmt: skip
    m.save(tmp_path / "a.npz")
    back = ClassMoments.load(tmp_path / "a.npz")
    for name in ("counts", "means", "means_low", "traces", "scatter", "sketch", "signs"):
        a, b = getattr(m, name), getattr(back, name)
        if a is None:
            assert b is None
        else:
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
            assert not b.flags.writeable
    for name in ("feature_dtype", "phase", "shards", "ignored", "nonfinite", "seeds"):
        assert getattr(m, name) == getattr(back, name)
    m.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 2**21 + 1])
def test_a_checksum_is_of_every_byte_whatever_pieces_are_read(size):
    data = bytes(np.random.default_rng(size).integers(0, 256, size, np.uint8))
    found = _digest(io.BytesIO(data + b"the checksum itself"), size)
    assert found == hashlib.sha256(data).hexdigest().encode()


def test_a_resumed_stream_equals_an_uninterrupted_one(tmp_path):
    rng = np.random.default_rng(1)
    rows, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    straight = resumed = ClassMoments.empty(3, 4)
    for i in range(0, 60, 10):
        straight = straight.update(rows[i : i + 10], labels[i : i + 10])
        resumed = resumed.update(rows[i : i + 10], labels[i : i + 10])
        resumed.save(tmp_path / "state")
        resumed = ClassMoments.load(tmp_path / "state")
    assert straight.means.tobytes() == resumed.means.tobytes()
    assert straight.scatter.tobytes() == resumed.scatter.tobytes()
    assert cm.measure(straight).to_dict() == cm.measure(resumed).to_dict()


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.nightly), 7], ids=["every", "sampled"]
)
def test_every_flipped_byte_and_every_truncation_is_noticed(tmp_path, step):
    path = tmp_path / "layer.cm.npz"
    small("trace").save(path)
    whole = path.read_bytes()
    places = range(0, len(whole), step)
    damaged = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in places]
    damaged += [whole[:i] for i in places]
    damaged += [whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])]
    damaged += [b"\0" * len(whole), b"garbage" * 40, whole + b"\n", b"\n" + whole, whole + whole]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CorruptStateError, match=r"layer\.cm\.npz is not a whole state file"):
            ClassMoments.load(path)
    path.write_bytes(whole)
    assert ClassMoments.load(path).rows == 7


def test_a_missing_file_is_not_a_corrupt_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        ClassMoments.load(tmp_path / "none")


def sealed(members: dict[str, np.ndarray]) -> bytes:
    """Return a file with these members and a right checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, **members)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * 64
    body = buffer.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def header(**changes) -> np.ndarray:
    plain = {
        "format": "collapsemeter.ClassMoments", "version": 1, "feature_dtype": "float64",
        "phase": "live", "shards": [], "ignored": 0, "nonfinite": 0,
    }  # fmt: skip
    return np.frombuffer(json.dumps(plain | changes).encode(), np.uint8)


ARRAYS = {
    "counts": np.ones(2, np.int64),
    "means": np.eye(2),
    "means_low": np.zeros((2, 2)),
    "traces": np.zeros(2),
}


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"header": header(version=2), **ARRAYS}, "has state version 2, this collapsemeter reads up to 1: upgrade"),
        ({"header": header(format="other.State"), **ARRAYS}, "it holds 'other.State'"),
        ({"header": header(format="a\x1eb"), **ARRAYS}, r"it holds 'a\\x1eb'"),
        ({"header": header()}, "counts"),
        ({"header": header(), **ARRAYS, "traces": np.zeros(3)}, r"traces \(3,\)"),
        ({"header": header(phase="dreaming"), **ARRAYS}, "phase='dreaming'"),
        ({"header": np.frombuffer(b"[1, 2]", np.uint8), **ARRAYS}, "is not a state file"),
        ({"header": np.frombuffer(b"{", np.uint8), **ARRAYS}, "is not a state file"),
        ({"header": np.frombuffer(b"{}", np.uint8), **ARRAYS}, "format"),
        (ARRAYS, "header"),
        ({"header": header(), **ARRAYS, "means": np.array([{}], object)}, "is not a state file"),
    ],
)  # fmt: skip
def test_what_has_a_right_checksum_but_is_no_state(tmp_path, members, text):
    path = tmp_path / "crafted"
    path.write_bytes(sealed(members))
    with pytest.raises(CorruptStateError, match="crafted.*" + text):
        ClassMoments.load(path)


def test_members_that_could_unpack_to_anything(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=header(), **ARRAYS)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"0" * 64
    body = buffer.getvalue()[:-64]
    path = tmp_path / "crafted"
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(CorruptStateError, match="array 'header' is compressed or ends early"):
        ClassMoments.load(path)


@pytest.mark.parametrize("text", [b'{"format": "x", "version": 1e999}', b"[" * 5000])
def test_a_header_that_is_hard_to_read(tmp_path, text):
    path = tmp_path / "crafted"
    path.write_bytes(sealed({"header": np.frombuffer(text, np.uint8), **ARRAYS}))
    with pytest.raises(CorruptStateError, match="crafted is not a state file"):
        ClassMoments.load(path)


def test_directories_that_a_fuzzer_made(tmp_path):
    path = tmp_path / "crafted"
    body = sealed({"header": header(), **ARRAYS})[:-64]
    entry = body.index(b"PK\1\2")
    version = body[: entry + 6] + b"\xd2" + body[entry + 7 :]  # zipfile: NotImplementedError
    place = body[: entry + 42] + b"\xff\xff\xff\x7f" + body[entry + 46 :]  # beyond the file
    size = body[: entry + 20] + b"\xff\xff\xff\x7f" * 2 + body[entry + 28 :]
    twice = body.replace(b"means_low", b"means\0low").replace(b"traces", b"counts")
    for content in (version, place, size, twice):
        path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
        with pytest.raises(CorruptStateError, match="crafted is not a state file: ") as caught:
            ClassMoments.load(path)
        assert len(str(caught.value).splitlines()) == 1


def test_a_state_that_asks_for_more_than_it_holds(tmp_path):
    means = (
        np.lib.format.magic(1, 0)
        + b"\x76\0"
        + (
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 2), }".ljust(117)
            + b"\n"
        )
    )
    body = sealed({"header": header(), **ARRAYS})[:-64]
    start = body.index(b"\x93NUMPY", body.index(b"means.npy"))
    crafted = body[:start] + means + body[start + len(means) :]
    (tmp_path / "crafted").write_bytes(crafted + hashlib.sha256(crafted).hexdigest().encode())
    with pytest.raises(CorruptStateError, match="array 'means' asks for 17592186044416 bytes"):
        ClassMoments.load(tmp_path / "crafted")


def test_shards_that_are_no_list(tmp_path):
    path = tmp_path / "crafted"
    path.write_bytes(sealed({"header": header(shards=3), **ARRAYS}))
    with pytest.raises(CorruptStateError, match="crafted is not a state file"):
        ClassMoments.load(path)


def test_a_sealed_file_that_is_no_archive(tmp_path):
    path = tmp_path / "crafted"
    for body in (b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"):
        path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
        with pytest.raises(CorruptStateError, match="crafted is not a state file"):
            ClassMoments.load(path)


def test_unknown_extra_members_of_a_state_are_ignored(tmp_path):
    path = tmp_path / "extra"
    path.write_bytes(sealed({"header": header(), **ARRAYS, "note": np.zeros(1)}))
    assert ClassMoments.load(path).rows == 2


def test_header_and_arrays_round_trip(tmp_path):
    write_state(tmp_path / "a", {"x": 1}, {"y": np.arange(3)})
    found, arrays = read_state(tmp_path / "a")
    assert found["x"] == 1
    np.testing.assert_array_equal(arrays["y"], [0, 1, 2])


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 0, 3), (2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_of_any_shape_comes_back_in_that_shape(tmp_path, shape, order):
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), np.int32, order=order)
    write_state(tmp_path / "a", {}, {"it": array})
    found = read_state(tmp_path / "a")[1]["it"]
    assert (found.shape, found.dtype) == (shape, np.int32)
    np.testing.assert_array_equal(found, array)
