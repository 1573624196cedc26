"""Measure neural collapse (NC1 to NC4) in every layer of a classifier, from mergeable statistics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import dufm as dufm
    from . import sinks as sinks
    from .catalogue import METRICS
    from .comparing import compare
    from .comparison import Comparison, LayerComparison
    from .convention import PRESETS, Convention
    from .criteria import Criteria
    from .frames import simplex_etf
    from .measuring import measure
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
    "Comparison",
    "Convention",
    "CorruptStateError",
    "Criteria",
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

# Name -> module that has it, imported when the name is first asked for (PEP 562): whoever imports this
# package to save a state does not wait for the comparison. No module may have the name of what it
# holds: Python binds an imported module here, under its own name, and would hide the function.
_HOMES = {
    "METRICS": "catalogue",
    "PRESETS": "convention",
    "REASONS": "undefined",
    "ClassMoments": "moments",
    "CollapseReport": "report",
    "Comparison": "comparison",
    "Convention": "convention",
    "CorruptStateError": "state_files",
    "Criteria": "criteria",
    "Decisions": "nc4",
    "Head": "nc3",
    "LayerComparison": "comparison",
    "LayerReport": "report",
    "compare": "comparing",
    "decide": "nc4",
    "measure": "measuring",
    "simplex_etf": "frames",
    "watch": "plugins",
}
_PACKAGES = ("dufm", "sinks")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PACKAGES})


if not TYPE_CHECKING:  # for a type checker the names are those above, and no others

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f".{name}", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value  # asked for again, it is found without this function
        return value
