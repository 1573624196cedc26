"""``collapsemeter audit``, ``audit map`` and ``audit merge``."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..comparison.compare import compare
from ..comparison.result import Comparison
from ..html.page import environment, write_html
from ..report.history import History, of_run, read_history, run_of
from ..report.report import CollapseReport
from ..system.files import write_atomically
from ..system.terminal import say
from .audit_options import (
    add_data,
    add_head,
    add_measure,
    add_one_epoch,
    add_output,
    audit_options,
    parse_epoch,
)
from .fail_if import FailureCondition
from .reference import parse_pairs, problem_of
from .text import epochs_words, history_words, report_line, say_history, say_notes

if TYPE_CHECKING:  # imported by what runs: other commands need nothing of an audit
    from ..audit.inputs import Epochs
    from ..audit.options import Options

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
    collapsemeter audit maps.npz --reduction 'conv**=mean' 'block**=last'
  on a Dask cluster that is running
    collapsemeter audit 's3://bucket/acts/*.safetensors' --dask tcp://host:8786
"""

_MAP = """\
examples:
  one task of an array job: the state of one shard
    collapsemeter audit map acts/shard-00007.safetensors -o state/ \\
      --num-classes 1000 --first-row 70000
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
    """Add the three commands to the parser."""
    command = _parser(commands, "audit", "measure saved activations", _EXAMPLES)
    command.set_defaults(run=_audit)
    command.add_argument("files", nargs="*", metavar="FILE",
        help="activations (.safetensors .npy .npz .zarr .h5), globs, URLs, a manifest or its folder")  # fmt: skip
    command.add_argument("--epoch", nargs="+", action="append", default=[], metavar="STEP FILE",
        help="files of one of several epochs; once for each")  # fmt: skip
    command.reads("files", "epoch")
    add_data(command)
    add_measure(command)
    add = command.add_argument_group("running").add_argument
    add("--jobs", type=int, default=1, help="processes (default: 1)")
    add("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster (extra: dask)")
    add("--state", metavar="FOLDER",
        help="keep states there (default: a folder that goes when done)")  # fmt: skip
    command.writes(state="folder")
    add("--resume", action="store_true", help="use the states of a run that was cut short")
    add_output(command, "-o", "--out")

    command = _parser(commands, "audit map", "write one state file per shard", _MAP)
    command.set_defaults(run=_map)
    command.add_argument("files", nargs="+", metavar="SHARD", help="as for audit")
    command.add_argument("-o", "--out", required=True, metavar="FOLDER", help="where states go")
    command.reads("files")
    command.writes(out="folder")
    add_data(command)
    add = command.add_argument_group("running").add_argument
    add("--jobs", type=int, default=1, help="processes (default: 1)")
    add("--resume", action="store_true", help="leave shards out whose states are there")
    add("--first-row", type=int, default=0, metavar="N",
        help="labelled rows of the shards before, so that intervals are those of one audit")  # fmt: skip
    add("--quiet", action="store_true", help="print nothing")

    command = _parser(commands, "audit merge", "merge state files and measure them", _MERGE)
    command.set_defaults(run=_merge)
    command.add_argument("files", nargs="+", metavar="STATE", help="files that audit map wrote")
    command.add_argument("-o", "--out", required=True, metavar="FILE", help="the merged state")
    command.reads("files", "head")
    command.writes(out="state")
    add = command.add_argument_group("data").add_argument
    add_head(add)
    add_one_epoch(add)
    add_measure(command, second_pass=False)
    add_output(command, "--report")


def _parser(commands: Any, name: str, words: str, examples: str) -> Any:
    return commands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}, of any model, trained in any framework.",
        epilog=examples,
    )


def _audit(options: argparse.Namespace) -> int:
    from ..audit.options import Running
    from ..audit.run import measure_steps

    epochs = [parse_epoch(entry) for entry in options.epoch]
    if not (options.files or epochs):
        raise ValueError(f"name the files to audit, or --epoch STEP FILE ...{_taker(options)}")
    chosen = audit_options(options)
    running = Running(options.jobs, options.dask, options.state, options.resume, not options.quiet)
    output = AuditOutput(options)

    def audited(running: Running) -> int:
        return output.give(measure_steps(options.files, chosen, running, epochs, output.accept))

    if running.state is not None:
        return audited(running)
    folder = _default_state(options.files, epochs, chosen)
    earlier = _left_behind(folder) if running.resume else []
    try:
        status = audited(replace(running, state=folder, earlier=earlier))
    except (ValueError, OSError, ImportError, KeyboardInterrupt) as error:
        read_enough = isinstance(error, BrokenPipeError)  # as `head` has
        if read_enough or not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        what = str(error) or "interrupted"
        raise ValueError(f"{what} (what was counted is kept in {folder}: use --resume)") from error
    shutil.rmtree(folder, ignore_errors=True)
    for emptied in earlier:
        if not _holds_states(emptied):  # they were moved here
            shutil.rmtree(emptied, ignore_errors=True)
    return status


def _default_state(files: Sequence[str], epochs: Epochs, options: Options) -> Path:
    """Return where states go if no folder is named; names of audits with the same options begin alike."""
    from ..audit.digests import hash_of

    asked, named = hash_of(repr(options)), hash_of([list(files), [list(e) for e in epochs]])
    return Path(f"collapsemeter-{asked[:8]}-{named[:8]}.state")


def _left_behind(folder: Path) -> list[Path]:
    """Return the state folders of audits with the same options, but of other files."""
    alike = Path().glob(f"{folder.name[:-14]}*.state")
    return sorted(path for path in alike if path != folder and _holds_states(path))


def _holds_states(folder: Path) -> bool:
    from ..audit.resuming import states_in

    return any(states_in(inside) for inside in (folder, *folder.glob("step-*")))


def _map(options: argparse.Namespace) -> None:
    from ..audit.options import Running
    from ..audit.run import map_files

    running = Running(options.jobs, None, options.out, options.resume, not options.quiet)
    for path in map_files(options.files, audit_options(options), running):
        if not options.quiet:
            say(str(path))


def _merge(options: argparse.Namespace) -> int:
    from ..audit.state_reports import merge_files

    chosen, output = audit_options(options), AuditOutput(options)
    report = merge_files(options.files, options.out, chosen, not options.quiet, output.accept)
    return output.give([(None, report)])


def _taker(options: argparse.Namespace) -> str:
    """Say which option took the files, as one with many values does."""
    for name in ("layers", "reduction", "dufm", "epoch"):
        for value in vars(options)[name] or []:
            if isinstance(value, str) and os.path.exists(value):
                return f" (--{name} took {value!r}: put files first)"
    return " (see --help)"


class AuditOutput:
    """The output that ``audit`` and ``audit merge`` print and write, by their options."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raise ValueError, before an hour of work, if something that is asked for cannot be given."""
        self.options = options
        self.conditions = [FailureCondition.parse(text) for text in options.fail_if]
        self.dufm = None if options.dufm is None else parse_pairs(options.dufm)
        if self.dufm is not None:
            problem_of(self.dufm, 2)
        if options.history is not None:
            read_history(options.history)
        if options.html is not None:
            environment()

    def accept(self, layers: Sequence[str], classes: int) -> None:
        """Raise ValueError if what was asked for does not fit what will be measured."""
        for condition in self.conditions:
            condition.chosen(layers)
        if self.dufm is not None and classes > 1:
            problem_of(self.dufm, classes)

    def give(self, measured: list[tuple[int | None, CollapseReport]]) -> int:
        """Write and print; return 0, or 3 where a condition of failure is met."""
        history = self._with_past(measured)
        report, options = history[-1][1], self.options
        comparison = None if self.dufm is None else self._compared(report, self.dufm)
        if options.report is not None:
            text = report.to_json(indent=1, matrices=True) + "\n"
            write_atomically(options.report, text.encode())
        if options.html is not None:
            write_html(options.html, history, comparison=comparison)
        if options.json or options.quiet:
            say_notes(history)
        if options.json:
            say_history(history)
        elif options.quiet:
            say(report_line(report))
        else:
            if len(history.last) > 1:
                say(f"{epochs_words(history.last)}\n")
            say(history_words(history, html=options.html))
            if comparison is not None:
                say(f"\n{comparison.table()}")
            if options.report is not None:
                say(f"JSON: {options.report}")
        failures = [words for condition in self.conditions for words in condition.failures(report)]
        for words in failures:
            say(f"collapsemeter: {words}", error=True)
        return 3 if failures else 0

    def _with_past(self, measured: list[tuple[int | None, CollapseReport]]) -> History:
        """Put the epochs that training recorded before those that were audited."""
        options, last = self.options, measured[-1][1]
        if options.step is not None:
            if len(measured) > 1:
                raise ValueError(
                    f"--step {options.step}: there are {len(measured)} steps; use --epoch"
                )
            measured = [(options.step, last)]
        past = History([])
        if options.history is not None:
            past = read_history(options.history).of_phase(last.phase)
            if not past:
                raise ValueError(
                    f"--history {options.history} holds no report of phase {last.phase!r}, which was audited: "
                    "pass --phase, or another history"
                )
        following = past[-1][0] + 1 if past else 0  # of files that do not say their step
        # What is audited goes on with the run that trained last, and stands for what that said of its epoch.
        run = run_of(past[-1][1]) if past else ""
        audited = [
            (following if step is None else step, of_run(report, run) if run else report)
            for step, report in measured
        ]
        steps = {step for step, _ in audited}
        before = [e for e in past if e[0] not in steps or run_of(e[1]) != run]
        return History([*before, *audited], past.notes)

    @staticmethod
    def _compared(report: CollapseReport, pairs: dict[str, str]) -> Comparison:
        """Compare with the optimum of a problem whose classes are those that were measured."""
        counts = sorted(int(count) for count in report.final.per_class["count"] if count)
        if not counts:
            raise ValueError("--dufm: no class was measured, so there is nothing to compare")
        problem = problem_of(pairs, len(counts), counts[len(counts) // 2])
        return compare(report, problem.optimum())
