"""`CollapseCallback` for the Trainer of Hugging Face's transformers."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from collapsemeter.report.report import TABLE

from .callers import trainer_among_callers
from .label_hooks import next_token
from .labels import chosen_labels
from .layers import innermost
from .meter import CollapseMeter
from .streams import Entry, GuardedBatch, LogMetrics, Streams

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(
        "collapsemeter_torch.transformers is for the Trainer of Hugging Face: pip install transformers accelerate"
    ) from error

STATE = "collapsemeter.pt"  # beside the trainer's own files in a checkpoint
STATE_OF_RANK = "collapsemeter-{}.pt"  # of several processes each has its own
_STATES = "collapsemeter*.pt"


class CollapseCallback(TrainerCallback):
    """Measure NC1 to NC4 in the Trainer of transformers, of training and of every evaluation.

    ``Trainer(..., callbacks=[CollapseCallback()])`` needs nothing else. Labels are those that the
    Trainer hands to its loss, also where it takes them out of the inputs (``label_smoothing_factor``,
    ``compute_loss_func``, a ``compute_loss`` of one's own). Values go through the Trainer's logger:
    ``nc1_pinv/head`` at the end of epochs, ``eval_nc1_pinv/head`` among the metrics of an evaluation,
    where ``metric_for_best_model`` finds them. What was counted is saved in checkpoints.

    Parameters
    ----------
    trainer : transformers.Trainer, optional
        The trainer, for a callback that is added after it was made and evaluates before it trains.
    every : int
        Report training at the end of epochs 0, every, 2 every, ..., and of the last.
    every_steps : int, optional
        Report training after so many optimizer steps instead.
    every_batch : int
        Count every k-th training batch only.
    log_metrics : sequence of str, or "all"
        Which metrics go to the Trainer's logger.
    labels : str or callable
        Where the labels are: a key of the inputs, or a callable from the inputs.
    **options
        Of `collapsemeter_torch.CollapseMeter`: ``layers``, ``head``, ``reduction``, ``max_rows``, ...

    Attributes
    ----------
    reports : dict of str to list of (step, CollapseReport)
        Under ``train``, ``eval`` and ``test``, or what else an evaluation is called.

    Raises
    ------
    ValueError
        If an option or a metric is unknown.

    References
    ----------
    Papyan, Han & Donoho 2020.

    Examples
    --------
    >>> callback = CollapseCallback(layers="bert.encoder.layer.*", log_metrics=["nc1_pinv"])
    >>> callback.reports
    {}
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        *,
        every: int = 1,
        every_steps: int | None = None,
        every_batch: int = 1,
        log_metrics: LogMetrics = TABLE,
        labels: str | Callable[[Any], Any] = "labels",
        **options: Any,
    ) -> None:
        for name, value in (("every", every), ("every_steps", every_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be a whole number from 1 on")
        self.every, self.every_steps, self.labels = every, every_steps, labels
        self._streams = Streams(
            CollapseMeter, options, every_batch=every_batch, log_metrics=log_metrics
        )
        self._trainer: Trainer | None = None
        self._evaluating = ""
        self._epochs = 0
        if trainer is not None:
            self._follow(trainer)

    @property
    def reports(self) -> dict[str, list[Entry]]:
        """Every stream's reports, in order."""
        return self._streams.reports

    def close(self) -> None:
        """Take all hooks off the model; reports stay."""
        self._streams.close()

    # What the trainer calls

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Meet the trainer."""
        self._meet()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Continue from a checkpoint where the trainer does."""
        self._meet()
        self._epochs = int(state.epoch or 0)
        self._streams["train"].restart()
        if state.global_step:
            try:
                self._resume(args, _state_path(args, state))
            except Exception as error:
                self._streams["train"].fails(error)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report training after so many steps."""
        if self.every_steps is not None and state.global_step % self.every_steps == 0:
            self._report_training(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report training after so many epochs."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if self.every_steps is None and (last or self._epochs % self.every == 0):
            self._report_training(state)
        elif self.every_steps is None:
            self._streams["train"].restart()
        self._epochs += 1

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put what was counted beside the trainer's own state."""
        counted = self._streams["train"].state_dict()
        path = _state_path(args, state)
        if counted and path.parent.is_dir():
            torch.save(counted, path)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the training's hooks off."""
        unreported = self.every_steps is not None and state.global_step % self.every_steps
        if unreported and (args.world_size > 1 or self._streams["train"].rows):
            self._report_training(state)
        self._streams["train"].close()

    # What becomes of it

    def _resume(self, args: Any, path: Path) -> None:
        """Continue from what this process has saved; of another number of processes say what is missing."""
        saved, stream = sorted(path.parent.glob(_STATES)), self._streams["train"]
        if saved:  # a process without rows has none
            first = torch.load(saved[0], weights_only=True)
            of_several = saved[0].name != STATE
            _, processes = first.get("numbering", (0, 1))
            state = torch.load(path, weights_only=True) if path in saved else {}
            stream.load_state_of(
                processes if processes > 1 or not of_several else args.world_size, state
            )

    def _report_training(self, state: Any) -> None:
        if self._trainer is None:
            return
        report = self._streams["train"].report(state.global_step, self._trainer.model)
        if report is not None:
            values = self._streams.scalars(report, "")
            if values:
                self._trainer.log(values)

    def _meet(self) -> None:
        """Find the trainer: callbacks are not told whose they are."""
        trainer = trainer_among_callers()
        if self._trainer is None and trainer is not None:
            self._follow(trainer)

    def _follow(self, trainer: Trainer) -> None:
        """See the labels that the trainer hands to its loss, and add to what an evaluation says."""
        self._trainer = trainer
        compute_loss, evaluation_loop = trainer.compute_loss, trainer.evaluation_loop

        def counted_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with self._batch(model, inputs):
                return compute_loss(model, inputs, *args, **kwargs)

        def measured_loop(*args: Any, **kwargs: Any) -> Any:
            name = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            self._evaluating, before = name, self._evaluating
            self._streams[name].restart(kwargs.get("dataloader", args[0] if args else None))
            try:
                output = evaluation_loop(*args, **kwargs)
                output.metrics.update(self._evaluated(name, trainer))
            finally:
                self._evaluating = before
            return output

        trainer.compute_loss, trainer.evaluation_loop = counted_loss, measured_loop

    def _batch(self, model: Any, inputs: Any) -> GuardedBatch:
        name = self._evaluating or "train"
        stream = self._streams[name]
        labels = partial(chosen_labels, inputs, self.labels)
        return stream.batch(
            model, lambda: next_token(innermost(model), labels(), stream.ignore_index)
        )

    def _evaluated(self, name: str, trainer: Trainer) -> Mapping[str, float]:
        """Return the metrics of an evaluation, with NaN for one that is monitored and undefined."""
        report = self._streams[name].report(trainer.state.global_step, trainer.model)
        values = {} if report is None else self._streams.scalars(report, f"{name}_")
        monitored = trainer.args.metric_for_best_model or ""
        monitored = monitored if monitored.startswith("eval_") else f"eval_{monitored}"
        metric = monitored.removeprefix("eval_").split("/")[0]
        if name == "eval" and "/" in monitored and metric in self._streams.log_metrics:
            values.setdefault(monitored, math.nan)
        return values


def _state_path(args: Any, state: Any) -> Path:
    name = STATE_OF_RANK.format(args.process_index) if args.world_size > 1 else STATE
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / name
