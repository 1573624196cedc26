"""The state: a registered pytree of fixed shapes, which a jitted step takes and gives back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from collapsemeter.adapter.reduction import Reduction, check_reduction, reduction_of
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.moments import EPS
from collapsemeter.stats.state_file import CorruptStateError, read_state, write_state
from collapsemeter.stats.sums import COUNTERS, ScatterKind, Sums, scatter_shape, sketch_shapes

from .sample import EMPTY

UNDECIDED = -2  # the prediction in a slot whose row came without logits
DTYPES = ("", *sorted(EPS, key=EPS.__getitem__))  # from fine to coarse; "" before the first batch
_HOLDS = "collapsemeter_flax.State"

jax.tree_util.register_dataclass(
    Sums, data_fields=[part.name for part in fields(Sums)], meta_fields=[]
)


@dataclass(frozen=True)
class Spec:
    """What is static of a state: two states of one spec have the same shapes.

    Attributes
    ----------
    names : tuple of str
        Layers in order; the last one is what a head given to `report` reads.
    widths : tuple of int
    reductions : tuple
        Of each layer; not in `settings`, because a mapping has no hash.
    settings : Settings
    dtype : str
        What the sums are kept in.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    reductions: tuple[Reduction, ...]
    settings: Settings
    dtype: str

    @property
    def sample_sizes(self) -> tuple[int, ...]:
        """The sizes of row samples that the layers' widths ask for, each once."""
        return tuple(sorted({self.settings.sample_size(width) for width in self.widths}))

    def kind(self, layer: int) -> ScatterKind:
        """Return the scatter that a layer keeps."""
        return self.settings.kind(self.widths[layer])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerState:
    """Sums and sampled rows of one layer.

    Attributes
    ----------
    sums : Sums
    rows : (K, d) array
        Rows kept for NC4, by slot.
    feature_dtype : int32 scalar
        Index in `DTYPES` of the coarsest dtype that was seen.
    """

    sums: Sums
    rows: Array
    feature_dtype: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """What the slots of a row sample hold besides rows: (K,) labels, and the network's decisions."""

    labels: Array
    predictions: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class State:
    """What was counted so far; made by `init`, and only ever replaced, never changed.

    Attributes
    ----------
    layers : tuple of LayerState
    samples : tuple of Sample
        One for each size of `Spec.sample_sizes`.
    next_row : uint32 scalar
        Rows with a class so far.
    expected : (2,) uint32
        Label rows given: high and low half.
    batches : uint32 scalar
    spec : Spec
        Static.
    """

    layers: tuple[LayerState, ...]
    samples: tuple[Sample, ...]
    next_row: Array
    expected: Array
    batches: Array
    spec: Spec = field(metadata={"static": True})

    def __repr__(self) -> str:
        widths = zip(self.spec.names, self.spec.widths, strict=True)
        layers = ", ".join(f"{name} ({width})" for name, width in widths)
        return f"<State of {self.spec.settings.num_classes} classes in: {layers}>"


def init(
    layers: Mapping[str, int],
    num_classes: int,
    *,
    dtype: Literal["auto", "float32", "float64"] = "auto",
    reduction: Reduction | Mapping[str, Reduction] = "auto",
    **options: Any,
) -> State:
    r"""Return a state that has counted nothing.

    For each layer counts :math:`n_c`, shifts :math:`k_c`, sums :math:`\sum (h - k_c)`, squares and the
    scatter that its width affords, in float32, or in float64 under ``jax_enable_x64``; and a bounded
    uniform sample of rows. All finite: the memory does not grow with the batches.

    Parameters
    ----------
    layers : mapping of str to int
        Width of each layer's rows, in order; the last is the input of the head, where there is one.
    num_classes : int
        C.
    dtype : {"auto", "float32", "float64"}
        What the sums are kept in.
    reduction : str, callable, or mapping from layer name to one
        How what a layer gives becomes one row per label, see `collapsemeter.adapter.reduction.feature_rows`.
    **options
        ``scatter``, ``convention``, ``ignore_index``, ``nonfinite``, ``sample_rows``, ``seed`` and
        ``sketch_rows`` of `collapsemeter.adapter.settings.Settings`.

    Returns
    -------
    State

    Raises
    ------
    ValueError
        If there is no layer, a width is not positive, or a choice is unknown.

    Examples
    --------
    >>> init({"conv": 16, "fc": 64}, num_classes=10)
    <State of 10 classes in: conv (16), fc (64)>
    """
    if not isinstance(layers, Mapping) or not layers:
        raise ValueError(f"layers={layers!r}: pass the width of each layer, {{'fc': 512}}")
    for name, width in layers.items():
        if not isinstance(width, int | np.integer) or isinstance(width, bool) or width < 1:
            raise ValueError(f"layers={{{name!r}: {width!r}}}: a width is a positive integer")
    check_reduction(reduction, layers)
    settings = Settings(num_classes=num_classes, **options)
    spec = Spec(
        names=tuple(layers),
        widths=tuple(int(width) for width in layers.values()),
        reductions=tuple(reduction_of(reduction, name) for name in layers),
        settings=settings,
        dtype=_sum_dtype(dtype),
    )
    return _empty(spec)


def _sum_dtype(dtype: str) -> str:
    wide = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    if dtype == "auto":
        return "float64" if wide else "float32"
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: choose 'auto', 'float32' or 'float64'")
    if dtype == "float64" and not wide:
        raise ValueError("dtype='float64': JAX makes float32 of it; turn on jax_enable_x64")
    return dtype


def _empty(spec: Spec) -> State:
    classes, dtype = spec.settings.num_classes, jnp.dtype(spec.dtype)
    layers = []
    for number, width in enumerate(spec.widths):
        kind = spec.kind(number)
        shape = scatter_shape(kind, classes, width)
        sketch = sketch_shapes(kind, classes, width, spec.settings.sketch_rows)
        sums = Sums(
            counts=jnp.zeros(classes, jnp.uint32),
            shift=jnp.zeros((classes, width), dtype),
            sums=jnp.zeros((classes, width), dtype),
            squares=jnp.zeros(classes, dtype),
            scatter=None if shape is None else jnp.zeros(shape, dtype),
            # An array for each: a donated buffer may be given only once.
            **{cause: jnp.zeros((), jnp.uint32) for cause in COUNTERS},
            **{name: jnp.zeros(size, dtype) for name, size in sketch.items()},
        )
        rows = jnp.zeros((spec.settings.sample_size(width), width), dtype)
        layers.append(LayerState(sums, rows, jnp.zeros((), jnp.int32)))
    samples = [
        Sample(jnp.full(size, EMPTY, jnp.int32), jnp.full(size, UNDECIDED, jnp.int32))
        for size in spec.sample_sizes
    ]
    return State(
        layers=tuple(layers),
        samples=tuple(samples),
        next_row=jnp.zeros((), jnp.uint32),
        expected=jnp.zeros(2, jnp.uint32),
        batches=jnp.zeros((), jnp.uint32),
        spec=spec,
    )


def reset(state: State) -> State:
    """Return the state as it was before the first batch, where its arrays lie; works under ``jit``.

    Examples
    --------
    >>> reset(init({"fc": 4}, num_classes=3))
    <State of 3 classes in: fc (4)>
    """
    cleared = jax.tree.map(jnp.zeros_like, state)
    samples = tuple(
        Sample(jnp.full_like(s.labels, EMPTY), jnp.full_like(s.predictions, UNDECIDED))
        for s in state.samples
    )
    fresh: State = replace(cleared, samples=samples)
    return fresh


def save(state: State, path: str | os.PathLike[str]) -> None:
    """Write a state to a file, atomically, with a checksum; `load` gives it back bit for bit.

    Parameters
    ----------
    state : State
        Also one with a leading axis of devices or replicas.
    path : str or path

    Raises
    ------
    OSError
        If it cannot be written; an older file of that name is then untouched.

    Examples
    --------
    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "state.npz")
    >>> save(init({"fc": 4}, num_classes=3), path)
    >>> load(path, like=init({"fc": 4}, num_classes=3))
    <State of 3 classes in: fc (4)>
    """
    leaves = [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]
    header = {
        "holds": _HOLDS,
        "layers": _described(state.spec),
        # A file's arrays have rows: a scalar becomes one.
        "shapes": [leaf.shape for leaf in leaves],
    }
    write_state(path, header, {f"leaf{i}": leaf for i, leaf in enumerate(leaves)})


def load(path: str | os.PathLike[str], like: State) -> State:
    """Read a state written by `save`; counting goes on as if it had not been interrupted.

    Parameters
    ----------
    path : str or path
    like : State
        One made by the same `init`: it says what the settings are, which a file cannot hold where a
        reduction is a function.

    Returns
    -------
    State

    Raises
    ------
    CorruptStateError
        If the file is truncated, altered, or not a state file.
    ValueError
        If it is of other layers, classes or sizes than ``like``.
    FileNotFoundError
        If there is none.
    """
    if not isinstance(like, State):
        raise ValueError(f"like= is a {type(like).__name__}: pass a State that the same init made")
    header, arrays = read_state(path)
    if header.get("holds") != _HOLDS:
        raise CorruptStateError(f"{os.fspath(path)} is a state file, but not one of this adapter")
    found, wanted = header["layers"], _described(like.spec)
    if found != wanted:
        raise ValueError(f"{os.fspath(path)} counts {found}, and like= counts {wanted}")
    leaves, tree = jax.tree.flatten(like)
    try:
        loaded = [arrays[f"leaf{i}"].reshape(s) for i, s in enumerate(header["shapes"])]
        loaded = _with_added(loaded, like)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptStateError(f"{os.fspath(path)} is not a state file: {error}") from error
    for old, new in zip(leaves, loaded, strict=True):
        # Only a leading axis of devices may differ from `like`.
        if new.shape[new.ndim - old.ndim :] != old.shape or new.dtype != old.dtype:
            raise ValueError(
                f"{os.fspath(path)} holds an array {new.shape} {new.dtype} where like= has "
                f"{old.shape} {old.dtype}: call init with the same options"
            )
    state: State = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in loaded])
    return state


def _with_added(loaded: list[Any], like: State) -> list[Any]:
    """Return the arrays of a file with the counters that older files lack, at zero."""
    names = [str(path[-1]) for path, _ in jax.tree_util.tree_leaves_with_path(like)]
    added = [name in (".unlabelled", ".mixed") for name in names]
    if len(loaded) != len(names) - sum(added):
        return loaded
    old = iter(loaded)
    whole: list[Any] = []
    for is_new in added:
        whole.append(
            np.zeros_like(whole[-1]) if is_new else next(old)
        )  # after a counter of its shape
    return whole


def _described(spec: Spec) -> str:
    layers = ", ".join(
        f"{name} ({width}, {spec.kind(number)})"
        for number, (name, width) in enumerate(zip(spec.names, spec.widths, strict=True))
    )
    settings = spec.settings
    return (
        f"{settings.num_classes} classes in {layers}; {spec.dtype}, sample_rows="
        f"{settings.sample_rows}, seed={settings.seed}, sketch_rows={settings.sketch_rows}, ignore_index={settings.ignore_index}, "
        f"nonfinite={settings.nonfinite}"
    )
