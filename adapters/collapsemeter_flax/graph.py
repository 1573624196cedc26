"""The data flow of one abstract forward: a jaxpr with its calls inlined and its scans unrolled."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

UNROLLED = 50_000  # values that the unrolled scans of one forward may have
SAME = {
    "name",
    "copy",
    "copy_p",
    "stop_gradient",
    "convert_element_type",
    "reduce_precision",
    "optimization_barrier",
    "sharding_constraint",
}
SHAPES = {"reshape", "squeeze", "broadcast_in_dim", "transpose", "expand_dims"}
OPAQUE = ("cond", "while")  # which branch runs, or how often, depends on data


@dataclass(frozen=True, eq=False)
class Value:
    """An array of the forward, and the operation that gives it."""

    operation: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    params: Mapping[str, Any] = field(default_factory=dict)
    primitive: Any = None
    output: int = 0  # which of the operation's outputs this is
    constant: Any = None  # of a literal or a constant that was closed over
    equation: Any = None  # the same of all values that one line of the jaxpr gave
    hidden: tuple[tuple[str, int], ...] = ()  # marks inside an opaque operation, and how often each

    @property
    def is_float(self) -> bool:
        return bool(jnp.issubdtype(self.dtype, jnp.inexact))


class Graph:
    """Values in the order in which they are computed: inputs first, every value after its inputs."""

    def __init__(self, closed: Any) -> None:
        self.values: list[Value] = []
        self._unrolled = 0
        jaxpr = closed.jaxpr
        self.inputs = [self._add("input", (), var.aval) for var in jaxpr.invars]
        self.outputs = self._inlined(jaxpr, self._constants(closed.consts), self.inputs)

    def __getitem__(self, number: int) -> Value:
        return self.values[number]

    def __len__(self) -> int:
        return len(self.values)

    def float_inputs(self, number: int) -> list[int]:
        """Return the inputs of a value through which a gradient may pass."""
        return [i for i in self.values[number].inputs if self.values[i].is_float]

    def depending_on(self, sources: Iterator[int] | Sequence[int]) -> list[bool]:
        """Return of each value whether it depends on any of the sources, in whatever dtype."""
        touched = [False] * len(self.values)
        for source in sources:
            touched[source] = True
        for number, value in enumerate(self.values):
            touched[number] = touched[number] or any(touched[i] for i in value.inputs)
        return touched

    def ancestors(self, number: int) -> set[int]:
        """Return everything that a value is computed from, itself among it."""
        seen, left = {number}, [number]
        while left:
            for parent in self.values[left.pop()].inputs:
                if parent not in seen:
                    seen.add(parent)
                    left.append(parent)
        return seen

    def evaluated(self, number: int, known: Mapping[int, Any]) -> Any:
        """Compute a value, and what it is made of, from the given ones."""

        @functools.cache
        def value_of(number: int) -> Any:
            if number in known:
                return known[number]
            value = self.values[number]
            if value.constant is not None:
                return value.constant
            outputs = value.primitive.bind(*map(value_of, value.inputs), **value.params)
            return outputs[value.output] if value.primitive.multiple_results else outputs

        return value_of(number)

    def _constants(self, constants: Sequence[Any]) -> list[int]:
        # What an outer trace holds has no value yet.
        known = [None if isinstance(array, jax.core.Tracer) else array for array in constants]
        return [
            self._add("constant", (), array, constant=constant)
            for array, constant in zip(constants, known, strict=True)
        ]

    def _add(self, operation: str, inputs: tuple[int, ...], aval: Any, **more: Any) -> int:
        shape = tuple(getattr(aval, "shape", ()))
        dtype = getattr(aval, "dtype", np.dtype(object))
        self.values.append(Value(operation, inputs, shape, dtype, **more))
        return len(self.values) - 1

    def _inlined(self, jaxpr: Any, constants: Sequence[int], inputs: Sequence[int]) -> list[int]:
        numbers: dict[Any, int] = dict(zip(jaxpr.constvars, constants, strict=True))
        numbers |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom: Any) -> int:
            if isinstance(atom, core.Literal):
                return self._add("literal", (), atom.aval, constant=np.asarray(atom.val))
            return numbers[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            numbers |= zip(equation.outvars, self._outputs(equation, inputs), strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _outputs(self, equation: Any, inputs: list[int]) -> list[int]:
        name, params = equation.primitive.name, equation.params
        inner = [value for value in params.values() if _is_jaxpr(value)]
        if name == "scan":
            size = params["length"] * len(params["jaxpr"].jaxpr.eqns)
            if self._unrolled + size <= UNROLLED:
                self._unrolled += size
                return self._scanned(equation, inputs)
        elif len(inner) == 1 and name not in OPAQUE and len(inner[0].invars) == len(inputs):
            return self._called(inner[0], inputs)
        hidden = tuple(_marks_in(params.values(), params.get("length", 1)))
        return [
            self._add(
                name,
                tuple(inputs),
                var.aval,
                params=params,
                primitive=equation.primitive,
                equation=id(equation),
                output=place,
                hidden=hidden if place == 0 else (),
            )
            for place, var in enumerate(equation.outvars)
        ]

    def _called(self, inner: Any, inputs: Sequence[int]) -> list[int]:
        open_jaxpr = getattr(inner, "jaxpr", inner)
        return self._inlined(open_jaxpr, self._constants(getattr(inner, "consts", ())), inputs)

    def _scanned(self, equation: Any, inputs: list[int]) -> list[int]:
        params = equation.params
        fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
        constants, carry, stacked = inputs[:fixed], inputs[fixed:carried], inputs[carried:]
        body = params["jaxpr"].jaxpr
        slices = [var.aval for var in body.invars[carried:]]
        rows: list[list[int]] = []
        for _ in range(params["length"]):
            row = [
                self._add("scan_slice", (whole,), aval)
                for whole, aval in zip(stacked, slices, strict=True)
            ]
            outputs = self._called(params["jaxpr"], [*constants, *carry, *row])
            carry, row = outputs[: params["num_carry"]], outputs[params["num_carry"] :]
            rows.append(row)
        if params["reverse"]:
            rows.reverse()
        stacks = equation.outvars[params["num_carry"] :]
        columns = zip(*rows, strict=True) if rows else ((),) * len(stacks)
        return [
            *carry,
            *(
                self._add("scan_stack", tuple(column), var.aval)
                for column, var in zip(columns, stacks, strict=True)
            ),
        ]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") and hasattr(value, "invars")


def _marks_in(values: Any, times: int) -> Iterator[tuple[str, int]]:
    """Yield names that were put on arrays inside an opaque operation, in their order."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _marks_in(value, times)
        elif _is_jaxpr(value):
            for equation in value.eqns:
                if equation.primitive.name == "name":
                    yield equation.params["name"], times
                else:
                    length = equation.params.get("length", 1)
                    yield from _marks_in(equation.params.values(), times * length)
