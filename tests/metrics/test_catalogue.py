"""One catalogue: METRICS, what `measure` returns, the documents and the page say the same of every metric."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.cli import main
from collapsemeter.html import tables
from collapsemeter.metrics import measure as measure_module
from collapsemeter.metrics.catalogue import PAPERS, Need, Property, Unit
from collapsemeter.metrics.convention import SWITCHES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_the_documents_is_made_from_the_catalogue():
    spec = importlib.util.spec_from_file_location("render_metrics", DOCS / "render_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (DOCS / "metrics.md").read_text()
    assert module.rendered(page) == page, "run: python docs/render_metrics.py"
    for name, metric in cm.METRICS.items():
        assert f"| `{name}` | " + metric.formula.replace("|", "\\|") + " |" in page


def test_the_readme_names_and_counts_every_metric():
    text = (DOCS.parent / "README.md").read_text()
    assert [name for name in cm.METRICS if f"`{name}`" not in text] == []
    assert f"{len(cm.METRICS)} named metrics" in text


def test_the_html_page_has_every_metric_of_the_catalogue():
    rows = [[cell.text for cell in row] for row in tables.meanings().rows]
    assert [row[0] for row in rows] == list(cm.METRICS)
    for row in rows:
        metric = cm.METRICS[row[0]]
        assert {metric.meaning, metric.source} <= set(row)


@pytest.mark.parametrize("name", cm.METRICS)
def test_an_entry_is_whole(name):
    metric = cm.METRICS[name]
    assert metric.property in get_args(Property)
    assert metric.unit in get_args(Unit)
    assert metric.needs
    assert set(metric.needs) <= set(get_args(Need))
    assert metric.source in PAPERS
    assert metric.meaning
    assert metric.formula
    low, high = metric.range
    assert low < high
    assert metric.at_collapse is None or low <= metric.at_collapse <= high


def test_the_help_of_the_command_line_lists_the_catalogue(capsys):
    with pytest.raises(SystemExit):
        main(["show", "--help"])
    listed = set(capsys.readouterr().out.replace(",", " ").split())
    assert set(cm.METRICS) <= listed


def test_a_metric_is_the_function_of_its_name_in_the_file_of_its_property():
    for family, module in measure_module._FILES.items():
        names = [name for name, metric in cm.METRICS.items() if metric.property == family]
        assert names
        for name in names:
            assert getattr(module, name).__module__ == module.__name__
            assert getattr(module, name).__doc__


def test_papers_and_switches_are_those_in_use():
    assert set(PAPERS) == {metric.source for metric in cm.METRICS.values()}
    switches = {*cm.Convention.__dataclass_fields__, "center_head"}
    assert {switch.name for switch in SWITCHES} == switches


def test_measure_returns_the_metrics_of_the_catalogue_within_their_range(case, preset):
    rng = np.random.default_rng(0)
    layer = case.measure(convention=preset)
    incoming = rng.normal(size=(case.moments.width, 3))
    whole = cm.measure(case.moments, head=cm.Head(case.W, case.b), incoming=incoming)
    values = {**whole, **layer}
    assert set(values) == set(cm.METRICS)
    rounding = 1e-12
    for name, value in values.items():
        low, high = cm.METRICS[name].range
        assert math.isnan(value) or low - rounding <= value <= high + rounding, name


def test_what_a_metric_needs_is_what_it_is_absent_without(make_case):
    case = make_case("balanced")
    given = {
        "head": cm.Head(case.W, case.b),
        "decisions": cm.decide(case.moments, case.features, case.labels, head=cm.Head(case.W)),
        "weight": case.W,
        "incoming": case.W.T,
    }
    for need in given:
        # A head is a weight that the layer feeds.
        left_out = {need, "head"} if need == "weight" else {need}
        layer = cm.measure(case.moments, **{k: v for k, v in given.items() if k not in left_out})
        absent = {name for name in cm.METRICS if name not in layer}
        assert absent == {n for n, m in cm.METRICS.items() if left_out & set(m.needs)}, need
