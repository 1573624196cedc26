"""The statistics of one stream of batches, as variables of the model's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
from keras import ops

from collapsemeter.adapter.budget import Budget
from collapsemeter.adapter.memory import Holding
from collapsemeter.adapter.settings import Settings
from collapsemeter.adapter.tally import Tally
from collapsemeter.stats.sums import COUNTERS, Sums, scatter_shape, sketch_shapes, update

from .operations import (
    BACKEND,
    COUNT,
    FULL,
    Key,
    Tensor,
    counted,
    dtype_of,
    hashed,
    namespace_of,
    run_if,
    sample_slots,
    saturated,
)

_SUMS = tuple(part.name for part in fields(Sums))
_T = TypeVar("_T")
_ON_HOST = BACKEND == "torch"  # a look at a variable would wait for the device


class LayerVariables(NamedTuple):
    """The variables of one layer."""

    sums: dict[str, keras.Variable]
    rows: keras.Variable
    dtype: str  # of the features
    holding: Holding


class SampleVariables(NamedTuple):
    """What all layers whose samples have one size share."""

    ids: keras.Variable
    labels: keras.Variable
    predictions: keras.Variable


class HoldingsView:
    """What layers keep, in an object that Keras does not track: it would copy a dict."""

    def __init__(self, holdings: Mapping[str, Holding]) -> None:
        self._holdings = holdings

    def of(self, layer: str) -> Holding | None:
        """Return what a layer keeps, where that is planned."""
        return self._holdings.get(layer)


class StreamSums(keras.metrics.Metric):
    """Class-shifted sums of every layer, and a sample of rows, in variables that Keras carries along.

    A metric, because that is what a compiled step may write to. It reports nothing to Keras, and is
    cleared by its meter alone: Keras resets metrics at times of its own, such as before every
    ``train_on_batch`` and within ``fit`` before the validation.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        holdings: Mapping[str, Holding],
        budget: Budget | None = None,
    ) -> None:
        super().__init__(name=name)
        self.settings, self.holdings = settings, HoldingsView(holdings)
        self.budget = _as_counted(Budget() if budget is None else budget)
        self.layers: dict[Key, LayerVariables] = {}
        self.samples: dict[int, SampleVariables] = {}
        self.expected = self._variable((), COUNT, "expected")
        self.batches = self._variable((), COUNT, "batches")
        self.next_row = self._variable((), COUNT, "next_row")
        self.given = self._variable((), COUNT, "given")  # batches, counted or left out
        self._given_here = self._rows_here = 0  # the same on the host, where steps run in Python

    # Metric's own surface

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the meter calls `count`."""

    def reset_state(self) -> None:
        """Do nothing: the meter calls `clear`."""

    def result(self) -> dict[str, Any]:
        """Return nothing, so that Keras' own logs stay as they are."""
        return {}

    # Memory

    def _variable(self, shape: tuple[int, ...], dtype: str, name: str) -> keras.Variable:
        # Integers of every backend start at zero; sample ids are stored one up, so that zero is none.
        variable = _outside_of_strategies(
            lambda: keras.Variable(
                keras.initializers.Zeros(),
                shape=shape,
                dtype=dtype,
                trainable=False,
                autocast=False,
                name=f"{self.name}_{name}",
            )
        )
        self._tracker.add_to_store("variables", variable)
        return variable

    def allocate(
        self, key: Key, width: int, dtype: str, holding: Holding | None = None
    ) -> LayerVariables:
        """Make the variables of a layer of this width; where they are there already, return them."""
        if key in self.layers:
            # A forward of shapes alone knows nothing of torch's autocast: what runs has the last word.
            self.layers[key] = self.layers[key]._replace(dtype=dtype)
            return self.layers[key]
        settings, name = self.settings, f"{len(self.layers)}"
        sums_dtype = "float64" if dtype == "float64" else "float32"
        holding = (
            holding
            or self.holdings.of(key[0])
            or Holding(settings.kind(width), settings.sample_size(width))
        )
        classes, size, kind = settings.num_classes, holding.sample_rows, holding.kind
        shapes: dict[str, tuple[int, ...] | None] = {
            "counts": (classes,),
            "shift": (classes, width),
            "sums": (classes, width),
            "squares": (classes,),
            "scatter": scatter_shape(kind, classes, width),
            **dict.fromkeys(COUNTERS, ()),
            **sketch_shapes(kind, classes, width, settings.sketch_rows),
        }
        integers = ("counts", *COUNTERS)
        sums = {
            part: self._variable(shape, COUNT if part in integers else sums_dtype, f"{name}_{part}")
            for part, shape in shapes.items()
            if shape is not None
        }
        rows = self._variable((size + 1, width), sums_dtype, f"{name}_rows")
        self.layers[key] = LayerVariables(sums, rows, dtype, holding)
        if size not in self.samples:
            self.samples[size] = SampleVariables(
                *(
                    self._variable((size + 1,), COUNT, f"sample{size}_{part}")
                    for part in SampleVariables._fields
                )
            )
        return self.layers[key]

    def clear(self) -> None:
        """Start again from nothing, in the same memory."""
        for variable in self.variables:
            variable.assign(ops.zeros(variable.shape, dtype=variable.dtype))
        self._given_here = self._rows_here = 0

    def resume(self) -> None:
        """Go on from variables that were loaded."""
        self._given_here, self._rows_here = self._read(self.given), self.expected_rows()

    # In the step

    def within_budget(self, count: Callable[[], None]) -> None:
        """Count a batch if the budget takes it."""
        if not self.budget.limited:
            count()
        elif _ON_HOST:
            if self.budget.takes(self._given_here, self._rows_here):
                count()
        else:
            takes = self.budget.takes(self.given.value, self.expected.value)
            run_if(takes, count, self.variables)
        self._given_here += 1
        self.given.assign(saturated(self.given.value, ops.cast(1, COUNT)))

    def count(
        self, features: Mapping[Key, Tensor], labels: Tensor, predictions: Tensor | None
    ) -> None:
        """Add a batch: rows (N, d) of every layer and call, and (N,) labels and decisions."""
        labels = ops.cast(labels, "int32")
        settings = self.settings
        usable = (labels >= 0) & (labels < settings.num_classes)
        usable = usable & (labels != settings.ignore_index)
        ones = ops.cast(usable, COUNT)
        start = self.next_row.value
        numbers = start + ops.cumsum(ones, axis=0) - ones
        layers = {
            key: self.allocate(key, int(rows.shape[1]), dtype_of(rows))
            for key, rows in features.items()
        }
        hashes = None
        if any("sketch" in layer.sums for layer in layers.values()):
            hashes = hashed(numbers, settings.sketch_rows, settings.seed)
        for size in {layer.holding.sample_rows for layer in layers.values()}:
            slots = sample_slots(numbers, usable, size, settings.seed)
            sample = self.samples[size]
            _put(sample.ids, slots, numbers + 1)
            # One up, like the ids: zero is no decision. A label that is no class goes to the bin only.
            _put(sample.labels, slots, ops.cast(ops.maximum(labels, 0), COUNT))
            if predictions is not None:
                _put(sample.predictions, slots, predictions + 1)
            for key, layer in layers.items():
                if layer.holding.sample_rows == size:
                    self._count_layer(layer, features[key], labels, slots, hashes)
        rows_given = counted(ops.ones_like(labels))
        if _ON_HOST:
            self._rows_here += len(labels)
        self.expected.assign(saturated(self.expected.value, rows_given))
        self.batches.assign(saturated(self.batches.value, ops.cast(1, COUNT)))
        self.next_row.assign(saturated(start, counted(usable)))

    def _count_layer(
        self,
        layer: LayerVariables,
        rows: Tensor,
        labels: Tensor,
        slots: Tensor,
        hashes: tuple[Tensor, Tensor] | None,
    ) -> None:
        rows = ops.stop_gradient(rows)
        before = Sums(
            **{part: layer.sums[part].value if part in layer.sums else None for part in _SUMS}
        )
        after = update(
            before,
            rows,
            labels,
            namespace_of(layer.rows),
            ignore_index=self.settings.ignore_index,
            propagate=self.settings.propagate,
            hashes=hashes,
        )
        for part, variable in layer.sums.items():
            if getattr(after, part) is not getattr(before, part):  # not updated in place
                variable.assign(getattr(after, part))
        _put(layer.rows, slots, rows)

    # On the host

    def expected_rows(self) -> int:
        """Label rows that every layer should have seen."""
        return self._read(self.expected)

    def batches_seen(self) -> int:
        """Batches counted."""
        return self._read(self.batches)

    def batches_left_out(self) -> int:
        """Batches that the budget did not take."""
        return self._read(self.given) - self.batches_seen()

    def _read(self, variable: keras.Variable) -> int:
        value = int(ops.convert_to_numpy(variable.value))
        if COUNT == "uint32" and value == FULL:
            raise ValueError(
                "a counter is full: more than 4,294,967,294 rows were counted without a reset; "
                "reset the meter more often"
            )
        return value

    def tally(self, key: Key) -> Tally:
        """Copy what a layer counted to the host."""
        layer = self.layers[key]
        arrays = {
            part: ops.convert_to_numpy(variable.value) for part, variable in layer.sums.items()
        }
        sample = self.samples[layer.holding.sample_rows]
        ids, labels, decided = (
            ops.convert_to_numpy(variable.value)[:-1].astype(np.int64) for variable in sample
        )
        rows = ops.convert_to_numpy(layer.rows.value)[:-1]
        filled, known = ids > 0, (ids > 0) & (decided > 0)
        return Tally(
            sums=Sums(**{part: arrays.get(part) for part in _SUMS}),
            feature_dtype=layer.dtype,
            rows=rows[filled],
            labels=labels[filled],
            ids=ids[filled] - 1,
            decided=(ids[known] - 1, decided[known] - 1) if known.any() else None,
            seed=self.settings.seed,
        )


def nbytes_of(variables: Iterable[keras.Variable]) -> int:
    """Return the size of variables in bytes."""
    total = 0
    for variable in variables:
        digits = "".join(c for c in dtype_of(variable) if c.isdigit())
        total += math.prod(variable.shape) * int(digits or 8) // 8
    return total


def _as_counted(budget: Budget) -> Budget:
    """Return a budget in the integers of JAX, which takes plain ones for 32 bits with a sign."""
    if COUNT != "uint32":
        return budget
    limits: dict[str, Any] = {"every": np.uint32(min(budget.every, FULL))}
    if budget.max_rows is not None:
        limits["max_rows"] = np.uint32(min(budget.max_rows, FULL))
    return replace(budget, **limits)


def _put(variable: keras.Variable, slots: Tensor, values: Tensor) -> None:
    """Write rows to their slots; the last slot is the bin and may hold any of them."""
    values = ops.cast(values, variable.dtype)
    variable.assign(ops.scatter_update(variable.value, slots[:, None], values))


def _outside_of_strategies(make: Callable[[], _T]) -> _T:
    """Make variables that no tf.distribute strategy mirrors or sums up on reading.

    Replicas count into one place, one after the other; a mirrored shift would be a sum of shifts. A
    strategy's scope belongs to its thread, so another thread is outside of it.
    """
    if keras.backend.backend() != "tensorflow":
        return make()
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return make()
    with ThreadPoolExecutor(1) as other_thread:
        return other_thread.submit(make).result()
