"""NC3 against the papers' formulas, exact cases, heads that cannot be measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.metrics.frames import simplex_etf

NC3 = ("nc3_self_duality", "nc3_etf_error", "nc3_cosine", "nc3_uniform", "nc3_bias")


def oracle(W, b, M, g) -> dict[str, float]:
    C = len(M)
    product = W @ M.T
    P = (np.eye(C) - np.ones((C, C)) / C) / math.sqrt(C - 1)
    cosines = [
        float(w @ row) / math.sqrt(float(w @ w) * float(row @ row))
        for w, row in zip(W, M, strict=True)
    ]
    average = sum(cosines) / C
    return {
        "nc3_self_duality": np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M)) ** 2,
        "nc3_etf_error": np.linalg.norm(product / np.linalg.norm(product) - P),
        "nc3_cosine": average,
        "nc3_uniform": sum((c - average) ** 2 for c in cosines) / (C - 1),
        "nc3_bias": np.linalg.norm(W @ g + b),
    }


@pytest.mark.parametrize("center_head", [False, True])
def test_self_duality(case, preset, center_head):
    g = case.features.sum(axis=0) / len(case.features)
    W = case.W - case.W.sum(axis=0) / case.C if center_head else case.W
    expected = oracle(W, case.b, case.M(preset), g)
    expected["nc3_bias"] = np.linalg.norm(case.W @ g + case.b)  # of the logits: never centred
    report = case.measure(convention=preset, center_head=center_head)
    # M is known by brute force to eps |mu|.
    error = (
        64
        * np.finfo(float).eps
        * np.abs(case.mu).max()
        / np.linalg.norm(case.M(preset), axis=1).min()
    )
    cosines = np.diagonal(report.matrices["head_means_cosine"])
    np.testing.assert_allclose(cosines.mean(), report["nc3_cosine"], rtol=1e-11, atol=error)
    trivial = ("nc3_etf_error", "nc3_uniform") if case.C == 2 and center_head else ()
    for name in trivial:
        assert report.reason(name) == "two_classes_trivial"
    for name in set(NC3) - set(trivial):
        np.testing.assert_allclose(
            report[name], expected[name], rtol=1e-11, atol=error, err_msg=name
        )


@pytest.mark.parametrize(("C", "d"), [(4, 8), (9, 8), (3, 5), (200, 200)])
def test_a_head_along_the_class_means_is_self_dual(C, d):
    frame = simplex_etf(C, d)
    rows, labels = np.repeat(2.5 * frame + 0.5, 2, axis=0), np.repeat(np.arange(C), 2)
    m = cm.ClassMoments.from_batch(rows, labels, C)
    report = cm.measure(m, head=cm.Head(0.3 * frame))
    assert 0 <= report["nc3_self_duality"] <= 1e-12
    assert 0 <= report["nc3_etf_error"] <= 1e-12
    assert abs(report["nc3_cosine"] - 1) <= 1e-12
    assert report["nc3_uniform"] <= 1e-24
    opposite = cm.measure(m, head=cm.Head(-frame))
    assert abs(opposite["nc3_self_duality"] - 4) <= 1e-12
    assert abs(opposite["nc3_etf_error"] - 2) <= 1e-12


def test_bias_collapse_is_exact():
    m = cm.ClassMoments.from_batch([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0]], [0, 0, 1], 2)
    head = cm.Head([[3.0, 0.0], [0.0, 3.0]], [-1.0, -4.0])
    np.testing.assert_allclose(
        cm.measure(m, head=head)["nc3_bias"], math.hypot(3.0, 4.0), rtol=1e-15
    )


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_invariances(seed, scale):
    rng = np.random.default_rng(seed)
    C, d = int(rng.integers(2, 6)), int(rng.integers(2, 8))
    labels = np.arange(4 * C) % C
    rows, W = rng.normal(size=(4 * C, d)), rng.normal(size=(C, d))
    turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
    order = rng.permutation(C)
    before = cm.measure(cm.ClassMoments.from_batch(rows, labels, C), head=cm.Head(W))
    turned = np.empty_like(W)
    turned[order] = W @ turn
    after = cm.measure(
        cm.ClassMoments.from_batch(scale * rows @ turn + 2.0, order[labels], C),
        head=cm.Head(turned / scale),
    )
    M = np.array([rows[labels == c].mean(axis=0) for c in range(C)])
    margin = np.linalg.norm(M - M.mean(axis=0), axis=1).min()
    product = W @ (M - M.mean(axis=0)).T
    margin = min(margin, 1.0) * min(np.linalg.norm(product), 1.0) * min(scale, 1.0)
    for name in NC3[:4]:
        np.testing.assert_allclose(
            after[name], before[name], rtol=0, atol=1e-12 / margin, err_msg=name
        )


def test_rotating_the_head_alone_is_seen(make_case):
    case = make_case("balanced")
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))
    turned = cm.measure(case.moments, head=cm.Head(case.W @ turn))
    assert turned["nc3_self_duality"] > case.measure()["nc3_self_duality"] + 0.5
    assert turned["nc3_cosine"] < case.measure()["nc3_cosine"] - 0.3


def test_zero_head_zero_rows_and_heads_with_nan_say_so(make_case):
    case = make_case("balanced")
    zero = cm.measure(case.moments, head=cm.Head(np.zeros_like(case.W), case.b))
    for name in NC3[:2]:
        assert zero.reason(name) == "zero_head"
    for name in NC3[2:4]:
        assert zero.reason(name) == "head_row_without_direction"
    np.testing.assert_allclose(zero["nc3_bias"], np.linalg.norm(case.b), rtol=1e-15)

    W = case.W.copy()
    W[1] = 0.0
    one = cm.measure(case.moments, head=cm.Head(W))
    assert one.reason("nc3_cosine") == one.reason("nc3_uniform") == "head_row_without_direction"
    assert one["nc3_self_duality"] > 0

    W[1] = np.nan
    for head in (cm.Head(W), cm.Head(case.W, [np.inf] * case.C)):
        report = cm.measure(case.moments, head=head)
        heads = [n for n in cm.METRICS if n.startswith("nc3") or n.endswith("_head")]
        for name in heads:
            assert np.isnan(report[name]), name
            assert report.reason(name) == "nonfinite_head", name
        assert report["nc1_pinv"] == case.measure()["nc1_pinv"]


def test_equal_head_rows_centred_are_zero(make_case):
    case = make_case("balanced")
    head = cm.Head(np.tile(case.W[0], (case.C, 1)))
    report = cm.measure(case.moments, head=head, center_head=True)
    assert report.reason("nc3_self_duality") == "zero_head"
    assert report.reason("nc3_cosine") == "head_row_without_direction"


def test_a_head_orthogonal_to_the_means_has_no_gram():
    moments = cm.ClassMoments.from_batch(np.eye(3, 6), [0, 1, 2], 3)
    report = cm.measure(moments, head=cm.Head(np.eye(3, 6)[:, ::-1]))
    assert report.reason("nc3_etf_error") == "head_orthogonal_to_means"
    zero = cm.measure(moments, head=cm.Head(np.zeros((3, 6))))
    assert zero.reason("nc3_etf_error") == zero.reason("nc3_self_duality") == "zero_head"


def test_head_rows_of_absent_classes_are_left_out(make_case):
    case = make_case("balanced")
    keep = case.labels != 2
    m = cm.ClassMoments.from_batch(case.features[keep], case.labels[keep], case.C)
    present = [0, 1, 3, 4]
    relabel = np.array([0, 1, -1, 2, 3])[case.labels[keep]]
    small = cm.ClassMoments.from_batch(case.features[keep], relabel, 4)
    a = cm.measure(m, head=cm.Head(case.W, case.b))
    b = cm.measure(small, head=cm.Head(case.W[present], case.b[present]))
    assert set(a) == set(b)
    for name in a:
        if name != "dnc3_sine":  # of the rows of a matrix, not of classes
            np.testing.assert_allclose(a[name], b[name], rtol=1e-12, err_msg=name)


def test_head_shapes_are_refused_in_words():
    with pytest.raises(
        ValueError, match=r"head weight has shape \(3,\) and bias \(3,\): expected \(C, d\)"
    ):
        cm.Head([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"shape \(2, 2\) and bias \(3,\)"):
        cm.Head(np.eye(2), np.zeros(3))


HEADS = {
    "head": lambda W, b: cm.Head(W, b),
    "weight": lambda W, b: W,
    "nested lists": lambda W, b: W.tolist(),
    "rows in a tuple": lambda W, b: tuple(map(tuple, W)),
    "pair": lambda W, b: (W, b),
    "pair without a bias": lambda W, b: (W, None),
    "float32": lambda W, b: (W.astype(np.float32), b.astype(np.float32)),
    "single logit": lambda W, b: cm.Head.from_single_logit(W[1] - W[0], b[1] - b[0]),
}


def binary():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = rng.normal(size=(40, 5)) + labels[:, None]
    moments = cm.ClassMoments.from_batch(rows, labels, 2)
    return moments, rows, labels, rng.normal(size=(2, 5)), rng.normal(size=2)


@pytest.mark.parametrize("form", HEADS)
def test_measure_and_decide_take_the_same_heads(form):
    moments, rows, labels, W, b = binary()
    head = HEADS[form](W, b)
    bias = 0 if form in ("weight", "nested lists", "rows in a tuple", "pair without a bias") else b
    decided = (rows @ W.T + bias).argmax(axis=1)
    decisions = cm.decide(moments, rows, labels, head=head)
    due = cm.decide(moments, rows, labels, predictions=decided)
    np.testing.assert_array_equal(decisions.agree, due.agree)
    report = cm.measure(moments, head=head, decisions=decisions)
    whole = head.weight if form == "single logit" else W
    expected = cm.measure(moments, head=cm.Head(whole))["nc3_cosine"]
    np.testing.assert_allclose(report["nc3_cosine"], expected, rtol=1e-6)


SINGLE = r"of a single logit pass Head\.from_single_logit\(weight, bias\)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda W: cm.Head(W[:1]),
            r"weight has shape \(1, 5\), the class means \(2, 5\): " + SINGLE,
        ),
        (lambda W: (W[:1], [0.5]), r"weight has shape \(1, 5\), .*" + SINGLE),
        (lambda W: W[:1].T, r"weight has shape \(5, 1\), the class means \(2, 5\): " + SINGLE),
        (lambda W: W[0], r"weight has shape \(5,\) .*" + SINGLE),
        (lambda W: W.T, r"shape \(5, 2\), the class means \(2, 5\): pass its transpose"),
        (lambda W: np.vstack([W, W]), r"shape \(4, 5\), the class means \(2, 5\)$"),
        (lambda W: np.eye(2, 6), r"shape \(2, 6\), the class means \(2, 5\)$"),
        (lambda W: (W, np.zeros(3)), r"shape \(2, 5\) and bias \(3,\)"),
        (
            lambda W: "fc",
            r"head is of type str \(.*\): pass Head\(weight, bias\), a weight \(C, d\) or",
        ),
        (lambda W: {"weight": W}, r"head is of type dict \(.*\): pass Head\(weight, bias\)"),
        (lambda W: object(), r"head is of type object \(.*\): pass Head\(weight, bias\)"),
    ],
)
def test_measure_and_decide_refuse_the_same_heads_in_the_same_words(make, message):
    """A head of one row used to decide on class 0 for every row."""
    moments, rows, labels, W, _ = binary()
    with pytest.raises(ValueError, match=message):
        cm.measure(moments, head=make(W))
    with pytest.raises(ValueError, match=message):
        cm.decide(moments, rows, labels, head=make(W))


def test_one_row_of_ten_classes_is_no_single_logit():
    rows, labels = np.random.default_rng(0).normal(size=(20, 5)), np.arange(20) % 10
    moments = cm.ClassMoments.from_batch(rows, labels, 10)
    with pytest.raises(ValueError, match=r"shape \(1, 5\), the class means \(10, 5\)$"):
        cm.decide(moments, rows, labels, head=np.ones((1, 5)))


def test_a_single_logit_decides_as_two():
    rng = np.random.default_rng(0)
    w, b, rows = rng.normal(size=(1, 5)), rng.normal(size=1), rng.normal(size=(40, 5))
    logits = cm.Head.from_single_logit(w, b).logits(rows)
    single = rows @ w[0] + b[0]
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], single, rtol=1e-12, atol=1e-14)
