"""The audit as functions: of one set of activations, of several epochs, and its two halves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..activations.remote import expand
from ..finalise import moments_report
from ..nc4 import Decisions
from ..report import CollapseReport, LayerReport
from .first_pass import MERGED, map_on_cluster, map_shards, merge_states
from .head import load_head
from .inputs import read_inputs
from .job import Job
from .options import Options, Running
from .plan import Plan
from .prepare import only_file, prepared, settings_of
from .progress import bar
from .rows import Counting
from .second_pass import decide_all
from .state import SavedState
from .workers import Dask, workers


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
    options, running = options or Options(), running or Running()
    names = [files] if isinstance(files, str) else list(files)
    history = []
    with _cache() as cache, workers(running.jobs, running.dask) as crew:
        for inputs in read_inputs(names, cache):
            plan, job = prepared(inputs, options, cache, running.progress)
            with _states(running, inputs.step) as folder:
                if isinstance(crew, Dask):
                    merged = map_on_cluster(job, folder, crew)
                else:
                    paths = map_shards(job, folder, crew, running.resume)
                    merged = merge_states(paths, folder / MERGED, running.progress)
                decisions = decide_all(job, merged, folder, crew, running.resume)
                report = _report(plan, job, merged, decisions, cache)
            history.append((inputs.step or 0, report))
    return history


def map_files(files: Sequence[str], options: Options, running: Running) -> list[Path]:
    """Write one state file per shard to ``running.state``, for `merge_files` or a resumed audit.

    Returns
    -------
    list of Path
    """
    if running.state is None:
        raise ValueError("map needs a folder for its states: pass -o FOLDER")
    written = []
    with _cache() as cache, workers(running.jobs) as crew:
        for inputs in read_inputs(files, cache):
            _, job = prepared(inputs, options, cache, running.progress, mapping=True)
            folder = _of_step(Path(running.state), inputs.step)
            # Other states are let be: each task of an array job writes one of them.
            written += map_shards(job, folder, crew, running.resume)
    return written


def merge_files(
    files: Sequence[str], target: str | os.PathLike[str], options: Options, progress: bool = False
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
        If a shard is in two of them.
    """
    with _cache() as cache:
        merged = merge_states([Path(path) for path in expand(files)], Path(target), progress)
        settings = settings_of(
            options, int(merged.key["num_classes"]), int(merged.key["ignore_index"])
        )
        counting = Counting(settings)
        job = Job([], merged.layers, counting, merged.key["phase"], cache, progress=progress)
        if options.head is not None:
            head, prefix = load_head(only_file(options.head), cache, options.head_name)
            layer = options.head_layer or (prefix if prefix in merged.layers else merged.layers[-1])
            job = replace(job, head=head, head_layer=layer)
        return _report(Plan([], merged.layers, {}), job, merged, {}, cache)


def _report(
    plan: Plan, job: Job, merged: SavedState, decisions: Mapping[str, Decisions], cache: str
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
    files = {file: digest for shard in merged.shards for file, digest in shard.files.items()}
    settings = job.counting.settings
    return {
        "framework": "saved activations",
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
    """Yield the folder for the states of a step."""
    if running.state is None:
        with tempfile.TemporaryDirectory(prefix="collapsemeter-state-") as temporary:
            yield Path(temporary)
        return
    folder = _of_step(Path(running.state), step)
    if not running.resume and folder.exists():
        for path in folder.iterdir():  # what is not resumed is not mixed with the new
            if path.suffix in (".state", ".piece", ".decisions"):
                path.unlink()
    yield folder


def _of_step(folder: Path, step: int | None) -> Path:
    return folder if step is None else folder / f"step-{step}"
