"""The part of a report's provenance about ranks, weights that are elsewhere, and rows that were not kept."""

from dataclasses import replace
from typing import Any

from collapsemeter import CollapseReport
from collapsemeter.system.warning import warn

from .counts import Counts
from .ranks import this_rank


def ranks_said(counts: Counts) -> dict[str, Any]:
    """Return what a report says of ranks, where there are several."""
    if counts.rows_of_ranks:
        said = {
            "ranks": f"{counts.ranks} ranks, merged",
            "rows_of_ranks": list(counts.rows_of_ranks),
        }
    else:
        here = this_rank()
        said = {} if here.ranks == 1 else {"ranks": f"rank {here.rank} of {here.ranks}, not merged"}
    return said | ({"repeated_rows": counts.repeated} if counts.repeated else {})


def without_weights(report: CollapseReport, head: str | None, code: str) -> CollapseReport:
    """Say why a head that exists was not measured."""
    layers = dict(report.layers)
    for name in layers:
        if head is not None and name.partition("#")[0] == head:
            reasons = {
                metric: code if reason == "no_head" else reason
                for metric, reason in layers[name].reasons.items()
            }
            layers[name] = replace(layers[name], reasons=reasons)
    return replace(report, layers=layers)


def with_missing_rows(report: CollapseReport) -> CollapseReport:
    """Warn of NC4 that is not of all rows though exact=True."""
    notes = []
    for name, layer in report.items():
        decided, rows = layer.provenance.get("nc4_rows"), layer.provenance.get("rows")
        if decided is not None and decided != rows:
            notes.append(
                f"layer {name!r} has NC4 of {decided} of {rows} rows though exact=True: rows and "
                "decisions are not kept under torch.compile"
            )
    for note in notes:
        warn(note)
    return replace(report, warnings=(*report.warnings, *notes))
