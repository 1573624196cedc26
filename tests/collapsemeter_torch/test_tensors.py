"""Tensors where the core takes arrays: with a gradient, and of floats that NumPy does not have."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

import collapsemeter as cm
from collapsemeter.activations import Writer, open_arrays

ROWS = torch.tensor(np.random.default_rng(0).normal(size=(12, 4)), dtype=torch.float32)
LABELS = torch.arange(12) % 3
LINEAR = torch.nn.Linear(4, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "float8_e5m2"])
def test_tensors_are_measured_as_arrays(dtype):
    rows = ROWS.to(getattr(torch, dtype)).requires_grad_()
    array = rows.detach().double().numpy().astype(dtype)
    assert array.dtype != "bfloat16" or array.dtype == ml_dtypes.bfloat16
    tensor, expected = (
        cm.ClassMoments.from_batch(features, labels, 3)
        for features, labels in ((rows, LABELS), (array, LABELS.numpy()))
    )
    np.testing.assert_array_equal(tensor.means, expected.means)
    assert tensor.feature_dtype == expected.feature_dtype == dtype
    stream = cm.Accumulator(3, 4)
    stream.update(rows, LABELS)
    assert stream.moments().feature_dtype == dtype
    logits = LINEAR(ROWS).to(getattr(torch, dtype))
    decided = cm.decide(tensor, rows, LABELS, logits=logits)
    widened = cm.decide(expected, array, LABELS, logits=logits.detach().double().numpy())
    np.testing.assert_array_equal(decided.agree, widened.agree)


def test_parameters_are_a_head():
    head = cm.Head(LINEAR.weight, LINEAR.bias)
    np.testing.assert_array_equal(head.weight, LINEAR.weight.detach().double().numpy())
    moments = cm.ClassMoments.from_batch(ROWS, LABELS, 3)
    layer = cm.measure(moments, head=(LINEAR.weight, LINEAR.bias), weight=LINEAR.weight)
    assert layer["nc3_cosine"] == cm.measure(moments, head=head)["nc3_cosine"]


def test_a_writer_keeps_the_dtype_of_tensors(tmp_path):
    with Writer(tmp_path / "acts", num_classes=3) as writer:
        writer.write({"fc": ROWS.bfloat16().requires_grad_()}, LABELS)
    with open_arrays(tmp_path / "acts" / "shard-00000.safetensors") as arrays:
        assert arrays.arrays["fc"].dtype == ml_dtypes.bfloat16
