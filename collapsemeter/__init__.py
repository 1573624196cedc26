"""Measure neural collapse (NC1 to NC4) in every layer of a classifier, from mergeable statistics."""

from .catalogue import METRICS
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

__all__ = [
    "METRICS",
    "PRESETS",
    "REASONS",
    "ClassMoments",
    "CollapseReport",
    "Convention",
    "CorruptStateError",
    "Decisions",
    "Head",
    "LayerReport",
    "decide",
    "measure",
    "simplex_etf",
    "watch",
]
