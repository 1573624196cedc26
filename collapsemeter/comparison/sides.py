"""The two sides of a comparison, and which layer of one stands for which of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..metrics.layer import LayerReport


class Side(NamedTuple):
    """One side of a comparison; for a theory also what it leaves free and how it calls itself."""

    layers: dict[str, LayerReport]
    last_hidden: str
    name: str = "the reference"
    words: str = "another network"
    free: tuple[str, ...] = ()
    numbered: bool = False
    low_rank: Any = None


def pair_layers(
    measured: Side, predicted: Side, layers: Mapping[str, int | str] | None
) -> dict[str, str]:
    """Return the layer of the reference for each measured one: as asked, by number, or from the end."""
    names, targets = list(measured.layers), list(predicted.layers)
    if layers is not None:
        pairs = {str(name): str(target) for name, target in layers.items()}
        for what, asked, known in (
            ("measured", pairs.keys(), names),
            ("reference", pairs.values(), targets),
        ):
            stray = [name for name in asked if name not in known]
            if stray:
                raise ValueError(
                    f"layers={dict(layers)}: no {what} layer {stray[0]!r}; "
                    f"there are {', '.join(known)}"
                )
        if not pairs:
            raise ValueError("layers={}: name at least one layer, or leave it out")
        return pairs
    if measured.numbered and predicted.numbered:
        shared = {name: name for name in names if name in targets}
        if shared:
            return shared
    hidden = names[: names.index(measured.last_hidden) + 1]
    hidden_targets = targets[: targets.index(predicted.last_hidden) + 1]
    count = min(len(hidden), len(hidden_targets))
    return dict(zip(hidden[-count:], hidden_targets[-count:], strict=True))
