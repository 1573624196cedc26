"""The state: a registered pytree of fixed shapes, which a jitted step takes and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from collapsemeter.adapter.memory import Holding, Memory, MemoryPlan, memory_plan
from collapsemeter.adapter.reduction import Reduction, check_reduction, reduction_of
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import EPS, INTEGERS, ScatterKind, Sums, array_shapes

from .sample import EMPTY

UNDECIDED = -2  # the prediction in a slot whose row came without logits
DTYPES = ("", *sorted(EPS, key=EPS.__getitem__))  # from fine to coarse; "" before the first batch

jax.tree_util.register_dataclass(
    Sums, data_fields=[part.name for part in fields(Sums)], meta_fields=[]
)


@dataclass(frozen=True)
class StateSpec:
    """What is static of a state: two states of one spec have the same shapes."""

    names: tuple[str, ...]  # in order; the last is what a head given to `report` reads
    widths: tuple[int, ...]
    reductions: tuple[Reduction, ...]  # not in `settings`, because a mapping has no hash
    holdings: tuple[Holding, ...]  # what each layer keeps: its scatter, rows for NC4 and groups
    settings: Settings
    dtype: str  # of the sums

    @property
    def sample_sizes(self) -> tuple[int, ...]:
        """The sizes of the layers' row samples, each once."""
        return tuple(sorted({holding.sample_rows for holding in self.holdings}))

    def kind(self, layer: int) -> ScatterKind:
        """Return the scatter that a layer keeps."""
        return self.holdings[layer].kind


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerSums:
    """Sums and sampled rows of one layer."""

    sums: Sums
    rows: Array  # (K, d), by slot
    feature_dtype: Array  # index in `DTYPES` of the coarsest dtype that was seen


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
    layers : tuple of LayerSums
    samples : tuple of Sample
        One for each size of `StateSpec.sample_sizes`.
    next_row : uint32 scalar
        Rows with a class so far.
    expected : (2,) uint32
        Label rows given: high and low half.
    batches : uint32 scalar
    spec : Spec
        Static.
    """

    layers: tuple[LayerSums, ...]
    samples: tuple[Sample, ...]
    next_row: Array
    expected: Array
    batches: Array
    spec: StateSpec = field(metadata={"static": True})

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
    plan = plan_memory(widths, settings, memory, parameter_bytes, dtype)
    spec = StateSpec(
        names=tuple(widths),
        widths=tuple(widths.values()),
        reductions=tuple(reduction_of(reduction, name) for name in layers),
        holdings=tuple(plan.holdings.values()),
        settings=settings,
        dtype=_sum_dtype(dtype),
    )
    return empty(spec)


def plan_memory(
    widths: Mapping[str, int],
    settings: Settings,
    memory: Memory,
    parameter_bytes: int,
    dtype: str = "auto",
) -> MemoryPlan:
    """Choose what every layer keeps; a scatter for each class only where a device computes it cheaply."""
    return memory_plan(
        widths,
        settings,
        parameter_bytes=parameter_bytes,
        memory=memory,
        copies=np.dtype(_sum_dtype(dtype)).itemsize // 4,
        class_products=settings.num_classes,
    )


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
        # An array for each: a donated buffer may be given only once.
        arrays = {
            name: jnp.zeros(shape, jnp.uint32 if name in INTEGERS else dtype)
            for name, shape in shapes.items()
        }
        rows = jnp.zeros((holding.sample_rows, width), dtype)
        sums = Sums(**{"scatter": None, **arrays})
        layers.append(LayerSums(sums, rows, jnp.zeros((), jnp.int32)))
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
    with jax.transfer_guard_host_to_device("allow"):  # of a zero
        cleared = jax.tree.map(jnp.zeros_like, state)
        samples = tuple(
            Sample(jnp.full_like(s.labels, EMPTY), jnp.full_like(s.predictions, UNDECIDED))
            for s in state.samples
        )
    fresh: State = replace(cleared, samples=samples)
    return fresh
