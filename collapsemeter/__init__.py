"""Measure neural collapse (NC1 to NC4) in every layer of a classifier, from mergeable statistics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import dufm as dufm
    from . import sinks as sinks
    from .adapter.watch import watch
    from .comparison.compare import compare
    from .comparison.layer_comparison import LayerComparison
    from .comparison.result import Comparison
    from .metrics.catalogue import METRICS
    from .metrics.convention import PRESETS, Convention
    from .metrics.decisions import Decisions, decide
    from .metrics.frames import simplex_etf
    from .metrics.layer import LayerReport
    from .metrics.measure import measure
    from .report.criteria import Criteria
    from .report.history import History, read_history
    from .report.report import CollapseReport
    from .stats.accumulate import Accumulator
    from .stats.head import Head
    from .stats.moments import ClassMoments
    from .stats.state_file import CorruptStateError
    from .stats.undefined import REASONS

__all__ = [
    "METRICS",
    "PRESETS",
    "REASONS",
    "Accumulator",
    "ClassMoments",
    "CollapseReport",
    "Comparison",
    "Convention",
    "CorruptStateError",
    "Criteria",
    "Decisions",
    "Head",
    "History",
    "LayerComparison",
    "LayerReport",
    "compare",
    "decide",
    "measure",
    "read_history",
    "simplex_etf",
    "watch",
]

# Name -> module that has it, imported when the name is first asked for (PEP 562): whoever imports this
# package to save a state does not wait for the comparison. No module may have the name of what it
# holds: Python binds an imported module here, under its own name, and would hide the function.
_HOMES = {
    "METRICS": "metrics.catalogue",
    "PRESETS": "metrics.convention",
    "REASONS": "stats.undefined",
    "Accumulator": "stats.accumulate",
    "ClassMoments": "stats.moments",
    "CollapseReport": "report.report",
    "Comparison": "comparison.result",
    "Convention": "metrics.convention",
    "CorruptStateError": "stats.state_file",
    "Criteria": "report.criteria",
    "Decisions": "metrics.decisions",
    "Head": "stats.head",
    "History": "report.history",
    "LayerComparison": "comparison.layer_comparison",
    "LayerReport": "metrics.layer",
    "compare": "comparison.compare",
    "decide": "metrics.decisions",
    "measure": "metrics.measure",
    "read_history": "report.history",
    "simplex_etf": "metrics.frames",
    "watch": "adapter.watch",
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
