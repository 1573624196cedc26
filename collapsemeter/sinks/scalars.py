"""Reports as flat scalars: one safe tag per curve, and a gap where a value is undefined."""

from __future__ import annotations

import itertools
import math
import re

from ..metrics.catalogue import METRICS
from ..report.report import CollapseReport
from ..system.warning import warn

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
    """Turns reports into ``{tag: value}``; remembers the tags, so that no two layers share one.

    Parameters
    ----------
    owner : str
        The sink, as a warning names it.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> scalars = Scalars("a sink")
    >>> layer = LayerReport({"nc1_pinv": 0.5, "nc2_equinorm": math.nan})
    >>> scalars.of(CollapseReport({"fc": layer}))
    {'nc1_pinv/fc': 0.5}
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._names: dict[str, str] = {}
        self._phase = ""
        self._mixed = False

    def of(self, report: CollapseReport) -> dict[str, float]:
        """Return the values by tag; one that is not finite is left out: some trackers choke on NaN."""
        self._check_phase(report.phase)
        return {
            self.tag(metric, name): float(layer[metric])
            for name, layer in report.items()
            for metric in sorted(layer, key=_place)
            if math.isfinite(layer[metric])
        }

    def tag(self, metric: str, layer: str) -> str:
        """Return the tag of one curve, metric first: TensorBoard groups by the text before the slash."""
        if layer not in self._names:
            self._names[layer] = _untaken(safe_name(layer), set(self._names.values()))
        return f"{safe_name(metric)}/{self._names[layer]}"

    def _check_phase(self, phase: str) -> None:
        self._phase = self._phase or phase
        if phase != self._phase and not self._mixed:
            self._mixed = True
            warn(
                f"{self._owner} got a {phase} report after {self._phase} ones: these are different "
                "quantities, and its curves now mix them; give each phase a sink of its own",
                stacklevel=4,
            )


_PLACES = {metric: place for place, metric in enumerate(METRICS)}


def _place(metric: str) -> int:
    """Metrics stand in the order of the catalogue; one of somebody's own comes after them."""
    return _PLACES.get(metric, len(_PLACES))


def _untaken(name: str, taken: set[str]) -> str:
    """Change a name that cannot stand beside those of other layers: ``a#0`` and ``a_0`` are two curves.

    Nor can one be the folder of another, where each metric is a file.
    """
    candidates = itertools.chain(
        (name, name.replace("/", ".")), (f"{name}_{count}" for count in itertools.count(2))
    )
    return next(candidate for candidate in candidates if not _meets(candidate, taken))


def _meets(name: str, taken: set[str]) -> bool:
    within = {name[:i] for i, character in enumerate(name) if character == "/"}
    return bool(taken & {name, *within}) or any(other.startswith(f"{name}/") for other in taken)
