"""``collapsemeter audit``, ``audit map`` and ``audit merge``: their arguments."""

from __future__ import annotations

import argparse
import os
import re
from typing import TYPE_CHECKING, Any, get_args

from ..metrics.convention import PRESETS
from ..stats.sketch import SKETCH_ROWS
from ..stats.sums import Nonfinite, ScatterKind

if TYPE_CHECKING:  # imported by what runs: other commands need nothing of an audit
    from ..audit.options import Options
    from .audit_run import Wish

_EXAMPLES = """\
examples:
  one file for each layer, labels and head apart, and a page to read
    collapsemeter audit acts/*.safetensors --labels labels.npy \\
      --head head.safetensors --html report.html
  what meter.dump wrote, in four processes; go on after a crash
    collapsemeter audit acts/ --jobs 4
    collapsemeter audit acts/ --jobs 4 --resume
  dumps of several epochs, and the history that training wrote
    collapsemeter audit acts/epoch-*/ --html report.html
    collapsemeter audit acts/ --history runs/reports.jsonl --html report.html
  in continuous integration: exit status 3 where collapse is missed
    collapsemeter audit acts/ --quiet --fail-if 'fc:nc1_pinv>0.1'
  raw maps (N, C, H, W) and sequences (N, T, d)
    collapsemeter audit maps.npz --reduction 'conv*=mean' 'block*=last'
  on a Dask cluster that is running
    collapsemeter audit 's3://bucket/acts/*.safetensors' --dask tcp://host:8786
"""

_MAP = """\
examples:
  one task of an array job: the state of one shard
    collapsemeter audit map acts/shard-00007.safetensors -o state/ \\
      --num-classes 1000
  when all are done: merge, second pass and report
    collapsemeter audit acts/*.safetensors --num-classes 1000 \\
      --state state/ --resume --html report.html
"""

_MERGE = """\
examples:
  all states, and what can be measured without a second pass over the rows
    collapsemeter audit merge state/*.state -o merged.state \\
      --head head.safetensors --html report.html
"""


def add(commands: Any) -> None:
    command = _parser(commands, "audit", "measure saved activations", _EXAMPLES)
    command.set_defaults(run=_audit)
    command.add_argument("files", nargs="*", metavar="FILE",
        help="activations (.safetensors .npy .npz .zarr .h5), globs, URLs, a manifest or its folder")  # fmt: skip
    command.add_argument("--epoch", nargs="+", action="append", default=[], metavar="STEP FILE",
        help="files of one of several epochs; once for each")  # fmt: skip
    command.reads("files", "epoch")
    _add_data(command)
    _add_measure(command)
    add = command.add_argument_group("running").add_argument
    add("--jobs", type=int, default=1, help="processes (default: 1)")
    add("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster (extra: dask)")
    add("--state", metavar="FOLDER",
        help="keep states there (default: a folder that goes when done)")  # fmt: skip
    command.writes(state="folder")
    add("--resume", action="store_true", help="use the states of a run that was cut short")
    _add_output(command, "-o", "--out")

    command = _parser(commands, "audit map", "write one state file per shard", _MAP)
    command.set_defaults(run=_map)
    command.add_argument("files", nargs="+", metavar="SHARD", help="as for audit")
    command.add_argument("-o", "--out", required=True, metavar="FOLDER", help="where states go")
    command.reads("files")
    command.writes(out="folder")
    _add_data(command)
    add = command.add_argument_group("running").add_argument
    add("--jobs", type=int, default=1, help="processes (default: 1)")
    add("--resume", action="store_true", help="leave shards out whose states are there")
    add("--quiet", action="store_true", help="print nothing")

    command = _parser(commands, "audit merge", "merge state files and measure them", _MERGE)
    command.set_defaults(run=_merge)
    command.add_argument("files", nargs="+", metavar="STATE", help="files that audit map wrote")
    command.add_argument("-o", "--out", required=True, metavar="FILE", help="the merged state")
    command.reads("files", "head")
    command.writes(out="state")
    add = command.add_argument_group("data").add_argument
    _add_head(add)
    _add_one_epoch(add)
    _add_measure(command, second_pass=False)
    _add_output(command, "--report")


def _parser(commands: Any, name: str, words: str, examples: str) -> Any:
    return commands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}, of any model, trained in any framework.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_head(add: Any) -> None:
    add("--head", action="append", metavar="[STEP=]FILE",
        help="the classifier: weight (C, d) and bias (C,); of several epochs once for each")  # fmt: skip
    add("--head-name", metavar="NAME", help="prefix of its arrays, as in NAME.weight")
    add("--head-layer", metavar="LAYER", help="the layer it reads (default: by name, or by width)")


def _add_one_epoch(add: Any) -> None:
    add("--one-epoch", action="store_true",
        help="files with the same labels are shards of one epoch, not epochs")  # fmt: skip


def _add_data(command: Any) -> None:
    add = command.add_argument_group("data").add_argument
    add("--labels", metavar="NAME|FILE",
        help='array in the files, or files of their own (default: the array "labels")')  # fmt: skip
    add("--predictions", metavar="NAME|FILE", help="the network's own decisions")
    add("--logits", metavar="NAME|FILE", help="or the logits they were made by")
    add("--mask", metavar="NAME|FILE", help="attention mask of sequences")
    command.reads("labels", "predictions", "logits", "mask", "head")
    _add_head(add)
    _add_one_epoch(add)
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
    add("--ignore-index", type=int, metavar="LABEL", help="of rows to leave out (default: -100)")
    add("--nonfinite", default="skip", choices=get_args(Nonfinite),
        help="rows with NaN or Inf (default: skip, and count)")  # fmt: skip
    add("--phase", choices=("frozen-eval", "frozen-train", "live"),
        help="what the rows are (default: frozen-eval)")  # fmt: skip


def _add_measure(command: Any, second_pass: bool = True) -> None:
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
        help="exit with status 3 if so; NC1 to NC4 are shares, such as fc:NC1>10%%")  # fmt: skip


def _add_output(command: Any, *report: str) -> None:
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


def _audit(options: argparse.Namespace) -> int:
    from ..audit.options import Running
    from .audit_run import run_audit

    epochs = [_epoch(entry) for entry in options.epoch]
    if not (options.files or epochs):
        raise ValueError(f"name the files to audit, or --epoch STEP FILE ...{_taken(options)}")
    running = Running(options.jobs, options.dask, options.state, options.resume, not options.quiet)
    return run_audit(options.files, epochs, _options(options), running, _wish(options))


def _taken(options: argparse.Namespace) -> str:
    """Say which option took the files, as one with many values does."""
    for name in ("layers", "reduction", "dufm", "epoch"):
        for value in vars(options)[name] or []:
            if isinstance(value, str) and os.path.exists(value):
                return f" (--{name} took {value!r}: put files first)"
    return " (see --help)"


def _map(options: argparse.Namespace) -> int:
    from ..audit.options import Running
    from .audit_run import run_map

    running = Running(options.jobs, None, options.out, options.resume, not options.quiet)
    return run_map(options.files, _options(options), running, options.quiet)


def _merge(options: argparse.Namespace) -> int:
    from ..audit.options import Options
    from .audit_run import run_merge

    chosen = Options(
        head=_heads(options.head),
        head_name=options.head_name,
        head_layer=options.head_layer,
        one_epoch=options.one_epoch,
        convention=options.convention,
    )
    wish = _wish(options)
    return run_merge(options.files, options.out, chosen, wish, not options.quiet)


def _epoch(entry: list[str]) -> tuple[int, list[str]]:
    step, *files = entry
    if not files or not _INTEGER.fullmatch(step):
        raise ValueError(f"--epoch {' '.join(entry)}: write a step and its files")
    return int(step), files


_INTEGER = re.compile("-?[0-9]{1,15}")


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


def _options(options: argparse.Namespace) -> Options:
    from ..audit.options import Options

    given = vars(options)
    nc4 = given.get("nc4", "auto")
    return Options(
        labels=options.labels,
        predictions=options.predictions,
        logits=options.logits,
        mask=options.mask,
        layers=tuple(options.layers),
        reduction=dict(_reduction(entry) for entry in options.reduction),
        head=_heads(options.head),
        head_name=options.head_name,
        head_layer=options.head_layer,
        one_epoch=options.one_epoch,
        num_classes=options.num_classes,
        scatter=options.scatter,
        sketch_rows=options.sketch_rows,
        convention=given.get("convention", "papyan2020"),
        ignore_index=options.ignore_index,
        nonfinite=options.nonfinite,
        phase=options.phase,
        nc4=int(nc4) if _INTEGER.fullmatch(nc4) else nc4,
        seed=given.get("seed", 0),
    )


def _reduction(entry: str) -> tuple[str, Any]:
    pattern, sign, how = entry.rpartition("=")
    return (pattern, how) if sign else ("*", how)


def _wish(options: argparse.Namespace) -> Wish:
    from .audit_run import Wish
    from .thresholds import Threshold

    return Wish(
        json=options.json,
        quiet=options.quiet,
        html=options.html,
        report=options.report,
        fail_if=tuple(Threshold.parse(text) for text in options.fail_if),
        dufm=None if options.dufm is None else dict(_pair(text) for text in options.dufm),
        history=options.history,
        step=options.step,
    )


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--dufm {text!r}: write NAME=VALUE, such as weight_decay=5e-4")
    return name, value
