"""Narrow floats: widened exactly, and their dtype stays in the report."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.activations import Writer
from collapsemeter.audit import audit
from collapsemeter.metrics.class_centres import ClassCentres
from collapsemeter.stats.accumulate import Accumulator

NARROW = [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("kind", ["class", "pooled", "trace"])
@pytest.mark.parametrize("dtype", NARROW)
def test_sums_of_narrow_floats(kind, dtype):
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(50, 4)).astype(dtype), rng.integers(0, 3, 50)
    accumulator = Accumulator(3, 4, kind)
    for part in np.array_split(np.arange(50), 3):
        accumulator.update(rows[part], labels[part])
    actual = accumulator.moments()
    oracle = cm.ClassMoments.from_batch(rows.astype(np.float64), labels, 3, scatter=kind)
    assert actual.feature_dtype == rows.dtype.name
    np.testing.assert_array_equal(actual.counts, oracle.counts)
    np.testing.assert_allclose(actual.means, oracle.means, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(actual.traces, oracle.traces, rtol=1e-12)
    if kind != "trace":
        np.testing.assert_allclose(actual.scatter, oracle.scatter, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", NARROW[:2])
def test_an_audit_of_narrow_floats(data, tmp_path, dtype):
    rows = data.fc.astype(dtype)
    logits = data.head.logits(data.fc).astype(dtype)
    with Writer(tmp_path / "acts", num_classes=6, head=data.head, shard_bytes=1000) as writer:
        for part in np.array_split(np.arange(400), 5):
            writer.write({"fc": rows[part]}, data.labels[part], logits=logits[part])
    report = audit(str(tmp_path / "acts"))["fc"]
    m = cm.ClassMoments.from_batch(rows, data.labels, 6)
    decisions = cm.decide(m, rows, data.labels, logits=logits.astype(np.float32))
    expected = cm.measure(m, head=data.head, decisions=decisions)
    for name, value in expected.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
    for name, floor in expected.provenance["dtype_floor"].items():
        np.testing.assert_allclose(report.provenance["dtype_floor"][name], floor, rtol=1e-9)
    assert report.flags == expected.flags


def test_logits_of_another_byte_order_keep_their_digits(data, tmp_path):
    close = np.tile(1.0 + np.array([0.0, 2e-16, 4e-16, 0.0, 0.0, 0.0]), (400, 1))
    for order in ("<", ">"):
        logits = close.astype(f"{order}f8")
        np.savez(tmp_path / f"{order}.npz", fc=data.fc, labels=data.labels, logits=logits)
    little, big = (audit(str(tmp_path / f"{order}.npz"))["fc"] for order in "<>")
    nearest = ClassCentres(cm.ClassMoments.from_batch(data.fc, data.labels, 6)).nearest(data.fc)
    assert big["nc4_agreement"] == little["nc4_agreement"] == (nearest == 2).mean()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_labels_of_narrow_floats(dtype, shape):
    labels = np.array([0, 1, 1, 0]).astype(dtype).reshape(shape)
    assert cm.ClassMoments.from_batch(np.eye(4), labels, 2).counts.tolist() == [2, 2]
    one_hot = np.eye(2)[[0, 1, 1]].astype(dtype)
    assert cm.ClassMoments.from_batch(np.eye(3), one_hot, 2).counts.tolist() == [1, 2]
    with pytest.raises(
        ValueError, match=r"does not tell whole numbers above .* apart; pass integers"
    ):
        cm.ClassMoments.from_batch(np.eye(4), labels, 3000)
