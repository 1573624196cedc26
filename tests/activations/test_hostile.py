"""Hostile files: one sentence that names the file, and next to no memory."""

from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from collapsemeter.activations import ActivationsError, hdf5_format, open_arrays


def _beside(name: str):
    """Import a module that lies beside this one; the tests are no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hostile = _beside("hostile_files")
zarrs = _beside("hostile_zarrs")
ROWS = hostile.ROWS
CASES = hostile.CASES | zarrs.CASES
OVERHEAD = (
    16 * 2**20
)  # bytes: directories of half a MiB as Python's objects, buffers, library's own


def read_everything(path: Path) -> list[ActivationsError]:
    """Return what is said of a file as all of it is read."""
    errors = []
    try:
        file = open_arrays(path)
    except ActivationsError as error:
        return [error]
    with file:
        for name in [*file.arrays, *file.refused]:
            rows = file.arrays[name].shape[0] if name in file.arrays else 1
            try:
                for start in range(0, rows, max(1, rows // 3)):
                    file.read(name, start, start + max(1, rows // 3))
            except ActivationsError as error:
                errors.append(error)
        if not errors:
            try:
                file.check()
            except ActivationsError as error:
                errors.append(error)
    return errors


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_little_memory(tmp_path, name):
    write, text = CASES[name]
    path = write(tmp_path)
    read_everything(path)  # so that libraries are imported, and that is not measured
    tracemalloc.start()
    try:
        errors = read_everything(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(errors) == 1
    message = str(errors[0])
    assert str(path) in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500 + len(str(path))
    assert re.search(text, message), message
    assert peak <= 2 * size_of(path) + OVERHEAD


def test_libraries_in_c_take_little_memory_either(tmp_path):
    paths = []
    for i, (name, (write, _)) in enumerate(CASES.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        if name.startswith(("hdf5", "zarr")):
            paths.append(write(folder))
    program = """
        import sys
        from pathlib import Path
        from collapsemeter.activations import ActivationsError, open_arrays

        def most():
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024

        def read(path):
            try:
                with open_arrays(path) as file:
                    for name in [*file.arrays, *file.refused]:
                        file.read(name, 0, 10)
            except ActivationsError:
                pass

        for path in sys.argv[1:3]:
            read(path)
        before = most()
        for path in sys.argv[1:]:
            read(path)
        print(most() - before)
    """
    first = {path.suffix: path for path in paths}
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, [*first.values(), *paths])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 2 * max(map(size_of, paths)) + OVERHEAD


def write_valid(path: Path) -> None:
    """Write some arrays in the format of the ending."""
    if path.suffix == ".npy":
        np.save(path, ROWS)
    elif path.suffix == ".npz":
        np.savez_compressed(path, a=ROWS, y=np.arange(20))
    elif path.suffix == ".safetensors":
        save_file({"a": ROWS, "y": np.arange(20)}, path)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=ROWS, chunks=(7, 2), compression="gzip", fletcher32=True)
            file["group/y"] = np.arange(20)
    else:
        zarrs.write_valid(path)


FORMATS = [".npy", ".npz", ".safetensors", ".h5", ".zarr"]


@pytest.mark.parametrize("ending", FORMATS)
def test_truncated(tmp_path, ending):
    path = tmp_path / f"acts{ending}"
    write_valid(path)
    assert read_everything(path) == []
    parts = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for part in parts:
        whole = part.read_bytes()
        if whole == b"{}":  # attributes of Zarr, which are not read
            continue
        for eighth in range(8):
            part.write_bytes(whole[: len(whole) * eighth // 8])
            errors = read_everything(path)
            assert len(errors) >= 1, part
            assert all(str(path) in str(error) for error in errors)
        part.write_bytes(whole)


@pytest.mark.parametrize("ending", FORMATS)
def test_flipped_bits(tmp_path, ending):
    path = tmp_path / f"acts{ending}"
    write_valid(path)
    parts = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    rng = random.Random(0)
    noticed = 0
    for _ in range(400):
        part = rng.choice(parts)
        whole = part.read_bytes()
        at = rng.randrange(len(whole))
        part.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        errors = read_everything(path)  # anything else than ActivationsError fails the test
        assert all(str(path) in str(error) for error in errors)
        noticed += bool(errors)
        part.write_bytes(whole)
    assert noticed > 40


def test_what_is_refused_costs_nothing_else(tmp_path):
    np.savez(tmp_path / "a.npz", a=ROWS, names=np.array(["x"]), made=np.array([{}], object), step=3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"], file["names"], file["made"], file["step"] = ROWS, ["x"], h5py.Empty("f4"), 3
    for name in ("a.npz", "a.h5"):
        with open_arrays(tmp_path / name) as file:
            assert list(file.arrays) == ["a"]
            assert set(file.refused) == {"names", "made", "step"}
            np.testing.assert_array_equal(file.read("a", 0, 99), ROWS)
            file.check()


def test_damage_of_a_stored_member_is_found_by_check(tmp_path):
    path = tmp_path / "a.npz"
    rows = np.tile(ROWS, (100, 1))
    np.savez(path, a=rows)
    content = bytearray(path.read_bytes())
    content[content.rindex(ROWS.tobytes())] ^= 1
    path.write_bytes(content)
    with open_arrays(path) as file:
        assert not np.array_equal(file.read("a", 0, 9999), rows)  # as with a .npy, nothing notices
        with pytest.raises(
            ActivationsError, match=r"a\.npz: array 'a' has another checksum \(CRC\)"
        ):
            file.check()


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".h5"])
def test_a_folder_is_no_file(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.mkdir()
    with pytest.raises(ActivationsError, match=r"is not a regular file$"):
        open_arrays(path)


def test_more_objects_than_are_read(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(5):
            file[f"group/a{i}"] = ROWS
    monkeypatch.setattr(hdf5_format, "MAX_OBJECTS", 4)
    with pytest.raises(ActivationsError, match=r"a\.h5 has more than 4 objects"):
        open_arrays(tmp_path / "a.h5")


def test_hdf5_places_beyond_the_file(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["whole"] = ROWS
        file.create_dataset("chunked", data=ROWS, chunks=(20, 3))
    # The library compares these with its own idea of where the file ends.
    monkeypatch.setattr(hdf5_format, "file_size", lambda path: 1000)
    with open_arrays(tmp_path / "a.h5") as file:
        with pytest.raises(
            ActivationsError, match=r"'whole' asks for 240 bytes at \d+, the file has"
        ):
            file.read("whole", 0, 1)
        with pytest.raises(
            ActivationsError, match=r"'chunked' has a chunk of 240 bytes at \d+, the"
        ):
            file.read("chunked", 0, 1)


def test_a_damaged_directory_of_chunks(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("a", data=ROWS, chunks=(7, 2))
    content = path.read_bytes()
    at = content.rindex(b"FADB")
    path.write_bytes(content[:at] + b"LEAF" + content[at + 4 :])
    with (
        open_arrays(path) as file,
        pytest.raises(ActivationsError, match="'a' is damaged: "),
    ):
        file.read("a", 0, 1)


def test_an_object_that_is_damaged_costs_no_other(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["a"] = ROWS
        file["b"] = ROWS
        place = h5py.h5o.get_info(file["b"].id).addr
    content = path.read_bytes()
    assert content[place : place + 4] == b"OHDR"
    path.write_bytes(content[: place + 9] + b"\xff" + content[place + 10 :])
    with open_arrays(path) as file:
        np.testing.assert_array_equal(file.read("a", 0, 99), ROWS)
        with pytest.raises(ActivationsError, match=r"a\.h5: array 'b' is damaged: "):
            file.read("b", 0, 1)


def test_a_pipe_in_a_zarr_folder(tmp_path):
    path = tmp_path / "acts.zarr"
    write_valid(path)
    os.mkfifo(path / "a" / "c" / "0" / "1")
    with open_arrays(path) as file:
        with pytest.raises(ActivationsError, match="'a' has 1, which is not a regular file"):
            file.read("a", 0, 1)
        np.testing.assert_array_equal(file.read("b", 0, 99), ROWS)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ActivationsError, match=r"a\.npy is not a regular file"):
        open_arrays(tmp_path / "a.npy")
