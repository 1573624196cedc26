"""Symmetric products, summed in one triangle."""

from __future__ import annotations

import numpy as np
import pytest

from collapsemeter.stats.symmetric import add_product, mirrored

EPS = 2.0**-52


@pytest.mark.parametrize("weight", [1.0, -2.5])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 3), (3, 64), (40, 65), (5, 200)])
def test_the_lower_triangle_is_the_sum_of_products_in_the_notation_of_the_formula(shape, weight):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(shape)
    start = rng.standard_normal((shape[1], shape[1]))
    total = start.copy()
    add_product(total, rows, weight)
    expected, size = start.astype(np.longdouble), np.abs(start)
    for row in rows.astype(np.longdouble):
        expected = expected + weight * np.outer(row, row)
        size = size + abs(weight) * np.abs(np.outer(row, row)).astype(float)
    lower = np.tril_indices(shape[1])
    # Each of N + 1 terms is rounded once as a product and once as a sum.
    assert (np.abs(total - expected)[lower] <= 2 * (len(rows) + 1) * EPS * size[lower]).all()
    np.testing.assert_array_equal(np.triu(total, 1), np.triu(start, 1))  # nobody reads it


@pytest.mark.parametrize("shape", [(1, 1), (63, 63), (64, 64), (65, 65), (150, 150), (2, 70, 70)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_upper_triangle_is_copied_exactly_and_what_was_there_is_not_read(shape, order, dtype):
    given = np.random.default_rng(0).standard_normal(shape).astype(dtype, order=order)
    given[..., *np.triu_indices(shape[-1], 1)] = np.nan
    kept = given.copy()
    whole = mirrored(given)
    lower = np.where(np.isnan(given), 0, given)
    strict = lower * (1 - np.eye(shape[-1]))
    assert whole.dtype == np.float64
    np.testing.assert_array_equal(whole, lower + np.swapaxes(strict, -2, -1))
    np.testing.assert_array_equal(given, kept)
