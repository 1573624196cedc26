"""From the state files of a data set to one state, and to what can be measured without a second pass."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..activations.remote import expand
from ..report.report import CollapseReport
from ..system.suggest import listed
from .audit_report import measured_report
from .epochs import check_one_epoch
from .head_file import check_classes, check_head_named, check_width, load_reader, only_file
from .inputs import cache_folder, check_heads
from .job import Counting, Job
from .merge import check_together, check_unchanged, merge_states, numbered_again, numbering_notes
from .options import Accept, Options
from .saved_state import SavedState, open_states


def merge_files(
    files: Sequence[str],
    target: str | os.PathLike[str],
    options: Options,
    progress: bool = False,
    accept: Accept = lambda layers, classes: None,
) -> CollapseReport:
    """Merge state files into one, and measure what needs no second pass.

    Parameters
    ----------
    files : sequence of str
        State files, or globs of them.
    target : str or path
        Where the merged state goes.
    options : Options
        Head and convention.
    progress : bool
    accept : callable, optional
        It is told the layers and the number of classes before states are merged, and may raise.

    Returns
    -------
    CollapseReport
        Without NC4.

    Raises
    ------
    ValueError
        If a shard is in two of them, they seem to be of several epochs, or the target is one of them or holds
        what they do not.
    """
    with cache_folder() as cache:
        states = open_states(expand(files))
        check_unchanged(states)
        check_together(states)
        if not options.one_epoch:
            check_one_epoch(record.labelled for state in states for record in state.shards)
        _check_target(Path(target), states)
        job = _job_of_states(states[0], options, cache, progress)
        accept(job.layers, job.counting.settings.num_classes)
        merged = merge_states(states, Path(target), progress)
        return measured_report(job, merged, {}, numbering_notes(numbered_again(merged.shards)))


def _check_target(target: Path, states: Sequence[SavedState]) -> None:
    """Raise if the file to write is one of those to merge, or a state of rows that are in none of them."""
    if not target.exists():
        return
    if any(os.path.samefile(target, state.path) for state in states):
        raise ValueError(f"{target} is a state to merge, too: name another file for the merged one")
    ids = {record.id for state in states for record in state.shards}
    lost = [record.name for record in SavedState(target).shards if record.id not in ids]
    if lost:
        raise ValueError(
            f"{target} is the state of {listed(lost, 3)}, which the states to merge do not hold: it would be "
            "lost; name another file for the merged one"
        )


def _job_of_states(first: SavedState, options: Options, cache: str, progress: bool) -> Job:
    """Return what measures merged states: how they were counted, and the head."""
    classes, key = int(first.key["num_classes"]), first.key
    counting = Counting(options.settings(classes, int(key["ignore_index"])))
    check_heads(options.head, [None])
    head_file, reader = options.head_of(None), None
    if head_file is None:
        check_head_named(options)
    else:
        reader = load_reader(only_file(head_file), cache, options, first.widths)
        check_classes(reader.head, classes)
        check_width(first.widths, reader)
    return Job([], first.layers, counting, key["phase"], cache, reader, progress=progress)
