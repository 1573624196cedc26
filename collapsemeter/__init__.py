"""Measure neural collapse (NC1 to NC4) in every layer of a classifier, from mergeable statistics."""

from importlib import import_module
from typing import Any

from .catalogue import METRICS
from .compare import compare
from .comparison import Comparison, LayerComparison
from .convention import PRESETS, Convention
from .frames import simplex_etf
from .measure import measure
from .moments import ClassMoments
from .nc3 import Head
from .nc4 import Decisions, decide
from .plugins import watch
from .report import CollapseReport, LayerReport
from .state_files import CorruptStateError
from .undefined import REASONS

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("dufm", "sinks"):  # imported when asked for: SciPy and file formats take their time
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "METRICS",
    "PRESETS",
    "REASONS",
    "ClassMoments",
    "CollapseReport",
    "Comparison",
    "Convention",
    "CorruptStateError",
    "Decisions",
    "Head",
    "LayerComparison",
    "LayerReport",
    "compare",
    "decide",
    "measure",
    "simplex_etf",
    "watch",
]
