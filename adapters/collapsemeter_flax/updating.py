"""`update`: one batch into the state, inside the user's own jitted step."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from collapsemeter.adapter.waiting_on_host import usable
from collapsemeter.stats.sums import EPS
from collapsemeter.system.suggest import did_you_mean

from .labels import checked_labels, decided_classes, flat_labels
from .namespace import FULL, AxisName, JaxNamespace, counted
from .reduction import feature_rows
from .sharding import by_own_rules, on_automatic_axes, unnamed_axes
from .state import DTYPES, State, StateSpec
from .waiting import Batch, let_wait, settled, with_rows


def update(
    state: State,
    features: Mapping[str, Any],
    labels: Any,
    *,
    logits: Any = None,
    mask: Any = None,
    axis_name: AxisName = None,
    when: Any = True,
    threshold: float = 0.0,
) -> State:
    r"""Return the state with one batch more.

    With :math:`r_i = h_i - k_{y_i}`, a batch adds :math:`n_c`, :math:`\sum r_i`, :math:`\sum r_i r_i^\top`
    and :math:`\sum |r_i|^2` (see `collapsemeter.stats.sums`), in full precision whatever the default of
    matrix products is. A pure function: use it under ``jit``, ``scan``, ``vmap``, ``grad``, with
    donated states and sharded arrays.

    Parameters
    ----------
    state : State
    features : mapping of str to array
        What each layer gave, (B, d), (B, H, W, d), (B, T, d), ..., by the names of `init`.
    labels : (B,), (B, 1) or (B, T) class numbers, or one-hot over a last axis of length C
        Whole numbers of any dtype, such as the 0.0 and 1.0 of a binary loss. ``ignore_index`` leaves a
        row out. Rows that name no single class (zeros, several ones, mixtures) are left out, counted and
        reported; so is any other label that is no class, which raises where the values are at hand,
        outside ``jit``.
    logits : (B, C) or (B, T, C) array, optional
        The network's own output, for NC4 of every layer: its decision is the largest. (B, 1) or (B,)
        between two classes: class 1 above ``threshold``.
    mask : (B, T) array, optional
        Attention mask of a padded sequence.
    axis_name : str or tuple of str, optional
        Mapped axis (``pmap``, ``shard_map``, ``vmap``) over which the batch is split: sums are taken
        over it, and every device holds the same state, that of the whole batch. Without it each device
        counts for itself, and a warning says so; `merge`, `to_moments` and `report` put such states together.
    when : bool, or boolean scalar array
        Count this batch; where it is false the state comes back as it was, and nothing of the features
        is reduced (`jax.lax.cond`; under ``vmap`` both are computed). ``when=step % 10 == 0`` counts
        every tenth batch, ``when=state.next_row < 50_000`` stops once there are rows enough. Over
        ``axis_name`` it must be the same on every device.
    threshold : float
        Of a single score between two classes: 0 for a logit, 1/2 for a probability.

    Raises
    ------
    ValueError
        If layers, widths or shapes do not fit, labels that can be read are invalid, or ``when`` is not
        one boolean.

    Examples
    --------
    >>> from collapsemeter_flax import init, to_moments
    >>> state = init({"fc": 3}, num_classes=2)
    >>> state = jax.jit(update)(state, {"fc": jnp.eye(3)}, jnp.array([0, 1, 1]))
    >>> to_moments(state)["fc"].counts
    array([1, 2])
    """
    when = _checked(when)
    if when is False:
        return state
    _check_names(features, state.spec)
    for axis in unnamed_axes((dict(features), labels), axis_name):
        warnings.warn(_alone(axis), stacklevel=2)
    shape, one_hot, labels = checked_labels(labels, features, state.spec.settings)

    arguments = (state, dict(features), labels, logits, mask)
    step = _step(shape, one_hot, axis_name, threshold, when is True)
    with by_own_rules():
        added: State = on_automatic_axes(step, *(arguments if when is True else (when, *arguments)))
    return added


# One function for equal settings: JAX compiles anew for each that it has not seen.
@functools.lru_cache(maxsize=256)
def _step(
    shape: tuple[int, ...], one_hot: bool, axis_name: AxisName, threshold: float, always: bool
) -> Callable[..., State]:
    """Return what adds a batch, always or where its first argument is true."""

    def add(state: State, *batch: Any) -> State:
        added: State = _added(
            state,
            *batch,
            shape=shape,
            one_hot=one_hot,
            axis_name=axis_name,
            threshold=threshold,
        )
        return added

    def add_if(when: Array, state: State, *batch: Any) -> State:
        chosen: State = jax.lax.cond(when, add, lambda state, *_: state, state, *batch)
        return chosen

    return add if always else add_if


def _alone(axis: str) -> str:
    """Say that devices count apart."""
    name = "its name" if axis.startswith("_") else f"axis_name={axis!r}"
    what = "an axis of pmap" if axis.startswith("_") else f"axis {axis!r}"
    return (
        f"update runs on every device of {what}, which axis_name= does not name, so each counts its own "
        f"rows: pass {name} to count the whole batch, or give report the states of all devices, which it "
        "merges, and not that of one"
    )


# Compiled as one where it is called outside of a jitted step; inside one it is part of that.
@functools.partial(
    jax.jit, static_argnames=("shape", "one_hot", "axis_name", "threshold"), inline=True
)
def _added(
    state: State,
    features: dict[str, Any],
    labels: Array,
    logits: Any,
    mask: Any,
    *,
    shape: tuple[int, ...],
    one_hot: bool,
    axis_name: AxisName,
    threshold: float,
) -> State:
    """Add a batch whose labels are of that shape, as one integer a row."""
    spec, settings = state.spec, state.spec.settings
    flat = flat_labels(labels, settings, one_hot)
    xp = JaxNamespace(spec.dtype, axis_name)
    rows, dtypes = _rows(features, shape, mask, spec)
    batch = Batch(
        tuple(map(xp.to_float, rows)),
        flat,
        decided_classes(logits, shape, settings.num_classes, threshold),
    )
    if axis_name is None and 2 * len(flat) <= spec.waiting_rows:
        state = let_wait(state, batch)
    else:  # rows are numbered in their order
        state = with_rows(settled(state), batch, xp)
    every_label = xp.gathered(flat)
    with_class = usable(every_label, settings).sum(dtype=jnp.uint32)
    codes = jnp.asarray([_dtype_code(dtype) for dtype in dtypes], jnp.uint32)
    return state.tallied(
        next_row=counted(state.next_row, with_class),
        batches=counted(state.batches, jnp.uint32(1)),
        expected=_carried(state.expected, every_label.shape[0]),
        feature_dtypes=jnp.maximum(state.feature_dtypes, codes),
    )


def _checked(when: Any) -> Any:
    """Return True or False where it is known, and the scalar where a step is traced."""
    array = isinstance(when, Array | np.ndarray) and when.shape == () and when.dtype == np.bool_
    if not array and not isinstance(when, bool | np.bool_):
        raise ValueError(f"when={when!r}: pass one boolean, such as step % 10 == 0")
    return when if isinstance(when, jax.core.Tracer) else bool(jax.device_get(when))


def _check_names(features: Any, spec: StateSpec) -> None:
    if not isinstance(features, Mapping):
        raise ValueError(
            f"features are a {type(features).__name__}: pass a mapping from the names of init, "
            f"{', '.join(spec.names)}, to what those layers gave"
        )
    missing = [name for name in spec.names if name not in features]
    unknown = [str(name) for name in features if name not in spec.names]
    if missing or unknown:
        what = [f"lack {', '.join(missing)}"] if missing else []
        what += [f"hold {', '.join(unknown)}, which init was not told of"] if unknown else []
        meant = did_you_mean(unknown[0], spec.names) if unknown else ""
        raise ValueError(
            f"features {' and '.join(what)}: the state counts {', '.join(spec.names)}{meant}"
        )


def _rows(
    features: Mapping[str, Any], labels: tuple[int, ...], mask: Array | None, spec: StateSpec
) -> tuple[list[Array], list[str]]:
    rows, dtypes = [], []
    for name, width, reduction in zip(spec.names, spec.widths, spec.reductions, strict=True):
        x, dtype = feature_rows(features[name], labels, mask, layer=name, reduction=reduction)
        if x.shape[1] != width:
            raise ValueError(
                f"layer {name!r} gave rows of shape {x.shape} and init was told {width} features: "
                f"call init with layers={{{name!r}: {x.shape[1]}}}"
            )
        if dtype == "float64" and spec.dtype != "float64":
            raise ValueError(
                f"layer {name!r} gave float64 features and the state keeps float32 sums: call init "
                "under jax_enable_x64 (and without dtype='float32'), or cast the features"
            )
        rows.append(x)
        dtypes.append(dtype)
    return rows, dtypes


def _dtype_code(dtype: str) -> int:
    """Index in `DTYPES` of a dtype, or of the first there that is no finer."""
    if dtype in EPS:
        return DTYPES.index(dtype)
    finfo: Any = jnp.finfo  # it comes from a package without types
    eps = float(finfo(dtype).eps)
    return next((i for i, name in enumerate(DTYPES) if name and EPS[name] >= eps), len(DTYPES) - 1)


def _carried(halves: Array, rows: int) -> Array:
    """Add rows to a count in two halves of 32 bits."""
    low = halves[1] + jnp.uint32(rows & FULL)
    carry = (low < halves[1]).astype(jnp.uint32)
    return jnp.stack([halves[0] + carry, low])
