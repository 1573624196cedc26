"""Where reports go: TensorBoard, JSON lines, CSV, experiment trackers and callables.

A sink has one public method, ``write(step, report)``, which never raises into the training loop.

Examples
--------
>>> import tempfile
>>> from collapsemeter import CollapseReport, LayerReport
>>> folder = tempfile.mkdtemp()
>>> with Fan(f"{folder}/run.jsonl", f"{folder}/run.csv", f"{folder}/events") as sink:
...     sink.write(1, CollapseReport({"fc": LayerReport({"nc1_pinv": 0.25})}))
"""

from .csv_table import CsvSink
from .event_files import TensorBoardSink
from .fan import Fan, to
from .guard import GuardedSink, Sink
from .json_lines import JsonlSink
from .loggers import LoggerSink

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
