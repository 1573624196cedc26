"""One data set in many layouts, and what an audit of it must give."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import collapsemeter as cm
from collapsemeter.activations import Writer


@dataclass(frozen=True)
class Data:
    """Two layers of 400 rows of six classes, one of which is absent, and a head."""

    conv: np.ndarray
    fc: np.ndarray
    labels: np.ndarray
    head: cm.Head
    C: int = 6
    phase: str = "frozen-eval"
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, np.ndarray]:
        return {"conv": self.conv, "fc": self.fc}

    @property
    def rows(self) -> int:
        return len(self.labels)

    def oracle(self, predictions=None, head=True, scatter="auto") -> dict[str, cm.LayerReport]:
        """The core's own report, of all rows at once."""
        decided = self.head.decide(self.fc) if predictions is None and head else predictions
        reports = {}
        for name, rows in self.layers.items():
            m = cm.ClassMoments.from_batch(rows, self.labels, self.C, scatter=scatter)
            decisions = cm.decide(m, rows, self.labels, predictions=decided, sampled=False)
            reads = self.head if name == "fc" and head else None
            reports[name] = cm.measure(m, head=reads, decisions=decisions)
        return reports

    # One method for each layout; each returns what to name on the command line.
    def file_per_layer(self, folder: Path, ending="safetensors") -> list[str]:
        for name, rows in self.layers.items():
            save(folder / f"{name}.{ending}", {name: rows})
        np.save(folder / "labels.npy", self.labels)
        self.head_file(folder)
        return [str(folder / f"{name}.{ending}") for name in self.layers]

    def head_file(self, folder: Path) -> str:
        arrays = {"weight": self.head.weight, "bias": self.head.bias}
        save_file(arrays, folder / "head.safetensors")
        return str(folder / "head.safetensors")

    def shards(self, folder: Path, count: int, ending="safetensors", **more) -> list[str]:
        """Several layers and their labels in each of many files."""
        folder.mkdir(exist_ok=True)
        bounds = np.linspace(0, self.rows, count + 1).astype(int)
        paths = []
        for i, (a, b) in enumerate(itertools.pairwise(bounds)):
            paths.append(str(folder / f"shard-{i}.{ending}"))
            arrays = {**self.layers, "labels": self.labels, **more}
            save(Path(paths[-1]), {name: array[a:b] for name, array in arrays.items()})
        return paths

    def dump(self, folder: Path, shard_bytes=6000, batch=50, **options) -> str:
        with Writer(
            folder, num_classes=self.C, head=self.head, shard_bytes=shard_bytes, **options
        ) as writer:
            for i in range(0, self.rows, batch):
                part = {name: rows[i : i + batch] for name, rows in self.layers.items()}
                writer.write(part, self.labels[i : i + batch])
        return str(folder)


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays in the format that the ending names."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, next(iter(arrays.values())))
    elif path.suffix == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        import zarr

        group = zarr.open_group(str(path), mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)


@pytest.fixture
def save_arrays():
    return save


@pytest.fixture(scope="session")
def data() -> Data:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(6, 8))
    labels = rng.choice([0, 1, 2, 4, 5], 400)  # there is no 3
    labels[np.flatnonzero(labels == 5)[1:]] = 4  # and of 5 there is one
    fc = (means[labels] + 0.3 * rng.normal(size=(400, 8))).astype(np.float32)
    conv = (3 + means[labels] @ rng.normal(size=(8, 12)) + rng.normal(size=(400, 12))).astype(
        np.float32
    )
    return Data(
        conv, fc, labels, cm.Head(means + 0.2 * rng.normal(size=(6, 8)), rng.normal(size=6))
    )


@pytest.fixture
def assert_report():
    """Compare a report with the core's: NC4 exactly, every other metric to round-off."""

    def compare(report, oracle, rtol=1e-9):
        assert list(report) == list(oracle)
        for name, expected in oracle.items():
            actual = report[name]
            assert list(actual) == list(expected)
            for metric, value in expected.items():
                exact = metric.startswith(("nc4", "ncc"))
                np.testing.assert_allclose(
                    actual[metric], value, rtol=0 if exact else rtol, atol=0 if exact else 1e-12,
                    err_msg=f"{name} {metric}",
                )  # fmt: skip
            assert actual.reasons == expected.reasons
            for column in ("count", "ncc_accuracy"):
                np.testing.assert_array_equal(actual.per_class[column], expected.per_class[column])

    return compare


@pytest.fixture
def command(tmp_path):
    """Run the command line in a process of its own, in a folder of its own."""

    def run(*arguments, cwd=tmp_path, script=None, **options) -> subprocess.CompletedProcess:
        call = ["-c", script] if script else ["-m", "collapsemeter"]
        return subprocess.run(
            [sys.executable, *call, *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "COLUMNS": "80"} | options.pop("env", {}),
            **options,
        )

    return run


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line in this process; return status, stdout and stderr."""
    from collapsemeter.cli import main

    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([*map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def cli(call, monkeypatch, tmp_path):
    """Run ``collapsemeter audit`` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call("audit", *arguments)


@pytest.fixture
def refused(cli):
    """Run ``collapsemeter audit`` on bad input: one line on standard error, and status 2."""
    return lambda *arguments: one_sentence(cli(*arguments))


@pytest.fixture
def refused_untouched(call):
    """Run a command that is refused: nothing in the folder is changed."""

    def run(folder: Path, *arguments) -> str:
        before = hashes(folder)
        sentence = one_sentence(call(*arguments))
        assert hashes(folder) == before
        return sentence

    return run


def one_sentence(result: tuple[int, str, str]) -> str:
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("collapsemeter: ")
    assert err.count("\n") == 1
    return err


def hashes(folder: Path) -> dict[str, str]:
    """Return what lies in a folder, files by their SHA-256."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }
