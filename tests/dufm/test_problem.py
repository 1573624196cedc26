"""The problem: what it accepts, and what it says to the rest."""

import re
import subprocess
import sys

import numpy as np
import pytest

from collapsemeter.dufm import DUFM
from collapsemeter.dufm.registry import CLOSED_FORMS, closed_form

GOOD = {"num_classes": 3, "per_class": 4, "depth": 2, "feature_decay": 0.1, "weight_decay": 0.2}


def build(**changes):
    return DUFM(**{**GOOD, **changes})


def test_single_values_serve_all_classes_and_layers():
    problem = build(widths=7)
    assert problem.per_class == (4, 4, 4)
    assert problem.layer_widths == (7, 7)
    assert problem.decays == (0.2, 0.2)
    assert problem.num_samples == 12
    assert problem.balanced


def test_default_widths_leave_room():
    assert build().layer_widths == (32, 32)
    assert build(num_classes=20).layer_widths == (80, 80)


def test_arrays_and_lists_are_the_same_problem():
    single = build(per_class=[1, 2, 3], weight_decay=[0.1, 0.2])
    two = build(per_class=np.array([1, 2, 3]), weight_decay=np.array([0.1, 0.2]))
    assert single == two
    assert hash(single) == hash(two)
    assert not single.balanced


def test_canonical_decay_is_the_geometric_mean_of_all_decays():
    problem = build(per_class=[1, 2, 6], weight_decay=[0.3, 0.7], feature_decay=0.11)
    expected = (3 * 0.11 * 0.3 * 0.7) ** (1 / 3)
    np.testing.assert_allclose(problem.canonical_decay, expected, rtol=1e-15)


def test_one_layer_has_no_relu():
    assert not build(depth=1).rectified
    assert build().rectified
    assert not build(activation="linear").rectified


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1: a classification has two"),
        ({"num_classes": 2.5}, "num_classes must be an integer, got 2.5"),
        ({"depth": 0}, "depth must be at least 1, got 0: count the weight matrices."),
        ({"per_class": 0}, "per_class of class 0 must be at least 1, got 0: leave empty classes"),
        ({"per_class": [1, 2]}, "per_class must be one value or 3, one per class, got 2: [1, 2];"),
        ({"widths": [5]}, "widths must be one value or 2, one per layer, got 1: [5]; pass 2."),
        ({"widths": [5, 0]}, "width of layer 2 must be at least 1, got 0: pass a dimension."),
        ({"weight_decay": [1.0] * 3}, "weight_decay must be one value or 2, one per layer, got 3"),
        ({"weight_decay": -0.1}, "weight_decay of layer 1 must be positive and finite, got -0.1"),
        (
            {"weight_decay": [0.1, 0.0]},
            "weight_decay of layer 2 must be positive and finite, got 0",
        ),
        ({"feature_decay": -1.0}, "feature_decay must be positive and finite, got -1.0: without"),
        ({"feature_decay": float("nan")}, "feature_decay must be positive and finite, got nan"),
        ({"loss": "hinge"}, "unknown loss 'hinge': pass one of mse, ce."),
        ({"activation": "gelu"}, "unknown activation 'gelu': pass one of relu, linear."),
        ({"bias": True, "bias_decay": -1.0}, "bias_decay must not be negative, got -1.0: pass 0"),
        ({"bias_decay": 0.5}, "bias_decay 0.5 was given without a bias: pass bias=True as well."),
    ],
)
def test_bad_problems_get_one_sentence(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


def test_closed_forms_are_registered_whatever_is_imported_first():
    code = (
        "from collapsemeter.dufm.closed.blocks import Block\n"
        "from collapsemeter.dufm.model import DUFM\n"
        "from collapsemeter.dufm.registry import CLOSED_FORMS\n"
        "print(*(form.name for form in CLOSED_FORMS))\n"
        "print(DUFM(2, 1, 2, feature_decay=0.01, weight_decay=0.01).optimum().name)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, best = run.stdout.splitlines()
    assert best == "dnc"
    assert names.split() == [form.name for form in CLOSED_FORMS]
    assert len({form.place for form in CLOSED_FORMS}) == len(CLOSED_FORMS)


def test_a_closed_form_takes_its_place_in_the_list(monkeypatch):
    listed = list(CLOSED_FORMS)
    monkeypatch.setattr("collapsemeter.dufm.registry.CLOSED_FORMS", list(listed))

    @closed_form("last resort", place=0)
    def nothing(problem):
        return []

    from collapsemeter.dufm import registry as module

    assert [form.name for form in module.CLOSED_FORMS] == ["nothing", *(f.name for f in listed)]
    # Of equal losses and statuses the form of the lower place comes first.
    alike = [r.name for r in build(depth=1).references() if r.status == "theorem"]
    assert alike == ["ufm_mse", "dnc"]
