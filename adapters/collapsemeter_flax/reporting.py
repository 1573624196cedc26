"""`report`: from a state to what is said of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import flax
import jax

from collapsemeter import CollapseReport
from collapsemeter.adapter.network_report import network_report
from collapsemeter.adapter.selection import Selection
from collapsemeter.stats.fields import Phase

from .state import State
from .tallies import expected_rows, head_of, tally, unstacked

_STRAY = (
    "its counters do not add up to the rows given: the state was changed other than by update "
    "and merge, or devices that share one state split the batch without axis_name="
)
_NOTHING_COUNTED = (
    "no labelled batch was counted: keep what update returns, "
    "state = update(state, features, labels), and give the last one to report"
)
_MERGED = (
    "{} states that counted apart were merged: replicas, or devices whose update had no axis_name="
)
_NOTHING: Mapping[str, str] = MappingProxyType({})
_CAUSES = dict.fromkeys(("never_fired", "rows_missing", "rows_counted_twice"), _STRAY)


def report(
    state: State,
    head: Any = None,
    *,
    phase: Phase = "live",
    skipped: Mapping[str, str] | None = None,
) -> CollapseReport:
    """Measure every layer of a state.

    Parameters
    ----------
    state : State
        Also one with leading axes, see `to_moments`.
    head : nnx.Linear, mapping with "kernel" and "bias", pair (kernel, bias), or Head, optional
        The classifier that reads the last layer; a Flax kernel is (d, C). A kernel of one column is a
        single logit between two classes.
    phase : {"live", "frozen-train", "frozen-eval"}
        What was measured: the training stream, or a pass with frozen weights. A live stream was
        decided on by heads that are gone: give `update` the logits to have NC4 of it.
    skipped : mapping of str to str, optional
        Layers that are not watched, with the reason.

    Raises
    ------
    ValueError
        If a counter has come to its end, the head is not one, or a row is not finite under
        ``nonfinite="raise"``. Where no batch was counted, every value is NaN, and a warning says so.

    Examples
    --------
    >>> from collapsemeter_flax import init, update
    >>> import jax.numpy as jnp
    >>> state = update(init({"fc": 3}, num_classes=2), {"fc": jnp.eye(3)}, jnp.array([0, 1, 1]))
    >>> measured = report(state, head={"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)})
    >>> measured.phase, measured["fc"].provenance["rows"]
    ('live', 3)
    """
    return state_report(state, head, phase, Selection((), skipped=dict(skipped or {})))


def state_report(
    state: State,
    head: Any,
    phase: Phase,
    selection: Selection,
    unpaired: Mapping[str, str] = _NOTHING,
) -> CollapseReport:
    parts = unstacked(state)
    batches = sum(int(part.batches) for part in parts)
    notes = [] if batches else [_NOTHING_COUNTED]
    if len(parts) > 1:
        notes.append(_MERGED.format(len(parts)))
    names = state.spec.names
    classifier = None if head is None else head_of(head)
    last = None if classifier is None else names[-1]
    layers = names if last is None else names[:-1]
    return network_report(
        replace(selection, layers=(*layers, *unpaired), head=last),
        {(name, 0): partial(tally, parts, number) for number, name in enumerate(names)},
        state.spec.settings,
        phase=phase,
        framework=f"flax {flax.__version__} (jax {jax.__version__})",
        expected_rows=expected_rows(parts),
        batches=batches,
        head=classifier,
        causes=_CAUSES,
        unpaired=unpaired,
        warnings=tuple(notes),
    )
