"""The same weights and images give the same report in every framework, and that of plain NumPy."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.stats.sampling import reservoir_slots

SCRIPT = Path(__file__).with_name("one_network.py")
_spec = importlib.util.spec_from_file_location("one_network", SCRIPT)
one_network = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(one_network)

# Loading a framework takes longer than running it: one process for each, with what runs on it.
PROCESSES = {
    "tensorflow": ("keras",),
    "jax": ("keras", "nnx", "linen"),
    "torch": ("keras", "torch"),
}
FRAMEWORKS = [(backend, name) for backend, names in PROCESSES.items() for name in names]
EPS32 = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module", params=FRAMEWORKS, ids=lambda pair: f"{pair[1]} on {pair[0]}")
def said(request, tmp_path_factory):
    """Reports and features of one framework."""
    backend, framework = request.param
    parent = tmp_path_factory.getbasetemp() / f"said-{backend}"
    if not parent.exists():
        parent.mkdir()
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(parent), *PROCESSES[backend]],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    folder = parent / framework
    reports = json.loads((folder / "reports.json").read_text())
    with np.load(folder / "features.npz") as features:
        return reports, dict(features)


def correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(N, H, W, in) and (h, w, in, out) by the definition of a valid cross-correlation."""
    h, w, _, out = kernel.shape
    n, height, width, _ = x.shape
    maps = np.zeros((n, height - h + 1, width - w + 1, out))
    for i in range(h):
        for j in range(w):
            maps += x[:, i : i + height - h + 1, j : j + width - w + 1] @ kernel[i, j]
    return maps


@pytest.fixture(scope="module")
def truth():
    """Features and metrics in float64."""
    w = {
        name: (kernel.astype(np.float64), bias.astype(np.float64))
        for name, (kernel, bias) in one_network.weights().items()
    }
    images, labels = one_network.data()
    features = {"conv1": correlate(images.astype(np.float64), w["conv1"][0]) + w["conv1"][1]}
    features["conv2"] = correlate(np.maximum(features["conv1"], 0), w["conv2"][0]) + w["conv2"][1]
    flat = np.maximum(features["conv2"], 0).reshape(len(labels), -1)
    features["hidden"] = flat @ w["hidden"][0] + w["hidden"][1]
    features["fc"] = np.maximum(features["hidden"], 0)
    logits = features["fc"] @ w["fc"][0] + w["fc"][1]
    options = one_network.OPTIONS
    usable = labels != options["ignore_index"]
    kept = np.full(options["sample_rows"] + 1, -1)
    start = 0
    for _, y in one_network.batches():
        mine = y != options["ignore_index"]
        numbers = np.where(mine, start + np.cumsum(mine) - 1, -1)
        kept[reservoir_slots(numbers, options["sample_rows"], 0)] = numbers
        start += int(mine.sum())
    sample = np.flatnonzero(usable)[kept[:-1]]
    reports = {}
    for name, maps in features.items():
        rows = maps.mean(axis=(1, 2)) if maps.ndim == 4 else maps
        moments = cm.ClassMoments.from_batch(
            rows, labels, options["num_classes"], ignore_index=options["ignore_index"]
        )
        decisions = cm.decide(
            moments, rows[sample], labels[sample], predictions=logits[sample].argmax(axis=1)
        )
        head = cm.Head(w["fc"][0].T, w["fc"][1]) if name == "fc" else None
        reports[name] = cm.measure(moments, head=head, decisions=decisions)
    return features, reports


def test_the_features_agree_to_float32_round_off(said, truth):
    for name, found in said[1].items():
        expected = truth[0][name]
        # Sums of at most 192 products through four layers: each loses at most its length in eps.
        tolerance = 192 * EPS32 * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("phase", ["frozen", "live"])
def test_the_report_is_that_of_numpy(said, truth, phase):
    layers = said[0][phase]["layers"]
    assert list(layers) == ["conv1", "conv2", "hidden", "fc"]
    for name, layer in layers.items():
        expected = truth[1][name]
        assert set(layer["metrics"]) == set(expected), name
        for metric, value in expected.items():
            found = layer["metrics"][metric]
            if np.isnan(value):  # more classes than channels: JSON has null and the reason
                assert found is None, (name, metric)
            else:
                assert found == pytest.approx(value, rel=1e-4, nan_ok=True), (name, metric)
        assert layer["reasons"] == expected.reasons
        assert layer["per_class"]["count"] == expected.per_class["count"].tolist()
        for count in ("rows", "ignored_rows", "nonfinite_rows", "nc4_rows", "width"):
            assert layer["provenance"][count] == expected.provenance[count], (name, count)
        # Decisions on the same rows, which every framework draws alike: the fractions are equal.
        for metric in ("nc4_mismatch", "nc4_agreement", "ncc_accuracy"):
            assert layer["metrics"][metric] == expected[metric], (name, metric)
    assert said[0][phase]["phase"] == {"frozen": "frozen-eval", "live": "live"}[phase]
    assert said[0][phase]["warnings"] == []
    assert said[0][phase]["provenance"]["rows"] == len(one_network.data()[1])
