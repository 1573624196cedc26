"""The audit as functions: files -> job -> first pass -> merged moments -> second pass -> report."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..activations.remote import expand
from ..adapter.notes import fits, moments_notes
from ..metrics.decisions import Decisions
from ..metrics.layer import LayerReport
from ..metrics.measure import measure
from ..report.origin import AUDIT
from ..report.report import CollapseReport
from ..system.suggest import listed
from ..version import __version__
from .digests import digest_of, hash_of
from .epochs import check_one_epoch
from .first_pass import first_rows, map_pieces
from .head_file import check_classes, check_head_named, check_width, load_reader, only_file
from .inputs import Epochs, Inputs, check_heads, read_inputs
from .job import Counting, Job
from .merge import (
    check_together,
    check_unchanged,
    merge_pieces,
    merge_states,
    numbered_again,
    numbering_notes,
)
from .options import Options, Running
from .plan import plan_shards
from .prepare import prepare, settings_of
from .saved_state import SavedState
from .second_pass import decide_all
from .workers import Workers, bar, open_workers

Accept = Callable[[Sequence[str], int], None]


def audit(
    files: str | Sequence[str], options: Options | None = None, running: Running | None = None
) -> CollapseReport:
    """Measure every layer of saved activations.

    Parameters
    ----------
    files : str or sequence of str
        Files (.safetensors, .npy, .npz, .zarr, .h5), globs, URLs, a manifest or its folder.
    options : Options, optional
    running : Running, optional

    Returns
    -------
    CollapseReport

    Raises
    ------
    ValueError
        If files are missing, damaged or do not fit each other.

    Examples
    --------
    >>> import tempfile
    >>> from collapsemeter.activations import Writer
    >>> folder = tempfile.mkdtemp()
    >>> with Writer(folder, num_classes=3) as writer:
    ...     writer.write({"fc": np.eye(3, 8).repeat(5, axis=0)}, np.arange(3).repeat(5))
    >>> report = audit(folder)
    >>> report["fc"]["nc1_pinv"], report["fc"]["ncc_accuracy"], report.provenance["rows"]
    (0.0, 1.0, 15)
    """
    history = audit_steps(files, options, running)
    if len(history) > 1:
        raise ValueError(
            f"{files!r} holds the steps {', '.join(str(step) for step, _ in history)}: pass one, or call "
            "audit_steps"
        )
    return history[0][1]


def audit_steps(
    files: str | Sequence[str], options: Options | None = None, running: Running | None = None
) -> list[tuple[int, CollapseReport]]:
    """Measure dumps of several epochs.

    Parameters
    ----------
    files, options, running
        As of `audit`; each manifest says which step it is of.

    Returns
    -------
    list of (int, CollapseReport)
        By step; files without a manifest are step 0.
    """
    names = [files] if isinstance(files, str) else list(files)
    measured = measure_steps(names, options or Options(), running or Running())
    return [(step or 0, report) for step, report in measured]


def measure_steps(
    names: Sequence[str],
    options: Options,
    running: Running,
    epochs: Epochs = (),
    accept: Accept = lambda layers, classes: None,
) -> list[tuple[int | None, CollapseReport]]:
    """Measure every step that files are of; ``accept`` is told the layers and classes first, and may raise."""
    history = []
    with _cache() as cache:
        steps = read_inputs(names, cache, epochs)
        jobs = _jobs(steps, options, cache, running.progress)
        for job in jobs:
            accept(job.layers, job.counting.settings.num_classes)
        with open_workers(running.jobs, running.dask) as workers:
            for inputs, job in zip(steps, jobs, strict=True):
                with _states(running, inputs.step) as folder:
                    merged, notes = _merged(
                        job, options.first_row, folder, workers, running, inputs.step
                    )
                    check_width(merged.widths, job.reader)
                    decisions = decide_all(job, merged, folder, workers, running.resume)
                    history.append((inputs.step, _report(job, merged, decisions, notes)))
    return history


def _jobs(
    steps: Sequence[Inputs], options: Options, cache: str, progress: bool, mapping: bool = False
) -> list[Job]:
    """Plan and prepare every step."""
    check_heads(options.head, [inputs.step for inputs in steps])
    jobs = []
    for inputs in steps:
        head_file = options.head_of(inputs.step)
        head_file = inputs.head if head_file is None else only_file(head_file)
        plan = plan_shards(inputs, options, head_file, cache)
        jobs.append(prepare(plan, inputs, options, head_file, cache, progress, mapping))
    return jobs


def _merged(
    job: Job, first_row: int, folder: Path, workers: Workers, running: Running, step: int | None
) -> tuple[SavedState, list[str]]:
    """Run the first pass, and merge; the name of the merged state tells what is in it. Say where rows have other numbers."""
    earlier = [_of_step(Path(folder), step) for folder in running.earlier]
    numbers = first_rows(job, first_row)
    pieces = map_pieces(job, numbers, folder, workers, running.resume, earlier)
    states = _opened(merge_pieces(job, pieces, folder))
    records = [record for state in states for record in state.shards]
    name = hash_of(
        [[[r.id, r.labels, r.first_row] for r in records], states[0].layers, states[0].key]
    )[:16]
    merged = merge_states(states, folder / f"{name}.merged", job.progress, lasting=job.lasting)
    starts = [n for n, piece in zip(numbers, job.pieces, strict=True) if not piece.start]
    renumbered = [
        r.name for r, start in zip(records, starts, strict=True) if r.first_row != start and r.rows
    ]
    return merged, numbering_notes(renumbered)


def _opened(paths: Sequence[str | os.PathLike[str]]) -> list[SavedState]:
    """Open state files, several at a time: comparing their checksums reads them."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(SavedState, paths))


def map_files(files: Sequence[str], options: Options, running: Running) -> list[Path]:
    """Write one state file per shard to ``running.state``, for `merge_files` or a resumed audit.

    Parameters
    ----------
    files : sequence of str
        As of `audit`.
    options : Options
    running : Running

    Returns
    -------
    list of Path

    Raises
    ------
    ValueError
        If ``running.state`` is missing, or as `audit`.
    """
    if running.state is None:
        raise ValueError("map needs a folder for its states: pass -o FOLDER")
    written = []
    with _cache() as cache:
        steps = read_inputs(files, cache)
        jobs = _jobs(steps, options, cache, running.progress, mapping=True)
        with open_workers(running.jobs) as workers:
            for inputs, job in zip(steps, jobs, strict=True):
                folder = _writable(_of_step(Path(running.state), inputs.step))
                numbers = first_rows(job, options.first_row)
                pieces = map_pieces(job, numbers, folder, workers, running.resume)
                written += merge_pieces(job, pieces, folder)
    return written


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
    with _cache() as cache:
        states = _opened(expand(files))
        check_unchanged(states)
        check_together(states)
        if not options.one_epoch:
            check_one_epoch(record.labelled for state in states for record in state.shards)
        _check_target(Path(target), states)
        job = _job_of_states(states[0], options, cache, progress)
        accept(job.layers, job.counting.settings.num_classes)
        merged = merge_states(states, Path(target), progress)
        return _report(job, merged, {}, numbering_notes(numbered_again(merged.shards)))


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
    counting = Counting(settings_of(options, classes, int(key["ignore_index"])))
    check_heads(options.head, [None])
    head_file, reader = options.head_of(None), None
    if head_file is None:
        check_head_named(options)
    else:
        reader = load_reader(only_file(head_file), cache, options, first.widths)
        check_classes(reader.head, classes)
        check_width(first.widths, reader)
    return Job([], first.layers, counting, key["phase"], cache, reader, progress=progress)


def _report(
    job: Job, merged: SavedState, decisions: Mapping[str, Decisions], notes: Sequence[str]
) -> CollapseReport:
    reports: dict[str, LayerReport] = {}
    warnings = [*notes]
    settings, reader = job.counting.settings, job.reader
    with bar("measuring", len(job.layers), job.progress) as advance:
        for layer in job.layers:
            moments = merged.moments(layer)
            head = reader.head if reader is not None and reader.layer == layer else None
            reports[layer] = measure(
                moments,
                head=head if fits(head, moments) else None,
                decisions=decisions.get(layer),
                convention=settings.named_convention,
            )
            warnings += moments_notes(layer, moments, settings, head)
            advance(1)
    return CollapseReport(
        layers=reports,
        phase=job.phase,
        skipped=job.skipped,
        warnings=tuple(warnings),
        provenance=_provenance(job, merged),
    )


def _provenance(job: Job, merged: SavedState) -> dict[str, Any]:
    files: dict[str, str] = {}
    if job.shards:  # a state may be of files that were called otherwise
        for shard, record in zip(job.shards, merged.shards, strict=True):
            for file in shard.counted_files:
                files[file] = record.files.get(file) or digest_of(file, job.cache)
    else:
        files = {file: digest for record in merged.shards for file, digest in record.files.items()}
    settings = job.counting.settings
    return {
        "framework": AUDIT,
        "collapsemeter": __version__,
        "numpy": np.__version__,
        "classes": settings.num_classes,
        "rows": merged.rows,
        "shards": len(merged.shards),
        "convention": settings.named_convention.name,
        "head_layer": None if job.reader is None else job.reader.layer,
        "files": [{"path": file, "sha256": digest} for file, digest in files.items()],
    }


def _cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="collapsemeter-cache-")


@contextmanager
def _states(running: Running, step: int | None) -> Iterator[Path]:
    """Yield the folder for the states of a step; what lies there already is let be."""
    if running.state is None:
        with tempfile.TemporaryDirectory(prefix="collapsemeter-state-") as temporary:
            yield Path(temporary)
    else:
        yield _writable(_of_step(Path(running.state), step))


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # find out now, and not after the first shard
            return folder
    except OSError as error:
        raise ValueError(
            f"states cannot be written to {folder} ({error.strerror}): pass --state FOLDER"
        ) from error


def _of_step(folder: Path, step: int | None) -> Path:
    return folder if step is None else folder / f"step-{step}"
