"""JSON lines: the float64 record of a run, with the reason of every value that is missing."""

import json
import math
import os
from typing import Any

from ..metrics.layer import LayerReport, to_json_value
from ..report.criteria import RECORDED
from ..report.origin import COUNTED
from ..report.report import CollapseReport
from ..report.training_error import RECORDED_ERROR
from ..report.trust_words import LASTING
from .base import AppendedFile, GuardedSink, checked_run, run_in_file


class JsonlSink(GuardedSink):
    """Append one line of strict JSON per report, the values in float64.

    A line holds ``run``, ``step``, ``phase``, ``warnings``, ``training_error`` where the report has it and, per layer, ``metrics`` (null where
    undefined), ``reasons``, ``flags``, ``estimates`` and ``intervals`` with the reason where this layer has none, and how many classes and features there are. Vectors and
    per-class values stay in the report (`CollapseReport.to_json`).

    Parameters
    ----------
    path : str or path
        Made with its folder; an existing file is continued.
    run : str, optional
        Name of the run, in every line; see `Fan`.
    prefix : str
        Put behind the name of the run, see `Fan`.

    Raises
    ------
    OSError
        If the file cannot be opened for appending.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> sink = JsonlSink(path)
    >>> sink.write(1, CollapseReport({"fc": LayerReport({"nc1_pinv": 1e-46})}))
    >>> json.loads(path.read_text())["layers"]["fc"]["metrics"]
    {'nc1_pinv': 1e-46}
    """

    def __init__(
        self, path: str | os.PathLike[str], *, run: str | None = None, prefix: str = ""
    ) -> None:
        self.run, self.prefix = checked_run(run), prefix
        self.name = f"JsonlSink({os.fspath(path)})"
        self._file = AppendedFile(path)

    def _write(self, step: int, report: CollapseReport, prefix: str = "") -> None:
        recorded = {
            key: report.provenance[key] for key in (RECORDED_ERROR,) if key in report.provenance
        }
        record = {
            "run": run_in_file(self.run, prefix),
            "step": step,
            "phase": report.phase,
            **recorded,
            "warnings": list(report.warnings),
            "layers": {name: _layer_record(layer) for name, layer in report.items()},
        }
        self._file.append(json.dumps(record, allow_nan=False) + "\n")


def _layer_record(layer: LayerReport) -> dict[str, Any]:
    # A gap that has no reason code says at least which of nan, inf and -inf it was.
    values = {name: float(value) for name, value in layer.items()}
    gaps = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
    recorded = [key for key in (*COUNTED, *RECORDED) if key in layer.provenance]
    return {
        "metrics": to_json_value(values),
        "reasons": gaps | layer.reasons,
        "flags": list(layer.flags),
        **_trust_record(layer),
        # What a history is of, and what the criteria need, so that it is judged as its reports are.
        "provenance": {key: to_json_value(layer.provenance[key]) for key in recorded},
    }


def _trust_record(layer: LayerReport) -> dict[str, Any]:
    """Return what is known of the noise; not the reasons that a metric has in every layer."""
    parts = {
        "intervals": layer.intervals,
        "standard_errors": layer.standard_errors,
        "estimates": layer.estimates,
    }
    for name, codes in (("no_estimate", layer.no_estimate), ("no_interval", layer.no_interval)):
        parts[name] = {metric: code for metric, code in codes.items() if code not in LASTING}
    return {name: to_json_value(values) for name, values in parts.items() if values}
