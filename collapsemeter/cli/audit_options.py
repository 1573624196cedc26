"""The options of ``collapsemeter audit``, and what they ask for."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

from ..metrics.convention import PRESETS
from ..stats.groups import GROUPS
from ..stats.sketch import SKETCH_ROWS
from ..stats.sums import Nonfinite, ScatterKind

if TYPE_CHECKING:  # imported when an audit runs: other commands need nothing of it
    from ..audit.options import Options

_INTEGER = re.compile("-?[0-9]{1,15}")


def add_head(add: Any) -> None:
    add("--head", action="append", metavar="[STEP=]FILE",
        help="the classifier: weight (C, d) and bias (C,); of several epochs once for each")  # fmt: skip
    add("--head-name", metavar="NAME", help="prefix of its arrays, as in NAME.weight")
    add("--head-layer", metavar="LAYER", help="the layer it reads (default: by name, or by width)")


def add_one_epoch(add: Any) -> None:
    add("--one-epoch", action="store_true",
        help="files with the same labels are shards of one epoch, not epochs")  # fmt: skip


def add_data(command: Any) -> None:
    add = command.add_argument_group("data").add_argument
    add("--labels", metavar="NAME|FILE",
        help='array in the files, or files of their own (default: the array "labels")')  # fmt: skip
    add("--predictions", metavar="NAME|FILE", help="the network's own decisions")
    add("--logits", metavar="NAME|FILE", help="or the logits they were made by")
    add("--mask", metavar="NAME|FILE", help="attention mask of sequences")
    command.reads("labels", "predictions", "logits", "mask", "head")
    add_head(add)
    add_one_epoch(add)
    add(
        "--num-classes", type=int, metavar="C", help="default: the head's, or the largest label + 1"
    )
    add("--layers", nargs="+", default=[], metavar="PATTERN", help="which, in this order")
    add("--reduction", nargs="+", default=[], metavar="[PATTERN=]HOW",
        help="of maps and sequences: flatten, mean, mean_last, tokens, first or last")  # fmt: skip
    add("--scatter", default="auto", choices=("auto", *get_args(ScatterKind)),
        help="within-class scatter that is kept (default: auto)")  # fmt: skip
    add("--sketch-rows", type=int, default=SKETCH_ROWS, metavar="ROWS",
        help=f"of the sketch of a layer too wide for a scatter (default: {SKETCH_ROWS})")  # fmt: skip
    add("--groups", type=int, default=GROUPS, metavar="GROUPS",
        help=f"of rows, kept for intervals: 16, 8, 4 or 0 (default: {GROUPS})")  # fmt: skip
    add("--ignore-index", type=int, metavar="LABEL", help="of rows to leave out (default: -100)")
    add("--nonfinite", default="skip", choices=get_args(Nonfinite),
        help="rows with NaN or Inf (default: skip, and count)")  # fmt: skip
    add("--phase", choices=("frozen-eval", "frozen-train", "live"),
        help="what the rows are (default: frozen-eval)")  # fmt: skip


def add_measure(command: Any, second_pass: bool = True) -> None:
    add = command.add_argument_group("measuring").add_argument
    add("--convention", default="papyan2020", choices=PRESETS, metavar="NAME",
        help=f"of NC1 and the centre: {', '.join(PRESETS)} (default: papyan2020)")  # fmt: skip
    if second_pass:
        add("--nc4", default="auto", metavar="ROWS",
            help="rows of the second pass: auto, exact, none or a number (default: auto)")  # fmt: skip
        add("--seed", type=int, default=0, help="of a sample of rows (default: 0)")
    add("--dufm", nargs="+", metavar="NAME=VALUE",
        help="compare with an optimum: depth, weight_decay, feature_decay, ...")  # fmt: skip
    add("--fail-if", action="append", default=[], metavar="LAYER:METRIC>NUMBER",
        help="exit with status 3 if so; NC1 to NC4 are shares, such as fc:NC1>10%%; "
             "METRIC.low, .high, .estimate: of its 95 %% interval")  # fmt: skip


def add_output(command: Any, *report: str) -> None:
    add = command.add_argument_group("output").add_argument
    add("--html", metavar="FILE", help="write the HTML report (extra: report)")
    add(*report, dest="report", metavar="FILE",
        help="write the report as JSON, for `show` and `compare`")  # fmt: skip
    command.reads("history")
    command.writes(html="page", report="report")
    add("--history", metavar="FILE", help="earlier epochs, from JSON lines that training wrote")
    add("--step", type=int, help="the epoch of these files")
    add = command.add_mutually_exclusive_group().add_argument
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--quiet", action="store_true", help="print one line, and no progress")


def parse_epoch(entry: list[str]) -> tuple[int, list[str]]:
    step, *files = entry
    if not files or not _INTEGER.fullmatch(step):
        raise ValueError(f"--epoch {' '.join(entry)}: write a step and its files")
    return int(step), files


def _heads(entries: list[str] | None) -> str | dict[int, str] | None:
    """Return the one head, or those of epochs: ``STEP=FILE``."""
    if not entries:
        return None
    parts = [entry.partition("=") for entry in entries]
    by_step = {int(step): file for step, _, file in parts if file and _INTEGER.fullmatch(step)}
    if len(by_step) == len(entries):
        return by_step
    if len(entries) > 1:
        raise ValueError(
            f"--head {' --head '.join(entries)}: pass one FILE, or STEP=FILE once for each epoch"
        )
    return entries[0]


def audit_options(options: argparse.Namespace) -> Options:
    """Return what is asked for, as far as the command has an option for it."""
    from ..audit.options import Options

    same = {field.name for field in fields(Options)} - {"head", "layers", "reduction", "nc4"}
    settings = {name: value for name, value in vars(options).items() if name in same}
    if "layers" in options:
        settings["layers"] = tuple(options.layers)
        settings["reduction"] = dict(_reduction(entry) for entry in options.reduction)
    if "nc4" in options:
        settings["nc4"] = int(options.nc4) if _INTEGER.fullmatch(options.nc4) else options.nc4
    return Options(head=_heads(options.head), **settings)


def _reduction(entry: str) -> tuple[str, Any]:
    pattern, sign, how = entry.rpartition("=")
    return (pattern, how) if sign else ("**", how)
