"""Where a single score decides: at 0 for a logit, at 1/2 behind a sigmoid, wherever that stands."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from collapsemeter.adapter.network import single_threshold

from .graph import SAME, SHAPES, Graph
from .ordering import SELECTS


def threshold(graph: Graph, logits: Sequence[int], scores: int) -> float:
    """Return above which a single score decides for class 1.

    It is 0, too, where what follows the logits cannot be computed without the network's inputs or weights.
    """
    logits = _with_parts(graph, logits)

    def score(logit: float) -> float:
        given = {n: jnp.full(graph[n].shape, logit, graph[n].dtype) for n in logits}
        return float(jnp.ravel(graph.evaluated(scores, given))[0])

    if not logits:
        return 0.0
    try:
        with jax.ensure_compile_time_eval():
            return single_threshold(score)
    except (AttributeError, KeyError):  # an input or a weight has no value here
        return 0.0


def _with_parts(graph: Graph, logits: Sequence[int]) -> list[int]:
    """Return the logits and what holds some of them: at which positions may depend on the inputs."""
    parts = set(logits)
    for number, value in enumerate(graph.values):
        if value.operation in SAME | SHAPES | SELECTS and value.inputs[0] in parts:
            parts.add(number)
    return sorted(parts)
