"""Labels and rows as people pass them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsemeter import ClassMoments
from collapsemeter.labels import class_labels, is_one_hot, labelled_rows

ROWS = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_integers_of_any_width(dtype):
    labels = class_labels(np.array([0, 2, 1], dtype), 3)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [0, 2, 1])


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=20), dtype=st.sampled_from("?bBhifd")
)
def test_one_hot_of_any_dtype_names_the_class(labels, dtype):
    one_hot = np.eye(5)[labels].astype(dtype)
    np.testing.assert_array_equal(class_labels(one_hot, 5), labels)


def test_ignored_labels_are_kept_as_they_are():
    np.testing.assert_array_equal(class_labels([0, -100, 1], 2), [0, -100, 1])
    np.testing.assert_array_equal(class_labels([0, 255, 1], 2, ignore_index=255), [0, 255, 1])
    m = ClassMoments.from_batch(ROWS, [0, 255, 1], 2, ignore_index=255)
    assert (m.rows, m.ignored) == (2, 1)
    m = ClassMoments.from_batch(ROWS, [0, 0, 1], 2, ignore_index=0)
    assert (m.counts.tolist(), m.ignored) == ([0, 1], 2)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, -1, 1], r"label -1 at row 1 is outside 0..2 \(num_classes=3\) and is not ignore_index=-100"),
        ([0, 1, 3], "label 3 at row 2"),
        (np.array([0, 1, 2**64 - 100], np.uint64), "label 18446744073709551516 at row 2"),
        ([[0, 1], [7, 1]], r"label 7 at position \(1, 0\)"),
        ([0.0, 1.0, 2.0], r"labels have dtype float64 and shape \(3,\): pass integer classes 0..2, or one-hot rows of 3"),
        ([True, False, True], "labels have dtype bool"),
        ([[0.2, 0.5, 0.3]], r"labels have dtype float64 and shape \(1, 3\)"),
        (["cat", "dog"], "labels have dtype <U3"),
        ([None, 1], "labels have dtype object"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named(labels, text):
    with pytest.raises(ValueError, match=text):
        class_labels(labels, 3)


def test_one_hot_by_shape_and_values():
    assert is_one_hot(np.eye(4, dtype=bool), 4)
    assert not is_one_hot(np.eye(4), 5)
    assert not is_one_hot(np.array([1, 0]), 2)
    assert not is_one_hot(np.array([[1, 1], [0, 1]]), 2)
    assert not is_one_hot(np.array([["a", "b"]]), 2)
    assert not is_one_hot(np.array([[np.nan, 1.0]]), 2)


@pytest.mark.parametrize("labels", [[], np.zeros(0, int), np.zeros((0, 3))])
def test_no_rows_have_no_labels(labels):
    rows, bins = labelled_rows(np.zeros((0, 2)), labels, 3)
    assert (rows.shape, bins.shape, bins.dtype) == ((0, 2), (0,), np.int64)
    assert ClassMoments.from_batch(np.zeros((0, 2)), labels, 3).rows == 0


@pytest.mark.parametrize(
    ("features", "labels", "text"),
    [
        (ROWS, [0, 1], r"features have shape \(3, 2\) and labels \(2,\): pass one label per row"),
        (ROWS, [[0, 1], [1, 0], [1, 1]], r"labels \(3, 2\)"),
        (
            ROWS[0],
            [0, 1],
            r"features have shape \(2,\) and dtype float64: pass one row of real numbers",
        ),
        (ROWS[None], [0], r"features have shape \(1, 3, 2\)"),
        (ROWS * 1j, [0, 1, 2], "dtype complex128"),
        (ROWS.astype(object), [0, 1, 2], "dtype object"),
        (ROWS.astype("m8[s]"), [0, 1, 2], "dtype timedelta64"),
        (np.zeros((3, 1), [("x", "f8")]), [0, 1, 2], "dtype"),
        ([["a"], ["b"], ["c"]], [0, 1, 2], "dtype <U1"),
    ],
)
def test_rows_that_do_not_fit_labels(features, labels, text):
    with pytest.raises(ValueError, match=text):
        labelled_rows(features, labels, 3)


def test_labels_as_a_column_are_one_per_row():
    np.testing.assert_array_equal(labelled_rows(ROWS, [[0], [2], [1]], 3)[1], [0, 2, 1])
