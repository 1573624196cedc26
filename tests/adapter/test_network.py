"""Where the scores are in what a model returns."""

from __future__ import annotations

import dataclasses
from collections import namedtuple

import numpy as np
import pytest

from collapsemeter.adapter.network import find_scores, single_threshold

SCORES, FEATURES, LOSS = np.zeros((4, 10)), np.zeros((4, 512)), np.zeros(())
Outputs = namedtuple("Outputs", "logits aux")


@dataclasses.dataclass
class Output:
    hidden: np.ndarray
    prediction: np.ndarray


def found(output, asked="auto", num_classes=None):
    scores, place = find_scores(
        output, asked, is_tensor=lambda x: isinstance(x, np.ndarray), num_classes=num_classes
    )
    assert scores is SCORES
    return place


def test_scores_that_are_the_only_ones_need_no_name():
    assert found(SCORES) == "the output"
    assert found({"loss": LOSS, "logits": SCORES, "hidden": FEATURES}) == "output['logits']"
    assert found(Outputs(SCORES, FEATURES)) == "output.logits"
    assert found((SCORES, FEATURES), num_classes=10) == "output[0]"
    assert found((LOSS, SCORES)) == "output[1]"
    assert found(Output(FEATURES, SCORES), num_classes=10) == "output.prediction"


def test_scores_are_chosen_by_key_index_or_callable():
    assert found({"a": SCORES, "b": FEATURES}, "a") == "output['a']"
    assert found((FEATURES, SCORES), 1) == "output[1]"
    assert found(Output(FEATURES, SCORES), "prediction") == "output.prediction"
    assert found({"a": [SCORES]}, lambda output: output["a"][0]) == "what scores= returns"


def test_where_two_could_be_meant_the_error_asks():
    with pytest.raises(
        ValueError, match=r"tuple with 0 \(4, 10\), 1 \(4, 10\), of which several .*scores="
    ):
        found((SCORES, SCORES), num_classes=10)
    with pytest.raises(ValueError, match="of which several may be the scores: pass scores="):
        found({"a": SCORES, "b": FEATURES})
    with pytest.raises(ValueError, match="none of which fits the scores of 7 classes"):
        found((SCORES, FEATURES), num_classes=7)
    with pytest.raises(ValueError, match="a NoneType without a tensor of scores: pass scores="):
        found(None)
    for key in ("logits", 0):  # the first entry of a tensor is a row
        with pytest.raises(ValueError, match="the model returned one tensor, which is the scores"):
            found(SCORES, key)
    with pytest.raises(ValueError, match="scores='c': the model returned a dict with 'a'"):
        found({"a": SCORES}, "c")
    with pytest.raises(ValueError, match=r"output\['a'\] is a list: scores= must give"):
        found({"a": [SCORES]}, "a")


@pytest.mark.parametrize(
    ("score", "threshold"),
    [
        (lambda logit: 3 * logit - 7, 0.0),
        (lambda logit: -1e-6 * logit, 0.0),
        (lambda logit: 0.0, 0.0),
        (lambda logit: 1 / (1 + np.exp(-logit)), 0.5),
        (lambda logit: np.clip(logit / 6 + 0.5, 0, 1), 0.5),
        (lambda logit: 1 / (1 + np.exp(logit)), 0.5),
        (np.tanh, 0.0),
    ],
)
def test_a_single_score_decides_at_what_becomes_of_a_logit_of_zero(score, threshold):
    assert single_threshold(score) == threshold
