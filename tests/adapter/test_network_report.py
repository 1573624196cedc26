"""The report of every layer: what each saw is held against what was given."""

from __future__ import annotations

import numpy as np
import pytest

from collapsemeter.adapter.layer_report import CAUSE_CODES
from collapsemeter.adapter.network_report import network_report
from collapsemeter.adapter.selection import Selection
from collapsemeter.adapter.settings import Settings
from collapsemeter.adapter.tally import Tally, classifier
from collapsemeter.stats.sums import COUNTERS, Sums

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # each warning is in the report

SETTINGS = Settings(2)
WATCHED = Selection(("body",), "fc", skipped={"drop": "why"})
CAUSES = {code: f"cause of {code}" for code in CAUSE_CODES}


def tally(rows: int = 12, **counters: int) -> Tally:
    """What a layer says that saw so many rows of width 2, half of each class."""
    counts = np.array([rows // 2, rows - rows // 2])
    means = np.array([[1.0, 0.0], [0.0, 1.0]])
    sums = Sums(
        counts=counts,
        shift=means,
        sums=np.zeros((2, 2)),
        squares=np.full(2, 0.1),
        scatter=np.stack([0.05 * np.eye(2)] * 2),
        **{name: np.array(counters.get(name, 0)) for name in COUNTERS},
    )
    empty = np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return Tally(sums, "float32", *empty)


def report(tallies, rows=12, batches=1, settings=SETTINGS, selection=WATCHED, **options):
    return network_report(
        selection,
        {key: (lambda value=value: value) for key, value in tallies.items()},
        settings,
        phase="live",
        framework="toy 1",
        expected_rows=rows,
        batches=batches,
        head=None,
        causes=CAUSES,
        **options,
    )


def test_layers_that_saw_every_row_are_measured():
    measured = report({("body", 0): tally(), ("fc", 0): tally()}, provenance={"step": 3})
    assert list(measured) == ["body", "fc"]
    assert measured["fc"]["nc1_trace_ratio"] > 0
    assert measured.warnings == ()
    assert measured.provenance == {
        "framework": "toy 1",
        "classes": 2,
        "rows": 12,
        "batches": 1,
        "convention": "papyan2020",
        "step": 3,
    }


@pytest.mark.parametrize(
    ("seen", "code"), [(None, "never_fired"), (11, "rows_missing"), (13, "rows_counted_twice")]
)
def test_a_layer_that_saw_other_rows_is_not_measured(seen, code):
    tallies = {("fc", 0): tally()} | ({} if seen is None else {("body", 0): tally(seen)})
    measured = report(tallies)
    assert measured["body"].flags == (code,)
    assert np.isnan(measured["body"]["nc1_cdnv"])
    assert measured.warnings == (
        f"layer 'body' saw {seen or 0} of 12 label rows, so it is not measured: cause of {code}",
    )
    assert measured["fc"]["nc1_cdnv"] > 0


def test_rows_that_are_left_out_are_rows_that_were_seen():
    left_out = tally(9, ignored=1, invalid=1, nonfinite=1)
    measured = report({("body", 0): left_out, ("fc", 0): left_out})
    assert measured["fc"]["nc1_cdnv"] > 0
    assert [("got 1 labels that are none of" in text) for text in measured.warnings] == [True] * 2
    propagate = Settings(2, nonfinite="propagate")  # counted among its class
    measured = report({("fc", 0): tally(12, nonfinite=1)}, settings=propagate)
    assert "fc" not in " ".join(measured.warnings)


def test_rows_that_are_not_finite_raise_where_that_was_asked_for():
    with pytest.raises(ValueError, match="layer 'fc' gave 1 rows that hold NaN or Inf: pass"):
        report({("fc", 0): tally(11, nonfinite=1)}, settings=Settings(2, nonfinite="raise"))


def test_labels_of_which_most_name_several_classes_are_not_measured():
    measured = report({("body", 0): tally(4, mixed=8), ("fc", 0): tally()})
    assert measured["body"].flags == ("mixed_labels",)
    assert "8 of 12 labels name several classes" in measured.warnings[0]


def test_every_call_of_a_layer_has_its_name():
    calls = {("body", 1): tally(), ("body", 0): tally(11), ("fc", 0): tally()}
    measured = report(calls)
    assert list(measured) == ["body#0", "body#1", "fc"]
    assert measured["body#0"].flags == ("rows_missing",)
    assert "layer 'body#0' saw 11" in measured.warnings[0]


def test_rows_of_a_batch_that_was_cut_short_are_expected_of_the_layers_that_saw_them():
    tallies = {("body", 0): tally(14), ("fc", 0): tally()}
    measured = report(tallies, interrupted={("body", 0): 2})
    assert measured["body"]["nc1_cdnv"] > 0
    assert [text.partition(":")[0] for text in measured.warnings] == ["a batch was interrupted"]


def test_what_failed_is_said_and_not_looked_at():
    def untouched():
        raise AssertionError("a layer that failed is not copied")

    degraded = {"labels=": "ValueError: 7", "body": "MemoryError: no room"}
    with pytest.warns(RuntimeWarning, match="layer 'body' failed: MemoryError"):
        measured = network_report(
            WATCHED,
            {("body", 0): untouched, ("fc", 0): tally},
            SETTINGS,
            phase="live",
            framework="toy 1",
            expected_rows=12,
            batches=1,
            head=None,
            causes=CAUSES,
            degraded=degraded,
            warnings=["and this"],
        )
    assert measured["body"].flags == ("degraded",)
    assert measured.skipped == {"drop": "why"}
    assert measured.warnings == (
        "labels= failed and was left out: ValueError: 7",
        "and this",
        "layer 'body' failed: MemoryError: no room",
    )


def test_without_a_batch_no_layer_is_blamed():
    measured = report({("body", 0): tally()}, batches=0, rows=0, warnings=["no batch: why"])
    assert {layer.flags for layer in measured.values()} == {("never_fired",)}
    assert measured.warnings == ("no batch: why",)


def test_a_head_of_one_row_decides_between_two_classes():
    head = classifier(np.array([[1.0, -2.0]]), np.array([0.5]))
    rows = np.array([[3.0, 0.0], [0.0, 3.0]])
    assert head.weight.shape == (2, 2)
    assert (rows @ head.weight.T + head.bias).argmax(1).tolist() == [1, 0]
    assert not classifier(np.eye(2), None).bias.any()


def test_a_layer_that_no_rule_pairs_costs_one_layer():
    measured = report({("fc", 0): tally()}, unpaired={"body": "pass reduction={'body': ...}"})
    assert measured["body"].reason("nc1_pinv") == "unpaired_rows"
    assert measured["fc"]["nc1_trace_ratio"] > 0
    assert measured.warnings == ("layer 'body' is not measured: pass reduction={'body': ...}",)


def test_the_last_layer_says_why_no_head_makes_the_scores():
    headless = Selection(("stem", "body"), no_head="no_single_head")
    tallies = {("stem", 0): tally(), ("body", 0): tally()}
    measured = report(tallies, selection=headless)
    assert measured["stem"].reason("nc3_cosine") == "no_head"
    assert measured["body"].reason("nc3_cosine") == "no_single_head"
    assert "nc3_cosine" not in measured["body"]
