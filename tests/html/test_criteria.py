"""A page judges by one set of criteria: its own, which are those of the comparison on it."""

from __future__ import annotations

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.html import render


@pytest.mark.usefixtures("undrawn")
def test_other_bands_change_the_page_and_it_says_one_thing() -> None:
    rng, labels = np.random.default_rng(0), np.arange(120) % 6
    etf = cm.simplex_etf(6, 32)
    rows = etf[labels] + 0.03 * rng.standard_normal((120, 32))
    report = cm.CollapseReport({"fc": cm.measure(cm.ClassMoments.from_batch(rows, labels, 6))})
    best = cm.dufm.DUFM(6, 20, 1, feature_decay=1e-4, weight_decay=1e-4).optimum()
    loose = cm.Criteria(collapsed=0.3, nearly=0.4)
    comparison = cm.compare(report, best, criteria=loose)
    page = render([(0, report)], comparison=comparison)
    assert "collapsed: at most 30 %, " in page
    assert report.summary(loose) in page
    assert report.summary() not in page
    assert report.summary() in render([(0, report)])
    with pytest.raises(
        ValueError, match=r"but the comparison was made with Criteria\(collapsed=0\.3"
    ):
        render([(0, report)], comparison=comparison, criteria=cm.Criteria())
