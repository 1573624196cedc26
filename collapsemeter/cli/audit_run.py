"""``collapsemeter audit``: run it, print it, write it, and say whether a threshold was passed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audit.first_pass import states_in
from ..audit.mapping import hash_of
from ..audit.options import Options, Running
from ..audit.run import map_files, measure_steps, merge_files
from ..comparison.compare import compare
from ..comparison.result import Comparison
from ..report.history import Entries, History, of_run, read_history, run_of
from ..report.report import CollapseReport
from ..system.files import write_atomically
from ..system.suggest import did_you_mean
from ..system.terminal import say, say_json
from . import show
from .thresholds import Threshold

if TYPE_CHECKING:
    from ..dufm import DUFM


@dataclass(frozen=True)
class Wish:
    """What to print and write.

    Parameters
    ----------
    json, quiet : bool
        Print JSON and nothing else; print one line.
    html, report : str, optional
        Where to write the HTML report, and the JSON.
    fail_if : tuple of Threshold
    dufm : dict of str to str, optional
        A problem of the deep unconstrained features model to compare with.
    history : str, optional
        JSON lines of earlier epochs.
    step : int, optional
        The epoch of files without a manifest.
    """

    json: bool = False
    quiet: bool = False
    html: str | None = None
    report: str | None = None
    fail_if: tuple[Threshold, ...] = ()
    dufm: dict[str, str] | None = None
    history: str | None = None
    step: int | None = None

    def accept(self, layers: Sequence[str], classes: int) -> None:
        """Raise ValueError, before an hour of work, if what was asked for does not fit what will be measured."""
        for threshold in self.fail_if:
            threshold.chosen(layers)
        if self.dufm is not None and classes > 1:
            _problem(self.dufm, classes)


def run_audit(
    files: Sequence[str],
    epochs: Sequence[tuple[int, Sequence[str]]],
    options: Options,
    running: Running,
    wish: Wish,
) -> int:
    """Audit, print and write; return 0, or 3 where a threshold is passed.

    Parameters
    ----------
    files : sequence of str
        Of one epoch, or manifests of several.
    epochs : sequence of (step, files)
        Files without manifests, of several epochs.
    options, running, wish

    Raises
    ------
    ValueError, OSError, ImportError
        In one sentence.
    """
    _check(wish)

    def audited(running: Running) -> int:
        measured = measure_steps(files, options, running, epochs, wish.accept)
        return _give(_with_past(measured, wish), wish)

    if running.state is not None:
        return audited(running)
    folder = default_state(files, epochs, options)
    earlier = _left_behind(folder) if running.resume else []
    try:
        status = audited(replace(running, state=folder, earlier=earlier))
    except (ValueError, OSError, ImportError, KeyboardInterrupt) as error:
        done = isinstance(error, BrokenPipeError)  # who reads the output has seen enough
        if done or not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        what = str(error) or "interrupted"
        raise ValueError(f"{what} (what was counted is kept in {folder}: use --resume)") from error
    shutil.rmtree(folder, ignore_errors=True)
    for other in earlier:
        if not _holds_states(other):  # they were moved here
            shutil.rmtree(other, ignore_errors=True)
    return status


def _left_behind(folder: Path) -> list[Path]:
    """Return the state folders of audits with the same options, but of other files."""
    alike = Path().glob(f"{folder.name[:-14]}*.state")
    return sorted(other for other in alike if other != folder and _holds_states(other))


def _holds_states(folder: Path) -> bool:
    return any(states_in(inside) for inside in (folder, *folder.glob("step-*")))


def default_state(
    files: Sequence[str], epochs: Sequence[tuple[int, Sequence[str]]], options: Options
) -> Path:
    """Return where states go if no folder is named: the same folder for the same question.

    The names of audits with the same options begin alike: if a file is left out, `--resume` finds what was
    counted of the others.
    """
    asked, named = hash_of(repr(options)), hash_of([list(files), [list(e) for e in epochs]])
    return Path(f"collapsemeter-{asked[:8]}-{named[:8]}.state")


def run_map(files: Sequence[str], options: Options, running: Running, quiet: bool) -> int:
    """Write one state file per shard, and print their names."""
    for path in map_files(files, options, running):
        if not quiet:
            say(str(path))
    return 0


def run_merge(
    files: Sequence[str], target: str, options: Options, wish: Wish, progress: bool
) -> int:
    """Merge states, and print what can be measured of them."""
    _check(wish)
    report = merge_files(files, target, options, progress, wish.accept)
    return _give(_with_past([(None, report)], wish), wish)


def _with_past(measured: list[tuple[int | None, CollapseReport]], wish: Wish) -> History:
    """Put the epochs that training recorded before those that were audited."""
    if wish.step is not None:
        if len(measured) > 1:
            raise ValueError(f"--step {wish.step}: there are {len(measured)} steps; use --epoch")
        measured = [(wish.step, measured[0][1])]
    past = History([])
    if wish.history is not None:
        phase = measured[-1][1].phase
        past = read_history(wish.history).of_phase(phase)
        if not past:
            raise ValueError(
                f"--history {wish.history} holds no report of phase {phase!r}, which was audited: pass "
                "--phase, or another history"
            )
    following = past[-1][0] + 1 if past else 0  # of files that do not say their step
    # What is audited goes on with the run that trained last, and stands for what that said of its epoch.
    run = run_of(past[-1][1]) if past else ""
    history = [(following if step is None else step, report) for step, report in measured]
    audited = {step for step, _ in history}
    before = [e for e in past if e[0] not in audited or run_of(e[1]) != run]
    own = [(step, of_run(report, run) if run else report) for step, report in history]
    return History([*before, *own], past.notes)


def _give(history: History, wish: Wish) -> int:
    report = history[-1][1]
    comparison = None if wish.dufm is None else _reference(report, wish.dufm)
    if wish.report is not None:
        write_atomically(wish.report, (report.to_json(indent=1, matrices=True) + "\n").encode())
    if wish.html is not None:
        from ..html import write_html

        write_html(wish.html, history, comparison=comparison)
    _print(history, comparison, wish)
    failed = [words for threshold in wish.fail_if for words in threshold.failures(report)]
    for words in failed:
        say(f"collapsemeter: {words}", error=True)
    return 3 if failed else 0


def _print(history: History, comparison: Comparison | None, wish: Wish) -> None:
    report = history[-1][1]
    if wish.json or wish.quiet:
        show.say_notes(history)
    if wish.json:
        if len(history) == 1:
            say_json(report.to_dict(matrices=True), indent=1)
        else:  # JSON lines, as a history is
            for step, past in history:
                run = {"run": run_of(past)} if run_of(past) else {}
                say_json({**run, "step": step, **past.to_dict(matrices=True)})
        return
    if wish.quiet:
        say(show.line(report))
        return
    if len(history.last) > 1:
        say(f"{_over_epochs(history.last)}\n")
    say(show.words(history, show.Wish(html=wish.html)))
    if comparison is not None:
        say(f"\n{comparison.table()}")
    if wish.report is not None:
        say(f"JSON: {wish.report}")


def _over_epochs(history: Entries) -> str:
    """Return a table of the final layer, an epoch a line."""
    shown = {str(step): report.final for step, report in history[-_EPOCHS:] if len(report)}
    about = f"The final layer over {len(shown)} epochs"
    return f"{about}\n\n{re.sub('(?m)^layer', 'epoch', CollapseReport(shown).table())}"


_EPOCHS = 20  # lines of the table


def _reference(report: CollapseReport, problem: dict[str, str]) -> Comparison:
    """Compare with the optimum of a problem whose classes are those that were measured."""
    counts = sorted(int(count) for count in report.final.per_class["count"] if count)
    if not counts:
        raise ValueError("--dufm: no class was measured, so there is nothing to compare")
    return compare(report, _problem(problem, len(counts), counts[len(counts) // 2]).optimum())


def _problem(texts: dict[str, str], classes: int, per_class: int = 1) -> DUFM:
    """Return the problem that ``NAME=VALUE`` describe.

    Raises
    ------
    ValueError
        If a name is unknown, a value does not fit, or there is no weight decay.
    """
    from ..dufm import DUFM  # SciPy takes its time

    numbers: dict[str, Any] = {"num_classes": classes, "per_class": per_class, "depth": 1}
    for name, text in texts.items():
        if name not in _PROBLEM:
            raise ValueError(
                f"--dufm {name}={text}: choose among {', '.join(_PROBLEM)}{did_you_mean(name, _PROBLEM)}"
            )
        argument, kind = _PROBLEM[name]
        try:
            numbers[argument] = kind(text)
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"--dufm {name}={text}: {text!r} is not {what}") from error
    if "weight_decay" not in numbers:
        raise ValueError("--dufm needs weight_decay=NUMBER, and perhaps depth= and feature_decay=")
    if numbers["depth"] > _DEEPEST:
        raise ValueError(f"--dufm depth={texts['depth']}: pass {_DEEPEST} or less")
    numbers.setdefault("feature_decay", numbers["weight_decay"])
    try:
        return DUFM(**numbers)
    except ValueError as error:
        raise ValueError(f"--dufm: {error}") from error


_PROBLEM: dict[str, tuple[str, Any]] = {
    "depth": ("depth", int),
    "weight_decay": ("weight_decay", float),
    "feature_decay": ("feature_decay", float),
    "per_class": ("per_class", int),
    "width": ("widths", int),
    "loss": ("loss", str),
    "activation": ("activation", str),
}
_DEEPEST = 1000


def _check(wish: Wish) -> None:
    """Find out before an hour of work, not after, that its report cannot be given."""
    if wish.dufm is not None:
        _problem(wish.dufm, 2)
    if wish.history is not None:
        read_history(wish.history)
    if wish.html is not None:
        from ..html.page import environment

        environment()
