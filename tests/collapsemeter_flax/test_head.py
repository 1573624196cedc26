"""Heads that score every position of which one is taken, and embeddings that make scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import collapsemeter_flax as cf
from collapsemeter import ClassMoments, Head, measure

RNG = np.random.default_rng(3)
IDS = RNG.integers(0, 12, (24, 5)).astype(np.int32)
LENGTHS = RNG.integers(1, 6, 24).astype(np.int32)
LABELS = np.arange(24) % 4


def batched(logits, lengths):
    return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]


PICKS = {
    "last": lambda logits, lengths: logits[:, -1],
    "first": lambda logits, lengths: logits[:, 0, :],
    "numbered": lambda logits, lengths: logits[jnp.arange(len(logits)), lengths - 1],
    "along an axis": batched,
    "dynamic": lambda logits, lengths: jax.lax.dynamic_index_in_dim(logits, 2, 1, keepdims=False),
    "mapped": lambda logits, lengths: jax.vmap(lambda rows, n: rows[n - 1])(logits, lengths),
}
PLACES = {"last": LENGTHS * 0 + 4, "first": LENGTHS * 0, "dynamic": LENGTHS * 0 + 2}


class Tokens(nn.Module):
    """A head of every token, of which a position is picked; ``tied`` scores tokens by their embedding."""

    pick: str
    tied: bool = False
    classes: int = 4

    @nn.compact
    def __call__(self, ids, lengths):
        words = nn.Embed(12, 6, name="words")
        x = nn.relu(nn.Dense(6, name="hidden")(words(ids)))
        x = nn.Dense(6, name="last")(x)
        logits = words.attend(x) if self.tied else nn.Dense(self.classes, name="fc")(x)
        return PICKS[self.pick](logits, lengths)


class NnxTokens(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(12, 6, rngs=rngs)
        self.last = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, ids, lengths):
        return PICKS["numbered"](self.words.attend(self.last(self.words(ids))), lengths)


def reported(model, live):
    """Return a report, and the features of every position before the head."""
    batch = (IDS, LENGTHS)
    if isinstance(model, nnx.Module):
        x, weights = model.last(model.words(IDS)), model
        variables, args = None, batch
    else:
        weights = variables = model.init(jax.random.key(0), *batch)
        args = (variables, *batch)
        _, seen = model.apply(variables, *batch, capture_intermediates=True)
        x = seen["intermediates"]["last"]["__call__"][0]
    meter = cf.CollapseMeter(model, verbose=False)
    if not live:
        return meter.observe([(batch, LABELS)], variables=variables, progress=False), x, weights
    state = meter.init(*args)

    @jax.jit
    def step(state, args):
        given = (model, *args) if variables is None else (model, variables, *args)
        scores, features = meter.capture(*given)
        return meter.update(state, features, LABELS, logits=scores)

    return meter.report(step(state, batch), weights), x, weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("pick", "live"), [*((pick, False) for pick in PICKS), ("last", True), ("numbered", True)]
)
def test_the_heads_features_are_those_of_the_position_that_made_the_scores(pick, live, tied):
    model = Tokens(pick, tied)
    report, x, variables = reported(model, live)
    name = "words.attend" if tied else "fc"
    params = variables["params"]
    kernel = params["words"]["embedding"].T if tied else params["fc"]["kernel"]
    bias = None if tied else np.asarray(params["fc"]["bias"])
    check(report[name], x, PLACES.get(pick, LENGTHS - 1), Head(np.asarray(kernel).T, bias))
    classes = 12 if tied else 4
    assert report.provenance["classes"] == classes


def check(layer, x, places, head):
    rows = np.asarray(x)[np.arange(24), places].astype(np.float64)
    due = measure(ClassMoments.from_batch(rows, LABELS, len(head.weight)), head=head)
    for metric in ("nc1_trace_ratio", "nc2_etf_error", "nc3_self_duality"):
        assert layer.get(metric) == pytest.approx(due.get(metric), rel=1e-4, nan_ok=True)
    scores = rows @ head.weight.T + (0 if head.bias is None else head.bias)
    means = np.stack([rows[c == LABELS].mean(axis=0) for c in range(4)])
    nearest = ((rows[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert layer["nc4_mismatch"] == (scores.argmax(axis=1) != nearest).mean()


@pytest.mark.parametrize("live", [False, True])
def test_an_embedding_of_nnx_makes_scores(live):
    model = NnxTokens(nnx.Rngs(0))
    report, x, _ = reported(model, live)
    head = Head(np.asarray(model.words.embedding[...]), None)
    check(report["words.attend"], x, LENGTHS - 1, head)


class OneScore(nn.Module):
    """One score of the last position; ``tail`` makes a probability of it."""

    tail: str = "none"

    @nn.compact
    def __call__(self, ids):
        x = nn.Dense(6, name="hidden")(nn.Embed(12, 6, name="words")(ids))
        score = nn.Dense(1, name="fc")(x)[:, -1]
        return nn.sigmoid(score) if self.tail == "sigmoid" else score[:, 0]


def test_one_score_of_a_position_decides_where_its_sigmoid_puts_it():
    for tail, head, threshold in (("none", "fc", 0.0), ("sigmoid", None, 0.5)):
        model = OneScore(tail)
        meter = cf.CollapseMeter(model, example=IDS, verbose=False)
        assert (meter.selection.head, meter.selection.threshold) == (head, threshold)


def test_positions_that_are_not_told_apart_leave_no_head():
    class Normalised(Tokens):
        @nn.compact
        def __call__(self, ids, lengths):
            return nn.log_softmax(super().__call__(ids, lengths))

    meter = cf.CollapseMeter(Normalised("last"), example=(IDS, LENGTHS), verbose=False)
    assert (meter.selection.head, meter.selection.no_head) == (None, "scores_are_not_the_heads")


def test_a_reduction_of_the_users_own_for_the_head_is_given_all_positions():
    model = Tokens("last")
    variables = model.init(jax.random.key(0), IDS, LENGTHS)
    shapes = []

    def mean(x):
        shapes.append(x.shape)
        return x.mean(axis=1)

    cf.observe(
        model,
        [((IDS, LENGTHS), LABELS)],
        variables=variables,
        progress=False,
        reduction={"fc": mean},
    )
    assert set(shapes) == {(24, 5, 6)}
