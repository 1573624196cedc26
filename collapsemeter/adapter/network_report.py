"""The report of every watched layer: what all meters make in the same way of what they counted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..metrics.layer import LayerReport
from ..metrics.measure import undefined_report
from ..report.report import CollapseReport
from ..stats.fields import Phase
from ..stats.head import Head
from ..system.warning import warn
from .layer_report import layer_report
from .selection import Selection
from .settings import Settings
from .tally import Tally

Call = tuple[str, int]  # a layer, and which of its calls in one forward
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


def network_report(
    selection: Selection,
    tallies: Mapping[Call, Callable[[], Tally]],
    settings: Settings,
    *,
    phase: Phase,
    framework: str,
    expected_rows: int,
    batches: int,
    head: Head | None,
    causes: Mapping[str, str],
    degraded: Mapping[str, str] = _NOTHING,
    interrupted: Mapping[Call, int] = _NOTHING,
    unpaired: Mapping[str, str] = _NOTHING,
    warnings: Iterable[str] = (),
    provenance: Mapping[str, Any] = _NOTHING,
) -> CollapseReport:
    """Measure every watched layer, warn of what went wrong with any, and return the report.

    A layer that did not see exactly the rows that were given is not measured, and the report says why.
    A layer that was called more often in one forward has an entry for each call, ``layer#0``.

    Parameters
    ----------
    selection : Selection
        The layers watched.
    tallies : mapping from (layer, number of its call) to callable
        What each counted. They are called one after another, so that the host holds one copy at a time.
    settings : Settings
    phase : {"live", "frozen-train", "frozen-eval"}
    framework : str
        Its name and version.
    expected_rows : int
        Label rows that were given.
    batches : int
        Batches that were counted; without any, every layer is ``never_fired``.
    head : Head or None
        The weights of the head now.
    causes : mapping
        The likely cause, in words, of each of `layer_report.CAUSE_CODES`.
    degraded : mapping
        Why a layer, or another part of the meter, failed and was left out.
    interrupted : mapping from (layer, number of its call) to int
        Label rows of batches that were cut short after this layer had counted them.
    unpaired : mapping from layer to str
        Layers whose output no rule pairs with the labels, and what to do about it.
    warnings : iterable of str
        What else to warn of.
    provenance : mapping
        What else the report says of its origin.

    Returns
    -------
    CollapseReport

    Raises
    ------
    ValueError
        If a row is not finite under ``nonfinite="raise"``.
    """
    layers: dict[str, LayerReport] = {}
    messages = [
        f"{part} failed and was left out: {error}"
        for part, error in degraded.items()
        if part not in selection.watched
    ]
    messages += warnings
    for layer in selection.watched:
        is_head = layer == selection.head
        calls = sorted(call for name, call in tallies if name == layer)
        for call in calls or [0]:
            name = layer if len(calls) < 2 else f"{layer}#{call}"
            tally = tallies.get((layer, call))
            if layer in degraded:
                layers[name] = undefined_report("degraded", is_head)
                messages.append(f"layer {name!r} failed: {degraded[layer]}")
            elif layer in unpaired:
                layers[name] = undefined_report("unpaired_rows", is_head)
                messages.append(f"layer {name!r} is not measured: {unpaired[layer]}")
            elif not batches:
                layers[name] = undefined_report("never_fired", is_head)
            else:
                layers[name], notes = layer_report(
                    name,
                    None if tally is None else tally(),
                    settings,
                    phase=phase,
                    expected_rows=expected_rows + interrupted.get((layer, call), 0),
                    is_head=is_head,
                    head=head if is_head else None,
                    causes=causes,
                )
                messages += notes
    if layers and selection.head is None and selection.no_head != "no_head":
        name, last = layers.popitem()
        codes = {"no_head": selection.no_head}
        reasons = {metric: codes.get(code, code) for metric, code in last.reasons.items()}
        layers[name] = replace(last, reasons=reasons)
    if interrupted:
        messages.append(
            "a batch was interrupted: some layers counted it and others did not, so their row "
            "counts differ"
        )
    for message in messages:
        warn(message, stacklevel=4)
    return CollapseReport(
        layers=layers,
        phase=phase,
        skipped=dict(selection.skipped),
        warnings=tuple(messages),
        provenance={
            "framework": framework,
            "classes": settings.num_classes,
            "rows": expected_rows,
            "batches": batches,
            "convention": settings.named_convention.name,
            **({} if settings.mixed == "skip" else {"mixed": settings.mixed}),
            **provenance,
        },
    )
