"""Experiment trackers and callables, taken by what they can do: none of them is a dependency."""

import inspect
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..report.report import CollapseReport
from . import wandb_runs
from .base import GuardedSink
from .scalars import Scalars

# Methods that take one value at a time, of a metric of a layer.
_OF_ONE: dict[str, Callable[[Any, str, str, float, int], object]] = {
    "track": lambda track, metric, layer, value, step: track(
        value, name=f"{metric}/{layer}", step=step
    ),
    "report_scalar": lambda report, metric, layer, value, step: report(metric, layer, value, step),
    "__getitem__": lambda get, metric, layer, value, step: get(f"{metric}/{layer}").append(
        value, step=step
    ),
}


class LoggerSink(GuardedSink):
    """Hand the scalars of each report to a logger, or the report itself to a callable.

    =============================  =========================================================
    the logger has                 it is called as
    =============================  =========================================================
    ``log_metrics(metrics, step)`` ``log_metrics(scalars, step=step)``: Lightning, MLflow, Comet
    ``write_scalars``              ``write_scalars(step, scalars)``: CLU
    ``track``                      ``track(value, name=tag, step=step)`` for each: Aim
    ``report_scalar``              ``report_scalar(metric, layer, value, step)`` for each: ClearML
    ``[tag].append``               ``logger[tag].append(value, step=step)`` for each: Neptune
    ``log``, ``define_metric``     `wandb_runs.log`: W&B, under a step metric of its own
    ``log`` that takes a step      ``log(scalars, step=step)``: trackers of Accelerate, and others
    ``log`` that takes none        ``log(scalars)``: the Hugging Face Trainer has its own step
    only a call                    ``logger(step, report)``
    =============================  =========================================================

    Scalars are plain floats under tags like ``nc1_pinv/fc``. A value that is undefined is not logged: a
    gap, since MLflow, for one, shows no page of a run that holds NaN. Its reason is in the JSON lines.

    Parameters
    ----------
    logger : object
    prefix : str
        What every tag begins with, see `Fan`; a callable is given none.
    intervals : bool
        Whether a metric that has a 95 % interval is logged with its ends and its estimate as well, as
        ``nc1_trace_ratio.low/<layer>``, ``.high`` and ``.estimate``. Off: many trackers make a chart of each.

    Raises
    ------
    TypeError
        If the logger can be called in none of these ways.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> class Run:
    ...     def log(self, data, step=None, commit=None):
    ...         print(step, data)
    >>> LoggerSink(Run()).write(1, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))
    1 {'nc1_pinv/fc': 0.25}
    """

    def __init__(self, logger: Any, *, prefix: str = "", intervals: bool = False) -> None:
        self.prefix = prefix
        self.name = f"LoggerSink({_called(logger)})"
        self._logger = logger
        self._method = _method(logger)
        self._scalars = Scalars(self.name, intervals)

    def _write(self, step: int, report: CollapseReport, prefix: str = "") -> None:
        if self._method is None:
            self._logger(step, report)
            return
        scalars = self._scalars.of_report(report, prefix)
        for logger in _behind(self._logger):
            if scalars:
                self._log(logger, self._method, step, scalars, report.phase, prefix)

    def _log(
        self,
        logger: Any,
        name: str,
        step: int,
        scalars: dict[str, float],
        phase: str,
        prefix: str,
    ) -> None:
        if wandb_runs.is_wandb_run(logger):
            wandb_runs.log(logger, step, scalars, phase, prefix)
            return
        # Looked up at each write: some modules replace their functions once a run begins.
        method = getattr(logger, name)
        if name in _OF_ONE:
            for tag, value in scalars.items():
                metric, _, layer = tag.removeprefix(prefix).partition("/")
                _OF_ONE[name](method, prefix + metric, layer, value, step)
        elif name == "write_scalars":
            method(step, scalars)
        elif takes(method, {}, step=0):
            method(scalars, step=step)
        else:
            method(scalars)


def _behind(logger: Any) -> list[Any]:
    """Return the loggers that one hands on to: an Accelerator has trackers, and gives each the step as it is."""
    trackers = getattr(logger, "trackers", [logger])
    if not trackers:
        raise RuntimeError(f"{_called(logger)} has no tracker: call init_trackers() first")
    inner = [(tracker, getattr(tracker, "tracker", None)) for tracker in trackers]
    return [run if wandb_runs.is_wandb_run(run) else tracker for tracker, run in inner]


def _method(logger: Any) -> str | None:
    """Return the name of the method to call, or None for the logger itself."""
    if wandb_runs.is_wandb_run(logger):  # before wandb.init() its log has the signature of a method
        return "log"
    if _can(logger, "log_metrics", {}, step=0):
        return "log_metrics"
    if _can(logger, "write_scalars", 0, {}):
        return "write_scalars"
    if _can(logger, "track", 0.0, name="", step=0):
        return "track"
    if _can(logger, "report_scalar", "", "", 0.0, 0):
        return "report_scalar"
    if type(logger).__module__.partition(".")[0] == "neptune" and hasattr(logger, "__getitem__"):
        return "__getitem__"
    if _can(logger, "log", {}, step=0) or _can(logger, "log", {}):
        return "log"
    if callable(logger) and not isinstance(logger, type) and takes(logger, 0, {}):
        return None
    raise TypeError(_refusal(logger))


def _can(logger: Any, method: str, *args: Any, **kwargs: Any) -> bool:
    function = getattr(logger, method, None)
    return callable(function) and takes(function, *args, **kwargs)


def takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Whether a call with these arguments fits: one name means different things in two libraries."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a function of an extension may have no signature to read
        return True
    return True


def _refusal(logger: Any) -> str:
    if logger is logging or isinstance(logger, (logging.Logger, logging.LoggerAdapter)):
        return (
            f"{_called(logger)} of the standard library logs text, not metrics: pass a callable, for "
            "example lambda step, report: logger.info('step %s: %s', step, report.summary())"
        )
    hint = ": pass its `logger`" if hasattr(logger, "logger") else ""
    return (
        f"{_called(logger)} cannot be written to{hint}; expected log_metrics(metrics, step=...), "
        "write_scalars(step, scalars), track(value, name=..., step=...), report_scalar(title, series, value, "
        "iteration), log(metrics, step=...), log(metrics) or a callable of (step, report)"
    )


def _called(logger: Any) -> str:
    if inspect.ismethod(logger):
        return f"{type(logger.__self__).__name__}.{logger.__name__}"
    if isinstance(logger, (ModuleType, type)) or inspect.isroutine(logger):
        return str(logger.__name__)
    return type(logger).__name__
