"""States in the files of others: flax.serialization and Orbax, with and without a target."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training.train_state import TrainState
from optax import sgd

import collapsemeter_flax as cf

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12) % 3


def empty(**options: object) -> cf.State:
    return cf.init({"conv": 4, "fc": 4}, 3, sample_rows=8, **options)


@pytest.fixture(scope="module")
def state() -> cf.State:
    return cf.update(empty(), {"conv": X, "fc": 2 * X}, Y, logits=X[:, :3])


def same(one: object, other: object) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def goes_on(state: cf.State) -> None:
    after = cf.update(state, {"conv": X, "fc": X}, Y)
    assert cf.report(after).provenance["rows"] == 24


def test_bytes_of_flax(state: cf.State) -> None:
    data = serialization.to_bytes(state)
    loaded = serialization.from_bytes(empty(), data)
    same(loaded, state)
    goes_on(loaded)
    # Without a target the bytes give plain dicts, of which a state can be made later.
    plain = serialization.msgpack_restore(data)
    assert plain["counts"].startswith("3 classes in conv (4, class), fc (4, class)")
    same(serialization.from_state_dict(empty(), plain), state)


def test_a_state_inside_of_a_train_state(state: cf.State) -> None:
    class Training(TrainState):
        collapse: cf.State

    def training(state: cf.State) -> Training:
        params = {"kernel": jnp.ones((2, 2))}
        return Training.create(apply_fn=None, params=params, tx=sgd(0.1), collapse=state)

    data = serialization.to_bytes(training(state))
    same(serialization.from_bytes(training(empty()), data).collapse, state)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            cf.init({"fc": 4, "conv": 4}, 3, sample_rows=8),
            "the state dict counts 3 classes in conv",
        ),
        (cf.init({"conv": 4, "fc": 5}, 3, sample_rows=8), "and like= counts .* fc \\(5, class\\)"),
        (empty(seed=1), "seed=0.*seed=1"),
    ],
)
def test_a_state_of_another_init_is_refused(state: cf.State, like: cf.State, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        serialization.from_bytes(like, serialization.to_bytes(state))


def test_a_dict_that_is_no_state_is_refused(state: cf.State) -> None:
    saved = serialization.to_state_dict(state)
    del saved["layers"]["1"]["integers"]
    with pytest.raises(ValueError, match=r"the state dict has no layers\.1\.integers"):
        serialization.from_state_dict(empty(), saved)
    with pytest.raises(ValueError, match="the state dict has no"):
        serialization.from_state_dict(empty(), {"params": 1})


def test_orbax(state: cf.State, tmp_path: Path) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", {"params": {"w": jnp.ones(2)}, "collapse": state})
        checkpointer.wait_until_finished()
        target = {"params": {"w": jnp.zeros(2)}, "collapse": empty()}
        loaded = checkpointer.restore(tmp_path / "step", target)["collapse"]
        plain = checkpointer.restore(tmp_path / "step")["collapse"]
    same(loaded, state)
    goes_on(loaded)
    assert not isinstance(plain, cf.State)
    same(serialization.from_state_dict(empty(), plain), state)
    fewer = cf.init({"fc": 4, "conv": 5}, 3, sample_rows=8)
    with pytest.raises(ValueError, match="holds an array"):
        serialization.from_state_dict(fewer, plain)
