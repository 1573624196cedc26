"""Where reports go: TensorBoard, JSON lines, CSV, experiment trackers and callables.

A sink has one public method, ``write(step, report)``, which never raises into the training loop.

base         what every sink shares: the guard, the name of a run, a file of lines
fan          several destinations as one sink, and the sink that fits a destination
json_lines   the float64 record, a line a report
csv_table    a row a layer, a column a metric
tensorboard_events  TensorBoard
loggers      experiment trackers and callables, by what they can do
scalars      what trackers and TensorBoard share
derived      curves of what is derived from reports
wandb_runs   Weights & Biases, under a step metric of its own

Examples
--------
>>> import tempfile
>>> from collapsemeter import CollapseReport, LayerReport
>>> folder = tempfile.mkdtemp()
>>> with Fan(f"{folder}/run.jsonl", f"{folder}/run.csv", f"{folder}/events") as sink:
...     sink.write(1, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))
"""

from .base import GuardedSink, Sink
from .csv_table import CsvSink
from .fan import Fan, to
from .json_lines import JsonlSink
from .loggers import LoggerSink
from .tensorboard_events import TensorBoardSink

__all__ = [
    "CsvSink",
    "Fan",
    "GuardedSink",
    "JsonlSink",
    "LoggerSink",
    "Sink",
    "TensorBoardSink",
    "to",
]
