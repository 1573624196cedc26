"""The deep unconstrained features model: what is minimised."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

FloatArray = NDArray[np.float64]
"""Every matrix here is float64: the quantities compared differ in the ninth digit."""

# Beyond these the arrays of a closed form do not fit a memory, or counts their integers.
MOST_CLASSES, MOST_LAYERS, MOST_WIDTH, MOST_SAMPLES = 10_000, 1_000, 10**6, 10**12
WEAKEST, STRONGEST = 1e-100, 1e100  # decays, whose products are computed through logarithms


@dataclass(frozen=True)
class Problem:
    """The deep unconstrained features model as plain data, see `DUFM`."""

    num_classes: int
    per_class: int | Sequence[int]
    depth: int
    widths: int | Sequence[int] | None = None
    feature_decay: float = field(kw_only=True)
    weight_decay: float | Sequence[float] = field(kw_only=True)
    loss: Literal["mse", "ce"] = "mse"
    bias: bool = False
    bias_decay: float = 0.0
    activation: Literal["relu", "linear"] = "relu"

    def __post_init__(self) -> None:
        classes, depth = self.num_classes, self.depth
        _check_whole("num_classes", classes, 2, MOST_CLASSES, "a classification has two classes")
        _check_whole("depth", depth, 1, MOST_LAYERS, "count the weight matrices")
        widths = default_width(classes) if self.widths is None else self.widths
        counts = _spread("per_class", self.per_class, classes, "class")
        layers = _spread("widths", widths, depth, "layer")
        decays = _spread("weight_decay", self.weight_decay, depth, "layer")
        for k, count in enumerate(counts):
            name = f"per_class of class {k}"
            _check_whole(name, count, 1, MOST_SAMPLES, "leave empty classes out")
        for number, (width, decay) in enumerate(zip(layers, decays, strict=True), start=1):
            _check_whole(f"width of layer {number}", width, 1, MOST_WIDTH, "pass a dimension")
            _check_positive(f"weight_decay of layer {number}", decay)
        _check_positive("feature_decay", self.feature_decay)
        for name, choices in (("loss", ("mse", "ce")), ("activation", ("relu", "linear"))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"unknown {name} {value!r}: pass one of {', '.join(choices)}.")
        decay = self.bias_decay
        if not decay >= 0:
            raise ValueError(
                f"bias_decay must not be negative, got {decay}: pass 0 for a free bias."
            )
        if decay == math.inf:
            raise ValueError("bias_decay must be finite, got inf: leave the bias out instead.")
        if decay and not self.bias:
            raise ValueError(
                f"bias_decay {decay} was given without a bias: pass bias=True as well."
            )
        object.__setattr__(self, "per_class", tuple(int(n) for n in counts))
        object.__setattr__(self, "widths", tuple(int(d) for d in layers))
        object.__setattr__(self, "weight_decay", tuple(float(x) for x in decays))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each class, shape (K,), read-only."""
        counts = np.array(self.per_class, dtype=np.int64)
        counts.flags.writeable = False
        return counts

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Dimension of layers 1 to L."""
        return cast("tuple[int, ...]", self.widths)

    @property
    def decays(self) -> tuple[float, ...]:
        """Weight decay of layers 1 to L."""
        return cast("tuple[float, ...]", self.weight_decay)

    @property
    def num_samples(self) -> int:
        """All samples, N."""
        return int(self.counts.sum())

    @cached_property
    def balanced(self) -> bool:
        """Whether all classes have the same number of samples."""
        return bool(np.all(self.counts == self.counts[0]))

    @property
    def rectified(self) -> bool:
        """Whether a ReLU acts anywhere: with one layer none does."""
        return self.activation == "relu" and self.depth > 1

    @property
    def canonical_decay(self) -> float:
        """The single decay c that is equivalent to all of them, see `canonical`."""
        logs = [math.log(x) for x in (*self.decays, self.feature_decay)]
        mean_count = self.num_samples / self.num_classes
        return math.exp((math.fsum(logs) + math.log(mean_count)) / (self.depth + 1))


def default_width(num_classes: int) -> int:
    """Width at which descent from random starts tends to collapse."""
    return max(32, 4 * num_classes)


def _spread(name: str, value: T | Sequence[T], length: int, what: str) -> tuple[T, ...]:
    """One value per class or layer; a single value serves all."""
    if not isinstance(value, Sequence | np.ndarray):
        return (value,) * length
    if len(value) != length:
        raise ValueError(
            f"{name} must be one value or {length}, one per {what}, got {len(value)}: "
            f"{list(value)}; pass {length}."
        )
    return tuple(value)


def _check_whole(name: str, value: object, least: int, most: int, advice: str) -> None:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}: {advice}.") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}: {advice}.")
    if number > most:
        raise ValueError(f"{name} must be at most {most}, got {number}: pass a smaller number.")


def _check_positive(name: str, value: float) -> None:
    if not (0 < value < math.inf):
        raise ValueError(
            f"{name} must be positive and finite, got {value}: "
            "without decay no optimum exists; pass a small positive number."
        )
    if not WEAKEST <= value <= STRONGEST:
        raise ValueError(
            f"{name} must be between {WEAKEST:g} and {STRONGEST:g}, got {value}: "
            "the optimum of others is beyond the range of floats."
        )
