"""The state: a registered pytree of fixed shapes, which a jitted step takes and gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from collapsemeter.adapter.memory import Holding, Memory, MemoryPlan, memory_plan
from collapsemeter.adapter.reduction import Reduction, check_reduction, reduction_of
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import COUNTERS, EPS, INTEGERS, ScatterKind, Sums, array_shapes

from .sample import EMPTY

MOST_ROWS = 512  # of a block
_MOST_BYTES = 4 * 2**20
_FEWEST_ROWS = 32  # of a block that is worth the wait
UNDECIDED = -2  # the prediction in a slot whose row came without logits
DTYPES = ("", *sorted(EPS, key=EPS.__getitem__))  # from fine to coarse; "" before the first batch


@dataclass(frozen=True)
class StateSpec:
    """The static part of a state: two states of one spec have the same shapes."""

    names: tuple[str, ...]  # in order; the last is what a head given to `report` reads
    widths: tuple[int, ...]
    reductions: tuple[Reduction, ...]  # not in `settings`, because a mapping has no hash
    holdings: tuple[Holding, ...]  # what each layer keeps: its scatter, rows for NC4 and groups
    settings: Settings
    dtype: str  # of the sums
    waiting_rows: int  # of a block in which small batches wait; 0 for none

    @property
    def sample_sizes(self) -> tuple[int, ...]:
        """The sizes of the layers' row samples, each once."""
        return tuple(sorted({holding.sample_rows for holding in self.holdings}))

    def kind(self, layer: int) -> ScatterKind:
        """Return the scatter that a layer keeps."""
        return self.holdings[layer].kind


# JAX hands every array of a state to a step and back, which costs as much as a small operation: few arrays.
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerSums:
    """Sums and sampled rows of one layer."""

    integers: Array  # uint32: `COUNTERS`, counts of classes, counts of their groups
    shift: Array
    totals: Array  # of `Sums.sums`
    squares: Array
    scatter: Array | None
    sketch: Array | None
    signs: Array | None
    rows: Array  # (K, d), by slot

    @property
    def sums(self) -> Sums:
        """The sums of rows that no longer wait."""
        first, classes = len(COUNTERS), self.shift.shape[-2]
        group_counts = self.integers[..., first + classes :]
        counters: dict[str, Any] = {
            name: self.integers[..., place] for place, name in enumerate(COUNTERS)
        }
        return Sums(
            counts=self.integers[..., first : first + classes],
            shift=self.shift,
            sums=self.totals,
            squares=self.squares,
            scatter=self.scatter,
            sketch=self.sketch,
            signs=self.signs,
            group_counts=group_counts if group_counts.shape[-1] else None,
            **counters,
        )

    def with_sums(self, sums: Sums, rows: Array) -> LayerSums:
        """Return a layer of these sums and sampled rows."""
        integers = [getattr(sums, name)[..., None] for name in COUNTERS] + [sums.counts]
        integers += [] if sums.group_counts is None else [sums.group_counts]
        return LayerSums(
            jnp.concatenate(integers, axis=-1),
            sums.shift,
            sums.sums,
            sums.squares,
            sums.scatter,
            sums.sketch,
            sums.signs,
            rows,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """Labels and decisions in the slots of a row sample, beside the rows."""

    codes: Array  # (K, 2): labels, and the network's decisions

    @property
    def labels(self) -> Array:
        """(K,); `EMPTY` of a slot without a row."""
        return self.codes[..., 0]

    @property
    def predictions(self) -> Array:
        """(K,); `UNDECIDED` of a row without logits."""
        return self.codes[..., 1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Waiting(Sample):
    """Rows that are not in the sums and samples yet, see `collapsemeter_flax.waiting`."""

    rows: tuple[Array, ...]  # (N, d) of each layer


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class State:
    """The counts so far; made by `init`, and only ever replaced, never changed.

    Attributes
    ----------
    layers : tuple of LayerSums
        Without the rows that still wait; `report`, `to_moments` and `merge` have them all.
    samples : tuple of Sample
        One for each size of `StateSpec.sample_sizes`, alike.
    waiting : Waiting, or None
        Rows of small batches.
    tallies : (5 + layers,) uint32
        What follows, in this order.
    next_row : uint32 scalar
        Rows with a class so far.
    batches : uint32 scalar
    expected : (2,) uint32
        Label rows given: high and low half.
    filled : uint32 scalar
        Rows that wait.
    feature_dtypes : (layers,) uint32
        Index in `DTYPES` of the coarsest dtype that each layer had.
    spec : Spec
        Static.
    """

    layers: tuple[LayerSums, ...]
    samples: tuple[Sample, ...]
    waiting: Waiting | None
    tallies: Array
    spec: StateSpec = field(metadata={"static": True})

    @property
    def next_row(self) -> Array:
        return self.tallies[..., 0]

    @property
    def batches(self) -> Array:
        return self.tallies[..., 1]

    @property
    def expected(self) -> Array:
        return self.tallies[..., 2:4]

    @property
    def filled(self) -> Array:
        return self.tallies[..., 4]

    @property
    def feature_dtypes(self) -> Array:
        return self.tallies[..., 5:]

    def tallied(self, **tallies: Array) -> State:
        """Return the state with other tallies of these names."""
        names = ("next_row", "batches", "expected", "filled", "feature_dtypes")
        parts = [jnp.atleast_1d(tallies.get(name, getattr(self, name))) for name in names]
        return replace(self, tallies=jnp.concatenate(parts))

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
    memory: Memory = None,
    parameter_bytes: int = 0,
    waiting: bool = True,
    **options: Any,
) -> State:
    r"""Return a state that has counted nothing.

    For each layer counts :math:`n_c`, shifts :math:`k_c`, sums :math:`\sum (h - k_c)` and squares of 16 groups of rows, and
    the scatter that its width and the memory afford, in float32, or in float64 under ``jax_enable_x64``; and a bounded
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
    memory : "auto", float or None
        MiB that the state may take: rows for NC4 and scatters are chosen to fit, those of the last layer
        last. None is any; ``auto`` is the larger of 64 and half of ``parameter_bytes``.
    parameter_bytes : int
        Of the model.
    waiting : bool
        Let small batches wait until they make a block of up to 512 rows, 4 MiB at most. Under ``vmap`` a block would be added
        with every batch: pass False.
    **options
        ``scatter``, ``convention``, ``ignore_index``, ``nonfinite``, ``mixed``, ``sample_rows``, ``seed``,
        ``sketch_rows`` and ``groups`` of `collapsemeter.adapter.settings.Settings`.

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
    widths = {name: int(width) for name, width in layers.items()}
    plan = plan_memory(widths, settings, memory, parameter_bytes, dtype, waiting)
    spec = StateSpec(
        names=tuple(widths),
        widths=tuple(widths.values()),
        reductions=tuple(reduction_of(reduction, name) for name in layers),
        holdings=tuple(plan.holdings.values()),
        settings=settings,
        dtype=_sum_dtype(dtype),
        waiting_rows=plan.waiting_rows,
    )
    return empty(spec)


def plan_memory(
    widths: Mapping[str, int],
    settings: Settings,
    memory: Memory,
    parameter_bytes: int,
    dtype: str = "auto",
    waiting: bool = True,
) -> MemoryPlan:
    """Choose what every layer keeps, and how many rows wait; a scatter for each class only where a device computes it cheaply."""
    itemsize = np.dtype(_sum_dtype(dtype)).itemsize
    plan = memory_plan(
        widths,
        settings,
        parameter_bytes=parameter_bytes,
        memory=memory,
        copies=itemsize // 4,
        class_products=settings.num_classes,
    )
    if not waiting:
        return plan
    row = itemsize * sum(widths.values())
    most = min(MOST_ROWS, _MOST_BYTES // row)
    return plan.with_waiting(row, most_rows=most, fewest_rows=_FEWEST_ROWS)


def _sum_dtype(dtype: str) -> str:
    wide = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    if dtype == "auto":
        return "float64" if wide else "float32"
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: choose 'auto', 'float32' or 'float64'")
    if dtype == "float64" and not wide:
        raise ValueError("dtype='float64': JAX makes float32 of it; turn on jax_enable_x64")
    return dtype


def empty(spec: StateSpec) -> State:
    """Return a state of these shapes that has counted nothing."""
    with jax.transfer_guard_host_to_device("allow"):  # of a zero
        return _empty(spec)


def _empty(spec: StateSpec) -> State:
    classes, dtype = spec.settings.num_classes, jnp.dtype(spec.dtype)
    layers = []
    for width, holding in zip(spec.widths, spec.holdings, strict=True):
        shapes = array_shapes(
            holding.kind, classes, width, spec.settings.sketch_rows, holding.groups
        )
        counts = sum(math.prod(shapes[name]) for name in INTEGERS if name in shapes)
        # An array for each: a donated buffer may be given only once.
        arrays: dict[str, Any] = {
            name: jnp.zeros(shapes[name], dtype) if name in shapes else None
            for name in ("shift", "sums", "squares", "scatter", "sketch", "signs")
        }
        rows = jnp.zeros((holding.sample_rows, width), dtype)
        layers.append(
            LayerSums(jnp.zeros(counts, jnp.uint32), totals=arrays.pop("sums"), rows=rows, **arrays)
        )
    size = spec.waiting_rows
    blocks = tuple(jnp.zeros((size, width), dtype) for width in spec.widths)
    return State(
        layers=tuple(layers),
        samples=tuple(
            Sample(_without_rows(jnp.zeros((rows, 2), jnp.int32))) for rows in spec.sample_sizes
        ),
        waiting=Waiting(_without_rows(jnp.zeros((size, 2), jnp.int32)), blocks) if size else None,
        tallies=jnp.zeros(5 + len(layers), jnp.uint32),
        spec=spec,
    )


def reset(state: State) -> State:
    """Return the state as it was before the first batch, where its arrays lie; works under ``jit``.

    Examples
    --------
    >>> reset(init({"fc": 4}, num_classes=3))
    <State of 3 classes in: fc (4)>
    """
    with jax.transfer_guard_host_to_device("allow"):  # of a zero
        cleared = jax.tree.map(jnp.zeros_like, state)
        samples = tuple(Sample(_without_rows(sample.codes)) for sample in state.samples)
        waiting = cleared.waiting and replace(
            cleared.waiting, codes=_without_rows(cleared.waiting.codes)
        )
    fresh: State = replace(cleared, samples=samples, waiting=waiting)
    return fresh


def _without_rows(codes: Array) -> Array:
    return jnp.broadcast_to(jnp.array([EMPTY, UNDECIDED], codes.dtype), codes.shape)
