"""Every transformation of JAX gives the statistics of NumPy on the whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collapsemeter_flax as cf
from collapsemeter import ClassMoments
from collapsemeter.stats.sums import EPS
from collapsemeter_flax.tallies import tally, unstacked
from collapsemeter_flax.waiting import settled

ROWS, CLASSES, WIDTH, BATCHES = 480, 6, 8, 5
# Sums of n residuals in float32 lose at most n eps of the sum of their magnitudes.
TOLERANCE = 4 * ROWS * EPS["float32"]


@pytest.fixture(scope="module")
def data(features: Callable[..., tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return features(CLASSES, WIDTH, spread=1e-2, offset=20.0, rows=ROWS)


@pytest.fixture(scope="module")
def truth(data: tuple[np.ndarray, np.ndarray]) -> ClassMoments:
    return ClassMoments.from_batch(*data, CLASSES)


def empty(**options) -> cf.State:
    return cf.init({"fc": WIDTH}, CLASSES, **{"sample_rows": 64, **options})


def batches(data) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = data
    return rows.reshape(BATCHES, -1, WIDTH), labels.reshape(BATCHES, -1).astype(np.int32)


def check(state: cf.State, truth: ClassMoments) -> None:
    found = cf.to_moments(state)["fc"]
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.means, truth.means, rtol=8 * EPS["float32"])
    np.testing.assert_allclose(found.traces, truth.traces, rtol=TOLERANCE)
    size = np.abs(truth.scatter).max()
    np.testing.assert_allclose(found.scatter, truth.scatter, rtol=0, atol=TOLERANCE * size)


def same(a: cf.State, b: cf.State) -> None:
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def sample_of_one_device(data) -> np.ndarray:
    """Rows kept where the batches come whole."""
    state = empty()
    for x, y in zip(*batches(data), strict=True):
        state = cf.update(state, {"fc": x}, y)
    return np.asarray(settled(state).layers[0].rows)


def test_four_devices_are_here():
    assert jax.device_count() >= 4


def test_scan_carries_the_state(data, truth):
    def body(state, batch):
        x, y = batch
        return cf.update(state, {"fc": x}, y, logits=x[:, :CLASSES]), None

    state, _ = jax.jit(lambda state, *xs: jax.lax.scan(body, state, xs))(empty(), *batches(data))
    check(state, truth)
    np.testing.assert_array_equal(settled(state).layers[0].rows, sample_of_one_device(data))


def test_a_donated_state_is_written_over_and_gives_the_same(data, truth):
    step = jax.jit(cf.update, donate_argnums=0)
    state = first = empty()
    for x, y in zip(*batches(data), strict=True):
        state = step(state, {"fc": x}, y)
    check(state, truth)
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(first.layers[0].rows)


def test_inside_grad_the_state_is_auxiliary_and_the_gradient_untouched(data, truth):
    rows, labels = data
    kernel = jnp.eye(WIDTH)

    def loss(kernel, state, watch):
        hidden = jnp.tanh(rows @ kernel)
        if watch:
            state = cf.update(state, {"fc": hidden}, labels)
        return (hidden**2).mean(), state

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    plain, _ = gradient(kernel, empty(), False)
    watched, state = gradient(kernel, empty(), True)
    np.testing.assert_array_equal(plain, watched)
    hidden = np.asarray(jax.jit(lambda k: jnp.tanh(rows @ k))(kernel))
    check(state, ClassMoments.from_batch(hidden, labels, CLASSES))


def test_no_gradient_flows_through_features(data):
    rows, labels = data

    def squares(x):
        return settled(cf.update(empty(), {"fc": x}, labels)).layers[0].squares.sum()

    total = jax.grad(squares)
    assert not np.asarray(total(jnp.asarray(rows))).any()


@pytest.mark.parametrize("waiting", [True, False])
def test_vmap_counts_replicas_apart(data, truth, waiting):
    rows, labels = data
    shifted = jnp.stack([rows, rows + 1, rows * 2])
    states = jax.vmap(lambda _: empty(waiting=waiting))(jnp.arange(3))
    assert bool(states.spec.waiting_rows) is waiting
    step = jax.jit(jax.vmap(cf.update, in_axes=(0, 0, None)))
    for part in np.split(np.arange(ROWS), BATCHES):
        states = step(states, {"fc": shifted[:, part]}, labels[part])
    for number, x in enumerate(np.asarray(shifted)):
        one = jax.tree.map(lambda leaf, i=number: leaf[i], states)
        check(one, ClassMoments.from_batch(x, labels, CLASSES))


def test_vmap_with_an_axis_name_counts_one_batch_together(data, truth):
    x, y = batches(data)
    states = jax.vmap(lambda _: empty())(jnp.arange(BATCHES))
    step = jax.vmap(
        lambda state, x, y: cf.update(state, {"fc": x}, y, axis_name="parts"), axis_name="parts"
    )
    states = jax.jit(step)(states, x, y)
    for number in range(BATCHES):
        check(jax.tree.map(lambda leaf, i=number: leaf[i], states), truth)


# Several devices. Every step is waited for: on two cores, loops with collectives dead-lock otherwise.


def by_device(data) -> tuple[np.ndarray, np.ndarray]:
    """(BATCHES, 4, rows, ...): the parts of each batch for four devices."""
    x, y = batches(data)
    return x.reshape(BATCHES, 4, -1, WIDTH), y.reshape(BATCHES, 4, -1)


def replicated(state: cf.State) -> cf.State:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), state)


def test_pmap_with_an_axis_name_gives_every_device_the_whole_state(data, truth):
    step = jax.pmap(
        lambda state, x, y: cf.update(state, {"fc": x}, y, logits=x[:, :CLASSES], axis_name="d"),
        axis_name="d",
    )
    state = replicated(empty())
    for x, y in zip(*by_device(data), strict=True):
        state = jax.block_until_ready(step(state, x, y))
    devices = [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(4)]
    for one in devices:
        check(one, truth)
        same(one, devices[0])
    # Reported with its axis of devices it is counted once, and NC4 is that of one.
    head = (jnp.eye(WIDTH)[:, :CLASSES], None)
    whole, single = cf.report(state, head), cf.report(devices[0], head)
    assert dict(whole["fc"]) == dict(single["fc"])
    assert (whole.provenance, whole.warnings) == (single.provenance, ())
    # The rows of the devices come in order, so the sample is that of the whole batch.
    np.testing.assert_array_equal(devices[0].layers[0].rows, sample_of_one_device(data))
    report = cf.report(devices[0])
    assert (report.provenance["rows"], report.provenance["batches"]) == (ROWS, BATCHES)
    assert np.isfinite(report["fc"]["nc4_agreement"])


def test_pmap_without_it_counts_apart_and_the_report_merges(data, truth):
    step = jax.pmap(lambda state, x, y: cf.update(state, {"fc": x}, y, logits=x[:, :CLASSES]))

    def over_all_batches() -> cf.State:
        state = replicated(empty())
        for x, y in zip(*by_device(data), strict=True):
            state = jax.block_until_ready(step(state, x, y))
        return state

    with pytest.warns(UserWarning, match="on every device of an axis of pmap"):
        state = over_all_batches()
    # Class sums about different shifts: they merge as moments, in float64.
    check(state, truth)
    report = cf.report(state)
    assert (report.provenance["rows"], report["fc"].provenance["rows"]) == (ROWS, ROWS)
    assert report["fc"].provenance["nc4_rows"] == 64
    assert "4 states that counted apart were merged" in " ".join(report.warnings)
    kept = set(map(tuple, np.asarray(jax.vmap(settled)(state).layers[0].rows).reshape(-1, WIDTH)))
    joint = tally(unstacked(state), 0)
    assert set(map(tuple, joint.rows)) <= kept
    assert len(joint.rows) == 64


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("scatter", ["class", "pooled", "sketch"])
def test_shard_map_keeps_the_state_replicated(data, truth, mesh, scatter):
    # check_vma, the default: that the state is the same everywhere is proved when it is traced.
    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P())
    def step(state, x, y):
        return cf.update(state, {"fc": x}, y, logits=x[:, :CLASSES], axis_name="d")

    state = empty(scatter=scatter)
    for x, y in zip(*batches(data), strict=True):
        state = jax.block_until_ready(step(state, x, y))
    found = cf.to_moments(state)["fc"]
    assert found.kind == scatter
    if scatter == "sketch":
        due = ClassMoments.from_batch(*data, CLASSES, scatter="sketch")
        np.testing.assert_array_equal(found.signs, due.signs)
        size = np.abs(due.sketch).max()
        np.testing.assert_allclose(found.sketch, due.sketch, rtol=0, atol=TOLERANCE * size)
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.traces, truth.traces, rtol=TOLERANCE)
    np.testing.assert_array_equal(settled(state).layers[0].rows, sample_of_one_device(data))
    assert int(state.expected[1]) == ROWS


def test_shard_map_over_many_classes_and_bad_rows(mesh):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 121, 400).astype(np.int32)
    labels[labels == -1] = -100
    rows = rng.normal(size=(400, 5)).astype(np.float32)
    rows[7] = np.nan

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P())
    def step(state, x, y):
        return cf.update(state, {"fc": x}, y, axis_name="d")

    state = jax.block_until_ready(step(cf.init({"fc": 5}, 120), rows, labels))
    known = (labels >= 0) & (labels < 120)
    truth = ClassMoments.from_batch(rows[known], labels[known], 120, scatter="class")
    found = cf.to_moments(state)["fc"]
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.traces, truth.traces, rtol=TOLERANCE, atol=TOLERANCE)
    sums = settled(state).layers[0].sums
    assert int(sums.ignored) == (labels == -100).sum()
    assert int(sums.invalid) == (labels == 120).sum()
    assert int(sums.nonfinite) == 1


def test_shard_map_without_an_axis_name_is_refused_by_jax(data, mesh):
    step = jax.shard_map(
        lambda state, x, y: cf.update(state, {"fc": x}, y),
        mesh=mesh,
        in_specs=(P(), P("d"), P("d")),
        out_specs=P(),
    )
    x, y = batches(data)
    with (
        pytest.warns(UserWarning, match="pass axis_name='d'"),
        pytest.raises(ValueError, match="out_specs"),
    ):
        jax.jit(step)(empty(), x[0], y[0])


@pytest.mark.parametrize("spec", [P("d"), P(None, "d")])
def test_sharded_arrays_under_plain_jit_are_summed_over_devices(data, truth, mesh, spec):
    step = jax.jit(cf.update, donate_argnums=0)
    state = jax.device_put(empty(), NamedSharding(mesh, P()))
    for x, y in zip(*batches(data), strict=True):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        where = P("d") if spec == P("d") else P()
        labels = jax.device_put(y, NamedSharding(mesh, where))
        state = jax.block_until_ready(step(state, {"fc": placed}, labels))
    check(state, truth)
    np.testing.assert_array_equal(settled(state).layers[0].rows, sample_of_one_device(data))


def test_a_batch_that_does_not_divide_over_devices_is_said_by_jax(data, mesh):
    with pytest.raises(ValueError, match=r"divisible|evenly"):
        jax.device_put(np.ones((250, WIDTH), np.float32), NamedSharding(mesh, P("d")))


def test_no_callback_to_the_host_is_in_the_step(data):
    x, y = batches(data)
    text = str(jax.make_jaxpr(cf.update)(empty(), {"fc": x[0]}, y[0]))
    assert "callback" not in text


def test_the_state_is_a_pytree_of_one_structure(data):
    x, y = batches(data)
    before, after = empty(), cf.update(empty(), {"fc": x[0]}, y[0])
    assert jax.tree.structure(before) == jax.tree.structure(after)
    shapes = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(before)]
    assert shapes == [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(after)]
    assert jax.tree.structure(cf.merge(before, after)) == jax.tree.structure(before)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(before)]
    assert ".layers[0].integers" in paths


def test_one_trace_for_one_shape(data):
    traces = []

    @jax.jit
    def step(state, x, y):
        traces.append(None)
        return cf.update(state, {"fc": x}, y)

    state = empty()
    for x, y in zip(*batches(data), strict=True):
        state = step(state, x, y)
    cf.report(state)
    state = step(cf.reset(state), x, y)
    assert len(traces) == 1


# Batches that are left out


@pytest.mark.parametrize("compiled", [True, False])
def test_every_second_batch_until_there_are_rows_enough(data, compiled):
    update = jax.jit(cf.update) if compiled else cf.update
    state, only = empty(), empty()
    for step, (x, y) in enumerate(zip(*batches(data), strict=True)):
        # 96 rows each: 150 are reached with the second batch that is counted.
        when = (jnp.int32(step) % 2 == 0) & (state.next_row < 150)
        state = update(state, {"fc": x}, y, logits=x[:, :CLASSES], when=when)
        if step in (0, 2):
            only = update(only, {"fc": x}, y, logits=x[:, :CLASSES], when=True)
    same(state, only)
    report = cf.report(state)
    assert (report.provenance["rows"], report.provenance["batches"]) == (192, 2)
    assert not report.warnings


def test_scan_counts_the_batches_that_are_due(data):
    def body(state, batch):
        step, x, y = batch
        return cf.update(state, {"fc": x}, y, when=step % 2 == 0), None

    steps = (jnp.arange(BATCHES), *batches(data))
    state, _ = jax.jit(lambda state, *xs: jax.lax.scan(body, state, xs))(empty(), *steps)
    only = empty()
    for x, y in list(zip(*batches(data), strict=True))[::2]:
        only = cf.update(only, {"fc": x}, y)
    same(state, only)


def test_a_batch_left_out_by_every_device(data, mesh):
    rows, labels = data

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("d"), P("d"), P()), out_specs=P())
    def step(state, x, y, when):
        return cf.update(state, {"fc": x}, y, axis_name="d", when=when)

    y = labels.astype(np.int32)
    state = jax.block_until_ready(step(empty(), rows, y, jnp.array(False)))
    same(state, empty())
    state = jax.block_until_ready(step(state, rows, y, jnp.array(True)))
    assert cf.report(state).provenance["rows"] == ROWS


@pytest.mark.parametrize("when", [1, 0.5, np.array([True, False]), None])
def test_what_is_no_boolean(data, when):
    rows, labels = data
    with pytest.raises(ValueError, match=r"when=.*: pass one boolean, such as step % 10 == 0"):
        cf.update(empty(), {"fc": rows}, labels, when=when)
