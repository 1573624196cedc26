"""TensorBoard: one curve per metric and layer, and a page that lays them out as in the paper."""

import os
import re
import time
from pathlib import Path
from typing import Any, Protocol, Self

from ..report.report import CollapseReport
from ..report.tags import safe_name
from ..stats.undefined import LACKS_WEIGHT
from .base import GuardedSink, checked_run
from .derived import Derived
from .scalars import Scalars

TagLayout = dict[str, dict[str, list[Any]]]

# Papyan, Han & Donoho 2020: figure by figure, the charts and the metric drawn in each.
FIGURES: dict[str, dict[str, str]] = {
    "figure 2: equinorm": {"means": "nc2_equinorm", "head": "nc2_equinorm_head"},
    "figure 3: equiangularity": {"means": "nc2_equiangular", "head": "nc2_equiangular_head"},
    "figure 4: maximal angle": {"means": "nc2_max_angle", "head": "nc2_max_angle_head"},
    "figure 5: self-duality": {"head and means": "nc3_self_duality"},
    "figure 6: within-class variation": {"NC1": "nc1_pinv"},
    "figure 7: nearest class centre": {"mismatch": "nc4_mismatch"},
}


class ScalarWriter(Protocol):
    """The methods that an existing writer must have; their parameters are passed by position."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object:
        """Add one point to one curve."""


class TensorBoardSink(GuardedSink):
    """Write each metric of each layer as one curve, tagged ``nc1_pinv/<layer>``, and depth and log-slopes as curves of their own.

    From three layers on there are ``depth/collapse_depth`` and alike (`CollapseReport.depth_profile`); from
    four reports on ``log_slope/nc1_pinv`` of the final layer, with the ends of its 95 % interval as ``.low`` and
    ``.high``, and ``log_slope/since`` where the terminal phase is known. An undefined value is a gap. TensorBoard keeps float32: values under 1e-45 read 0 there, the JSON
    lines keep them. Where the writer can, the first write adds a "Custom Scalars" page with figures 2
    to 7 of the paper.

    Parameters
    ----------
    target : str, path or object with add_scalar
        A folder is written with tensorboardX, and all of it is on disk when ``write`` returns. An
        existing writer (tensorboardX, torch.utils.tensorboard or alike) is used as it is and stays
        the caller's to close. Of the two, a tensorboardX ``SummaryWriter`` writes in a thread of its own:
        its ``flush`` may lag, and on a full disk it blocks whoever writes to it. Prefer the folder.
    layout : bool
        Whether to add that page; False where the run has a layout of its own, which this would replace.
    run : str, optional
        Name of the run, see `Fan`. A folder that holds another run of ours already gets a folder of that
        name in it: TensorBoard draws one line for each folder. Where a run is resumed, TensorBoard leaves
        out what it had from that step on.
    prefix : str
        What every tag begins with, see `Fan`.
    intervals : bool
        Whether a metric that has a 95 % interval gets curves of its ends and of its estimate as well:
        ``nc1_trace_ratio.low/<layer>``, ``.high`` and ``.estimate``.

    Raises
    ------
    TypeError
        If the target is neither a path nor has ``add_scalar``.
    ImportError
        If a folder is given and tensorboardX is not installed.
    OSError
        If the folder cannot be made or written.

    References
    ----------
    Papyan, Han & Donoho 2020, figures 2 to 7.

    Examples
    --------
    >>> from collapsemeter import LayerReport
    >>> class Writer:
    ...     def add_scalar(self, tag, value, step):
    ...         print(tag, value, step)
    >>> report = CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25, "nc2_equinorm": float("nan")})})
    >>> TensorBoardSink(Writer()).write(1, report)
    nc1_pinv/fc 0.25 1
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | ScalarWriter,
        *,
        layout: bool = True,
        run: str | None = None,
        prefix: str = "",
        intervals: bool = True,
    ) -> None:
        self.run, self.prefix = checked_run(run), prefix
        self._owned: EventFile | None = None
        self._writer: Any = target
        if isinstance(target, (str, os.PathLike)):
            self.name = f"TensorBoardSink({os.fspath(target)})"
            self._writer = self._owned = EventFile(target, self.run)
        elif callable(getattr(target, "add_scalar", None)):
            self.name = f"TensorBoardSink({type(target).__name__})"
        else:
            raise TypeError(
                f"TensorBoardSink takes a folder or a writer with add_scalar, got {target!r}"
            )
        self._scalars, self._derived = Scalars(self.name, intervals), Derived()
        self._adds_layout = layout and hasattr(self._writer, "add_custom_scalars")

    def _write(self, step: int, report: CollapseReport, prefix: str = "") -> None:
        for tag, value in self._scalars.of_report(report, prefix).items():
            self._writer.add_scalar(tag, value, step)
        for tag, value in self._derived.of(step, report).items():
            self._writer.add_scalar(tag, value, step)
        # After the curves: a writer that cannot take the page has them all the same.
        if self._adds_layout and report.layers:
            self._adds_layout = False
            self._writer.add_custom_scalars(self._layout(report, prefix))
        if hasattr(self._writer, "flush"):
            self._writer.flush()

    def _layout(self, report: CollapseReport, prefix: str) -> TagLayout:
        page: TagLayout = {figure: {} for figure in FIGURES}
        for figure, charts in FIGURES.items():
            for chart, metric in charts.items():
                # A layer without a head has no such curve and would be an empty entry in the legend.
                names = [n for n in report if report[n].reasons.get(metric) not in LACKS_WEIGHT]
                if names:
                    tags = [prefix + self._scalars.tag(metric, name) for name in names]
                    page[figure][chart] = ["Multiline", tags]
        return page

    def close(self) -> None:
        """Close the file of a folder; a writer that was passed stays open, it is its owner's."""
        if self._owned is not None:
            self._attempt("close", self._owned.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventFile:
    """One event file in a folder of its own; errors reach the caller, where tensorboardX's own writer blocks for good on a full disk."""

    def __init__(self, folder: str | os.PathLike[str], run: str) -> None:
        try:
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        except ImportError as error:
            raise ImportError(
                f"writing TensorBoard events to {os.fspath(folder)!r} needs tensorboardX: "
                "pip install 'collapsemeter[tensorboard]', or pass a writer that you have"
            ) from error
        self._summary, self._event, self._closed = summary, Event, False
        name = safe_name(run).replace("/", "_")
        path = Path(folder).absolute()
        # The name holds whole seconds: without a suffix a second sink of that second erases the first,
        # and TensorBoard reads files in the order of their names.
        suffix = f".run-{name}.{os.getpid()}.{time.time_ns() % 10**9:08x}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if _runs_in(path) - {name}:
                path = path / name
                path.mkdir(exist_ok=True)
            # TensorBoard drops what a resumed run had from the first step on that is written again.
            self._start = SessionLog(status=SessionLog.START) if name in _runs_in(path) else None
            self._file = EventsWriter(str(path / "events"), suffix)
        except OSError as error:
            raise type(error)(f"cannot write in {path}: {error.strerror or error}") from error

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._add(self._summary.scalar(tag, value), step)

    def add_custom_scalars(self, layout: TagLayout) -> None:
        self._add(self._summary.custom_scalars(layout), 0)

    def _add(self, summary: Any, step: int) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            self._file.write_event(self._event(session_log=start, step=step, wall_time=time.time()))
        self._file.write_event(self._event(summary=summary, step=step, wall_time=time.time()))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Flush and close; closing twice is fine, writing after it an error."""
        if not self._closed:
            self._closed = True
            self._file.close()


# A file of this package: before 0.2 without the run.
_FILE = re.compile(r"(?:\.run-(?P<run>.+))?\.\d+\.[0-9a-f]{8}$")


def _runs_in(folder: Path) -> set[str]:
    """Return the runs whose event files lie in a folder; files of other writers do not count."""
    matches = (_FILE.search(path.name) for path in folder.glob("events.out.tfevents.*"))
    return {match["run"] or "" for match in matches if match}
