"""The inputs of one layer's metrics: every metric is a function of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..stats.linalg import Floats, row_norms, taken
from ..stats.undefined import require
from .frames import centred_rows, have_directions, products_of, require_weight
from .noise import Noise, noise_of
from .pairs import Cosines, cosines_of
from .steps import Steps, steps_of

if TYPE_CHECKING:
    from ..stats.head import Head
    from .convention import Convention
    from .decisions import Decisions
    from .geometry import ClassGeometry


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """One layer; ``weight`` (k, d) is fed by it, ``incoming`` (d, k) feeds it, ``decays`` are of incoming and weight."""

    geometry: ClassGeometry
    convention: Convention
    head: HeadRows | None = None
    decisions: Decisions | None = None
    weight: Floats | None = None
    incoming: Floats | None = None
    decays: tuple[float, float] = (1.0, 1.0)

    @cached_property
    def noise(self) -> Noise:
        """The noise of the class means; Undefined where the moments do not tell it."""
        return noise_of(self.geometry, self.steps)

    @cached_property
    def steps(self) -> Steps | None:
        """How each group of rows moves the class means; None without groups."""
        return steps_of(self.geometry)


class HeadRows:
    """The rows of the head for the classes that are present: as they are, or centred over classes."""

    def __init__(self, head: Head, present: npt.NDArray[np.int64], center: bool = False) -> None:
        self.weight, self.bias = taken(head.weight, present), taken(head.bias, present)
        self.finite = head.finite
        self._center = center

    @cached_property
    def rows(self) -> Floats:
        """W, (C, d)."""
        require(self.finite, "nonfinite_head")
        require_weight(self.weight)
        return centred_rows(self.weight) if self._center and len(self.weight) else self.weight

    @cached_property
    def products(self) -> Floats | None:
        """Inner products of the rows of W, see `products_of`."""
        return products_of(self.rows)

    @cached_property
    def norms(self) -> Floats:
        """Norms of the rows of W, (C,), of which one at least is not zero."""
        norms = row_norms(self.rows)
        require(len(norms) > 1, "one_class")
        require(bool(np.any(norms)), "zero_head")
        return norms

    @cached_property
    def pairs(self) -> Cosines:
        """Cosines over pairs of rows."""
        require(have_directions(self.norms), "head_row_without_direction")
        return cosines_of(self.rows / self.norms[:, None])
