"""From what a stream counted to its report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import keras

from collapsemeter import CollapseReport
from collapsemeter.adapter.network_report import network_report
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.fields import Phase

from .entries import PHASES
from .operations import BACKEND
from .updating import NO_STEP, why_nothing

if TYPE_CHECKING:
    from .attachment import Attachment
    from .state import StreamSums

_UNKNOWN = (
    "its steps ran, and the model does not say what it takes or has no `call`: pass example=, a batch of inputs; of a "
    "model of several networks, such as a GAN, watch the network that classifies and put its forward into "
    "`with meter.batch(labels):`"
)
_CAUSES = {
    "never_fired": "it was not called in the model's forward (its weights are used directly, or a branch left it out)",
    "rows_missing": "some forwards did not pass through it (a branch, or a step traced without it)",
    "rows_counted_twice": "it was called more than once for a batch",
}


def report_of(
    attachment: Attachment,
    model: keras.Model,
    stream: str,
    sums: StreamSums,
    phase: Phase,
    epoch: int,
) -> CollapseReport:
    """Measure what a stream counted; NaN with reasons, and a warning of the cause, where that is nothing."""
    selection = attachment.selection
    assert selection is not None
    batches, expected_rows = sums.batches_seen(), sums.expected_rows()
    probed = stream == "probe"
    counter = attachment.probe_counter if probed else attachment.counter
    warnings, cost = [], {}
    if not batches:
        why = why_nothing(model, attachment.counter, stream)
        warnings.append(f"no batch of the {stream} stream was counted: {why}")
    if stream == "train":
        cost = attachment.budget.provenance(sums.batches_left_out(), expected_rows)
        cost |= _overhead(attachment, model, sums)
    return network_report(
        selection,
        {key: partial(sums.tally, key) for key in sums.layers},
        attachment.settings,
        phase=phase,
        framework=f"keras {keras.__version__} ({BACKEND})",
        expected_rows=expected_rows,
        batches=batches,
        head=attachment.head(),
        causes=_CAUSES,
        degraded={} if probed else attachment.degraded,
        unpaired=counter.unpaired,
        warnings=warnings,
        provenance={"stream": stream, "epoch": epoch, **cost},
    )


def report_of_nothing(attachment: Attachment, stream: str) -> CollapseReport:
    """Return a report without layers, of a model whose layers were never chosen."""
    why = attachment.degraded.get("learning", _UNKNOWN if attachment.in_the_dark else NO_STEP)
    return network_report(
        Selection(()),
        {},
        Settings(attachment.request.num_classes or 2, **attachment.request.options),
        phase=PHASES[stream],
        framework=f"keras {keras.__version__} ({BACKEND})",
        expected_rows=0,
        batches=0,
        head=None,
        causes=_CAUSES,
        warnings=[f"no batch of the {stream} stream was counted: {why}"],
    )


def _overhead(attachment: Attachment, model: keras.Model, sums: StreamSums) -> dict[str, Any]:
    # Elsewhere Python sees a step once, when it is compiled.
    attachment.clock.unseen = not (BACKEND == "torch" or model.run_eagerly)
    return attachment.clock.provenance(
        f"counting is part of the step that {BACKEND} compiles, into which no clock looks",
        asynchronous=BACKEND == "torch" and sums.given.value.device.type != "cpu",
    )
