"""Heads that score every position of which one is taken, and embeddings that make scores."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from collapsemeter import ClassMoments, Head, measure
from collapsemeter_keras import CollapseMeter

from .networks import EAGER, frozen

RNG = np.random.default_rng(4)
IDS = RNG.integers(0, 12, (24, 5)).astype("int32")
LABELS = np.arange(24) % 4


class Tied(layers.Layer):
    """An embedding as people write theirs: its table makes the scores, too."""

    def build(self, shape):
        self.table = self.add_weight(shape=(12, 6), name="table")

    def call(self, x, reverse=False):
        return (
            ops.matmul(x, ops.transpose(self.table)) if reverse else ops.take(self.table, x, axis=0)
        )

    def compute_output_spec(self, x, reverse=False):
        return keras.KerasTensor((*x.shape[:-1], 12) if reverse else (*x.shape, 6))


PICKS = {"last": lambda x: x[:, -1], "first": lambda x: x[:, 0, :], "third": lambda x: x[:, 2]}
PLACES = {"last": 4, "first": 0, "third": 2}


def fc(x):
    return layers.Dense(4, name="fc")(x)


def network(kind, pick, length=None):
    """Return a functional network of words, and a function that gives its head's table (C, d)."""
    inputs = keras.Input((length,), dtype="int32")
    if kind == "dense":
        words = layers.Embedding(12, 6, name="words")
    elif kind == "own":
        words = Tied(name="words")
    else:
        tied = kind == "reversible"
        words = layers.ReversibleEmbedding(12, 6, tie_weights=tied, name="words")
    x = layers.Dense(6, "relu", name="hidden")(words(inputs))
    x = layers.Dense(6, name="last")(x)
    scores = PICKS[pick](fc(x) if kind == "dense" else words(x, reverse=True))
    model = frozen(keras.Model(inputs, scores), run_eagerly=EAGER)
    if kind == "dense":
        return model, lambda: model.get_layer("fc").kernel
    if kind == "own":
        return model, lambda: ops.transpose(words.table)
    return (
        model,
        lambda: (
            ops.transpose(words.embeddings) if kind == "reversible" else words.reverse_embeddings
        ),
    )


@pytest.mark.parametrize(
    ("kind", "pick", "length"),
    [
        ("dense", "last", None),
        ("dense", "first", 5),
        ("dense", "third", 5),
        ("reversible", "last", None),
        ("untied", "first", None),
        ("own", "last", 5),
    ],
)
def test_the_heads_features_are_those_of_the_position_that_made_the_scores(kind, pick, length):
    keras.utils.set_random_seed(2)
    model, kernel = network(kind, pick, length)
    meter = CollapseMeter(verbose=False, strict=True)
    model.evaluate(IDS, LABELS, verbose=0, callbacks=[meter])
    report = meter.compute("validation")
    name = "fc" if kind == "dense" else "words"
    assert meter.selection.watched == ["hidden", name]
    inner = keras.Model(model.inputs, model.get_layer("last").output)
    rows = inner.predict(IDS, verbose=0)[:, PLACES[pick]].astype(np.float64)
    table = ops.convert_to_numpy(kernel()).astype(np.float64).T
    due = measure(ClassMoments.from_batch(rows, LABELS, len(table)), head=Head(table, None))
    for metric in ("nc1_trace_ratio", "nc2_etf_error", "nc3_self_duality"):
        found = report[name].get(metric)
        assert found == pytest.approx(due.get(metric), rel=1e-4, nan_ok=True)
    means = np.stack([rows[c == LABELS].mean(axis=0) for c in range(4)])
    nearest = ((rows[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    decided = model.predict(IDS, verbose=0).argmax(axis=1)
    assert report[name]["nc4_mismatch"] == (decided != nearest).mean()


def test_an_average_over_positions_takes_none_of_them():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Dense(6, name="last")(layers.Embedding(12, 6)(inputs))
    model = frozen(keras.Model(inputs, layers.GlobalAveragePooling1D()(fc(x))), run_eagerly=EAGER)
    meter = CollapseMeter(verbose=False, strict=True)
    model.evaluate(IDS, LABELS, verbose=0, callbacks=[meter])
    assert meter.selection.head == "fc"
    assert meter._attachment.settings.reduction == "auto"


def test_words_that_are_looked_up_in_a_table_as_wide_as_the_classes_have_no_head():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(12, 4, name="words")(inputs)
    model = frozen(keras.Model(inputs, layers.GlobalAveragePooling1D()(x)), run_eagerly=EAGER)
    meter = CollapseMeter(["words"], verbose=False, strict=True)
    meter.set_model(model)
    assert meter.selection.head is None
