"""Numbers, trends and counts in the words of the page."""

from __future__ import annotations

import math

import numpy as np
import pytest

from collapsemeter import CollapseReport, Criteria, LayerReport
from collapsemeter.html.class_tables import counts_in_words
from collapsemeter.html.tables import layer_origins, metric_value, number
from collapsemeter.html.verdicts import bands, cards


@pytest.mark.parametrize(
    ("value", "words"), [(0.000411, "0.000411"), (1234.0, "1.23e+03"), (math.nan, "–"), (1234, "1234")]
)  # fmt: skip
def test_a_number_has_three_digits(value: float, words: str) -> None:
    assert number(value) == words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("nc4_mismatch", 0.0213, "2.13 %"),
        ("ncc_accuracy", 1.0, "100.00 %"),
        ("nc4_agreement", math.nan, "–"),
        ("nc1_pinv", 0.0213, "0.0213"),
    ],
)
def test_shares_of_rows_are_in_percent(name: str, value: float, words: str) -> None:
    assert metric_value(name, value) == words


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2.0, 0.5, 1.0], ["▼ fell 2.0 times since epoch 0, from 2", "lowest at epoch 1: 0.5"]),
        ([1.0, 0.8], ["▼ fell 1.25 times since epoch 0, from 1"]),
        ([1.0, 2.0**-12], ["▼ fell 4096 times since epoch 0, from 1"]),
        ([1.0, 2.0**-30], ["▼ fell 1.1e+09 times since epoch 0, from 1"]),
        ([1.0, 0.0], ["▼ fell to 0 since epoch 0, from 1"]),
        ([0.25, 1.0], ["▲ rose 4.0 times since epoch 0, from 0.25"]),
        ([0.0, 1.0], ["▲ rose since epoch 0, from 0"]),
        ([1.0, 0.5, 0.5, 1.0], ["= unchanged since epoch 0", "lowest at epoch 2: 0.5"]),
        ([math.nan, 2.0, math.nan, 1.0], ["▼ fell 2.0 times since epoch 1, from 2"]),
        ([1.0], []),
        ([math.nan, 1.0], []),
    ],
)
def test_a_trend_says_how_far_since_when_and_where_the_lowest_was(
    values: list[float], words: list[str]
) -> None:
    layers = [LayerReport({"nc1_trace_ratio": value}) for value in values]
    history = [(step, CollapseReport({"fc": layer})) for step, layer in enumerate(layers)]
    (card, *_) = cards(history, Criteria())
    assert list(card.notes[2:]) == words


def test_bands_have_the_edges_of_the_criteria() -> None:
    assert bands(Criteria(collapsed=0.02)) == [
        ("●", "collapsed: at most 2 %"),
        ("◕", "nearly collapsed: at most 10 %"),
        ("◑", "partly collapsed: at most 50 %"),
        ("○", "not collapsed: above"),
        ("–", "not judged"),
    ]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([3, 0, 5], "rows per class: 3 to 5, median 4; 1 of 3 classes without rows"),
        ([1000, 1000], "1,000 rows per class"),
        ([0, 0], ""),
        ([], ""),
    ],
)
def test_rows_per_class_are_counted(counts: list[int], words: str) -> None:
    assert counts_in_words({"count": np.array(counts, np.int64)}) == words


def test_the_origins_of_layers_are_a_table_of_what_is_known() -> None:
    first = LayerReport({}, provenance={"rows": 1234567, "nc4_sampled": True, "scatter": None})
    second = LayerReport({}, provenance={"rows": 2, "between_rank": 3})
    table = layer_origins(CollapseReport({"a": first, "b": second}))
    assert table is not None
    assert table.columns == ("layer", "rows", "scatter", "between rank", "nc4 sampled")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a", "1,234,567", "–", "–", "yes"],
        ["b", "2", "–", "3", "–"],
    ]
    assert layer_origins(CollapseReport({"a": LayerReport({})})) is None
