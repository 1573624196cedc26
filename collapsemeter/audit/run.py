"""The audit as functions: files -> job -> first pass -> merged moments -> second pass -> report."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..report.report import CollapseReport
from .audit_report import measured_report
from .digests import hash_of
from .first_pass import first_row_numbers, map_pieces
from .head_file import check_width, only_file
from .inputs import Epochs, Inputs, cache_folder, check_heads, read_inputs
from .job import Job
from .merge import merge_pieces, merge_states, numbering_notes
from .options import Accept, Options, Running
from .plan import plan_shards
from .prepare import prepare
from .resuming import counted_before
from .saved_state import SavedState, open_states
from .second_pass import decide_all
from .workers import Workers, open_workers


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
    >>> import numpy as np
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
    with cache_folder() as cache:
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
                    history.append((inputs.step, measured_report(job, merged, decisions, notes)))
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


def _mapped(
    job: Job,
    numbers: Sequence[int | None],
    workers: Workers,
    resume: bool,
    folders: Sequence[Path],
) -> list[Path]:
    """Run the first pass into the first folder; to resume is to use what lies in the folders."""
    counted = partial(counted_before, job, numbers, folders) if resume else None
    return map_pieces(job, numbers, folders[0], workers, counted)


def _merged(
    job: Job, first_row: int, folder: Path, workers: Workers, running: Running, step: int | None
) -> tuple[SavedState, list[str]]:
    """Run the first pass, and merge; the name of the merged state tells what is in it. Say where rows have other numbers."""
    earlier = [_of_step(Path(folder), step) for folder in running.earlier]
    numbers = first_row_numbers(job, first_row)
    pieces = _mapped(job, numbers, workers, running.resume, [folder, *earlier])
    states = open_states(merge_pieces(job, pieces, folder))
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
    with cache_folder() as cache:
        steps = read_inputs(files, cache)
        jobs = _jobs(steps, options, cache, running.progress, mapping=True)
        with open_workers(running.jobs) as workers:
            for inputs, job in zip(steps, jobs, strict=True):
                folder = _writable(_of_step(Path(running.state), inputs.step))
                numbers = first_row_numbers(job, options.first_row)
                pieces = _mapped(job, numbers, workers, running.resume, [folder])
                written += merge_pieces(job, pieces, folder)
    return written


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
