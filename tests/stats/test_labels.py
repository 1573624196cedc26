"""Labels and rows as people pass them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapsemeter import ClassMoments, decide, measure
from collapsemeter.stats.labels import are_tokens, class_labels, is_one_hot, labelled_rows
from collapsemeter.stats.state_file import read_state, write_state
from collapsemeter.stats.sums import MIXED, UNLABELLED

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
        ([0.0, 1.5, 2.0], r"label 1.5 at row 1 is no whole number: labels of dtype float64 and shape \(3,\) must be class numbers 0..2 or ignore_index=-100, or one-hot rows of 3"),
        ([0.0, np.nan], "label nan at row 1 is no whole number"),
        ([0.0, np.inf], "label inf at row 1 is outside 0..2"),
        ([0.0, 2.0**60], r"label 1.15\d+e\+18 at row 1 is outside 0..2"),
        (np.array([0, -np.inf]), "label -inf at row 1 is outside 0..2"),
        ([True, False, True], r"labels have dtype bool and shape \(3,\): pass integer classes 0..2, or one-hot rows of 3"),
        ([[0.2, 0.5, 0.3]], r"labels have dtype float64 and shape \(1, 3\), and 1 of 1 rows name several classes or parts of them .*\[0.2 0.5 0.3\] at row 0"),
        ([[0.0, np.nan, 1.0]], r"one-hot rows of 3, and hold nan at position \(0, 1\)"),
        ([[0.0, 2.0, 0.0]], r"one-hot rows of 3, and hold 2.0 at position \(0, 1\)"),
        ([[-2.5, 0.5, 3.0]], r"one-hot rows of 3, and hold -2.5 at position \(0, 0\)"),
        ([[1.0, -1.0, -1.0]], r"one-hot rows of 3, and hold -1.0 at position \(0, 1\)"),
        (["cat", "dog"], "labels have dtype <U3"),
        ([None, 1], "labels have dtype object"),
    ],
)  # fmt: skip
def test_wrong_labels_are_named(labels, text):
    with pytest.raises(ValueError, match=text):
        class_labels(labels, 3)


def test_one_hot_by_shape_values_and_what_the_features_tell():
    assert is_one_hot(np.eye(4, dtype=bool), 4)
    assert not is_one_hot(np.eye(4), 5)
    assert not is_one_hot(np.array([1, 0]), 2)
    assert not is_one_hot(np.array([[1], [0]]), 1)
    mostly, rarely = np.array([[1, 0], [0, 1], [0, 0]]), np.array([[1, 1], [0, 1], [0, 0]])
    assert is_one_hot(mostly, 2)
    assert not is_one_hot(rarely, 2)
    assert not is_one_hot(mostly, 2, tokens=True)
    assert is_one_hot(rarely, 2, tokens=False)
    assert not is_one_hot(np.array([[0, 1], [2, 1]]), 2)
    assert is_one_hot(rarely.astype(float), 2)


WHOLE = ["f2", "f4", "f8", "u1", "u2", "u4", "u8", "i1", ">f4", ">i8"]


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_whole_numbers_are_classes_whatever_their_dtype(dtype, shape):
    labels = np.array([0, 2, 1, 1]).astype(dtype).reshape(shape)
    assert labelled_rows(np.eye(4), labels, 3)[1].tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize("dtype", ["?", "f2", "f4", "f8"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_labels_of_a_binary_loss(dtype, shape):
    labels = np.array([0, 1, 1, 0]).astype(dtype).reshape(shape)
    assert labelled_rows(np.eye(4), labels, 2)[1].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(("dtype", "most"), [("f2", 2049), ("f4", 2**24 + 1)])
def test_a_dtype_that_does_not_tell_the_classes_apart(dtype, most):
    labels = np.zeros(3).astype(dtype)
    assert class_labels(labels, most).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=f"does not tell whole numbers above {most - 1} apart"):
        class_labels(labels, most + 1)


def test_labels_ignored_in_any_dtype():
    for dtype in (np.float16, np.float64, np.int8):
        labels = class_labels(np.array([0, -100, 1], dtype), 2)
        assert labels.tolist() == [0, -100, 1]
    assert class_labels(np.array([0, 255.0]), 2, ignore_index=255).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [float, np.float32, int, np.int8])
def test_labels_of_a_hinge_loss_are_refused_unless_one_is_ignored(dtype):
    labels = np.array([-1, 1, 1, -1]).astype(dtype)
    text = r"labels are -1 and 1, as a hinge loss takes them: pass \(labels \+ 1\) // 2"
    for shape in ((4,), (4, 1)):
        with pytest.raises(ValueError, match=text):
            ClassMoments.from_batch(np.eye(4), labels.reshape(shape), 2)
    with pytest.raises(ValueError, match=r"label -1.* at row 0 is outside 0..2"):
        class_labels(labels, 3)
    assert class_labels([-1, 0, 1], 2, ignore_index=-1).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("dtype", ["?", "i8", "u1", "f4", "f8"])
def test_rows_that_name_no_single_class_are_left_out_and_counted(dtype):
    """All zeros are not class 0, and several ones not the first of them."""
    rows = np.random.default_rng(0).normal(size=(8, 3))
    one_hot = np.eye(3)[[0, 1, 2, 0, 1, 2, 2, 1]]
    one_hot[2], one_hot[5] = 0, [1, 0, 1]
    labels = one_hot.astype(dtype)
    kept = [0, 1, 3, 4, 6, 7]
    found = ClassMoments.from_batch(rows, labels, 3)
    due = ClassMoments.from_batch(rows[kept], [0, 1, 0, 1, 2, 1], 3)
    assert found.counts.tolist() == due.counts.tolist() == [2, 3, 1]
    np.testing.assert_allclose(found.traces, due.traces, rtol=1e-13)
    assert (found.unlabelled, found.mixed, found.ignored) == (1, 1, 0)
    split = ClassMoments.empty(3, 3).update(rows[:5], labels[:5]).update(rows[5:], labels[5:])
    assert (split.unlabelled, split.mixed, split.rows) == (1, 1, 6)
    decided = decide(found, rows, labels, predictions=[0] * 8)
    assert decided.rows.tolist() == [2, 3, 1]
    report = measure(found, decisions=decided)
    assert report.provenance["unlabelled_rows"] == report.provenance["mixed_rows"] == 1
    assert {"unlabelled_rows", "mixed_rows"} <= set(report.flags)


def test_the_causes_survive_a_file_and_files_without_them_load(tmp_path):
    labels = np.array([[1.0, 0], [0, 1], [0, 0], [0.5, 0.5], [0, 0]])
    m = ClassMoments.from_batch(np.eye(5), labels, 2)
    m.save(tmp_path / "a.npz")
    loaded = ClassMoments.load(tmp_path / "a.npz")
    assert (loaded.unlabelled, loaded.mixed) == (2, 1)
    header, arrays = read_state(tmp_path / "a.npz")
    for name in ("unlabelled", "mixed"):
        del header[name]
    write_state(tmp_path / "old.npz", header, arrays)
    assert ClassMoments.load(tmp_path / "old.npz").merge(loaded).unlabelled == 2


def test_soft_rows_in_the_minority_are_left_out_and_in_the_majority_refused():
    labels = np.eye(4)[[0, 1, 2, 3, 0]]
    labels[:2] = 0.25
    assert class_labels(labels, 4).tolist() == [MIXED, MIXED, 2, 3, 0]
    labels[2] = [0.7, 0.3, 0, 0]
    text = r"shape \(5, 4\), and 3 of 5 rows name several classes or parts of them"
    with pytest.raises(ValueError, match=text):
        class_labels(labels, 4)
    assert class_labels([[1.0, 0.5, 0], [0, 1, 0]], 3).tolist() == [MIXED, 1]  # a 1 and a part
    # Rows of zeros name nothing, so they say nothing of what the labels are.
    assert class_labels(np.zeros((3, 4)), 4).tolist() == [UNLABELLED] * 3
    multi = [[0, 0, 0]] * 4 + [[1, 1, 0]] * 2 + [[1, 0, 0]]
    with pytest.raises(ValueError, match="2 of 7 rows name several classes"):
        class_labels(multi, 3, tokens=False)
    # A smoothed label of a binary loss is a mixture, too.
    assert class_labels([0.1, 1.0, 0.0], 2).tolist() == [MIXED, 1, 0]
    with pytest.raises(ValueError, match="3 of 3 rows name several classes or parts of them"):
        class_labels([[0.1], [0.9], [0.9]], 2)


def test_features_of_rows_make_integers_of_their_shape_one_hot():
    labels = [[0, 1], [1, 1], [0, 1], [0, 0]]
    assert class_labels(labels, 2, tokens=True).tolist() == labels
    assert labelled_rows(np.eye(4), labels, 2)[1].tolist() == [1, MIXED, 1, UNLABELLED]
    with pytest.raises(ValueError, match=r"one-hot rows of 2, and hold 7 at position \(1, 0\)"):
        labelled_rows(np.eye(2), [[0, 1], [7, 1]], 2)
    assert are_tokens((4, 2), [(4, 2, 8), (4, 2, 5)])
    assert not are_tokens((4, 2), [(4, 2, 8), (4, 8)])
    assert not are_tokens((4,), [(4, 8)])


def test_codes_of_rows_that_name_no_class_are_read_again():
    """Files and samples hold them as integers."""
    codes = class_labels([[0.0, 0], [0, 1], [0.5, 0.5], [1, 0]], 2)
    assert codes.tolist() == [UNLABELLED, 1, MIXED, 0]
    assert class_labels(codes[[0, 2, 2]], 2).tolist() == [UNLABELLED, MIXED, MIXED]
    with pytest.raises(ValueError, match="label -2147483648 at row 0 is outside"):
        class_labels([-(2**31), 0], 2)  # R's missing integer


def test_one_number_is_no_column():
    with pytest.raises(ValueError, match=r"features have shape \(1, 2\) and labels \(\)"):
        ClassMoments.from_batch([[1.0, 2.0]], 1, 2)


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
            np.zeros((3, 0)),
            [0, 1, 1],
            r"features have shape \(3, 0\): there is not one feature: pass rows of shape \(N, d\)",
        ),
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


def test_the_largest_part_may_be_the_class():
    rows = [[0.6, 0.4, 0], [0, 0.2, 0.8], [0.5, 0.5, 0], [0, 1, 0], [0, 0, 0], [0.2, 0.2, 0.2]]
    for dtype in (np.float16, np.float32, np.float64):
        codes = class_labels(np.array(rows, dtype), 3, mixed="hardest")
        assert codes.tolist() == [0, 2, MIXED, 1, UNLABELLED, MIXED]
    binary = class_labels(np.array([0.9, 0.1, 0.5, 1.0, 0.0]), 2, mixed="hardest")
    assert binary.tolist() == [1, 0, MIXED, 1, 0]
    smoothed = 0.9 * np.eye(3)[[2, 0, 1]] + 0.1 / 3
    assert class_labels(smoothed, 3, mixed="hardest").tolist() == [2, 0, 1]
    both = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]])  # several labels have no largest part
    assert class_labels(both, 3, mixed="hardest").tolist() == [MIXED, 1, 0]
    with pytest.raises(ValueError, match="6 of 6 rows name several classes or parts of them"):
        class_labels(np.full((6, 3), 1 / 3), 3, mixed="hardest")
    with pytest.raises(ValueError, match=r"hold 1\.5 at position"):
        class_labels(np.array([[1.5, 0, 0]]), 3, mixed="hardest")


def test_a_masked_array_that_hides_nothing_passes():
    rows, labels = np.ma.array(np.eye(2)), np.ma.array([0, 1])
    assert ClassMoments.from_batch(rows, labels, 2).counts.tolist() == [1, 1]
