"""Reports as flat scalars: one safe tag per curve, every key from the first write on."""

from __future__ import annotations

import math
import re

from ..catalogue import METRICS
from ..report import CollapseReport, LayerReport
from ..undefined import LACKS_WEIGHT
from ..warning import warn

# Every tracker accepts ASCII word characters, dot, dash and slash. MLflow may store a metric as a file of
# that name, so no segment may be empty, "." or "..", and takes 250 characters, the metric's included.
_UNSAFE = re.compile(r"[^\w.\-/]", re.ASCII)
_LONGEST = 200


def safe_name(layer: str) -> str:
    """Return a layer's name as a tag may hold it.

    Examples
    --------
    >>> safe_name("blocks/3.attn"), safe_name("../<b>"), safe_name("")
    ('blocks/3.attn', '_/_b_', '_')
    """
    segments = _UNSAFE.sub("_", layer)[:_LONGEST].split("/")
    return "/".join("_" if segment in {"", ".", ".."} else segment for segment in segments)


class Scalars:
    """Turns reports into ``{tag: value}``; remembers the keys, so that none comes and goes.

    Parameters
    ----------
    owner : str
        The sink, as a warning names it.

    Examples
    --------
    >>> scalars = Scalars("a sink")
    >>> scalars.of(CollapseReport({"fc": LayerReport({"nc1_pinv": 0.5})}))
    {'nc1_pinv/fc': 0.5}
    >>> scalars.of(CollapseReport({}))
    {'nc1_pinv/fc': nan}
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._keys: dict[str, None] = {}
        self._names: dict[str, str] = {}
        self._phase = ""
        self._mixed = False

    def of(self, report: CollapseReport) -> dict[str, float]:
        """Return every tag seen so far with its value, NaN where this report has none."""
        self._check_phase(report.phase)
        values: dict[str, float] = {}
        for name, layer in report.items():
            for metric in _metrics(layer):
                values[self.tag(metric, name)] = float(layer.get(metric, math.nan))
        self._keys |= dict.fromkeys(values)
        return {key: values.get(key, math.nan) for key in self._keys}

    def tag(self, metric: str, layer: str) -> str:
        """Return the tag of one curve, metric first: TensorBoard groups by the text before the slash."""
        if layer not in self._names:
            self._names[layer] = _untaken(safe_name(layer), set(self._names.values()))
        return f"{metric}/{self._names[layer]}"

    def _check_phase(self, phase: str) -> None:
        self._phase = self._phase or phase
        if phase != self._phase and not self._mixed:
            self._mixed = True
            warn(
                f"{self._owner} got a {phase} report after {self._phase} ones: these are different "
                "quantities, and its curves now mix them; give each phase a sink of its own",
                stacklevel=4,
            )


def _metrics(layer: LayerReport) -> list[str]:
    """Metrics with a value, or without one for now; those of a weight the layer lacks never come."""
    known = [
        m for m in METRICS if m in layer or layer.reasons.get(m, "no_head") not in LACKS_WEIGHT
    ]
    return known + [m for m in layer if m not in METRICS]


def _untaken(name: str, taken: set[str]) -> str:
    """Number a name whose safe form another layer has already: ``a#0`` and ``a_0`` stay two curves."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
