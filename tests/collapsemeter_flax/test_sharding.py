"""Where arrays lie changes no number: copies on devices, explicit shardings, strict rules, guards."""

from __future__ import annotations

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import jax_utils, linen, nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collapsemeter_flax as cf
from collapsemeter_flax.waiting import settled

ROWS, CLASSES, WIDTH = 48, 3, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, WIDTH)).astype(np.float32)
Y = RNG.integers(0, CLASSES, ROWS).astype(np.int32)
HEAD = (jnp.asarray(RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)), None)


def empty() -> cf.State:
    return cf.init({"fc": WIDTH}, CLASSES, sample_rows=64)


def counted(state: cf.State, x: jax.Array, y: jax.Array, **options: object) -> cf.State:
    return cf.update(state, {"fc": x}, y, logits=x[:, :CLASSES], **options)


@pytest.fixture(scope="module")
def alone() -> cf.State:
    """The state of one device that saw all rows."""
    return jax.jit(counted)(empty(), X, Y)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """The default of JAX: axes that are explicit."""
    return jax.make_mesh((4,), ("d",))


def same_report(state: cf.State, alone: cf.State) -> None:
    one, other = cf.report(state, HEAD), cf.report(alone, HEAD)
    assert one.provenance["rows"] == other.provenance["rows"] == ROWS
    for name, value in other["fc"].items():
        assert one["fc"][name] == pytest.approx(value, rel=2e-5, abs=1e-6, nan_ok=True), name
    assert one["fc"]["nc4_mismatch"] == other["fc"]["nc4_mismatch"]
    np.testing.assert_array_equal(cf.to_moments(state)["fc"].counts, np.bincount(Y))


# One state on many devices


def test_a_replicated_state_counts_once(alone: cf.State) -> None:
    replicated = jax_utils.replicate(alone)
    assert replicated.batches.shape == (4,)
    one, other = cf.report(replicated, HEAD), cf.report(alone, HEAD)
    assert dict(one["fc"]) == dict(other["fc"])
    assert (one.provenance, one.warnings) == (other.provenance, ())


def test_a_state_on_a_mesh_counts_once(alone: cf.State, mesh: Mesh) -> None:
    placed = jax.device_put(alone, NamedSharding(mesh, P()))
    assert dict(cf.report(placed, HEAD)["fc"]) == dict(cf.report(alone, HEAD)["fc"])


def test_copies_that_differ_by_rounding_count_once(alone: cf.State) -> None:
    rounded = jax.tree.map(lambda x: x * (1 + 2e-7) if x.dtype == jnp.float32 else x, alone)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), alone, rounded)
    assert cf.report(both).provenance["rows"] == ROWS


def test_states_of_different_rows_are_no_copies(alone: cf.State) -> None:
    moved = counted(empty(), X + 1, Y)  # of equal labels, decisions and spread
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), alone, moved)
    assert cf.report(both).provenance["rows"] == 2 * ROWS


@pytest.mark.parametrize("out", ["shard_map", "pmap"])
def test_devices_that_counted_apart_behind_one_state_are_merged(alone: cf.State, out: str) -> None:
    automatic = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    if out == "pmap":
        step = jax.pmap(counted, in_axes=(None, 0, 0), out_axes=None, axis_name="d")
        batch = (X.reshape(4, -1, WIDTH), Y.reshape(4, -1))
    else:
        specs = {"in_specs": (P(), P("d"), P("d")), "out_specs": P(), "check_vma": False}
        step, batch = jax.jit(jax.shard_map(counted, mesh=automatic, **specs)), (X, Y)
    with pytest.warns(UserWarning, match="pass axis_name='d'"):
        state = jax.block_until_ready(step(empty(), *batch))
    assert state.next_row.is_fully_replicated
    same_report(state, alone)
    (said,) = cf.report(state).warnings
    assert said.startswith("4 states that counted apart were merged")


def test_such_a_state_of_which_parts_lie_elsewhere_is_refused(mesh: Mesh) -> None:
    automatic = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (P(), P("d"), P("d")), "out_specs": P(), "check_vma": False}
    with pytest.warns(UserWarning, match="pass axis_name='d'"):
        state = jax.jit(jax.shard_map(counted, mesh=automatic, **specs))(empty(), X, Y)
    layer = state.layers[0]
    rows = jax.device_put(np.asarray(layer.rows), NamedSharding(mesh, P("d")))
    object.__setattr__(layer, "rows", rows)
    with pytest.raises(ValueError, match="the devices hold different counts of one state"):
        cf.report(state)


def test_an_axis_over_which_nothing_is_split_is_not_named(alone: cf.State) -> None:
    both = jax.make_mesh((2, 2), ("d", "model"), axis_types=(AxisType.Auto,) * 2)
    step = functools.partial(counted, axis_name="d")
    specs = {"in_specs": (P(), P("d"), P("d")), "out_specs": P()}
    with warnings.catch_warnings(action="error"):
        state = jax.jit(jax.shard_map(step, mesh=both, **specs))(empty(), X, Y)
    same_report(state, alone)


# Explicit shardings


@pytest.mark.parametrize(
    ("spec", "is_set"), [(P("d"), True), (P("d"), False), (P(None, "d"), False)]
)
def test_rows_on_explicit_axes(alone: cf.State, mesh: Mesh, spec: P, is_set: bool) -> None:
    x = jax.device_put(X, NamedSharding(mesh, spec))
    y = jax.device_put(Y, NamedSharding(mesh, P(spec[0])))
    scores = jax.device_put(X[:, :CLASSES], NamedSharding(mesh, P(spec[0])))
    when = {"when": jnp.array(True)} if is_set else {}
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        state = jax.jit(cf.update)(empty(), {"fc": x}, y, logits=scores, **when)
    same_report(jax.block_until_ready(state), alone)


def test_labels_of_any_kind_on_explicit_axes(mesh: Mesh) -> None:
    x = jax.device_put(np.stack([X, X], axis=1), NamedSharding(mesh, P("d")))
    tokens = jax.device_put(np.stack([Y, Y], axis=1), NamedSharding(mesh, P("d")))
    state = jax.jit(lambda x, y: cf.update(empty(), {"fc": x}, y))(x, tokens)
    np.testing.assert_array_equal(settled(state).layers[0].sums.counts, 2 * np.bincount(Y))
    hot = jax.device_put(np.eye(CLASSES, dtype=np.float32)[Y], NamedSharding(mesh, P("d")))
    state = jax.jit(lambda x, y: cf.update(empty(), {"fc": x[:, 0]}, y))(x, hot)
    np.testing.assert_array_equal(settled(state).layers[0].sums.counts, np.bincount(Y))


def test_scan_gradient_and_merge_on_explicit_axes(alone: cf.State, mesh: Mesh) -> None:
    with jax.set_mesh(mesh):
        xs = jax.device_put(X.reshape(2, -1, WIDTH), NamedSharding(mesh, P(None, "d")))
        ys = jax.device_put(Y.reshape(2, -1), NamedSharding(mesh, P(None, "d")))

        def loss(scale: jax.Array, state: cf.State) -> tuple[jax.Array, cf.State]:
            def body(state: cf.State, batch: tuple[jax.Array, jax.Array]) -> tuple[cf.State, None]:
                return counted(state, batch[0] * scale, batch[1]), None

            return (xs * scale).sum(), jax.lax.scan(body, state, (xs, ys))[0]

        gradient, state = jax.jit(jax.grad(loss, has_aux=True))(jnp.ones(()), empty())
        merged = cf.merge(state, empty())
    assert float(gradient) == pytest.approx(X.sum(), rel=1e-4)
    same_report(state, alone)
    same_report(merged, alone)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(WIDTH, 6, rngs=rngs)
        self.fc = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(nnx.relu(self.hidden(x)))


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(CLASSES)(linen.relu(linen.Dense(6)(x)))


def test_a_meter_on_explicit_axes(mesh: Mesh) -> None:
    net = Net(nnx.Rngs(0))
    plain, meter = (cf.CollapseMeter(net, verbose=False) for _ in range(2))
    logits, features = plain.capture(net, X)
    expected = plain.report(plain.update(plain.init(X), features, Y, logits=logits))

    x, y = (jax.device_put(array, NamedSharding(mesh, P("d"))) for array in (X, Y))
    graph, weights = nnx.split(net)

    @jax.jit
    def step(weights: nnx.State, state: cf.State, x: jax.Array, y: jax.Array) -> cf.State:
        logits, features = meter.capture(nnx.merge(graph, weights), x)
        return meter.update(state, features, y, logits=logits)

    with jax.set_mesh(mesh):
        weights = jax.device_put(weights, NamedSharding(mesh, P()))
        live = meter.report(step(weights, meter.init(x), x, y))
        frozen = meter.observe([(x, y)], model=nnx.merge(graph, weights), progress=False)
    assert frozen.provenance["rows"] == ROWS
    assert list(live) == list(expected) == ["hidden", "fc"]
    for layer in expected:
        for name, value in expected[layer].items():
            assert live[layer][name] == pytest.approx(value, rel=2e-4, abs=1e-5, nan_ok=True), name


# Strict rules and guards


def test_nnx_under_strict_promotion_and_a_guard() -> None:
    net = Net(nnx.Rngs(0))
    x, y = jax.device_put((X, Y))
    meter = cf.CollapseMeter(net, verbose=False)

    @nnx.jit
    def step(model: Net, state: cf.State, x: jax.Array, y: jax.Array) -> cf.State:
        logits, features = meter.capture(model, x)
        return meter.update(state, features, y, logits=logits)

    plain = step(net, meter.init(X), X, Y)
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.transfer_guard("disallow"),
    ):
        state = step(net, cf.reset(meter.init(x)), x, y)
        twice = cf.merge(state, cf.update(state, meter.capture(net, x)[1], y))
        assert meter.report(twice).provenance["rows"] == 3 * ROWS
        assert meter.observe([(X, Y)], progress=False).provenance["rows"] == ROWS
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_linen_under_strict_promotion_and_a_guard() -> None:
    model = LinenNet()
    variables = model.init(jax.random.key(0), X)
    x, y = jax.device_put((X, Y))
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.transfer_guard("disallow"),
    ):
        meter = cf.CollapseMeter(model, verbose=False)
        state = meter.init(variables, x)

        @jax.jit
        def step(variables: object, state: cf.State, x: jax.Array, y: jax.Array) -> cf.State:
            logits, features = meter.capture(model, variables, x)
            return meter.update(state, features, y, logits=logits)

        state = step(variables, state, x, y)
        assert meter.report(state, variables).provenance["rows"] == ROWS
