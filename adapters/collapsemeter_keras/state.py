"""The statistics of one stream of batches, as variables of the model's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import keras
import numpy as np
from keras import ops

from collapsemeter.adapter.budget import Budget
from collapsemeter.adapter.memory import Holding
from collapsemeter.adapter.settings import Settings
from collapsemeter.adapter.tally import Tally
from collapsemeter.adapter.waiting_on_host import usable
from collapsemeter.stats.groups import GROUPS
from collapsemeter.stats.sums import INTEGERS, Sums, array_shapes, update

from .host_rows import HostSample, add_on_host
from .namespace import class_products, namespace_of
from .operations import (
    BACKEND,
    COUNT,
    FULL,
    Key,
    Tensor,
    counted,
    dealt,
    dtype_of,
    hashed,
    run_either,
    run_if,
    sample_slots,
    saturated,
)
from .variables import LayerVariables, SampleVariables, zeros
from .waiting import WaitingBlock, WaitingRows, most_rows

_SUMS = tuple(part.name for part in fields(Sums))
_ON_HOST = BACKEND == "torch"  # a look at a variable would wait for the device


class Holdings:
    """The statistics of all layers, in an object that Keras does not track: it would copy a dict."""

    def __init__(self) -> None:
        self.layers: Mapping[str, Holding] = {}  # those that are planned
        self.waiting_rows: int | None = None  # of a block


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
        holdings: Holdings,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(name=name)
        self.settings, self.holdings = settings, holdings
        self.budget = _as_counted(Budget() if budget is None else budget)
        self.layers: dict[Key, LayerVariables] = {}
        self.samples: dict[int, SampleVariables] = {}
        self.waiting: WaitingRows | None = None
        self.expected = self._variable((), COUNT, "expected")
        self.batches = self._variable((), COUNT, "batches")
        self.next_row = self._variable((), COUNT, "next_row")
        self.given = self._variable((), COUNT, "given")  # batches, counted or left out
        # The same on the host, where steps run in Python.
        self._given_here = self._rows_here = self._waiting_here = 0

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
        variable = zeros(shape, dtype, f"{self.name}_{name}")
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
        holding = holding or self.holding_of(key[0], width)
        classes, size = settings.num_classes, holding.sample_rows
        shapes = array_shapes(holding.kind, classes, width, settings.sketch_rows, holding.groups)
        sums = {
            part: self._variable(shape, COUNT if part in INTEGERS else sums_dtype, f"{name}_{part}")
            for part, shape in shapes.items()
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

    def holding_of(self, layer: str, width: int) -> Holding:
        """Return what a layer keeps that is not there yet."""
        products = class_products(self.settings.num_classes)
        planned = self.holdings.layers.get(layer)
        return planned or Holding.most(width, self.settings, products)

    def let_wait(self) -> None:
        """Make room in which the batches of all layers that are there wait; where it is there, nothing happens."""
        widths = {key: int(layer.rows.shape[1]) for key, layer in self.layers.items()}
        planned = self.holdings.waiting_rows
        size = most_rows(sum(widths.values())) if planned is None else planned
        if self.waiting is None and widths and size:
            dtypes = {key: dtype_of(layer.rows) for key, layer in self.layers.items()}
            self.waiting = WaitingRows(widths, dtypes, size, self._variable)

    def clear(self) -> None:
        """Start again from nothing, in the same memory."""
        waiting = [] if self.waiting is None else self.waiting.variables
        for variable in self.variables:
            if not any(variable is part for part in waiting):  # of which none is read
                variable.assign(ops.zeros(variable.shape, dtype=variable.dtype))
        for key, layer in list(self.layers.items()):
            self.layers[key] = layer._replace(has_groups=True)
        self._given_here = self._rows_here = self._waiting_here = 0

    def resume(self) -> None:
        """Go on from variables that were loaded."""
        if (
            self._read(self.given) < self.batches_seen()
        ):  # a meter without a budget does not count them
            self.given.assign(self.batches_seen())  # a copy: JAX gives a step each buffer once
        self._given_here, self._rows_here = self._read(self.given), self.expected_rows()
        if self.waiting is not None:
            self._waiting_here = self._read(self.waiting.count)

    def values(self) -> list[Tensor]:
        """Return copies of what the variables hold: a step of JAX may be given the buffers for good."""
        return [ops.copy(variable.value) for variable in self.variables]

    def assign(self, values: Sequence[Tensor]) -> None:
        """Take over what a step returned."""
        self._check(values)
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(ops.copy(value))
        self.resume()

    def counted_in(self, values: Sequence[Tensor], count: Callable[[], None]) -> list[Tensor]:
        """Run a function that counts, on values in the place of the variables, and return those after it."""
        self._check(values)
        mapping = zip(self.variables, values, strict=True)
        with keras.StatelessScope(state_mapping=mapping) as scope:
            count()
        return [scope.get_current_value(variable) for variable in self.variables]

    def _check(self, values: Sequence[Tensor]) -> None:
        shapes = [tuple(value.shape) for value in values]
        if shapes != [tuple(variable.shape) for variable in self.variables]:
            raise ValueError(
                f"statistics= has {len(shapes)} tensors that are not those of this meter's {self.name!r}: pass what "
                "meter.statistics() gives, or what a step made of it"
            )

    def rows_in_use(self) -> Iterator[tuple[keras.Variable, Any]]:
        """Yield every variable, and which part of it holds something."""
        waiting, count = self.waiting, self._waiting_now()
        if waiting is not None and _ON_HOST:
            waiting.count.assign(count)
        partly = [] if waiting is None else waiting.variables
        for variable in self.variables:
            used = slice(count) if any(variable is part for part in partly) else ...
            yield variable, used

    # In the step

    def within_budget(self, count: Callable[[], None]) -> None:
        """Count a batch if the budget takes it."""
        if not self.budget.limited:
            count()
            return
        if _ON_HOST:
            if self.budget.takes(self._given_here, self._rows_here):
                count()
        else:
            takes = self.budget.takes(self.given.value, self.expected.value)
            run_if(takes, count, self.variables)
        self._given_here += 1
        self._increase(self.given, 1)

    def count(self, features: Mapping[Key, Tensor], labels: Tensor, decided: Tensor) -> None:
        """Add a batch: rows (N, d) of every layer and call, and (N,) labels and decisions."""
        for key, rows in features.items():
            self.allocate(key, int(rows.shape[1]), dtype_of(rows))
        self.let_wait()
        batch = WaitingBlock(
            {key: ops.stop_gradient(rows) for key, rows in features.items()},
            ops.cast(labels, "int32"),
            decided,
        )
        rows = ops.shape(labels)[0]
        waiting = self.waiting
        # Rows of a layer that is not always there would not wait beside the others'.
        if waiting is None or waiting.rows.keys() != features.keys():
            self.add(batch)
        else:
            run_either(
                rows <= waiting.most,
                lambda: self._let_wait(waiting, batch, rows),
                lambda: self.add(batch),
            )
        self._rows_here += rows if _ON_HOST else 0
        self._increase(self.expected, rows)
        self._increase(self.batches, 1)

    def _increase(self, variable: keras.Variable, part: Tensor | int) -> None:
        namespace_of(variable).increase(variable, part)

    def _let_wait(self, waiting: WaitingRows, batch: WaitingBlock, rows: Tensor | int) -> None:
        count = self._waiting_here if _ON_HOST else waiting.count.value
        rows = rows if _ON_HOST else ops.cast(rows, COUNT)
        full = count + rows > waiting.size

        def add() -> None:
            self.add(waiting.block(count))
            waiting.start_anew()

        changed = [variable for variable in self.variables if variable is not waiting.count]
        run_if(full, add, changed)
        if _ON_HOST:
            start = 0 if full else count
            self._waiting_here = start + rows
        else:
            start = ops.where(full, ops.zeros_like(count), count)
            waiting.count.assign(start + rows)
        waiting.put(batch, start)

    def add(self, block: WaitingBlock) -> None:
        """Add rows to the sums and samples of their layers."""
        labels, settings = block.labels, self.settings
        known = usable(labels, settings)
        ones = ops.cast(known, COUNT)
        start = self.next_row.value
        numbers = start + ops.cumsum(ones, axis=0) - ones
        layers = {key: self.layers[key] for key in block.rows}
        hashes = groups = None
        if any("sketch" in layer.sums for layer in layers.values()):
            hashes = hashed(numbers, settings.sketch_rows, settings.seed)
        if any(layer.holding.groups for layer in layers.values()):
            groups = dealt(numbers)
        for size in {layer.holding.sample_rows for layer in layers.values()}:
            slots = sample_slots(numbers, known, size, settings.seed)
            sample = self.samples[size]
            place = namespace_of(sample.ids).place
            place(sample.ids, numbers + 1, slots)
            # One up, like the ids: zero is no decision. A label that is no class goes to the bin only.
            place(sample.labels, ops.cast(ops.maximum(labels, 0), COUNT), slots)
            place(sample.predictions, block.decided + 1, slots)
            for key, layer in layers.items():
                if layer.holding.sample_rows == size:
                    self._add_layer(layer, block.rows[key], labels, slots, hashes, groups)
        self.next_row.assign(saturated(start, counted(known)))

    def _add_layer(
        self,
        layer: LayerVariables,
        rows: Tensor,
        labels: Tensor,
        slots: Tensor,
        hashes: tuple[Tensor, Tensor] | None,
        groups: Tensor | None,
    ) -> None:
        operations = namespace_of(layer.rows)
        before = Sums(
            **{part: layer.sums[part].value if part in layer.sums else None for part in _SUMS}
        )
        after = update(
            before,
            rows,
            labels,
            operations,
            ignore_index=self.settings.ignore_index,
            propagate=self.settings.propagate,
            hashes=hashes,
            groups=None if groups is None else groups % (layer.holding.groups or GROUPS),
        )
        for part, variable in layer.sums.items():
            if getattr(after, part) is not getattr(before, part):  # not updated in place
                variable.assign(getattr(after, part))
        operations.place(layer.rows, rows, slots)

    # On the host

    def expected_rows(self) -> int:
        """Label rows that every layer should have seen."""
        return self._read(self.expected)

    def batches_seen(self) -> int:
        """Batches counted."""
        return self._read(self.batches)

    def batches_left_out(self) -> int:
        """Batches that the budget did not take."""
        return self._read(self.given) - self.batches_seen() if self.budget.limited else 0

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
        sums = Sums(**{part: arrays.get(part) for part in _SUMS})
        sample = HostSample(
            ops.convert_to_numpy(layer.rows.value),
            *(
                ops.convert_to_numpy(variable.value)
                for variable in self.samples[layer.holding.sample_rows]
            ),
        )
        waiting, count = self.waiting, self._waiting_now()
        if waiting is not None and count and key in waiting.rows:
            rows = waiting.on_host(key, count)
            sums, sample = add_on_host(
                sums, sample, *rows, self._read(self.next_row), self.settings
            )
        if not layer.has_groups:
            sums = sums.by_class()
        return _tally(sums, sample, layer.dtype, self.settings.seed)

    def _waiting_now(self) -> int:
        if self.waiting is None:
            return 0
        return self._waiting_here if _ON_HOST else self._read(self.waiting.count)


def _tally(sums: Sums, sample: HostSample, dtype: str, seed: int) -> Tally:
    rows = sample.rows[:-1]
    ids, labels, decided = (part[:-1].astype(np.int64) for part in sample[1:])
    filled, known = ids > 0, (ids > 0) & (decided > 0)
    return Tally(
        sums=sums,
        feature_dtype=dtype,
        rows=rows[filled],
        labels=labels[filled],
        ids=ids[filled] - 1,
        decided=(ids[known] - 1, decided[known] - 1) if known.any() else None,
        seed=seed,
    )


def _as_counted(budget: Budget) -> Budget:
    """Return a budget in the integers of JAX, which takes plain ones for 32 bits with a sign."""
    if COUNT != "uint32":
        return budget
    limits: dict[str, Any] = {"every": np.uint32(min(budget.every, FULL))}
    if budget.max_rows is not None:
        limits["max_rows"] = np.uint32(min(budget.max_rows, FULL))
    return replace(budget, **limits)
