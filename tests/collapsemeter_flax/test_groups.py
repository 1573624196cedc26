"""Groups of rows, from which intervals come: those of NumPy on any number of devices, and absent in older states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import collapsemeter_flax as cf
from collapsemeter import ClassMoments, LayerReport, measure

ROWS, CLASSES, WIDTH, DEVICES = 240, 3, 6, 4
Y = np.arange(ROWS) * 7 % 11 % CLASSES
NOISE = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
X = (3 * np.eye(CLASSES, WIDTH)[Y] + NOISE).astype(np.float32)


def empty(**options: Any) -> cf.State:
    return cf.init({"fc": WIDTH}, CLASSES, sample_rows=8, **options)


def assert_same_intervals(layer: LayerReport, truth: ClassMoments) -> None:
    expected = measure(truth)
    assert "separation" in expected.intervals
    for kind in ("intervals", "estimates"):
        for name, value in getattr(expected, kind).items():
            np.testing.assert_allclose(getattr(layer, kind)[name], value, rtol=1e-5)


def of_parts(parts: int) -> ClassMoments:
    """The moments of parts that each number their rows from 0 on."""
    cut = zip(np.split(X, parts), np.split(Y, parts), strict=True)
    return ClassMoments.merge_all(ClassMoments.from_batch(x, y, CLASSES) for x, y in cut)


@pytest.mark.parametrize("named", [True, False])
def test_devices_have_the_groups_of_one_stream_or_each_its_own(named):
    step = jax.pmap(
        lambda state, x, y: cf.update(state, {"fc": x}, y, axis_name="batch" if named else None),
        axis_name="batch",
        in_axes=(None, 0, 0),
    )
    x, y = X.reshape(DEVICES, -1, WIDTH), Y.reshape(DEVICES, -1)
    if named:
        assert_same_intervals(cf.report(step(empty(), x, y))["fc"], of_parts(1))
        return
    with pytest.warns(UserWarning, match="axis_name="):
        state = step(empty(), x, y)
    with pytest.warns(RuntimeWarning, match="4 states that counted apart were merged"):
        assert_same_intervals(cf.report(state)["fc"], of_parts(DEVICES))


def test_states_that_are_merged_have_groups_about_their_new_shifts():
    halves = [
        cf.update(empty(), {"fc": x}, y)
        for x, y in zip(np.split(X, 2), np.split(Y, 2), strict=True)
    ]
    for a, b in (halves, halves[::-1]):
        assert_same_intervals(cf.report(cf.merge(a, b))["fc"], of_parts(2))
    with pytest.raises(ValueError, match="the states differ in holdings"):
        cf.merge(halves[0], empty(groups=0))


def of_a_file(state: cf.State, like: cf.State, folder: Path) -> cf.State:
    cf.save(state, folder / "state.npz")
    return cf.load(folder / "state.npz", like)


def of_bytes(state: cf.State, like: cf.State, folder: Path) -> cf.State:
    return serialization.from_bytes(like, serialization.to_bytes(state))


def of_orbax(state: cf.State, like: cf.State, folder: Path) -> cf.State:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "step", state)
        checkpointer.wait_until_finished()
        return serialization.from_state_dict(like, checkpointer.restore(folder / "step"))


@pytest.mark.parametrize("restored", [of_a_file, of_bytes, of_orbax])
def test_a_state_without_groups_is_loaded_and_says_so(restored, tmp_path):
    older = cf.update(empty(groups=0), {"fc": X}, Y)
    with pytest.warns(
        RuntimeWarning, match=r"saved without groups.*new init.*no intervals for fc$"
    ):
        state = restored(older, empty(), tmp_path)
    assert jax.tree.structure(state) == jax.tree.structure(older)
    layer = cf.report(cf.update(state, {"fc": X}, Y))["fc"]
    assert layer.provenance["rows"] == 2 * ROWS
    assert layer.no_interval["separation"] == "no_groups"
