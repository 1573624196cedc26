"""States of no data: refused whatever their checksum says, and no honest state is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter import ClassMoments, CorruptStateError
from collapsemeter.adapter.settings import Settings
from collapsemeter.audit.saved_state import FORMAT, SavedState
from collapsemeter.stats import sums
from collapsemeter.stats.accumulate import Accumulator
from collapsemeter.stats.consistency import check_consistent
from collapsemeter.stats.namespace import Numpy
from collapsemeter.stats.sampling import low_32_bits
from collapsemeter.stats.sketch import row_hashes
from collapsemeter.stats.state_file import read_state, write_state

KINDS = ("class", "pooled", "sketch", "trace")
FIELDS = ("counts", "means", "scatter", "traces", "means_low", "sketch", "signs")


def honest(kind="class", rows=60, scale=1.0) -> ClassMoments:
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    features = rng.normal(size=(rows, 4)) + 3 * rng.normal(size=(3, 4))[labels]
    return ClassMoments.from_batch(scale * features, labels, 4, scatter=kind, shard="a")


def indefinite(scatter: np.ndarray) -> np.ndarray:
    """Return it with the trace it had, and an entry that its diagonal does not allow."""
    changed = scatter.copy()
    changed[..., 0, 1] = changed[..., 1, 0] = 2 * np.trace(changed, axis1=-2, axis2=-1)
    return changed


def first_entry(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed[(0,) * array.ndim] = value
    return changed


IMPOSSIBLE = {
    "a negative count": (KINDS, lambda m: {"counts": m.counts - 40 * np.eye(4, dtype=int)[0]}, "class 0 has -20 rows"),
    "a count beyond all": (KINDS, lambda m: {"counts": m.counts + 2**60}, "class 0 has .* rows"),
    "a negative trace": (KINDS, lambda m: {"traces": -m.traces}, "class 0 has a sum of squares of -"),
    "a row alone with a spread": (
        KINDS, lambda m: {"counts": np.minimum(m.counts, 1)}, "class 0 has 1 row and a sum of squares"),
    "a mean of an absent class": (
        KINDS, lambda m: {"means": m.means + 1.0}, "class 3 has no row and a mean that is not 0"),
    "squares of an absent class": (
        KINDS, lambda m: {"traces": m.traces + 1.0}, "class 3 has no row and a sum of squares of 1"),
    "NaN in a mean": (
        KINDS, lambda m: {"means": first_entry(m.means, np.nan)}, "class 0 has a mean that is not finite"),
    "low digits that are high": (
        KINDS, lambda m: {"means_low": 1e-3 * m.means}, "class 0 has means_low beyond the rounding"),
    "negated scatter": (
        ("class", "pooled"), lambda m: {"scatter": -m.scatter}, "scatter.* has trace -.* squares are"),
    "scatter of another trace": (
        ("class", "pooled"), lambda m: {"scatter": 1.01 * m.scatter}, "scatter.* has trace"),
    "NaN in the scatter": (
        ("class", "pooled"), lambda m: {"scatter": first_entry(m.scatter, np.nan)}, "has trace nan"),
    "NaN beside the diagonal": (
        ("class", "pooled"),
        lambda m: {"scatter": np.where(np.eye(4) > 0, m.scatter, np.nan)}, "is no scatter"),
    "indefinite scatter": (
        ("class", "pooled"), lambda m: {"scatter": indefinite(m.scatter)}, "is no scatter"),
    "scatter that is not symmetric": (
        ("class", "pooled"), lambda m: {"scatter": np.tril(m.scatter)}, "is no scatter: not symmetric"),
    "a negative diagonal": (
        ("class", "pooled"),
        lambda m: {"scatter": m.scatter + np.diag([1, -1, 0, 0]) * 5 * np.max(m.scatter)},
        "on its diagonal"),
    "a scaled sketch": (("sketch",), lambda m: {"sketch": 5 * m.sketch}, "the sketch has squares of"),
    "NaN in the sketch": (("sketch",), lambda m: {"sketch": np.nan * m.sketch}, "squares of nan"),
    "halves of signs": (("sketch",), lambda m: {"signs": m.signs / 2}, "is not a whole number"),
    "more signs than rows": (("sketch",), lambda m: {"signs": 40 * m.signs}, "and signs of"),
    "a row without a sign": (
        ("sketch",), lambda m: {"counts": m.counts + np.eye(4, dtype=int)[0]}, "has 21 rows and signs of"),
    "half a row": (KINDS, lambda m: {"counts": m.counts / 3}, "counts have dtype float64"),
    "counts of texts": (KINDS, lambda m: {"counts": m.counts.astype(str)}, "counts have dtype <U"),
    "complex means": (KINDS, lambda m: {"means": m.means + 0j}, "means have dtype complex128"),
    "fewer than no rows left out": (KINDS, lambda m: {"ignored": -1}, "ignored=-1 is no number of rows"),
    "half a row left out": (KINDS, lambda m: {"nonfinite": 0.5}, "nonfinite=0.5 is no number"),
    "a dtype that is no name": (KINDS, lambda m: {"feature_dtype": 3}, "feature_dtype=3 is not the name"),
    "a shard that is no name": (KINDS, lambda m: {"shards": frozenset([3])}, "a shard is named by a text"),
}  # fmt: skip
CASES = [(what, kind) for what, (kinds, _, _) in IMPOSSIBLE.items() for kind in kinds]


@pytest.mark.parametrize(("what", "kind"), CASES)
def test_the_constructor_refuses_what_no_data_have(what, kind):
    _, change, text = IMPOSSIBLE[what]
    m = honest(kind)
    replace(m, counts=m.counts)  # as it is, it passes
    with pytest.raises(ValueError, match=text):
        replace(m, **change(m))


@pytest.mark.parametrize(("what", "kind"), CASES)
def test_a_state_file_with_such_contents_is_corrupt(tmp_path, what, kind):
    _, change, _ = IMPOSSIBLE[what]
    m, path = honest(kind), tmp_path / "layer.state"
    m.save(path)
    header, arrays = read_state(path)
    for name, value in change(m).items():
        if name in FIELDS:
            arrays[name] = np.asarray(value)
        else:
            header[name] = sorted(value) if isinstance(value, frozenset) else value
    write_state(path, header, arrays)
    with pytest.raises(CorruptStateError, match=r"layer\.state is not a state file: ") as caught:
        ClassMoments.load(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("counts", np.int32), ("counts", np.float64), ("means", np.float32), ("traces", np.int64)],
)
def test_a_state_file_of_other_dtypes_is_corrupt(tmp_path, kind, name, dtype):
    path = tmp_path / "layer.state"
    honest(kind).save(path)
    header, arrays = read_state(path)
    write_state(path, header, arrays | {name: arrays[name].astype(dtype)})
    with pytest.raises(CorruptStateError, match=f"{name} have dtype {np.dtype(dtype)}"):
        ClassMoments.load(path)


@pytest.mark.parametrize("kind", KINDS)
def test_doubled_counts_are_not_those_that_were_saved(tmp_path, kind):
    path = tmp_path / "layer.state"
    honest(kind).save(path)
    header, arrays = read_state(path)
    write_state(path, header, arrays | {"counts": 2 * arrays["counts"]})
    with pytest.raises(CorruptStateError, match="its counts add up to 120 rows of 60"):
        ClassMoments.load(path)
    del header["rows"]  # as older versions wrote it: the counts are believed
    write_state(path, header, arrays)
    assert ClassMoments.load(path).rows == 60


@pytest.mark.parametrize("field", ["shards", "seeds"])
@pytest.mark.parametrize("value", ["ab", {"a": 1}, 3])
def test_what_should_be_a_list_in_a_header(tmp_path, field, value):
    path = tmp_path / "layer.state"
    honest().save(path)
    header, arrays = read_state(path)
    write_state(path, header | {field: value}, arrays)
    with pytest.raises(CorruptStateError, match="is not a list"):
        ClassMoments.load(path)


AUDITED = {
    "counts doubled": (KINDS, "counts", lambda a: 2 * a, "has counted .* rows, its shards have 60|signs of"),
    "a count below zero": (KINDS, "counts", lambda a: a - [40, 0, 0], "class 0 has -20 rows"),
    "traces negated": (KINDS, "traces", np.negative, "class 0 has a sum of squares of -"),
    "counts of another dtype": (KINDS, "counts", lambda a: a.astype(float), "counts have dtype float64"),
    "scatter negated": (("class", "pooled"), "scatter", np.negative, "scatter.* has trace -"),
    "scatter a little larger": (
        ("class", "pooled"), "scatter", lambda a: a * (1 + 1e-9), "scatter.* has trace"),
    "sketch scaled": (("sketch",), "sketch", lambda a: 5 * a, "the sketch has squares"),
    "signs in halves": (("sketch",), "signs", lambda a: a / 2, "is not a whole number"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "kind"), [(what, kind) for what, (kinds, *_) in AUDITED.items() for kind in kinds]
)
def test_a_state_of_an_audit_with_such_contents_is_corrupt(tmp_path, what, kind):
    _, name, change, text = AUDITED[what]
    path = audited(tmp_path, kind)
    header, arrays = read_state(path, FORMAT)
    write_state(path, header, arrays | {f"0.{name}": change(arrays[f"0.{name}"])}, FORMAT)
    with pytest.raises(CorruptStateError, match=r"is not the state of an audit: .*" + text):
        SavedState(path).moments("fc")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_classes": 10**9}, "num_classes=1000000000: at most 1048576 classes"),
        ({"num_classes": "3"}, "num_classes='3' is not a whole number"),
        ({"ignore_index": None}, "its ignore_index is no number"),
    ],
)
def test_the_header_of_an_audit_is_checked(tmp_path, change, text):
    path = audited(tmp_path, "pooled")
    header, arrays = read_state(path, FORMAT)
    write_state(path, header | {"key": header["key"] | change}, arrays, FORMAT)
    with pytest.raises(CorruptStateError, match=text):
        SavedState(path)


def audited(folder, kind):
    """Return the state that `audit map` writes of sixty rows, one of which is ignored and one NaN."""
    from collapsemeter.audit import Options, Running, map_files

    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(60, 4)), np.arange(60) % 3
    labels[5], rows[7] = -100, np.nan
    np.savez(folder / "acts.npz", fc=rows, labels=labels)
    options, state = Options(num_classes=3, scatter=kind), folder / "states"
    map_files([str(folder / "acts.npz")], options, Running(state=str(state)))
    path = next(state.glob("*.state"))
    SavedState(path).moments("fc")  # as it is, it passes
    return path


@st.composite
def streams(draw):
    """Rows of any scale, offset and collapse, with outliers, dead features and NaN, cut into batches."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    wide = draw(st.booleans())
    scale = 10.0 ** draw(st.integers(-75, 75) if wide else st.integers(-25, 25))
    n, classes, width = draw(st.integers(1, 80)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    labels = rng.integers(0, classes, n)
    noise = draw(st.sampled_from([0.0, 1e-12, 1e-8, 1e-4, 1.0]))
    means = rng.normal(size=(classes, width)) * 10.0 ** draw(st.integers(-2, 6))
    rows = means[labels] + noise * rng.normal(size=(n, width))
    rows[: draw(st.integers(0, 3))] *= draw(st.sampled_from([1.0, 1e3, 1e6]))  # a displaced start
    rows *= rng.integers(0, 2, width) if draw(st.booleans()) else 1
    with np.errstate(over="ignore", under="ignore"):
        rows = (scale * rows).astype(np.float64 if wide else np.float32)
    if draw(st.booleans()):
        rows[rng.integers(n)] = np.nan
    cuts = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
    return rows, labels, classes, [slice(a, b) for a, b in pairwise(cuts)]


@given(streams(), st.sampled_from(KINDS), st.booleans(), st.sampled_from([2, 16, 64]))
def test_no_honest_state_is_refused(stream, kind, propagate, k):
    """Neither what a device sums in its dtype, nor what the host does in float64, nor what is merged of them."""
    rows, labels, classes, parts = stream
    found = []
    for seed in (0, 1):
        state = sums.init(classes, rows.shape[1], kind, rows.dtype.type, k)
        policy = "propagate" if propagate else "skip"
        host = Accumulator(classes, rows.shape[1], kind, nonfinite=policy, sketch_rows=k, seed=seed)
        xp = Numpy(rows.dtype.type)
        with np.errstate(all="ignore"):
            for part in parts:
                numbers = np.arange(part.start, part.stop)
                hashes = row_hashes(numbers, k, seed, low_32_bits) if kind == "sketch" else None
                state = sums.update(
                    state, rows[part], labels[part], xp, propagate=propagate, hashes=hashes
                )
                host.update(rows[part], labels[part])
            found.append(ClassMoments.from_sums(state, "float32", "live", seed=seed))
        check_consistent(host.moments(), np.float64)
        rows = rows[::-1] * rows.dtype.type(3)
    with np.errstate(all="ignore"):
        found.append(found[0].merge(found[1]))
        found += [m.coarsen("trace") for m in found]
    for m in found:
        check_consistent(m)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-75, 1e-20, 1.0, 1e20, 1e75])
def test_honest_states_of_any_scale_load(tmp_path, kind, scale):
    m = honest(kind, scale=scale)
    m.save(tmp_path / "state")
    assert ClassMoments.load(tmp_path / "state").traces.tobytes() == m.traces.tobytes()


def test_moments_that_were_written_before_still_load(tmp_path):
    """A state that names no rows, and none of whose classes is absent by mistake."""
    m = honest("pooled")
    m.save(tmp_path / "state")
    header, arrays = read_state(tmp_path / "state")
    for name in ("rows", "seeds"):
        del header[name]
    write_state(tmp_path / "state", header, arrays)
    assert ClassMoments.load(tmp_path / "state").rows == 60


@pytest.mark.parametrize("number", [2**20 + 1, 10**7, 10**9, 2**70])
def test_absurd_numbers_of_classes_are_one_sentence(tmp_path, number):
    """Before anything of that size is allocated."""
    text = f"^num_classes={number}: at most 1048576 classes are measured"
    for call in (
        lambda: ClassMoments.empty(number, 4),
        lambda: ClassMoments.from_batch(np.eye(4), [0, 1, 2, 3], number),
        lambda: ClassMoments.from_batch(np.eye(4), [0, 1, 2, 3], number, scatter="trace"),
        lambda: Accumulator(number, 4, "pooled"),
        lambda: cm.activations.Writer(tmp_path / "d", num_classes=number),
        lambda: Settings(number),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("number", ["3", 3.0, None])
def test_a_number_of_classes_that_is_none(number):
    with pytest.raises(ValueError, match=r"num_classes=.* is not a whole number"):
        ClassMoments.from_batch(np.eye(4), [0, 1, 2, 3], number)


def test_sums_that_no_host_affords_are_not_allocated():
    with pytest.raises(ValueError, match="1000000 classes of 65536 features: sums of 488 GiB"):
        ClassMoments.empty(10**6, 65536, scatter="trace")
    with pytest.raises(ValueError, match="1000 classes of 8192 features: sums of 500 GiB"):
        ClassMoments.empty(1000, 8192, scatter="class")
