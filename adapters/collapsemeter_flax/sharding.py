"""Where arrays lie: mapped axes, explicit shardings, and copies that devices hold of one state."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .namespace import AxisName

if TYPE_CHECKING:
    from .state import State

ALIKE = 1e-4  # two copies of a sum, each computed on its own device, may differ by rounding


@contextlib.contextmanager
def by_own_rules() -> Iterator[None]:
    """Compute under JAX's default rules of promotion, whatever stricter ones the user chose."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def unnamed_axes(batch: Any, axis_name: AxisName) -> list[str]:
    """Return the axes of devices (of `shard_map`, `pmap`) that split the batch and are not named."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        return []
    types = (getattr(jax.typeof(leaf), "manual_axis_type", None) for leaf in jax.tree.leaves(batch))
    # Where shard_map checks it, the type says over which axes an array differs.
    varying = {axis for type_ in types for axis in getattr(type_, "varying", ())}
    named = {axis_name} if isinstance(axis_name, str) else set(axis_name or ())
    return [axis for axis in manual if axis not in named and (not varying or axis in varying)]


def on_automatic_axes(step: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step on arrays whose axes are explicitly sharded as if XLA placed them; the result is replicated."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments))
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return step(*arguments)
    run = _automatic(step, mesh)
    if not jax.sharding.get_abstract_mesh().empty:
        return run(*arguments)
    with jax.sharding.use_abstract_mesh(mesh):
        return run(*arguments)


@functools.lru_cache(maxsize=256)
def _automatic(step: Callable[..., Any], mesh: Any) -> Callable[..., Any]:
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(jax.sharding.auto_axes(step, axes=mesh.explicit_axes, out_sharding=whole))


def by_device(state: State) -> State:
    """Return a state with a leading axis of devices, if it is said to be the same on each and is not.

    So it is where devices counted apart in a step that promised one result (``check_vma=False``, or
    ``out_axes=None`` of ``pmap``).
    """
    copies = [_shards(leaf) for leaf in jax.tree.leaves(_telling(state)) if _is_replicated(leaf)]
    first, *copies_of_others = zip(*copies, strict=True) if copies else ((),)
    if all(_alike(first, copy) for copy in copies_of_others):
        return state
    leaves, tree = jax.tree.flatten(state)
    if not all(map(_is_replicated, leaves)):
        raise ValueError(
            "the devices hold different counts of one state, and parts of its arrays: pass axis_name= to "
            "update, so that each counts the whole batch"
        )
    stacked: State = jax.tree.unflatten(tree, [np.stack(_shards(leaf)) for leaf in leaves])
    return stacked


def distinct(parts: list[State]) -> list[State]:
    """Leave out copies: a state that every device holds counts once."""
    different: list[State] = []
    telling: dict[bytes, list[Any]] = {}
    for part in parts:
        leaves = jax.tree.leaves(_telling(part))
        key = b"".join(leaf.tobytes() for leaf in leaves if leaf.dtype.kind != "f")
        alike = telling.setdefault(key, [])
        if int(part.next_row) and any(_alike(leaves, leaves_before) for leaves_before in alike):
            continue
        alike.append(leaves)
        different.append(part)
    return different


def _telling(state: State) -> Any:
    """Small arrays in which the counts of different rows differ."""
    sums = [(layer.integers, layer.shift, layer.squares) for layer in state.layers]
    return sums, state.samples, state.waiting, state.tallies


def _alike(leaves_a: Any, leaves_b: Any) -> bool:
    return all(map(_is_same, leaves_a, leaves_b))


def _is_same(a: Any, b: Any) -> bool:
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return np.array_equal(a, b)
    size = np.abs(np.nan_to_num(a)).max(initial=0.0)
    return np.allclose(a, b, rtol=0.0, atol=ALIKE * size, equal_nan=True)


def _is_replicated(leaf: Any) -> bool:
    return (
        isinstance(leaf, jax.Array)
        and leaf.is_fully_replicated
        and len(leaf.addressable_shards) > 1
    )


def _shards(leaf: Any) -> list[Any]:
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.device.id)
    return [jax.device_get(shard.data) for shard in shards]
