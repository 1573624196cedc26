"""The streams of batches of a trainer that is not edited: training, validation and test, each with a meter."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from collapsemeter import CollapseReport
from collapsemeter.report.report import TABLE
from collapsemeter.report.tags import chosen_metrics
from collapsemeter.stats.fields import Phase
from collapsemeter.stats.sums import IGNORE_INDEX
from collapsemeter.system.suggest import did_you_mean
from collapsemeter.system.warning import warn

from .batch import Batch
from .label_hooks import KeywordLabelsPreHook
from .rank_states import check_processes, gathered_states, state_of_this_rank
from .ranks import Ranks, this_rank, using_ranks
from .spread import Spread, spread_of

if TYPE_CHECKING:
    from .meter import CollapseMeter

# Options of a meter that are not the user's here.
_OF_THE_CALLBACK = ("model", "criterion", "count_eval", "every", "keyword_labels")
NOT_SAVED = "rows of this rank"  # in a checkpoint that has no counts
_FROM_HERE = "the next report is of the rows from here on"
_NUMBERS = itertools.count(1)
LogMetrics = Sequence[str] | Literal["all"]


class Entry(NamedTuple):
    """A report and the step of its trainer."""

    step: int
    report: CollapseReport


class Streams:
    """The streams of one trainer, by name, each made when it is first asked for."""

    def __init__(
        self,
        meter: type[CollapseMeter],
        options: Mapping[str, Any],
        *,
        every_batch: int,
        log_metrics: LogMetrics = TABLE,
    ) -> None:
        known = [name for name in signature(meter).parameters if name not in _OF_THE_CALLBACK]
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{name}= is no option of this callback nor of CollapseMeter"
                    f"{did_you_mean(name, known)}"
                )
        self._meter = meter
        # The trainer says which labels belong to which forward.
        self._options = dict(options) | {"keyword_labels": False}
        self._every_batch = every_batch
        self.log_metrics = chosen_metrics(log_metrics)
        self.streams: dict[str, TrainerStream] = {}
        self._number = next(_NUMBERS)  # callbacks are made in one order on all ranks

    def __getitem__(self, name: str) -> TrainerStream:
        if name not in self.streams:
            options = self._options
            if name == "train":
                self.streams[name] = TrainerStream(
                    self._ranks(name), self._meter, "live", options | {"every": self._every_batch}
                )
            else:
                whole = {key: value for key, value in options.items() if key != "max_rows"}
                self.streams[name] = TrainerStream(
                    self._ranks(name),
                    self._meter,
                    "frozen-eval",
                    whole | {"count_eval": True, "wide_sums": True, "verbose": False},
                )
        return self.streams[name]

    def _ranks(self, name: str) -> Ranks:
        number = f" (number {self._number})" if self._number > 1 else ""
        return Ranks(f"the callback's meter of {name!r}{number}")

    @property
    def reports(self) -> dict[str, list[Entry]]:
        """Every stream's reports, in order."""
        return {name: stream.reports for name, stream in self.streams.items()}

    def scalars(self, report: CollapseReport, prefix: str) -> dict[str, float]:
        """Return what goes to the trainer's logger."""
        return report.scalars(prefix, self.log_metrics)

    def close(self) -> None:
        """Take all hooks off; reports stay."""
        for stream in self.streams.values():
            stream.close()


class TrainerStream:
    """One stream of batches: its meter, made when the model is known, and its reports.

    No fault of the meter reaches the trainer: it becomes a warning, and is said in the report.
    """

    def __init__(
        self,
        ranks: Ranks,
        make_meter: Callable[..., CollapseMeter],
        phase: Phase,
        options: dict[str, Any],
    ) -> None:
        self.phase, self.options, self._make_meter = phase, options, make_meter
        self.meter: CollapseMeter | None = None
        self.reports: list[Entry] = []
        self._model: weakref.ref[nn.Module] | None = None
        self._state: dict[str, Any] | None = None  # of a checkpoint, until the model is known
        self._problems: list[str] = []
        self._ranks = ranks
        self._lacks = ""  # what the next report does not hold
        self._spread: Spread | None = None
        self._seen = 0  # rows of this rank

    @property
    def strict(self) -> bool:
        """Whether the meter's own failures are raised."""
        return bool(self.options.get("strict"))

    @property
    def model(self) -> nn.Module | None:
        """The model that is watched."""
        return None if self.meter is None or self._model is None else self._model()

    def watch(self, model: nn.Module) -> CollapseMeter:
        """Return the meter of this model."""
        if self.meter is None or self.model is not model:
            self.close()
            with using_ranks(self._ranks):
                self.meter = self._make_meter(model, **self.options)
            self._model = weakref.ref(model)
            if self._state is not None:
                self.meter.load_state_dict(self._state)
                self._state = None
        return self.meter

    def batch(self, model: nn.Module, labels: Callable[[], Any]) -> GuardedBatch:
        """Return the block in which the model's first forward is counted for these labels."""
        return GuardedBatch(self, lambda: self.watch(model).batch(self._fresh(labels())))

    def _fresh(self, labels: Any) -> Any:
        """Take the labels off rows that a loader repeats so that every rank has as many."""
        if self._spread is None:
            return labels
        rows = len(labels)
        fresh = self._spread.fresh(self._seen, rows)
        self._seen += rows
        if fresh == rows:
            return labels
        labels = torch.as_tensor(labels).clone()
        labels[fresh:] = self.ignore_index
        return labels

    @property
    def ignore_index(self) -> int:
        """The label of rows that are left out."""
        return int(self.options.get("ignore_index", IGNORE_INDEX))

    def fails(self, error: Exception) -> None:
        """Say once what went wrong; the training goes on."""
        if self.strict:
            raise error
        problem = f"batches were left out ({type(error).__name__}: {error})"
        if problem not in self._problems:
            self._problems.append(problem)
            warn(f"collapsemeter: {problem}; training goes on")

    def report(self, step: int, model: nn.Module) -> CollapseReport | None:
        """Report what was counted since the last report, and count anew; None where nothing could be.

        A rank that has seen no batch takes part with any model: the others wait for it.
        """
        alone = this_rank().ranks == 1
        if alone and (self.meter is None or (self._problems and not self.rows)):
            return None
        try:
            report = self._without_a_batch(model) if self.meter is None else self.meter.compute()
        except Exception as error:
            self.fails(error)
            return None
        finally:
            if self.meter is not None:
                self.meter.reset()
        if not (alone or report):  # on no rank
            return None
        lacks, self._lacks = [self._lacks] if self._lacks else [], ""
        warnings = (*report.warnings, *self._problems, *lacks)
        report = replace(report, phase=self.phase, warnings=warnings)
        self.reports.append(Entry(step, report))
        return report

    def _without_a_batch(self, model: nn.Module) -> CollapseReport:
        with using_ranks(self._ranks), self._make_meter(model, verbose=False) as meter:
            return meter.compute()

    @property
    def rows(self) -> int:
        """Labels that were counted since the last report."""
        return 0 if self.meter is None else self.meter.rows

    def restart(self, loader: Any = None) -> None:
        """Forget what was counted; of a loader that is spread over ranks each row is counted once."""
        self._spread, self._seen = spread_of(loader), 0
        if self.meter is not None:
            self.meter.reset()

    def lacks(self, what: str) -> None:
        """Say in the next report what it does not hold."""
        self._lacks = what
        warn(f"collapsemeter: {what}")

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted since the last report; nothing where nothing was."""
        if self.meter is None:
            return self._state or {}
        return self.meter.state_dict() if self.rows else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, when the model is known."""
        self._state = state or None

    def states_of_ranks(self) -> dict[str, Any]:
        """Return what every rank has counted, where a checkpoint holds one state for all; every rank must call it."""
        state = self.state_dict()
        if this_rank().ranks == 1:
            return state
        try:
            return gathered_states(self._ranks, state)
        except TimeoutError as error:
            warn(f"collapsemeter: what was counted is not in this checkpoint ({error})")
            return {NOT_SAVED: self.rows}

    def load_states_of_ranks(self, state: dict[str, Any]) -> None:
        """Continue from this rank's part, or say that the checkpoint has none."""
        if NOT_SAVED in state:
            self.lacks(f"the checkpoint has no counts of its epoch: {_FROM_HERE}")
            return
        try:
            self.load_state_dict(state_of_this_rank(state) if state else state)
        except ValueError as error:
            self.lacks(f"{error} ({_FROM_HERE})")

    def load_state_of(self, processes: int, state: dict[str, Any]) -> None:
        """Continue from what this process has saved, or say that it was of another number of processes."""
        try:
            check_processes(processes)
            self.load_state_dict(state)
        except ValueError as error:
            self.lacks(f"{error} ({_FROM_HERE})")

    def close(self) -> None:
        """Take the hooks off."""
        if self.meter is not None:
            self.meter.close()
            self.meter = None


class GuardedBatch:
    """The block of a batch in a loop that must not notice the meter."""

    def __init__(self, stream: TrainerStream, make: Callable[[], Batch]) -> None:
        self._stream, self._make = stream, make
        self._batch: Batch | None = None

    def __enter__(self) -> None:
        try:
            batch = self._make()
            batch.__enter__()
            self._batch = batch
        except Exception as error:
            self._stream.fails(error)

    def saw(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Show the meter a forward that began before its hooks were there."""
        if self._batch is not None:
            hooks = module._forward_pre_hooks.values()
            newest = [hook for hook in hooks if isinstance(hook, KeywordLabelsPreHook)][-1]
            newest(module, args, kwargs)

    def __exit__(self, *exception: Any) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        try:
            batch.__exit__(*exception)
        except Exception as error:
            self._stream.fails(error)
