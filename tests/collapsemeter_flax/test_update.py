"""The sums on the device against float64 NumPy on the same rows."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import collapsemeter_flax as cf
from collapsemeter import ClassMoments, CorruptStateError, Head, decide, measure
from collapsemeter.stats.sampling import reservoir_slots
from collapsemeter.stats.state_file import read_state, write_state
from collapsemeter.stats.sums import EPS
from collapsemeter_flax.checkpoint import older_arrays
from collapsemeter_flax.labels import checked_labels, flat_labels
from collapsemeter_flax.merging import _turn
from collapsemeter_flax.namespace import FULL
from collapsemeter_flax.namespace import counted as add_counts
from collapsemeter_flax.sample import numbered, shares, slots_of
from collapsemeter_flax.tallies import head_of
from collapsemeter_flax.updating import _dtype_code
from collapsemeter_flax.waiting import settled

EPS32 = EPS["float32"]
# Sums of n residuals in float32 lose at most n eps of the sum of their magnitudes; the shift is within
# a standard deviation of the mean, which leaves a factor of a few.
ROWS = 600
SUM_TOLERANCE = 4 * ROWS * EPS32


def assert_moments(found: ClassMoments, truth: ClassMoments, tolerance: float = SUM_TOLERANCE):
    truth = truth.coarsen(found.kind)
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.traces, truth.traces, rtol=tolerance)
    # A class mean is off by eps of the spread, and was rounded where the shift was taken.
    np.testing.assert_allclose(found.means, truth.means, rtol=8 * EPS32, atol=8 * EPS32)
    if truth.sketch is not None:
        np.testing.assert_array_equal(found.signs, truth.signs)
        size = np.abs(truth.sketch).max()
        np.testing.assert_allclose(found.sketch, truth.sketch, rtol=0, atol=tolerance * size)
    if truth.scatter is not None:
        size = np.abs(truth.scatter).max()
        np.testing.assert_allclose(found.scatter, truth.scatter, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize(
    ("classes", "width", "scatter", "offset", "split"),
    [
        *((10, 16, scatter, 1e3, 12) for scatter in ("class", "pooled", "sketch", "trace")),
        (120, 8, "pooled", 0.0, 12),
        (10, 16, "class", 1e3, [1, 350]),
    ],
)
def test_any_batch_split_gives_the_moments_of_numpy(
    features, counted, classes, width, scatter, offset, split
):
    rows, labels = features(classes, width, spread=1e-3, offset=offset)
    state = counted(cf.init({"fc": width}, classes, scatter=scatter), rows, labels, split)
    truth = ClassMoments.from_batch(rows, labels, classes, scatter=scatter)
    assert_moments(cf.to_moments(state)["fc"], truth)


def test_under_an_offset_near_collapse_every_metric_is_that_of_numpy(features, counted):
    rows, labels = features(10, 16, spread=1e-3, offset=1e3)
    state = counted(cf.init({"fc": 16}, 10), rows, labels, [64, 128, 129, 300])
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(16, 10)), rng.normal(size=10)
    head = Head(kernel.T, bias)
    truth = ClassMoments.from_batch(rows, labels, 10)
    expected = measure(truth, head=head, decisions=decide(truth, rows, labels, head=head))
    found = cf.report(state, {"kernel": kernel, "bias": bias}, phase="frozen-eval")["fc"]
    assert set(found) == set(expected)
    for name, value in expected.items():
        relative = SUM_TOLERANCE if name.startswith("nc1") else 1e-5
        assert found[name] == pytest.approx(value, rel=relative, abs=1e-6, nan_ok=True), name


def test_imbalance_absent_and_one_sample_classes(counted):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2, 4], [300, 40, 1, 7]))
    rows = (rng.normal(size=(5, 3))[labels] + 0.1 * rng.normal(size=(348, 3))).astype(np.float32)
    state = counted(cf.init({"fc": 3}, 5), rows, labels, 5)  # C > d as well
    truth = ClassMoments.from_batch(rows, labels, 5)
    assert_moments(cf.to_moments(state)["fc"], truth)
    found = cf.report(state)["fc"]
    assert found.provenance["absent_classes"] == [3]
    assert found.provenance["single_sample_classes"] == [2]
    for name, value in measure(truth).items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), name


def test_a_long_unbalanced_stream_of_small_batches(features, counted):
    rows, labels = features(3, 4, spread=1e-2, offset=10.0, rows=400)
    order = np.argsort(labels, kind="stable")  # one class after the other
    state = counted(cf.init({"fc": 4}, 3), rows[order], labels[order], 100)
    assert_moments(cf.to_moments(state)["fc"], ClassMoments.from_batch(rows, labels, 3))
    assert int(state.batches) == 100


def test_an_empty_batch_changes_nothing_but_the_number_of_batches(features, counted):
    rows, labels = features(3, 4, spread=1.0, offset=0.0, rows=30)
    before = counted(cf.init({"fc": 4}, 3), rows, labels)
    after = counted(before, rows[:0], labels[:0])
    assert int(after.batches) == 2
    for one, other in zip(
        jax.tree.leaves(before.layers), jax.tree.leaves(after.layers), strict=True
    ):
        np.testing.assert_array_equal(one, other)


# Rows that are not features of a class


def test_masked_rows_are_left_out_and_counted_even_where_they_hold_nan():
    rows, labels = np.eye(4, dtype=np.float32), np.array([0, 1, -100, 0])
    rows[2] = np.nan
    for kind in ("skip", "raise", "propagate"):
        state = cf.update(cf.init({"fc": 4}, 2, nonfinite=kind), {"fc": rows}, labels)
        layer = cf.report(state)["fc"]
        assert layer.provenance["ignored_rows"] == 1
        assert layer.provenance["rows"] == 3
        assert math.isfinite(layer["nc1_trace_ratio"])


def test_rows_that_hold_nan_are_skipped_refused_or_propagated():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(10, 4)).astype(np.float32), np.arange(10) % 2
    rows[3, 1] = np.nan
    states = {
        kind: cf.update(cf.init({"fc": 4}, 2, nonfinite=kind), {"fc": rows}, labels)
        for kind in ("skip", "raise", "propagate")
    }
    skipped = cf.report(states["skip"])["fc"]
    assert skipped.provenance["nonfinite_rows"] == 1
    assert skipped.provenance["rows"] == 9
    with pytest.raises(
        ValueError, match="'fc' gave 1 rows that hold NaN or Inf: pass nonfinite='skip'"
    ):
        cf.report(states["raise"])
    assert cf.report(states["propagate"])["fc"].reason("nc1_pinv") == "nonfinite_statistics"
    untouched = cf.to_moments(states["propagate"])["fc"].means[0]
    np.testing.assert_allclose(untouched, rows[::2].mean(0, dtype=np.float64), rtol=8 * EPS32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_before_arithmetic(dtype):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    # The square overflows float16.
    rows = jnp.asarray(rng.normal(size=(60, 6)) * 300 + 3000, dtype)
    state = cf.update(cf.init({"fc": 6}, 3), {"fc": rows}, labels)
    truth = ClassMoments.from_batch(np.asarray(rows, np.float64), labels, 3)
    found = cf.report(state)["fc"]
    assert found["nc1_pinv"] == pytest.approx(measure(truth)["nc1_pinv"], rel=SUM_TOLERANCE)
    assert found.provenance["feature_dtype"] == dtype


def test_of_several_dtypes_the_coarsest_is_reported():
    state = cf.init({"fc": 2}, 2)
    for dtype in ("bfloat16", "float32"):
        state = cf.update(state, {"fc": jnp.eye(2, dtype=dtype)}, [0, 1])
    assert cf.to_moments(state)["fc"].feature_dtype == "bfloat16"
    # One that the core does not list stands as the next coarser one.
    assert cf.state.DTYPES[_dtype_code("float8_e4m3b11fnuz")] == "float8_e4m3fn"


def test_the_default_precision_of_products_does_not_reach_the_sums(features):
    rows, labels = features(5, 8, spread=1e-3, offset=0.0)
    with jax.default_matmul_precision("bfloat16"):
        state = cf.update(cf.init({"fc": 8}, 5, scatter="pooled"), {"fc": rows}, labels)
        text = str(jax.make_jaxpr(cf.update)(state, {"fc": rows}, labels))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert text.count("dot_general[") == text.count(
        "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    )
    assert_moments(cf.to_moments(state)["fc"], ClassMoments.from_batch(rows, labels, 5))


# Labels


def test_labels_come_as_column_one_hot_and_any_integer():
    rows = np.eye(4, dtype=np.float32)
    plain = np.array([0, 1, 2, 1])
    forms = [
        plain.tolist(),
        plain[:, None],
        np.eye(3)[plain],
        np.eye(3, dtype=bool)[plain],
        np.eye(3, dtype=np.int64)[plain],
        *(plain.astype(dtype) for dtype in ("int8", "uint8", "uint32", "int64", "uint64")),
        *(plain.astype(dtype) for dtype in ("float16", "float32", "float64", jnp.bfloat16)),
        plain[:, None].astype(np.float32),
    ]
    state = cf.init({"fc": 4}, 3)
    for labels in forms:
        for given in (labels, jnp.asarray(labels)):
            found = settled(cf.update(state, {"fc": rows}, given)).layers[0].sums
            np.testing.assert_array_equal(found.counts, [1, 2, 1], err_msg=repr(given))
    for labels in map(jnp.asarray, forms):  # in a trace, where nobody looks at a value
        found = jax.jit(functools.partial(flat, rows, state))(labels)
        np.testing.assert_array_equal(found, plain, err_msg=repr(labels))


def flat(rows, state, labels):
    settings = state.spec.settings
    _, one_hot, array = checked_labels(labels, {"fc": rows}, settings)
    return flat_labels(array, settings, one_hot)


def test_float_labels_of_a_binary_loss():
    rows, plain = np.eye(4, dtype=np.float32), np.array([0, 1, 1, 0])
    empty = cf.init({"fc": 4}, 2)
    for dtype in (np.float32, jnp.bfloat16, bool):
        for labels in (plain.astype(dtype), plain[:, None].astype(dtype)):
            given = jnp.asarray(labels)
            # Traced, the labels alone: what follows is the same program again and again.
            found = jax.jit(functools.partial(flat, rows, empty))(given)
            np.testing.assert_array_equal(found, plain, err_msg=repr(labels))
            state = cf.update(empty, {"fc": rows}, given, logits=jnp.ones((4, 1)))
            np.testing.assert_array_equal(settled(state).layers[0].sums.counts, [2, 2])
    state = jax.jit(cf.update)(empty, {"fc": rows}, given, logits=jnp.ones((4, 1)))
    np.testing.assert_array_equal(settled(state).layers[0].sums.counts, [2, 2])
    assert cf.report(state)["fc"].provenance["nc4_rows"] == 4


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_rows_that_name_no_single_class_are_left_out_and_counted(dtype):
    """All zeros are not class 0, and several ones not the first of them; traced or not."""
    rows = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    labels = np.eye(3)[[0, 1, 2, 0, 1, 2, 2, 1]]
    labels[2], labels[5] = 0, [1, 0, 1]
    labels, kept = labels.astype(dtype), [0, 1, 3, 4, 6, 7]
    empty = cf.init({"fc": 3}, 3)
    for update in (cf.update, jax.jit(cf.update)):
        state = update(empty, {"fc": rows}, jnp.asarray(labels))
        sums = settled(state).layers[0].sums
        assert (int(sums.unlabelled), int(sums.mixed), int(sums.invalid)) == (1, 1, 0)
        due = ClassMoments.from_batch(rows[kept], [0, 1, 0, 1, 2, 1], 3)
        assert_moments(cf.to_moments(state)["fc"], due)
        assert int(state.next_row) == 6
    merged = cf.merge(state, state)
    with pytest.warns(
        RuntimeWarning, match="2 because their one-hot label is all zeros and 2 because"
    ):
        found = cf.report(merged)["fc"].provenance
    assert (found["unlabelled_rows"], found["mixed_rows"]) == (2, 2)


def older_file(state, path, missing):
    """Write a state as files were before counters were joined and rows waited."""
    arrays = {k: v for k, v in older_arrays(settled(state)).items() if k[-1] not in missing}
    cf.save(state, path)
    header, _ = read_state(path)
    del header["packed"]
    leaves = [np.asarray(leaf) for leaf in arrays.values()]
    header["shapes"] = [leaf.shape for leaf in leaves]
    write_state(path, header, {f"leaf{i}": leaf for i, leaf in enumerate(leaves)})


@pytest.mark.parametrize("missing", [(), ("unlabelled", "mixed")])
def test_an_older_file_loads_also_without_the_counters_of_labels(tmp_path, missing):
    rows = np.eye(3, dtype=np.float32)
    labels = np.array([[1.0, 0], [0, 1], [0, 0]])
    state = cf.update(cf.init({"fc": 3, "b": 3}, 2), {"fc": rows, "b": rows}, labels)
    older_file(state, tmp_path / "old.npz", missing)
    loaded = cf.load(tmp_path / "old.npz", like=state)
    assert int(loaded.layers[1].sums.unlabelled) == (0 if missing else 1)
    if not missing:
        same_sums(loaded, state)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_array_equal(loaded.layers[1].sums.counts, [1, 1])


def test_an_older_tree_of_replicas_loads():
    rows = np.eye(3, dtype=np.float32)
    state = settled(cf.update(cf.init({"fc": 3}, 2), {"fc": rows}, [0, 1, 1]))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    tree = {}
    for name, leaf in older_arrays(stacked).items():
        inner = tree
        for key in name[:-1]:
            inner = inner.setdefault(key, {})
        inner[name[-1]] = leaf
    loaded = serialization.from_state_dict(state, tree)
    same_sums(jax.tree.map(lambda leaf: leaf[1], loaded), state)


def test_tokens_as_many_as_classes_are_not_taken_for_one_hot():
    state = cf.init({"fc": 4}, 3)
    tokens = np.array([[0, 1, 0], [0, 0, 1]])  # looks one-hot, over three classes
    counted = cf.update(state, {"fc": np.ones((2, 3, 4), np.float32)}, tokens)
    assert int(settled(counted).layers[0].sums.counts.sum()) == 6
    counted = cf.update(state, {"fc": np.ones((2, 4), np.float32)}, tokens)
    np.testing.assert_array_equal(settled(counted).layers[0].sums.counts, [0, 1, 1])


@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 0])
def test_labels_of_no_class_are_counted_in_a_trace_and_reported(ignore_index):
    labels = np.array([1, -7, 3, 2**31, -1, ignore_index, 2], np.int64)
    ignored = int((labels == ignore_index).sum())
    known = int(((labels >= 0) & (labels < 3) & (labels != ignore_index)).sum())
    rows = np.ones((7, 2), np.float32)
    state = cf.init({"fc": 2}, 3, ignore_index=ignore_index)
    # uint32 in the trace: what does not fit int32 must not become another label.
    step = jax.jit(cf.update)
    state = step(state, {"fc": rows}, jnp.asarray(labels.astype(np.int32)))
    wide = jnp.asarray(np.array([2**31 + 2, 2**32 - 100], np.uint32))
    state = step(state, {"fc": rows[:2]}, wide)
    sums = settled(state).layers[0].sums
    low = int((labels.astype(np.int32) == ignore_index).sum())
    assert low == ignored
    assert (int(sums.ignored), int(sums.counts.sum())) == (ignored, known)
    assert int(sums.invalid) == 9 - ignored - known
    with pytest.warns(
        RuntimeWarning, match=r"'fc' got \d labels that are none of the classes 0..2 and not ignore"
    ):
        report = cf.report(state)
    assert report.provenance["rows"] == 9


def test_soft_labels_are_mixed_not_argmaxed():
    soft = jnp.array([[0.9, 0.1], [0.0, 1.0], [1.0, 1.0]])
    state = jax.jit(cf.update)(cf.init({"fc": 2}, 2), {"fc": jnp.ones((3, 2))}, soft)
    assert int(settled(state).layers[0].sums.mixed) == 2
    np.testing.assert_array_equal(settled(state).layers[0].sums.counts, [0, 1])
    with pytest.warns(RuntimeWarning, match="2 of 3 labels name several classes or parts of them"):
        report = cf.report(state)
    assert report["fc"].flags == ("mixed_labels",)
    assert np.isnan(report["fc"]["nc1_pinv"])


def test_soft_labels_may_have_the_class_of_their_largest_part():
    soft = jnp.array([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5], [0.3, 0.7], [0.0, 0.0], [0.2, 1.7]])
    rows = {"fc": jnp.ones((6, 2))}
    state = jax.jit(cf.update)(cf.init({"fc": 2}, 2, mixed="hardest"), rows, soft)
    np.testing.assert_array_equal(settled(state).layers[0].sums.counts, [1, 2])
    assert (
        int(settled(state).layers[0].sums.mixed),
        int(settled(state).layers[0].sums.unlabelled),
    ) == (2, 1)
    assert cf.report(state).provenance["mixed"] == "hardest"
    with pytest.raises(ValueError, match="mixed='largest': choose 'skip' or 'hardest'"):
        cf.init({"fc": 2}, 2, mixed="largest")


def test_labels_at_hand_that_are_wrong_raise():
    state, rows = cf.init({"fc": 2}, 2), {"fc": np.ones((2, 2), np.float32)}
    for labels in ([0, 5], jnp.array([0, 5])):
        with pytest.raises(ValueError, match=r"label 5 at row 1 is outside 0..1 \(num_classes=2\)"):
            cf.update(state, rows, labels)
    with pytest.raises(ValueError, match=r"label 1.5 at row 1 is no whole number"):
        cf.update(state, rows, jnp.array([0.0, 1.5]))
    with pytest.raises(ValueError, match=r"pass \(labels \+ 1\) // 2"):
        cf.update(state, rows, jnp.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match=r"labels have shape \(2, 3\)"):
        jax.jit(cf.update)(state, rows, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"labels have dtype bool and shape \(2,\): pass integer"):
        jax.jit(cf.update)(cf.init({"fc": 2}, 3), rows, jnp.ones(2, bool))
    with pytest.raises(ValueError, match="labels are one number: pass one label per row"):
        cf.update(state, rows, 1)


# Shapes of features


def test_maps_tokens_sequences_and_wider_things_become_rows(features):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(6, 4, 4, 4)).astype(np.float32)  # H = W = d: channels come last
    tokens = rng.normal(size=(6, 5, 3)).astype(np.float32)
    labels, every = np.arange(6) % 2, np.arange(30).reshape(6, 5) % 2
    state = cf.init(
        {"flat": 64, "first": 3, "last": 3, "mean": 3, "own": 5},
        2,
        reduction={
            "flat": "flatten",
            "first": "first",
            "last": "last",
            "mean": "mean_last",
            "own": lambda x: x[:, :, 0],
        },
    )
    mask = np.arange(5) < np.array([5, 3, 1, 2, 5, 4])[:, None]
    # Of a tuple the first entry is meant.
    shown = {"flat": (maps, maps[0]), "first": tokens, "last": tokens, "mean": tokens}
    counted = cf.update(state, {**shown, "own": tokens}, labels, mask=mask)
    lengths = mask.sum(1)
    expected = {
        "flat": maps.reshape(6, -1),
        "first": tokens[:, 0],
        "last": tokens[np.arange(6), lengths - 1],
        "mean": (tokens * mask[..., None]).sum(1) / lengths[:, None],
        "own": tokens[:, :, 0],
    }
    for name, rows in expected.items():
        assert_moments(cf.to_moments(counted)[name], ClassMoments.from_batch(rows, labels, 2))
    state = cf.update(cf.init({"maps": 4}, 2), {"maps": maps}, labels)
    truth = ClassMoments.from_batch(maps.mean((1, 2)), labels, 2)
    assert_moments(cf.to_moments(state)["maps"], truth)
    state = cf.update(cf.init({"tokens": 3}, 2), {"tokens": tokens}, every)
    truth = ClassMoments.from_batch(tokens.reshape(30, 3), every.reshape(-1), 2)
    assert_moments(cf.to_moments(state)["tokens"], truth)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        (
            (3, 4),
            2,
            r"'fc' gave features of shape \(3, 4\) and labels have shape \(2,\): the layer ran on a batch of 3",
        ),
        (
            (5, 2, 4),  # positions come first
            2,
            "say which row of the sequence belongs to a label with reduction={'fc': 'first'}",
        ),
        ((2,), 2, "no rule pairs them"),
        ((2, 3), 2, r"'fc' gave rows of shape \(2, 3\) and init was told 4 features"),
    ],
)
def test_features_that_do_not_fit_are_named(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        cf.update(cf.init({"fc": 4}, 2), {"fc": jnp.ones(shape)}, jnp.zeros(labels, int))


def test_a_missing_or_unknown_layer_is_named():
    state, labels = cf.init({"conv": 2, "fc": 2}, 2), np.array([0, 1])
    rows = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="features lack conv: the state counts conv, fc"):
        cf.update(state, {"fc": rows}, labels)
    with pytest.raises(ValueError, match="lack conv and hold cnv, which init was not told of"):
        cf.update(state, {"fc": rows, "cnv": rows}, labels)
    with pytest.raises(
        ValueError, match="features are a list: pass a mapping from the names of init, conv"
    ):
        cf.update(state, [rows, rows], labels)
    with pytest.raises(ValueError, match="features that are not floats"):
        cf.update(cf.init({"fc": 2}, 2), {"fc": np.ones((2, 2), int)}, labels)


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ({}, {}, "layers={}: pass the width of each layer"),
        ({"fc": 0}, {}, "layers={'fc': 0}: a width is a positive integer"),
        ({"fc": True}, {}, "layers={'fc': True}: a width is a positive integer"),
        ({"fc": 2}, {"num_classes": 1}, "num_classes=1: there must be at least two classes"),
        ({"fc": 2}, {"dtype": "half"}, "dtype='half': choose 'auto', 'float32' or 'float64'"),
        ({"fc": 2}, {"dtype": "float64"}, "dtype='float64': JAX makes float32 of it; turn on"),
        ({"fc": 2}, {"reduction": {"f": "mean"}}, "reduction={'f': ...}: no such layer is watched"),
        ({"fc": 2}, {"scatter": "full"}, "scatter='full': choose"),
    ],
)
def test_a_wrong_option_of_init_is_named(layers, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        cf.init(layers, **{"num_classes": 2, **options})
    assert message in str(caught.value)


# Decisions and the row sample


def test_the_networks_own_decisions_are_those_of_the_logits(features):
    rows, labels = features(5, 8, spread=0.5, offset=0.0)
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(ROWS, 5)).astype(np.float32)
    logits[7, 2] = np.nan
    state = cf.init({"conv": 8, "fc": 8}, 5)
    for start in (0, 200):
        part = slice(start, start + 400 if start else 200)
        shown = {"conv": rows[part], "fc": rows[part]}
        state = cf.update(state, shown, labels[part], logits=logits[part])
    truth = ClassMoments.from_batch(rows, labels, 5)
    expected = decide(truth, rows, labels, logits=logits)
    report = cf.report(state)
    for name in ("conv", "fc"):
        measured = measure(truth, decisions=expected)
        for metric in ("nc4_agreement", "ncc_accuracy"):
            assert report[name][metric] == pytest.approx(measured[metric], abs=1e-12)


def test_one_logit_decides_between_two_classes_by_its_sign(features):
    rows, labels = features(2, 3, spread=0.5, offset=0.0, rows=50)
    logit = rows[:, :1] - 0.1
    reports = []
    for given in (logit, logit[:, 0], np.concatenate([-logit, logit], 1)):
        state = cf.update(cf.init({"fc": 3}, 2), {"fc": rows}, labels, logits=given)
        reports.append(cf.report(state, (np.array([[1.0], [0], [0]]), np.array([-0.1])))["fc"])
    assert reports[0] == reports[1] == reports[2]
    assert 0 < reports[0]["nc4_agreement"] < 1


def test_without_logits_a_live_stream_has_no_nc4_and_a_frozen_one_the_heads(features):
    rows, labels = features(3, 4, spread=0.5, offset=0.0, rows=60)
    state = cf.update(cf.init({"fc": 4}, 3), {"fc": rows}, labels)
    head = {"kernel": np.random.default_rng(0).normal(size=(4, 3))}
    assert cf.report(state, head)["fc"].reason("nc4_agreement") == "no_logits"
    truth = ClassMoments.from_batch(rows, labels, 3)
    expected = decide(truth, rows, labels, head=Head(head["kernel"].T)).agree.sum() / 60
    assert cf.report(state, head, phase="frozen-eval")["fc"]["nc4_agreement"] == expected


def test_logits_of_another_shape_are_refused():
    state = cf.init({"fc": 2}, 3)
    with pytest.raises(
        ValueError, match=r"logits have shape \(2, 4\) and labels \(2,\): pass one row of 3"
    ):
        cf.update(state, {"fc": np.ones((2, 2), np.float32)}, [0, 1], logits=np.ones((2, 4)))


@pytest.mark.parametrize("size", [8, 64])
def test_the_sample_holds_the_rows_that_numpy_keeps(size):
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 4, 500)
    labels[labels == -1] = -100
    rows = np.arange(500, dtype=np.float32)[:, None]
    state = cf.init({"fc": 1}, 4, sample_rows=size, seed=11)
    kept = np.full(size + 1, -1.0)
    step = cf.update
    first = 0
    for x, y in zip(np.split(rows, 10), np.split(labels, 10), strict=True):
        state = step(state, {"fc": x}, y, logits=jnp.asarray(x) * jnp.arange(4))
        usable = y >= 0
        numbers = np.where(usable, first + np.cumsum(usable) - 1, -1)
        slots = reservoir_slots(numbers, size, 11)
        kept[slots] = x[:, 0]
        first += int(usable.sum())
    state = settled(state)
    np.testing.assert_array_equal(state.layers[0].rows[:, 0], kept[:size])
    np.testing.assert_array_equal(state.samples[0].labels, labels[kept[:size].astype(int)])
    assert int(state.next_row) == first
    assert np.all(np.asarray(state.samples[0].predictions) == np.where(kept[:size] > 0, 3, 0))


def test_the_sample_stays_as_it_is_where_row_numbers_end():
    usable = jnp.ones(4, bool)
    numbers, kept = numbered(usable, jnp.uint32(FULL - 2))
    np.testing.assert_array_equal(numbers[:2], [FULL - 2, FULL - 1])
    np.testing.assert_array_equal(kept, [True, True, False, False])
    assert np.all(np.asarray(slots_of(numbers, kept & False, 8, 0)) == 8)


# Counters


def test_counts_beyond_two_to_the_31_are_exact_and_an_overflow_is_an_error(features):
    rows, labels = features(2, 3, spread=1.0, offset=0.0, rows=10)
    state = settled(cf.update(cf.init({"fc": 3}, 2), {"fc": rows}, labels))
    layer = state.layers[0]
    many = jnp.array([2**31 + 5, 2**32 - 10], jnp.uint32)
    sums = replace(layer.sums, counts=many)
    state = replace(state, layers=(layer.with_sums(sums, layer.rows),))
    state = cf.update(state, {"fc": rows}, labels)
    np.testing.assert_array_equal(cf.to_moments(state)["fc"].counts, [2**31 + 10, 2**32 - 5])
    state = settled(cf.update(state, {"fc": rows}, labels))
    with pytest.raises(
        ValueError, match=r"layer 'fc' has counted 2\^32 - 1 rows or more of a kind \(counts\)"
    ):
        cf.to_moments(state)
    assert int(add_counts(jnp.uint32(FULL), jnp.uint32(0))) == FULL


def test_label_rows_are_counted_beyond_32_bits(features):
    rows, labels = features(2, 3, spread=1.0, offset=0.0, rows=10)
    state = cf.init({"fc": 3}, 2).tallied(expected=jnp.array([1, 2**32 - 4], jnp.uint32))
    state = cf.update(state, {"fc": rows}, labels)
    np.testing.assert_array_equal(state.expected, [2, 6])
    np.testing.assert_array_equal(cf.merge(state, state).expected, [4, 12])


def test_a_state_that_does_not_add_up_is_not_measured(features):
    rows, labels = features(2, 3, spread=1.0, offset=0.0, rows=10)
    state = cf.update(cf.init({"fc": 3}, 2), {"fc": rows}, labels)
    state = state.tallied(expected=jnp.array([0, 20], jnp.uint32))
    with pytest.warns(
        RuntimeWarning, match="'fc' saw 10 of 20 label rows, so it is not measured: its counters"
    ):
        report = cf.report(state)
    assert report["fc"].reason("nc1_pinv") == "rows_missing"


@pytest.mark.parametrize(
    ("classes", "width", "options", "kind"),
    [
        (4, 200, {}, "class"),
        (10, 20, {}, "class"),
        (10, 64, {}, "pooled"),  # ten products for one
        (10, 64, {"scatter": "class"}, "class"),
        (10, 64, {"convention": "he_su2023"}, "class"),  # which weighs classes alike
        (10, 64, {"memory": 0.001}, "sketch"),
    ],
)
def test_a_scatter_for_each_class_is_kept_where_it_is_cheap_or_asked_for(
    classes, width, options, kind
):
    state = cf.init({"fc": width}, classes, sample_rows=16, sketch_rows=8, **options)
    assert state.spec.kind(0) == kind


def test_a_file_from_before_scatters_were_chosen_by_cost_still_loads(tmp_path, features, counted):
    rows, labels = features(10, 40, spread=1.0, offset=0.0)
    before = counted(cf.init({"fc": 40}, 10, scatter="class", groups=0), rows, labels)
    cf.save(before, tmp_path / "state.npz")
    like = cf.init({"fc": 40}, 10)
    assert (before.spec.kind(0), like.spec.kind(0)) == ("class", "pooled")
    with pytest.warns(RuntimeWarning, match="saved without groups of rows.*until a new init"):
        loaded = cf.load(tmp_path / "state.npz", like)
    assert loaded.spec.kind(0) == "class"
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_batch_is_said_and_every_value_is_nan():
    with pytest.warns(
        RuntimeWarning, match="no labelled batch was counted: keep what update returns"
    ):
        report = cf.report(cf.init({"fc": 3}, 2))
    assert report["fc"].reason("nc1_pinv") == "never_fired"
    assert np.isnan(report["fc"]["nc1_pinv"])


# Merge, reset, files


def same_sums(one, other):
    one, other = (replace(settled(state), waiting=None) for state in (one, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_merge_is_associative_commutative_and_has_an_identity(features, counted):
    rows, labels = features(4, 6, spread=1e-2, offset=50.0)
    merge = jax.jit(cf.merge)
    for scatter in ("class", "pooled", "trace"):
        empty = cf.init({"fc": 6}, 4, scatter=scatter, sample_rows=64)
        truth = ClassMoments.from_batch(rows, labels, 4, scatter=scatter)
        a, b, c = (
            counted(empty, x, y)
            for x, y in zip(np.split(rows, 3), np.split(labels, 3), strict=True)
        )
        for joint in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
            assert_moments(cf.to_moments(joint)["fc"], truth)
            assert int(joint.next_row) == ROWS
            assert sorted(np.asarray(joint.expected)) == [0, ROWS]
        for joint in (merge(a, empty), merge(empty, a)):
            same_sums(joint, a)


def test_merge_adds_sketches_about_the_joint_means_in_another_order_and_sign(features, counted):
    rows, labels = features(4, 6, spread=1e-2, offset=50.0)
    merge = jax.jit(cf.merge)
    empty = cf.init({"fc": 6}, 4, scatter="sketch", sketch_rows=32)
    half = ROWS // 2
    a, b = counted(empty, rows[:half], labels[:half]), counted(empty, rows[half:], labels[half:])
    for joint in (merge(a, empty), merge(empty, a)):
        same_sums(joint, a)
    joint = cf.to_moments(merge(a, b))["fc"]
    means = ClassMoments.from_batch(rows, labels, 4).means
    parts = []
    for x, y in ((rows[:half], labels[:half]), (rows[half:], labels[half:])):
        m = ClassMoments.from_batch(x, y, 4, scatter="sketch", sketch_rows=32)
        parts.append((m.sketch - m.signs @ (means - m.means), m.signs))
    order, sign = (np.asarray(part) for part in _turn(32, 0, a.next_row, b.next_row))
    assert sorted(order) == list(range(32))
    assert list(order) != sorted(order)
    assert set(sign) == {-1, 1}
    for found, (one, other) in zip(
        (joint.sketch, joint.signs), zip(*parts, strict=True), strict=True
    ):
        due = one + (other * sign[:, None])[order]
        np.testing.assert_allclose(found, due, rtol=0, atol=SUM_TOLERANCE * np.abs(due).max())
    # Counting goes on, with row numbers that neither has used.
    again = cf.to_moments(counted(merge(a, b), rows[:half], labels[:half]))["fc"]
    last = ClassMoments.from_batch(
        rows[:half], labels[:half], 4, scatter="sketch", sketch_rows=32, first_row=ROWS
    )
    np.testing.assert_array_equal(again.signs, joint.signs + last.signs)


def test_copies_of_a_stream_merge_without_bias(features, counted):
    """Of equal signs every row would count twice, and NC1 be twice what it is."""
    rows, labels = features(4, 6, spread=1.0, offset=0.0)
    one = counted(cf.init({"fc": 6}, 4, scatter="sketch", sketch_rows=64), rows, labels)
    value = measure(cf.to_moments(one)["fc"])["nc1_pinv"]
    numbers = jnp.arange(1, 301, dtype=jnp.uint32)  # other row numbers, another draw
    many = jax.jit(jax.vmap(lambda n: cf.merge(one.tallied(next_row=n), one)))(numbers)
    found = [
        measure(cf.to_moments(jax.tree.map(lambda leaf, i=i: leaf[i], many))["fc"])["nc1_pinv"]
        for i in range(300)
    ]
    error = np.std(found, ddof=1) / np.sqrt(300)
    assert abs(np.mean(found) - value) < 4 * error < value / 10
    # The replicas of a stack have one seed, and are put together likewise.
    others = [counted(cf.reset(one), rows + i, labels) for i in (1, 2)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, *others)
    assert len(cf.to_moments(stack)["fc"].seeds) == 3
    assert cf.to_moments(stack)["fc"].rows == 3 * ROWS


def test_merge_keeps_the_digits_of_states_whose_shifts_are_far_apart(counted):
    # The raw fields of the shards added as they are give a scatter that is wrong by 30 %.
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    rows = (100 * rng.normal(size=(4, 5))[labels] + 1e-2 * rng.normal(size=(400, 5))).astype(
        np.float32
    )
    only_a = labels[:200] != 3  # a class that only one has
    empty = cf.init({"fc": 5}, 4)
    a = counted(empty, rows[:200][only_a], labels[:200][only_a])
    b = counted(empty, rows[200:] + np.float32(3), labels[200:])
    both = np.concatenate([rows[:200][only_a], rows[200:] + np.float32(3)])
    truth = ClassMoments.from_batch(both, np.concatenate([labels[:200][only_a], labels[200:]]), 4)
    assert_moments(cf.to_moments(cf.merge(a, b))["fc"], truth)
    assert_moments(cf.to_moments(a)["fc"].merge(cf.to_moments(b)["fc"]), truth)
    # Nearest to collapse, and counting goes on from the merged state.
    again = counted(cf.merge(a, b), rows[:50], labels[:50])
    assert_moments(
        cf.to_moments(again)["fc"], truth.merge(ClassMoments.from_batch(rows[:50], labels[:50], 4))
    )


def test_merged_samples_are_uniform_over_the_rows_of_both(counted):
    chosen = np.zeros(400)
    empty = cf.init({"fc": 1}, 2, sample_rows=32)
    merge = jax.jit(cf.merge)
    rng = np.random.default_rng(0)
    draws = 300
    for _ in range(draws):
        order = rng.permutation(400).astype(np.float32)[:, None]
        a = counted(empty, order[:300], np.zeros(300, int))
        b = counted(empty, order[300:], np.zeros(100, int))
        kept = np.asarray(merge(a, b).layers[0].rows)[:, 0].astype(int)
        assert len(set(kept)) == 32
        chosen[kept] += 1
    # Each row is kept with probability 32/400 in each of the draws.
    share = 32 / 400
    assert abs(chosen.mean() - draws * share) < 1e-9
    assert chosen.std() < 1.3 * math.sqrt(draws * share * (1 - share))


def test_how_many_rows_of_each_is_hypergeometric():
    draw = jax.vmap(lambda seed: shares(jnp.uint32(300), jnp.uint32(100), 32, seed))
    taken = np.asarray(draw(jnp.arange(400, dtype=jnp.uint32)))
    mean, variance = 32 * 0.75, 32 * 0.75 * 0.25 * (400 - 32) / 399
    assert abs(np.mean(taken) - mean) < 4 * math.sqrt(variance / 400)
    assert 0.75 < np.var(taken) / variance < 1.33


def test_small_samples_are_kept_whole_when_merged(counted):
    rows = np.arange(20, dtype=np.float32)[:, None]
    empty = cf.init({"fc": 1}, 2, sample_rows=32)
    a, b = counted(empty, rows[:7], np.arange(7) % 2), counted(empty, rows[7:], np.arange(13) % 2)
    joint = cf.merge(a, b)
    np.testing.assert_array_equal(joint.layers[0].rows[:20], rows)
    assert int((joint.samples[0].labels >= 0).sum()) == 20


def test_states_of_different_inits_do_not_merge():
    state = cf.init({"fc": 3}, 2)
    for other, part in (
        (cf.init({"f": 3}, 2), r"names, \('fc',\) and \('f',\)"),
        (cf.init({"fc": 4}, 2), r"widths, \(3,\) and \(4,\)"),
        (cf.init({"fc": 3}, 3), "settings, Settings"),
    ):
        with pytest.raises(ValueError, match=f"the states differ in {part}"):
            cf.merge(state, other)


def test_reset_gives_the_state_of_init(features, counted):
    rows, labels = features(4, 6, spread=1e-2, offset=1.0)
    empty = cf.init({"fc": 6}, 4)
    again = jax.jit(cf.reset)(counted(empty, rows, labels))
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(empty), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_a_resumed_count_equals_an_uninterrupted_one_bit_for_bit(features, counted, tmp_path):
    rows, labels = features(4, 6, spread=1e-2, offset=1.0)
    empty = cf.init({"fc": 6}, 4, sample_rows=32, reduction=lambda x: x)
    half = counted(empty, rows[:300], labels[:300], 3)
    cf.save(half, tmp_path / "state.npz")
    resumed = counted(cf.load(tmp_path / "state.npz", like=empty), rows[300:], labels[300:], 3)
    whole = counted(half, rows[300:], labels[300:], 3)
    for one, other in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_of_something_else_is_refused(features, counted, tmp_path):
    path = tmp_path / "state.npz"
    state = cf.init({"fc": 6}, 4)
    cf.save(state, path)
    with pytest.raises(
        ValueError, match=r"counts 4 classes in fc \(6, class\).*and like= counts 5 classes"
    ):
        cf.load(path, like=cf.init({"fc": 6}, 5))
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    cf.save(stacked, path)
    assert cf.load(path, like=state).batches.shape == (2,)
    header, arrays = read_state(path)
    write_state(path, header | {"shapes": [[7]] * len(arrays)}, arrays)
    with pytest.raises(CorruptStateError, match="cannot reshape"):
        cf.load(path, like=state)
    bent = replace(state, tallies=jnp.zeros(6, jnp.int32))
    cf.save(bent, path)
    with pytest.raises(
        ValueError, match=r"holds an array \(6,\) int32 where like= has \(6,\) uint32"
    ):
        cf.load(path, like=state)
    path.write_bytes(path.read_bytes()[:-70])
    with pytest.raises(CorruptStateError, match="checksum"):
        cf.load(path, like=state)
    ClassMoments.empty(2, 3).save(path)
    with pytest.raises(CorruptStateError, match="is a state file, but not one of this adapter"):
        cf.load(path, like=state)


# Heads and reports


def test_heads_of_every_form():
    from flax import linen, nnx

    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(linear.kernel[...]), np.asarray(linear.bias[...])
    bare = nnx.Linear(3, 2, use_bias=False, rngs=nnx.Rngs(0))
    boxed = {"kernel": linen.Partitioned(jnp.asarray(kernel), (None, None)), "bias": bias}
    forms = [linear, {"kernel": kernel, "bias": bias}, (kernel, bias), Head(kernel.T, bias), boxed]
    for form in forms:
        head = head_of(form)
        np.testing.assert_array_equal(head.weight, kernel.T)
        np.testing.assert_array_equal(head.bias, bias)
    assert not head_of(bare).bias.any()
    assert head_of((kernel[:, :1], None)).weight.shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"head is a str: pass an nnx.Linear, a mapping with 'kernel'"
    ):
        head_of("fc")
    with pytest.raises(ValueError, match=r"head is a tuple with a kernel of shape \(3,\)"):
        head_of((kernel[:, 0], bias))


def test_a_head_of_another_width_is_said():
    state = cf.update(cf.init({"fc": 3}, 2), {"fc": np.eye(3, dtype=np.float32)}, [0, 1, 1])
    with pytest.warns(
        RuntimeWarning, match="layer 'fc' is not what the head reads: NC3 is not measured"
    ):
        cf.report(state, (np.ones((5, 2)), np.zeros(2)))


def test_wide_layers_keep_a_sketch_and_a_sixteenth_of_the_sample():
    state = cf.init({"wide": 4100, "fc": 4}, 2, sample_rows=64)
    assert [layer.rows.shape[0] for layer in state.layers] == [4, 64]
    # Rows that vary along the difference of their means, too: else float32 cannot tell NC1.
    rows = (
        np.random.default_rng(0).normal(size=(600, 4100)).astype(np.float32)
    )  # beyond 512 buckets
    shown = {"wide": rows, "fc": np.tile(np.eye(4, dtype=np.float32), (150, 1))}
    state = cf.update(state, shown, np.arange(600) % 2)
    with pytest.warns(
        RuntimeWarning, match=r"'wide' is too wide for a scatter \(4100 features\): a sketch of it"
    ):
        report = cf.report(state)
    assert report["wide"].standard_errors.keys() == {"nc1_pinv", "nc1_fuzziness"}
    assert report["wide"].reason("nc1_vci") == "only_a_sketch"
    layer = state.layers[0].sums
    floats = layer.shift, layer.sums, layer.squares, layer.sketch, layer.signs
    assert sum(part.size for part in floats) == (2 + 2 * 16 + 512) * 4100 + 512 * 2 + 2 * 16


def test_provenance_names_framework_rows_and_batches():
    state = cf.update(cf.init({"fc": 3}, 2), {"fc": np.eye(3, dtype=np.float32)}, [0, 1, 1])
    found = cf.report(state, phase="frozen-train").provenance
    assert found["framework"].startswith("flax 0.")
    assert (found["rows"], found["batches"], found["classes"]) == (3, 1, 2)
    assert repr(state) == "<State of 2 classes in: fc (3)>"


# Float64


def test_under_x64_float64_features_stay_float64():
    code = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import collapsemeter_flax as cf
from collapsemeter import ClassMoments
rng = np.random.default_rng(0)
labels = np.arange(600) % 10
rows = rng.normal(size=(10, 16))[labels] + 100 + 1e-7 * rng.normal(size=(600, 16))
state = cf.init({"fc": 16}, 10)
step = jax.jit(cf.update)
for x, y in zip(np.split(rows, 6), np.split(labels, 6)):
    state = step(state, {"fc": x}, y, logits=x[:, :10])
a, b = (step(cf.init({"fc": 16}, 10), {"fc": x}, y) for x, y in zip(np.split(rows, 2), np.split(labels, 2)))
truth = ClassMoments.from_batch(rows, labels, 10)
for found in (state, jax.jit(cf.merge)(a, b)):
    moments = cf.to_moments(found)["fc"]
    np.testing.assert_allclose(moments.scatter, truth.scatter, rtol=0, atol=1e-6 * truth.scatter.max())
    assert moments.feature_dtype == "float64"
    assert moments.rows == 600
assert state.layers[0].sums.shift.dtype == "float64"
assert state.next_row.dtype == "uint32"
from collapsemeter_flax.waiting import settled
kept = np.asarray(settled(state).layers[0].rows)[:600]
np.testing.assert_array_equal(kept, rows)
from collapsemeter import measure
rows = rng.normal(size=(10, 16))[labels] + rng.normal(size=(600, 16))
state = cf.init({"fc": 16}, 10)
for x, y in zip(np.split(rows, 6), np.split(labels, 6)):
    state = step(state, {"fc": x}, y)
layer, expected = cf.report(state)["fc"], measure(ClassMoments.from_batch(rows, labels, 10))
assert {"nc1_trace_ratio", "nc1_cdnv", "nc2_etf_error"} <= expected.intervals.keys()
for kind in ("intervals", "estimates"):
    for name, value in getattr(expected, kind).items():
        np.testing.assert_allclose(getattr(layer, kind)[name], value, rtol=1e-9, err_msg=name)
narrow = cf.init({"fc": 16}, 10, dtype="float32")
try:
    cf.update(narrow, {"fc": rows}, labels)
except ValueError as error:
    assert "gave float64 features and the state keeps float32 sums" in str(error), error
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
