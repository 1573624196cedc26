"""What counting costs, and the `every` that brings it under five per cent."""

from __future__ import annotations

import pytest

from collapsemeter.adapter.costs import product_operations, products_note
from collapsemeter.adapter.memory import Holding


def test_scatters_are_products_and_sketches_and_traces_are_none():
    layers = [(8, Holding(kind, 1)) for kind in ("class", "pooled", "sketch", "trace")]
    product = 2 * 5 * 8 * 8
    assert product_operations(layers, 5) == 2 * product
    assert product_operations(layers, 5, class_products=10) == 11 * product


@pytest.mark.parametrize(
    ("products", "said"),
    [
        (150, "time: products X'X are 5 % of a step's operations"),
        (
            160,
            "time: products X'X are 5.3 % of a step's operations; every=2 brings them under 5 %",
        ),
        (3000, "time: products X'X are 100 % of a step's operations; every=20 brings"),
    ],
)
def test_what_is_said(products, said):
    assert products_note(1000, products, "every={}").startswith(said)


def test_nothing_is_said_of_what_is_not_known():
    assert products_note(0, 1, "every={}") == products_note(1, 0, "every={}") == ""
