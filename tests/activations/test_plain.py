"""What looks like an array and is not quite one: masked, without a type, of objects."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter import ClassMoments, Head, decide
from collapsemeter.activations import Writer
from collapsemeter.adapter.batches import split

ROWS = np.random.default_rng(0).normal(size=(12, 4))
LABELS = np.arange(12) % 3
HIDDEN = np.arange(12) == 5
LABELS_MASKED = np.ma.masked_array(LABELS, HIDDEN)
ROWS_MASKED = np.ma.masked_array(ROWS, np.broadcast_to(HIDDEN[:, None], ROWS.shape))
MOMENTS = ClassMoments.from_batch(ROWS, LABELS, 3)
HEAD = Head(np.eye(3, 4))
WEIGHT_MASKED = np.ma.masked_less(np.eye(3, 4), 0.5)
LOGITS = HEAD.logits(ROWS)


def written(folder, rows, labels, **more):
    with Writer(folder / "d", num_classes=3) as writer:
        try:
            writer.write({"fc": rows}, labels, **more)
        finally:
            writer.write({"fc": ROWS}, LABELS, **dict.fromkeys(more))


CALLS = {
    "features of a batch": (lambda f: ClassMoments.from_batch(ROWS_MASKED, LABELS, 3), "features"),
    "rows of a batch": (lambda f: ClassMoments.from_batch(list(ROWS_MASKED), LABELS, 3), "features"),
    "labels of a batch": (lambda f: ClassMoments.from_batch(ROWS, LABELS_MASKED, 3), "labels"),
    "labels of a list": (lambda f: ClassMoments.from_batch(ROWS, list(LABELS_MASKED), 3), "labels"),
    "features of an update": (lambda f: MOMENTS.update(ROWS_MASKED, LABELS), "features"),
    "labels of an update": (lambda f: MOMENTS.update(ROWS, LABELS_MASKED), "labels"),
    "features to decide on": (lambda f: decide(MOMENTS, ROWS_MASKED, LABELS), "features"),
    "labels to decide on": (lambda f: decide(MOMENTS, ROWS, LABELS_MASKED), "labels"),
    "logits": (
        lambda f: decide(MOMENTS, ROWS, LABELS, logits=np.ma.masked_less(LOGITS, -1.0)), "logits"),
    "predictions": (lambda f: decide(MOMENTS, ROWS, LABELS, predictions=LABELS_MASKED), "predictions"),
    "the weight of a head": (lambda f: Head(WEIGHT_MASKED), "weights"),
    "the bias of a head": (lambda f: Head(np.eye(3, 4), np.ma.masked_less([1, 0, 1], 1)), "biases"),
    "a single logit": (lambda f: Head.from_single_logit(np.ma.masked_less([1.0, 0], 1)), "weights"),
    "what a head decides on": (lambda f: HEAD.decide(ROWS_MASKED), "features"),
    "a weight to measure": (lambda f: cm.measure(MOMENTS, weight=WEIGHT_MASKED), "weights"),
    "means": (
        lambda f: ClassMoments([1, 1], np.ma.masked_less(np.eye(2), 1), None, [0.0, 0.0]), "means"),
    "counts": (lambda f: ClassMoments(np.ma.masked_less([1, 0], 1), np.eye(2), None, [0, 0]), "counts"),
    "features to write": (lambda f: written(f, ROWS_MASKED, LABELS), "features"),
    "labels to write": (lambda f: written(f, ROWS, LABELS_MASKED), "labels"),
    "logits to write": (
        lambda f: written(f, ROWS, LABELS, logits=np.ma.masked_less(LOGITS, -1.0)), "logits"),
    "a pair of a loader": (lambda f: split((ROWS, LABELS_MASKED)), "labels"),
    "a dict of a loader": (lambda f: split({"x": ROWS, "labels": LABELS_MASKED}), "labels"),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
def test_masked_entries_are_never_counted(tmp_path, what):
    call, name = CALLS[what]
    with pytest.raises(ValueError, match=rf"^{name} of shape \(.*\) and dtype .* are masked in "):
        call(tmp_path)


def test_the_line_that_is_named_leaves_them_out_and_counts_them():
    with pytest.raises(
        ValueError, match=r"labels\.filled\(-100\) leaves them out and counts them$"
    ):
        ClassMoments.from_batch(ROWS, LABELS_MASKED, 3)
    assert ClassMoments.from_batch(ROWS, LABELS_MASKED.filled(-100), 3).ignored == 1
    with pytest.raises(ValueError, match=r"features\.filled\(np\.nan\) leaves"):
        ClassMoments.from_batch(ROWS_MASKED, LABELS, 3)
    assert ClassMoments.from_batch(ROWS_MASKED.filled(np.nan), LABELS, 3).nonfinite == 1
    whole = np.ma.masked_array((9 * ROWS).astype(int), ROWS_MASKED.mask)
    with pytest.raises(ValueError, match=r"features\.astype\(float\)\.filled\(np\.nan\) leaves"):
        ClassMoments.from_batch(whole, LABELS, 3)
    assert ClassMoments.from_batch(whole.astype(float).filled(np.nan), LABELS, 3).nonfinite == 1


def test_masked_predictions_have_rows_to_leave_out():
    masked = np.ma.masked_array(LABELS, HIDDEN)
    with pytest.raises(ValueError, match="give their rows the label -100, which leaves them out"):
        decide(MOMENTS, ROWS, LABELS, predictions=masked)
    labels = np.where(HIDDEN, -100, LABELS)
    assert decide(MOMENTS, ROWS, labels, predictions=masked.filled(-100)).rows.sum() == 11


def test_a_masked_array_that_hides_nothing_is_an_array():
    actual = ClassMoments.from_batch(np.ma.array(ROWS), np.ma.array(LABELS), 3)
    np.testing.assert_array_equal(actual.means, MOMENTS.means)
    assert decide(MOMENTS, np.ma.array(ROWS), np.ma.array(LABELS)).rows.sum() == 12


UNREAL = {
    "bfloat16 as NumPy reads it back": (np.ones((12, 4), "V2"), r"dtype \|V2.*bfloat16"),
    "float8 as NumPy reads it back": (np.ones((12, 4), "V1"), r"dtype \|V1"),
    "records": (np.zeros((12, 4), "f4,i4"), r"dtype \[\('f0'"),
    "objects": (ROWS.astype(object), "dtype object"),
    "texts": (ROWS.astype(str), "dtype <U"),
    "bytes": (ROWS.astype("S5"), r"dtype \|S5"),
    "complex": (ROWS + 1j, "dtype complex128"),
    "dates": (np.zeros((12, 4), "M8[s]"), r"dtype datetime64\[s\]"),
    "one axis": (ROWS[:, 0], r"shape \(12,\)"),
    "no feature": (ROWS[:, :0], r"shape \(12, 0\)"),
    "a number": (np.float64(1), r"shape \(\)"),
}


@pytest.mark.parametrize("what", UNREAL)
def test_features_that_are_no_real_numbers_are_named(tmp_path, what):
    rows, text = UNREAL[what]
    for call in (
        lambda: ClassMoments.from_batch(rows, LABELS, 3),
        lambda: decide(MOMENTS, rows, LABELS),
    ):
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "features have shape" in str(caught.value)
    with pytest.raises(ValueError, match=text.partition(".*")[0]):
        Writer(tmp_path / "d", num_classes=3).write({"fc": rows}, LABELS)


@pytest.mark.parametrize("dtype", ["complex", "U9", "O"])
def test_weights_that_are_no_real_numbers_are_refused(dtype):
    weight = np.eye(3, 4).astype(dtype)
    for call in (
        lambda: Head(weight),
        lambda: Head(np.eye(3, 4), weight[:, 0]),
        lambda: cm.measure(MOMENTS, head=weight),
        lambda: cm.measure(MOMENTS, weight=weight),
    ):
        with pytest.raises(ValueError, match=r"shape .* and dtype .*: pass real numbers"):
            call()


REAL = (
    "bool", "i1", "<u2", ">i4", "<i8", "<f2", ">f4", "<f8", ">f8", "longdouble", ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
)  # fmt: skip


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", REAL)
def test_real_numbers_of_every_dtype_are_measured(dtype, order):
    rows = np.asarray((2 * ROWS).astype(dtype), order=order)
    actual = ClassMoments.from_batch(rows, LABELS, 3)
    expected = ClassMoments.from_batch(rows.astype(np.float64), LABELS, 3)
    np.testing.assert_array_equal(actual.means, expected.means)
    np.testing.assert_array_equal(actual.traces, expected.traces)
