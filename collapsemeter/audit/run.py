"""The audit as functions: of one set of activations, of several epochs, and its two halves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..activations.remote import expand
from ..adapter.layer_report import moments_report
from ..adapter.selection import listed
from ..metrics.decisions import Decisions
from ..metrics.layer import LayerReport
from ..report.origin import AUDIT
from ..report.report import CollapseReport
from ..system.threads import threads
from .epochs import check_one_epoch
from .first_pass import map_shards, merge_states, merged_path
from .head import check_classes, check_width, load_head, read_layer
from .inputs import Inputs, read_inputs
from .job import Job
from .mapping import digest_of
from .merging import check_together, check_unchanged
from .options import Options, Running
from .plan import Plan
from .prepare import check_head_named, only_file, prepared, settings_of
from .progress import bar
from .rows import Counting
from .second_pass import decide_all
from .state import SavedState
from .workers import Workers, workers


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


Accept = Callable[[Sequence[str], int], None]


def _accept_all(layers: Sequence[str], classes: int) -> None:
    """Accept any layers and number of classes."""


def measure_steps(
    names: Sequence[str],
    options: Options,
    running: Running,
    epochs: Sequence[tuple[int, Sequence[str]]] = (),
    accept: Accept = _accept_all,
) -> list[tuple[int | None, CollapseReport]]:
    """Measure every step that files are of; files without a manifest do not say one.

    ``epochs`` are the files of other steps. ``accept`` is told the layers and classes of every step before
    the first is counted, and may raise.
    """
    history = []
    with _cache() as cache:
        steps = _of_steps(names, epochs, cache)
        _check_heads(options.head, [inputs.step for inputs in steps])
        jobs = [prepared(inputs, options, cache, running.progress) for inputs in steps]
        for _, job in jobs:
            accept(job.layers, job.counting.settings.num_classes)
        with workers(running.jobs, running.dask) as crew:
            for inputs, (plan, job) in zip(steps, jobs, strict=True):
                with _states(running, inputs.step) as folder:
                    merged = _merged(job, folder, crew, running, inputs.step)
                    check_width(merged.widths, job.reader)
                    decisions = decide_all(job, merged, folder, crew, running.resume)
                    history.append((inputs.step, _report(plan, job, merged, decisions)))
    return history


def _of_steps(
    names: Sequence[str], epochs: Sequence[tuple[int, Sequence[str]]], cache: str
) -> list[Inputs]:
    """Return what is named by step: of manifests, and of epochs that were named as such."""
    steps = read_inputs(names, cache) if names else []
    for step, files in epochs:
        found = read_inputs(files, cache)
        other = next((i.step for i in found if i.step not in (None, step)), None)
        if other is not None:
            raise ValueError(
                f"--epoch {step} {' '.join(files)}: the manifest says step {other}; leave --epoch out"
            )
        if any(inputs.step == step for inputs in steps):
            raise ValueError(f"--epoch {step} is given twice: name all its files at once")
        steps.append(replace(found[0], step=step))
    return steps


def _check_heads(head: str | Mapping[int, str] | None, steps: Sequence[int | None]) -> None:
    """Raise unless every head belongs to one step."""
    words = ", ".join("one without a step" if step is None else str(step) for step in steps)
    if isinstance(head, str) and len(steps) > 1:
        raise ValueError(
            f"--head {head}: it is the head of one epoch, and there are {len(steps)} ({words}); pass "
            "--head STEP=FILE for each epoch that has one"
        )
    for step, file in head.items() if isinstance(head, Mapping) else ():
        if step not in steps:
            raise ValueError(f"--head {step}={file}: there is no epoch {step}, but {words}")


def _merged(
    job: Job, folder: Path, crew: Workers, running: Running, step: int | None
) -> SavedState:
    """Run the first pass, and merge."""
    earlier = [_of_step(Path(other), step) for other in running.earlier]
    paths = map_shards(job, folder, crew, running.resume, earlier)
    states = _opened(paths)
    path = merged_path(folder, states)
    return merge_states(states, path, running.progress, lasting=job.lasting)


def _opened(paths: Sequence[str | os.PathLike[str]]) -> list[SavedState]:
    """Open state files; comparing their checksums reads them."""
    with threads() as in_order:
        return list(in_order(SavedState, paths))


def map_files(files: Sequence[str], options: Options, running: Running) -> list[Path]:
    """Write one state file per shard to ``running.state``, for `merge_files` or a resumed audit.

    Returns
    -------
    list of Path
    """
    if running.state is None:
        raise ValueError("map needs a folder for its states: pass -o FOLDER")
    written = []
    with _cache() as cache:
        steps = read_inputs(files, cache)
        _check_heads(options.head, [inputs.step for inputs in steps])
        jobs = [prepared(i, options, cache, running.progress, mapping=True)[1] for i in steps]
        with workers(running.jobs) as crew:
            for inputs, job in zip(steps, jobs, strict=True):
                folder = _made(_of_step(Path(running.state), inputs.step))
                written += map_shards(job, folder, crew, running.resume)
    return written


def merge_files(
    files: Sequence[str],
    target: str | os.PathLike[str],
    options: Options,
    progress: bool = False,
    accept: Accept = _accept_all,
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
        return _report(Plan([], merged.layers, {}), job, merged, {})


def _check_target(target: Path, states: Sequence[SavedState]) -> None:
    """Raise if the file to write is one of those to merge, or a state of rows that are in none of them."""
    if not target.exists():
        return
    if any(os.path.samefile(target, state.path) for state in states):
        raise ValueError(f"{target} is a state to merge, too: name another file for the merged one")
    there = SavedState(target)
    ids = {record.id for state in states for record in state.shards}
    lost = [record.name for record in there.shards if record.id not in ids]
    if lost:
        raise ValueError(
            f"{target} is the state of {listed(lost, 3)}, which the states to merge do not hold: it would be "
            "lost; name another file for the merged one"
        )


def _job_of_states(first: SavedState, options: Options, cache: str, progress: bool) -> Job:
    """Return what measures merged states: how they were counted, and the head."""
    classes, key = int(first.key["num_classes"]), first.key
    counting = Counting(settings_of(options, classes, int(key["ignore_index"])))
    job = Job([], first.layers, counting, key["phase"], cache, progress=progress)
    _check_heads(options.head, [None])
    head_file = options.head_of(None)
    if head_file is None:
        check_head_named(options)
        return job
    head, prefix = load_head(only_file(head_file), cache, options.head_name)
    check_classes(head, classes)
    reads = read_layer(first.widths, head, options.head_layer, prefix)
    job = replace(job, head=head, head_layer=reads)
    check_width(first.widths, job.reader)
    return job


def _report(
    plan: Plan, job: Job, merged: SavedState, decisions: Mapping[str, Decisions]
) -> CollapseReport:
    reports: dict[str, LayerReport] = {}
    warnings: list[str] = []
    with bar("measuring", len(job.layers), job.progress) as advance:
        for layer in job.layers:
            head = job.head if layer == job.head_layer else None
            reports[layer], notes = moments_report(
                layer, merged.moments(layer), job.counting.settings, head, decisions.get(layer)
            )
            warnings += notes
            advance(1)
    return CollapseReport(
        layers=reports,
        phase=job.phase,
        skipped=plan.skipped,
        warnings=tuple(warnings),
        provenance=_provenance(job, merged),
    )


def _provenance(job: Job, merged: SavedState) -> dict[str, Any]:
    files: dict[str, str] = {}
    if job.shards:  # a state may be of files that were called otherwise
        for shard, record in zip(job.shards, merged.shards, strict=True):
            for file in [*shard.files, *shard.extra_files]:
                files[file] = record.files.get(file) or digest_of(file, job.cache)
    else:
        files = {file: digest for record in merged.shards for file, digest in record.files.items()}
    settings = job.counting.settings
    return {
        "framework": AUDIT,
        "collapsemeter": __version__,
        "numpy": np.__version__,
        "classes": settings.num_classes,
        "rows": sum(shard.rows for shard in merged.shards),
        "shards": len(merged.shards),
        "convention": settings.named_convention.name,
        "head_layer": job.head_layer,
        "files": [{"path": file, "sha256": digest} for file, digest in files.items()],
    }


@contextmanager
def _cache() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="collapsemeter-cache-") as folder:
        yield folder


@contextmanager
def _states(running: Running, step: int | None) -> Iterator[Path]:
    """Yield the folder for the states of a step; what lies there already is let be."""
    if running.state is None:
        with tempfile.TemporaryDirectory(prefix="collapsemeter-state-") as temporary:
            yield Path(temporary)
    else:
        yield _made(_of_step(Path(running.state), step))


def _made(folder: Path) -> Path:
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
