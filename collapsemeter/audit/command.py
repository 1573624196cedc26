"""``collapsemeter audit``: run it, print it, write it, and say whether a threshold was passed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import show
from ..compare import compare
from ..comparison import Comparison
from ..files import write_atomically
from ..report import CollapseReport
from ..report_file import read_history
from .options import Options, Running
from .run import audit_steps, map_files, merge_files
from .thresholds import Threshold

History = list[tuple[int, CollapseReport]]


@dataclass(frozen=True)
class Wish:
    """What to print and write.

    Parameters
    ----------
    json, quiet : bool
        Print JSON and nothing else; print one line.
    html, out : str, optional
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
    out: str | None = None
    fail_if: tuple[Threshold, ...] = ()
    dufm: dict[str, str] | None = None
    history: str | None = None
    step: int | None = None


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
    _check_writable(wish)
    kept = running.state is not None
    folder = Path(running.state or default_state(files, epochs, options))
    history: History = []
    for step, names in [(None, files)] * bool(files) + list(epochs):
        own = folder if step is None else folder / f"step-{step}"
        measured = audit_steps(names, options, replace(running, state=own))
        history += measured if step is None else [(step, measured[0][1])]
    if not kept:  # what was counted is in the report now
        shutil.rmtree(folder, ignore_errors=True)
    return _give(_with_past(history, wish), wish)


def default_state(
    files: Sequence[str], epochs: Sequence[tuple[int, Sequence[str]]], options: Options
) -> str:
    """Return where states go if no folder is named: the same folder for the same question."""
    asked = json.dumps([list(files), [list(e) for e in epochs], repr(options)])
    return f"collapsemeter-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.state"


def run_map(files: Sequence[str], options: Options, running: Running, quiet: bool) -> int:
    """Write one state file per shard, and print their names."""
    for path in map_files(files, options, running):
        if not quiet:
            print(path)
    return 0


def run_merge(
    files: Sequence[str], target: str, options: Options, wish: Wish, progress: bool
) -> int:
    """Merge states, and print what can be measured of them."""
    _check_writable(wish)
    report = merge_files(files, target, options, progress)
    return _give(_with_past([(0, report)], wish), wish)


def _with_past(history: History, wish: Wish) -> History:
    """Put the epochs that training recorded before those that were audited."""
    past: History = []
    if wish.history is not None:
        phase = history[-1][1].phase
        past = [entry for entry in read_history(wish.history) if entry[1].phase == phase]
        if not past:
            raise ValueError(
                f"--history {wish.history} holds no report of phase {phase!r}, which was audited: pass "
                "--phase, or another history"
            )
    if wish.step is not None and len(history) == 1:
        history = [(wish.step, history[0][1])]
    elif past and history[0][0] <= past[-1][0] and len(history) == 1:
        history = [(past[-1][0] + 1, history[0][1])]
    audited = {step for step, _ in history}
    return sorted([e for e in past if e[0] not in audited] + history, key=lambda entry: entry[0])


def _give(history: History, wish: Wish) -> int:
    report = history[-1][1]
    comparison = None if wish.dufm is None else _reference(report, wish.dufm)
    if wish.out is not None:
        write_atomically(wish.out, (report.to_json(indent=1, matrices=True) + "\n").encode())
    if wish.html is not None:
        from ..html import write_html

        write_html(wish.html, history, comparison=comparison)
    _print(history, comparison, wish)
    failed = [words for threshold in wish.fail_if for words in threshold.failures(report)]
    for words in failed:
        print(f"collapsemeter: {words}", file=sys.stderr)
    return 3 if failed else 0


def _print(history: History, comparison: Comparison | None, wish: Wish) -> None:
    report = history[-1][1]
    if wish.json:
        records: list[Any] = [r.to_dict(matrices=True) for _, r in history]
        if len(history) == 1:
            print(json.dumps(records[0], indent=1, allow_nan=False))
        else:  # JSON lines, as a history is
            for (step, _), record in zip(history, records, strict=True):
                print(json.dumps({"step": step, **record}, allow_nan=False))
        return
    if wish.quiet:
        print(report.summary())
        return
    print(show.words(history, show.Wish(html=wish.html)))
    if comparison is not None:
        print(f"\n{comparison.table()}")
    if wish.out is not None:
        print(f"JSON: {wish.out}")


def _reference(report: CollapseReport, problem: dict[str, str]) -> Comparison:
    """Compare with the optimum of a problem whose classes are those that were measured."""
    from ..dufm import DUFM  # SciPy takes its time

    final = report.final
    counts = sorted(int(count) for count in final.per_class["count"] if count)
    numbers: dict[str, Any] = {
        "num_classes": len(counts),
        "per_class": counts[len(counts) // 2],
        "depth": 1,
    }
    for name, text in problem.items():
        if name not in _PROBLEM:
            raise ValueError(f"--dufm {name}={text}: choose among {', '.join(_PROBLEM)}")
        try:
            numbers[name] = _PROBLEM[name](text)
        except ValueError as error:
            raise ValueError(f"--dufm {name}={text}: {text!r} is not a number") from error
    if "weight_decay" not in numbers:
        raise ValueError("--dufm needs weight_decay=NUMBER, and perhaps depth= and feature_decay=")
    numbers.setdefault("feature_decay", numbers["weight_decay"])
    return compare(report, DUFM(**numbers).optimum())


_PROBLEM: dict[str, Any] = {
    "depth": int,
    "weight_decay": float,
    "feature_decay": float,
    "per_class": int,
    "width": int,
    "loss": str,
    "activation": str,
}


def _check_writable(wish: Wish) -> None:
    """Find out before an hour of work, not after, that its report cannot be written."""
    for path in (wish.html, wish.out):
        if path is not None and Path(path).is_dir():
            raise ValueError(f"{path} is a folder: name a file to write")
    if wish.html is not None:
        from ..html.page import environment

        environment()
