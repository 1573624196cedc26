"""Weights & Biases: reports under a step metric of their own, so that none is dropped.

W&B has one count of steps for all that is logged to a run, and drops, without an error, what comes with a
step below it. A loop that logs every batch is far beyond the epoch of a report.
"""

import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ..report.tags import of_phase

STEP = "collapsemeter/step"


class _RunState:
    """The record of what all sinks told a run: metrics, the first phase of each prefix, and the open row."""

    def __init__(self) -> None:
        self.metrics: set[str] = set()
        self.phases: dict[str, str] = {}  # by prefix
        self.row: dict[str, float] = {}
        self.row_step = -1


_RUNS: weakref.WeakKeyDictionary[Any, _RunState] = weakref.WeakKeyDictionary()


def is_wandb_run(logger: Any) -> bool:
    """Whether a logger is a run of W&B, or the module ``wandb``, which logs to its current run."""
    return callable(getattr(logger, "define_metric", None)) and callable(
        getattr(logger, "log", None)
    )


def log(logger: Any, step: int, scalars: Mapping[str, float], phase: str, prefix: str = "") -> None:
    """Log scalars and the user's step in the row that is open; a row that holds another report is closed first."""
    run = logger.run if isinstance(logger, ModuleType) else logger
    if run is None:
        raise RuntimeError("wandb has no run: call wandb.init() before the first report")
    state = _RUNS.setdefault(run, _RunState())
    bare = {tag.removeprefix(prefix): value for tag, value in scalars.items()}
    if phase != state.phases.setdefault(prefix, phase):
        bare = of_phase(bare, phase)
    _define(run, state, {prefix + tag.partition("/")[0] for tag in bare})
    record = {STEP: step, **{prefix + tag: value for tag, value in bare.items()}}
    position = _step_of(run)
    if position is None:  # several processes write to one run: every call is a row
        run.log(record)
        return
    row = state.row if position == state.row_step else {}
    if any(row.get(tag, value) != value for tag, value in record.items()):
        run.log({}, commit=True)
        row, position = {}, _step_of(run)
    run.log(record, commit=False)
    state.row, state.row_step = {**row, **record}, -1 if position is None else position


def _define(run: Any, state: _RunState, metrics: set[str]) -> None:
    if not state.metrics:
        run.define_metric(STEP, hidden=True)
    for metric in sorted(metrics - state.metrics):
        run.define_metric(f"{metric}/*", step_metric=STEP)
    state.metrics |= metrics


def _step_of(run: Any) -> int | None:
    """Return the run's own count; None in shared mode, which has none."""
    try:
        return int(run.step)
    except Exception:  # of W&B's own kinds, which are not imported here
        return None
