"""The lines a result begins with: rows, classes, shards, files, and what a head would add."""

from __future__ import annotations

import math

import pytest

from collapsemeter import CollapseReport, LayerReport
from collapsemeter.report.origin import AUDIT, origin

FILES = [{"path": f"acts/{name}.npz"} for name in "abcd"]
HINT = "; pass --head FILE, with weight (C, d) and bias (C,), to collapsemeter audit"


@pytest.mark.parametrize(
    ("provenance", "lines"),
    [
        ({}, []),
        ({"rows": "many", "classes": 4}, []),
        ({"rows": 1}, ["1 row"]),
        ({"rows": 4000, "classes": 4}, ["4,000 rows of 4 classes"]),
        (
            {"rows": 400, "classes": 1, "shards": 2, "files": FILES[:2]},
            ["400 rows of 1 class in 2 shards, from 2 files: a.npz, b.npz"],
        ),
        (
            {"rows": 400, "shards": 4, "files": FILES},
            ["400 rows in 4 shards, from 4 files: a.npz, b.npz, c.npz and 1 more"],
        ),
    ],
)
def test_what_is_recorded_is_said(provenance, lines):
    assert origin(CollapseReport({}, provenance=provenance)) == lines


def test_the_final_layer_says_what_the_report_does_not():
    layer = LayerReport({}, provenance={"rows": 7, "classes": 3})
    assert origin(CollapseReport({"fc": layer})) == ["7 rows of 3 classes"]


@pytest.mark.parametrize(
    ("values", "head_layer", "lines"),
    [
        ({"nc4_agreement": math.nan}, None, [f"no head: NC3 and NC4 are not measured{HINT}"]),
        ({"nc4_agreement": 0.5}, None, [f"no head: NC3 is not measured{HINT}"]),
        ({}, "fc", []),
    ],
)
def test_an_audit_without_a_head_says_what_it_would_add(values, head_layer, lines):
    about = {"framework": AUDIT, "head_layer": head_layer}
    assert origin(CollapseReport({"fc": LayerReport(values)}, provenance=about)) == lines
