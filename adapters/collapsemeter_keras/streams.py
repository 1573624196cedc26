"""When Keras calls the meter: streams begin with an epoch, and are reported when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from collapsemeter import CollapseReport
from collapsemeter.system.warning import warn

from .entries import STREAMS, Entry

if TYPE_CHECKING:
    from collapsemeter.adapter.budget import Clock

    from .publishing import Publisher
    from .state import StreamSums


class EpochReports(keras.callbacks.Callback):
    """A callback that reports each stream when an epoch ends; what a stream is, its meter knows."""

    strict: bool
    degraded: dict[str, str]
    _publisher: Publisher
    _clock: Clock

    def __init__(self, probe: Any, every: int) -> None:
        super().__init__()
        self.probe, self.every = probe, every
        self.reports: dict[str, list[Entry]] = {stream: [] for stream in STREAMS}
        self._validated: CollapseReport | None = None
        self._in_fit = False
        self._epoch = 0

    @property
    def _streams(self) -> dict[str, StreamSums]:
        """The streams that are counted now; none where the meter is on no model."""
        raise NotImplementedError

    @property
    def _attached(self) -> bool:
        """Whether the meter is on a model."""
        raise NotImplementedError

    def _end_validation(self) -> None:
        """Leave the statistics of validation out of the steps that train."""
        raise NotImplementedError

    def _report(self, stream: str) -> CollapseReport:
        """Return the report of a stream."""
        raise NotImplementedError

    def _probe(self) -> CollapseReport:
        """Return the report of a frozen pass over the probe."""
        raise NotImplementedError

    # Keras' own names

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit, self._validated = True, None
        self._clear("train")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch
        self._clear("train")
        self._validated = None

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._clear("validation")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._report_validation()
        self._end_validation()

    def _report_validation(self) -> None:
        if not self._attached or (self._in_fit and self._epoch % self.every):
            return
        report = self._report_or_warn("validation")
        if self._in_fit:
            # The epoch's end publishes it. It is made now: an `evaluate` of other data may come before.
            self._validated = report
        elif report is not None:
            # Not into the logs: `loss, accuracy = model.evaluate(...)` must stay two values.
            self._publish("validation", report, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._attached or epoch % self.every:
            return
        reports = {"train": self._report_or_warn("train"), "validation": self._validated}
        if self.probe is not None:
            reports["probe"] = self._report_or_warn("probe")
        for stream, report in reports.items():
            if report is not None:
                self._publish(stream, report, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self._in_fit = False

    def _clear(self, stream: str) -> None:
        # A callback that is closed in the midst of a fit is still called.
        if stream in self._streams:
            self._streams[stream].clear()
        if stream == "train":
            self._clock.clear()

    def _report_or_warn(self, stream: str) -> CollapseReport | None:
        """Return the report of a stream; training goes on whatever fails."""
        if "learning" in self.degraded:  # which was said
            return None
        try:
            if stream == "probe":
                return self._probe()
            return self._report(stream)
        except Exception as error:
            if self.strict:
                raise
            warn(
                f"collapsemeter could not report the {stream} stream of epoch {self._epoch}: {error}"
            )
            return None

    def _publish(self, stream: str, report: CollapseReport, logs: dict[str, Any] | None) -> None:
        entry = Entry(self._epoch, report)
        self.reports[stream].append(entry)
        self._publisher.publish(stream, entry, logs)
