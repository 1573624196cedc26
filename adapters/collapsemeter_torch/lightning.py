"""`CollapseCallback` for Lightning's Trainer."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from collapsemeter.report.report import TABLE
from collapsemeter.system.suggest import did_you_mean

from .labels import chosen_labels
from .meter import CollapseMeter
from .streams import (
    Entry,
    GuardedBatch,
    LogMetrics,
    Streams,
    TrainerStream,
)

# The one that the loop uses, where both are there: one class cannot be a callback of both.
_NAMES = ["lightning.pytorch", "pytorch_lightning"]
_USED = [name for name in _NAMES if name in sys.modules]
_INSTALLED = [name for name in _NAMES if find_spec(name.split(".")[0])]
if not _INSTALLED:
    raise ImportError("collapsemeter_torch.lightning is for Lightning: pip install lightning")
Callback: Any = import_module((_USED or _INSTALLED)[0]).Callback


class CollapseCallback(Callback):
    """Measure NC1 to NC4 in Lightning's Trainer, of training, validation and test apart.

    ``Trainer(callbacks=[CollapseCallback()])`` needs nothing else: labels are those of the batch, and
    the network is the first module with parameters that a step calls. Values are logged as
    ``train/nc1_pinv/head`` and ``val/nc1_pinv/head`` at the ends of epochs, where EarlyStopping and
    ModelCheckpoint find them. Sanity checks are left out; what was counted is saved in checkpoints.

    Parameters
    ----------
    every : int
        Report training at the end of epochs 0, every, 2 every, ..., and of the last.
    every_batch : int
        Count every k-th training batch only.
    log_metrics : sequence of str, or "all"
        Which metrics are logged.
    labels : str, int, or callable, optional
        Where the labels are in a batch: a key, an index, or a callable from the batch. By default
        under a usual key (``labels``, ``y``, ...), or after the inputs of a tuple.
    model : str, optional
        The attribute of the LightningModule that is the network, such as ``"net"`` or
        ``"teacher.encoder"``, where a step calls another one first.
    prefix : str
        What every tag begins with.
    **options
        Of `collapsemeter_torch.CollapseMeter`: ``layers``, ``head``, ``reduction``, ``max_rows``, ...

    Attributes
    ----------
    reports : dict of str to list of (step, CollapseReport)
        Under ``train``, ``val`` and ``test``; of several loaders under ``val_0``, ``val_1``, ...

    Raises
    ------
    ValueError
        If an option or a metric is unknown.

    References
    ----------
    Papyan, Han & Donoho 2020.

    Examples
    --------
    >>> callback = CollapseCallback(model="net", log_metrics=["nc1_pinv", "nc4_mismatch"])
    >>> callback.reports
    {}
    """

    def __init__(
        self,
        *,
        every: int = 1,
        every_batch: int = 1,
        log_metrics: LogMetrics = TABLE,
        labels: str | int | Callable[[Any], Any] | None = None,
        model: str | None = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: it must be a whole number from 1 on")
        self.every, self.labels, self.model, self.prefix = every, labels, model, prefix
        self._streams = Streams(
            CollapseMeter, options, every_batch=every_batch, log_metrics=log_metrics
        )
        self._open: GuardedBatch | _Arriving | None = None

    @property
    def reports(self) -> dict[str, list[Entry]]:
        """Every stream's reports, in order."""
        return self._streams.reports

    def close(self) -> None:
        """Take all hooks off the network; reports stay."""
        self._end()
        self._streams.close()

    # What the trainer calls

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Expect the forward of this batch."""
        self._begin("train", module, batch)

    def on_train_batch_end(self, *unused: Any, **also: Any) -> None:
        """Count the batch."""
        self._end()

    def on_validation_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Expect the forward of this batch."""
        if not trainer.sanity_checking:
            self._evaluate("val", trainer.val_dataloaders, dataloader_idx, module, batch, batch_idx)

    def on_validation_batch_end(self, *unused: Any, **also: Any) -> None:
        """Count the batch."""
        self._end()

    def on_test_batch_start(
        self, trainer: Any, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Expect the forward of this batch."""
        self._evaluate("test", trainer.test_dataloaders, dataloader_idx, module, batch, batch_idx)

    def on_test_batch_end(self, *unused: Any, **also: Any) -> None:
        """Count the batch."""
        self._end()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Report the epoch's training."""
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if last or trainer.current_epoch % self.every == 0:
            self._report("train", trainer, module)
        else:
            self._streams["train"].restart()

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        """Report the validation."""
        self._report_all("val", trainer.val_dataloaders, trainer, module)

    def on_test_epoch_end(self, trainer: Any, module: Any) -> None:
        """Report the test."""
        self._report_all("test", trainer.test_dataloaders, trainer, module)

    def on_fit_end(self, trainer: Any, module: Any) -> None:
        """Leave the network as it was."""
        self.close()

    def on_test_end(self, trainer: Any, module: Any) -> None:
        """Leave the network as it was."""
        self.close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Leave the network as it was."""
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what training has counted since its last report, on every process: Lightning asks all of them."""
        return self._streams["train"].states_of_ranks()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._streams["train"].load_states_of_ranks(state)

    # What becomes of it

    def _evaluate(
        self, kind: str, loaders: Any, index: int, module: Any, batch: Any, batch_idx: int
    ) -> None:
        name = _names(kind, loaders)[index]
        if batch_idx == 0:
            self._streams[name].restart(_several(loaders)[index])
        self._begin(name, module, batch)

    def _begin(self, name: str, module: Any, batch: Any) -> None:
        self._end()  # a batch whose end never came
        stream = self._streams[name]
        labels = partial(chosen_labels, batch, self.labels)
        known = stream.model if self.model is None else _named(module, self.model)
        self._open = (
            _Arriving(stream, module, labels) if known is None else stream.batch(known, labels)
        )
        self._open.__enter__()

    def _end(self) -> None:
        batch, self._open = self._open, None
        if batch is not None:
            batch.__exit__(None, None, None)

    def _report_all(self, kind: str, loaders: Any, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            for name in _names(kind, loaders):
                self._report(name, trainer, module)

    def _report(self, name: str, trainer: Any, module: Any) -> None:
        report = self._streams[name].report(trainer.global_step, module)
        if report is not None:
            values = self._streams.scalars(report, f"{self.prefix}{name}/")
            # Ranks agree already: sync_dist tells Lightning so.
            module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


def _is_step(module: nn.Module) -> bool:
    """Whether a module's forward is another method: strategies call a LightningModule's step so, and put it back within."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _several(loaders: Any) -> list[Any]:
    """Return the loaders of an evaluation, in their order."""
    several = list(loaders.values()) if isinstance(loaders, dict) else loaders
    return list(several) if isinstance(several, list | tuple) else [several]


def _names(kind: str, loaders: Any) -> list[str]:
    """Return the name of each loader's stream: the same on every rank, also on one without a batch."""
    several = _several(loaders)
    return [f"{kind}_{index}" for index in range(len(several))] if len(several) > 1 else [kind]


def _named(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"model={name!r}: the LightningModule has no such module"
            f"{did_you_mean(name, [name for name, _ in module.named_modules()])}"
        ) from None


class _Arriving:
    """A batch whose network is not known: the first module with parameters that the step calls."""

    def __init__(self, stream: TrainerStream, module: nn.Module, labels: Callable[[], Any]) -> None:
        self._stream, self._module, self._labels = stream, module, labels
        self._batch: GuardedBatch | None = None
        self._handles: list[Any] = []
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = []

    def __enter__(self) -> None:
        for module in self._module.modules():
            call = vars(module).get("_compiled_call_impl")
            if call is None:
                hook = module.register_forward_pre_hook(self._arrive, with_kwargs=True)
                self._handles.append(hook)
            else:  # by module.compile(): a hook would become part of its graph
                self._compiled.append((module, call))
                vars(module)["_compiled_call_impl"] = partial(self._arrive_compiled, module, call)

    def _arrive_compiled(
        self, module: nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        self._arrive(module, args, kwargs)
        return call(*args, **kwargs)

    def _arrive(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        # What torch.compile makes has a forward of its own too: only the LightningModule's can be its step.
        if module is self._module and _is_step(module):
            return
        if next(module.parameters(), None) is None:
            return
        self._disarm()
        self._batch = self._stream.batch(module, self._labels)
        self._batch.__enter__()
        self._batch.saw(module, args, kwargs)

    def _disarm(self) -> None:
        for handle in self._handles:
            handle.remove()
        for module, call in self._compiled:
            vars(module)["_compiled_call_impl"] = call
        self._handles.clear()
        self._compiled.clear()

    def __exit__(self, *exception: Any) -> None:
        self._disarm()
        if self._batch is not None:
            self._batch.__exit__(*exception)
        else:
            self._stream.fails(
                ValueError(
                    "no module with parameters was called: pass model=, the name of the network"
                )
            )
