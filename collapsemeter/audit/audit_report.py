"""From a merged state to a report of every layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..adapter.notes import fits, moments_notes
from ..metrics.decisions import Decisions
from ..metrics.layer import LayerReport
from ..metrics.measure import measure
from ..report.origin import AUDIT
from ..report.report import CollapseReport
from ..version import __version__
from .digests import digest_of
from .job import Job
from .saved_state import SavedState
from .workers import bar


def measured_report(
    job: Job, merged: SavedState, decisions: Mapping[str, Decisions], notes: Sequence[str]
) -> CollapseReport:
    """Measure every layer; notes are the first warnings."""
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
