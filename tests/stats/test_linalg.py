"""Symmetric products, summed in one triangle and mirrored."""

from __future__ import annotations

import numpy as np
import pytest

from collapsemeter.stats import arithmetic, linalg
from collapsemeter.stats.linalg import add_product, mirror
from collapsemeter.stats.moments import ClassMoments

EPS = 2.0**-52


@pytest.mark.parametrize("whole_product", [2048, 50])
@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 3), (3, 64), (40, 65), (5, 200)])
def test_the_lower_triangle_is_the_sum_of_products_in_the_notation_of_the_formula(
    shape, minus, whole_product, monkeypatch
):
    monkeypatch.setattr(linalg, "WHOLE_PRODUCT", whole_product)
    monkeypatch.setattr(linalg, "PRODUCT_COLUMNS", 30)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal(shape)
    total = rng.standard_normal((shape[1], shape[1]))
    expected, size = total.astype(np.longdouble), np.abs(total)
    for row in rows.astype(np.longdouble):
        expected = expected + (-1 if minus else 1) * np.outer(row, row)
        size = size + np.abs(np.outer(row, row)).astype(float)
    add_product(total, rows, minus=minus)
    lower = np.tril_indices(shape[1])
    # Each of N + 1 terms is rounded once as a product and once as a sum.
    assert (np.abs(total - expected)[lower] <= 2 * (len(rows) + 1) * EPS * size[lower]).all()


@pytest.mark.parametrize("shape", [(1, 1), (63, 63), (64, 64), (65, 65), (150, 150), (2, 70, 70)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_upper_triangle_is_copied_exactly_and_what_was_there_is_not_read(shape, order):
    whole = np.random.default_rng(0).standard_normal(shape).astype(float, order=order)
    whole[..., *np.triu_indices(shape[-1], 1)] = np.nan
    lower = np.where(np.isnan(whole), 0, whole)
    strict = lower * (1 - np.eye(shape[-1]))
    mirror(whole)
    np.testing.assert_array_equal(whole, lower + np.swapaxes(strict, -2, -1))


def test_wide_pooled_scatters_merge_to_a_symmetric_one(monkeypatch):
    """Of wide products one triangle is summed, so it has to be mirrored after a merge."""
    for module in (linalg, arithmetic):
        monkeypatch.setattr(module, "WHOLE_PRODUCT", 8)
    monkeypatch.setattr(linalg, "PRODUCT_COLUMNS", 3)
    rows = np.random.default_rng(0).standard_normal((40, 11))
    labels = np.arange(40) % 2
    parts = [slice(0, 13), slice(13, 40)]
    merged = ClassMoments.merge_all(
        ClassMoments.from_batch(rows[part], labels[part], 2, scatter="pooled") for part in parts
    )
    residuals = rows - np.stack([rows[labels == c].mean(axis=0) for c in (0, 1)])[labels]
    np.testing.assert_array_equal(merged.scatter, merged.scatter.T)
    np.testing.assert_allclose(merged.scatter, residuals.T @ residuals, rtol=0, atol=1e-12)
