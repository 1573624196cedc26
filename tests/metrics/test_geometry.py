"""Frames, pairs and the geometry that the metrics share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collapsemeter as cm
from collapsemeter.metrics import pairs
from collapsemeter.metrics.frames import centred_rows, largest_norm, simplex_etf, unit_rows
from collapsemeter.metrics.geometry import ClassGeometry
from collapsemeter.stats.undefined import REASONS, Undefined

EPS = float(np.finfo(float).eps)


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-170, 1e-101, 0.5, 1.0, 1e150])
def test_the_largest_norm_also_where_its_square_leaves_float64(scale):
    frame = scale * np.array([[3.0, 4.0], [0.0, -1.0]])
    assert largest_norm(frame) == pytest.approx(5 * scale, rel=4 * EPS, abs=0)


@pytest.mark.parametrize(("C", "d"), [(2, 1), (2, 5), (3, 2), (10, 64), (11, 10), (200, 199)])
def test_simplex_etf(C, d):
    frame = simplex_etf(C, d)
    assert frame.shape == (C, d)
    expected = (C * np.eye(C) - 1) / (C - 1)
    np.testing.assert_allclose(frame @ frame.T, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(frame.sum(axis=0), 0, atol=1e-13)


@pytest.mark.parametrize(("C", "d"), [(4, 2), (1, 5), (0, 5)])
def test_a_simplex_that_does_not_exist(C, d):
    with pytest.raises(
        ValueError, match=f"a simplex ETF of {C} classes in {d} dimensions does not exist"
    ):
        simplex_etf(C, d)


def test_unit_and_centred_rows():
    np.testing.assert_allclose(
        np.linalg.norm(unit_rows(np.diag([1e-9, 1.0]), "zero_head"), axis=1), 1
    )
    for frame in (np.diag([1.0, 0.0]), np.diag([1.0, 1e-16]), np.zeros((2, 2))):
        with pytest.raises(Undefined) as caught:
            unit_rows(frame, "zero_head")
        assert caught.value.code == "zero_head"
        assert str(caught.value) == REASONS["zero_head"]
    np.testing.assert_array_equal(centred_rows(np.full((7, 3), 0.1)), 0)
    # Two rows k units in the last place from their mean: up to 16 eps are round-off.
    for k, kept in ((1, False), (15, False), (16.5, True), (40, True)):
        assert bool(centred_rows(np.array([[1.0], [1 + 2 * k * EPS]])).any()) == kept, k
    np.testing.assert_allclose(centred_rows(np.array([[1.0], [3.0]])), [[-1], [1]])


def exact(values):
    """As a matrix of numbers with eleven bits more, so that differences keep their digits."""
    return np.asarray(values).astype(np.longdouble)


@given(seed=st.integers(0, 10**6), gap=st.integers(-9, 0), tile=st.sampled_from([3, 2048]))
def test_pairs_near_coincidence(seed, gap, tile):
    """Distances of rows that nearly coincide keep their digits, in every tile and whatever the norms."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(3, 5))[rng.integers(0, 3, 8)] + 10.0**gap * rng.normal(size=(8, 5))
    means[0] = 0.0
    variances = rng.uniform(size=8)
    a, b = np.triu_indices(8, 1)
    squares = ((exact(means)[a] - exact(means)[b]) ** 2).sum(axis=1)
    ratio = ((variances[a] + variances[b]) / (2 * squares)).mean()
    units = means[1:] / np.linalg.norm(means[1:], axis=1, keepdims=True)
    c, e = np.triu_indices(7, 1)
    logs = -0.5 * np.log(((exact(units)[c] - exact(units)[e]) ** 2).sum(axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "TILE", tile)
        found = pairs.pair_statistics(means, variances, 0.0).variance_ratio
        statistics = pairs.pair_statistics(units, variances[1:], 0.0)
    # Cosines are kept where 1 - cos is 1e-6 or more: d eps / 1e-6 of the squared distance.
    error = 8 * 5 * EPS / 1e-6
    np.testing.assert_allclose(found, float(ratio), rtol=error)
    np.testing.assert_allclose(statistics.log_mean, float(logs.mean()), rtol=error, atol=error)
    np.testing.assert_allclose(
        statistics.log_variance, float(logs.var()), rtol=error, atol=error * float(logs.std())
    )


@pytest.mark.parametrize("tile", [1, 2, 2048])
@pytest.mark.parametrize(
    ("gap", "resolution", "coincide"),
    [(0.0, 0.0, True), (1e-7, 1.001e-7, True), (1e-7, 0.999e-7, False)],
)
def test_points_up_to_the_resolution_apart_coincide(tile, gap, resolution, coincide, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", tile)
    means = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [gap, 1.0]])
    statistics = pairs.pair_statistics(means, np.full(4, 3.0), resolution, resolution)
    # The near pair is all of the mean, but for 1e-14 of it: (3 + 3) / (2 gap^2) of six pairs.
    due = math.inf if coincide else 1 / 2 / gap**2
    np.testing.assert_allclose(statistics.variance_ratio, due, rtol=1e-12)
    assert math.isinf(statistics.log_mean) == math.isinf(statistics.log_variance) == coincide


def test_far_points_beside_a_coarse_resolution():
    """The angle alone cannot tell that a short and a long mean are apart; their distance does."""
    means = np.array([[1e-3, 0.0], [1.0, 0.0], [-1.0, 1e-3], [0.0, -1e-3]])
    for resolution, apart in ((1e-3, True), (1e-2, False)):
        statistics = pairs.pair_statistics(means, np.ones(4), resolution)
        assert math.isfinite(statistics.variance_ratio) == apart


def test_means_at_the_centre_are_at_a_distance():
    means = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, -4.0]])
    ratio = pairs.pair_statistics(means, np.array([1.0, 2.0, 3.0]), 1e-9).variance_ratio
    np.testing.assert_allclose(ratio, (3 / 18 + 4 / 32 + 5 / 50) / 3, rtol=4 * EPS)


@pytest.mark.parametrize(("count", "width"), [(2, 1), (5, 9), (40, 3), (130, 7)])
@pytest.mark.parametrize("tile", [1, 16, 33, 2048])
def test_pair_statistics_by_brute_force(count, width, tile, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", tile)
    units = np.random.default_rng(count).normal(size=(count, width))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    if width == 1:
        units = np.array([[1.0], [-1.0]])
    variances = np.ones(count)
    found, spread = pairs.pair_statistics(units, variances, 0.0), pairs.cosines_of(units)
    cosines = [[float(u @ v) for v in units] for u in units]
    upper = np.array([cosines[a][b] for a in range(count) for b in range(a + 1, count)])
    error = 8 * max(width, 8) * EPS
    of_pairs = found.cos_std, found.cos_deviation
    np.testing.assert_allclose(spread[:2], of_pairs, rtol=0, atol=error)
    np.testing.assert_allclose(spread.worst_cosine, found.worst_cosine, rtol=0, atol=error)
    np.testing.assert_array_equal(spread.nearest, found.nearest)
    np.testing.assert_allclose(found.cos_std, upper.std(), rtol=0, atol=error)
    excess = np.abs(upper + 1 / (count - 1))
    np.testing.assert_allclose(found.cos_deviation, excess.mean(), rtol=0, atol=error)
    logs = -np.log([np.linalg.norm(units[a] - v) for a in range(count) for v in units[a + 1 :]])
    # The nearest two are 1e-3 apart or more: 1 - cos keeps 1e-6 of its digits.
    np.testing.assert_allclose(found.log_mean, logs.mean(), rtol=0, atol=error / 1e-6)
    np.testing.assert_allclose(found.log_variance, logs.var(), rtol=0, atol=error / 1e-6)
    alone = np.array(cosines) - 3 * np.eye(count)
    np.testing.assert_allclose(found.worst_cosine, alone.max(axis=1), rtol=0, atol=error)
    np.testing.assert_array_equal(found.nearest, alone.argmax(axis=1))
    np.testing.assert_array_equal(found.histogram, np.histogram(upper.clip(-1, 1), 100, (-1, 1))[0])


def test_cosines_of_a_simplex_deviate_by_round_off():
    """Near collapse no digits cancel: the spread is that of the rounding of single cosines."""
    spread = pairs.cosines_of(simplex_etf(300, 299))
    assert max(spread.cos_std, spread.cos_deviation) < 4 * EPS


@pytest.mark.parametrize("tile", [1, 2, 5, 12, 13, 100])
def test_tiles_cover_every_pair_once(tile, monkeypatch):
    monkeypatch.setattr(pairs, "TILE", tile)
    seen = []
    units = np.random.default_rng(0).normal(size=(13, 4))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for part in pairs.tiles(units):
        i, j = (np.broadcast_to(index, part.cosines.shape).ravel() for index in (part.i, part.j))
        np.testing.assert_allclose(part.cosines.ravel(), np.vecdot(units[i], units[j]), atol=EPS)
        seen += list(zip(i, j, strict=True))
    assert sorted(seen) == [(a, b) for a in range(13) for b in range(a + 1, 13)]
    tiled = pairs.pair_statistics(units, np.ones(13), 0.0)
    monkeypatch.setattr(pairs, "TILE", 2048)
    for x, y in zip(tiled, pairs.pair_statistics(units, np.ones(13), 0.0), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


def test_worst_cosine_of_each_class(case):
    M = case.M()
    report = case.measure()
    for a in range(case.C):
        others = [
            M[a] @ M[b] / (np.linalg.norm(M[a]) * np.linalg.norm(M[b]))
            for b in range(case.C)
            if b != a
        ]
        np.testing.assert_allclose(
            report.per_class["worst_cosine"][a], max(others), rtol=1e-11, atol=1e-14
        )


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-9])
def test_the_cut_the_rank_and_the_smallest_value_kept_are_recorded(smallest):
    C, d = 3, 50
    means = np.zeros((C, d))
    means[0, 0], means[1, 0], means[2, 1] = 1.0, -1.0, smallest
    labels = np.arange(30) % C
    rows = means[labels] + 1e-12 * np.random.default_rng(0).normal(size=(30, d))
    seen = cm.measure(cm.ClassMoments.from_batch(rows, labels, C)).provenance
    cut = math.sqrt(max(C, d) * EPS)
    np.testing.assert_allclose(seen["between_cut"], cut, rtol=1e-15)
    ratio = smallest * math.sqrt(2 / 3) / math.sqrt(2)
    if ratio > cut:
        assert seen["between_rank"] == 2
        np.testing.assert_allclose(seen["between_smallest_kept"], ratio, rtol=1e-4)
    else:
        assert (seen["between_rank"], seen["between_smallest_kept"]) == (1, 1.0)


def test_geometry_says_what_it_lacks():
    nothing = ClassGeometry(cm.ClassMoments.empty(3, 2, scatter="trace"))
    for attribute in ("centred", "norms", "units", "pairs"):
        with pytest.raises(Undefined, match="no labelled row"):
            getattr(nothing, attribute)
    with pytest.raises(Undefined, match="no labelled row"):
        nothing.within("sample")
    one = ClassGeometry(cm.ClassMoments.from_batch(np.eye(2), [1, 1], 3))
    with pytest.raises(Undefined, match="only one class"):
        _ = one.centred


def test_sample_mean_and_scatters(case, preset):
    convention = cm.PRESETS[preset]
    geometry = ClassGeometry(case.moments, convention.center)
    scale = np.abs(case.features).max()
    np.testing.assert_allclose(geometry.sample_mean, case.features.mean(axis=0), atol=1e-14 * scale)
    S_W = case.S_W(preset)
    # Brute force knows the means to eps |h|, so S_W to twice eps |h| std.
    error = 1e-13 * np.trace(S_W) + 8 * EPS * scale * math.sqrt(np.trace(S_W))
    np.testing.assert_allclose(geometry.within(convention.within), S_W, rtol=0, atol=error)
    np.testing.assert_allclose(
        geometry.within_trace(convention.within), np.trace(S_W), rtol=0, atol=error
    )


def moments_of(counts=(4, 4, 4), kind="pooled", *, scale=1.0, broken=None, traces=None):
    """Three classes in four features, with a part that may hold NaN."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), counts)
    rows = scale * rng.normal(size=(len(labels), 4))
    m = cm.ClassMoments.from_batch(rows, labels, 3, scatter=kind, sketch_rows=8)
    if broken is not None:
        part = np.array(getattr(m, broken))
        part.flat[0] = np.nan
        object.__setattr__(m, broken, part)  # the constructor refuses what no data have
    if traces is not None:
        object.__setattr__(m, "traces", np.full(3, traces))
    return m


def with_means(means):
    return cm.ClassMoments(np.full(3, 2), np.array(means), 1.5 * np.eye(2), np.ones(3))


NOT_EQUAL = (4, 5, 6)
EVERYTHING = {
    "centred": lambda g: g.centred,
    "finite_means": lambda g: g.finite_means,
    "within_traces": lambda g: g.within_traces(),
    "within_trace": lambda g: g.within_trace("class"),
    "variance_ratio": lambda g: g.variance_ratio,
    "within": lambda g: g.within("sample"),
    "within by class": lambda g: g.within("class"),
    "pinv_traces": lambda g: g.pinv_traces("class", "sample"),
    "pinv_traces by class": lambda g: g.pinv_traces("class", "class"),
    "sketched": lambda g: g.sketched("class", "sample"),
    "sketched by class": lambda g: g.sketched("class", "class"),
    "require_range": lambda g: g.require_range(),
    "pairs": lambda g: g.pairs,
    "units": lambda g: g.units,
}
MEANS = ("centred", "finite_means")
SPREAD = ("within_traces", "within_trace", "variance_ratio", "within", "pinv_traces")
GUARDS = [
    ("no_rows", lambda: cm.ClassMoments.empty(3, 4), (*MEANS, "within", "sketched", "pinv_traces")),
    ("one_class", lambda: cm.ClassMoments.from_batch(np.eye(2), [1, 1], 3), (*MEANS, "pinv_traces")),
    ("nonfinite_statistics", lambda: moments_of(broken="means"), (*MEANS, *SPREAD, "require_range")),
    ("out_of_range", lambda: moments_of(traces=np.inf), (*MEANS, *SPREAD, "require_range")),
    ("out_of_range", lambda: moments_of(traces=np.nan), (*MEANS, *SPREAD, "require_range")),
    ("out_of_range", lambda: moments_of(scale=1e80), (*MEANS, *SPREAD, "require_range")),
    ("out_of_range", lambda: moments_of(scale=1e-80), (*MEANS, "variance_ratio", "require_range")),
    ("out_of_range", lambda: moments_of(scale=1e-200), (*MEANS, "variance_ratio", "require_range")),
    ("nonfinite_statistics", lambda: moments_of(broken="scatter"), ("within", "pinv_traces")),
    ("nonfinite_statistics", lambda: moments_of(NOT_EQUAL, "class", broken="scatter"),
     ("within", "within by class", "pinv_traces by class")),
    ("nonfinite_statistics", lambda: moments_of(kind="sketch", broken="sketch"), ("sketched", "pinv_traces")),
    ("no_scatter", lambda: moments_of(kind="trace"), ("within", "pinv_traces", "sketched")),
    ("no_scatter", lambda: moments_of(), ("sketched", "sketched by class")),
    ("only_a_sketch", lambda: moments_of(NOT_EQUAL, "sketch"), ("within", "within by class")),
    ("needs_class_scatter", lambda: moments_of(NOT_EQUAL),
     ("within by class", "pinv_traces by class")),
    ("needs_class_scatter", lambda: moments_of(NOT_EQUAL, "sketch"),
     ("sketched by class", "pinv_traces by class")),
    ("coincident_class_means", lambda: with_means([[1.0, 0], [1, 0], [0, 1]]), ("variance_ratio",)),
    ("class_mean_at_centre", lambda: with_means([[-1.0, 0], [0, 0], [1, 0]]), ("pairs", "units")),
    ("no_between_class_scatter", lambda: with_means(np.ones((3, 2))), ("centred", "variance_ratio", "units")),
    ("no_between_class_scatter", lambda: with_means([[1e3, 0], [1e3, 0], [1e3 + 3e-12, 0]]), ("centred",)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "make", "asked"), GUARDS)
def test_every_part_of_the_geometry_says_why_it_is_undefined(code, make, asked):
    for name in asked:
        with pytest.raises(Undefined) as caught:
            EVERYTHING[name](ClassGeometry(make()))
        assert caught.value.code == code, name


@pytest.mark.parametrize("counts", [NOT_EQUAL, (4, 4, 4)])
@pytest.mark.parametrize("kind", ["class", "pooled", "sketch", "trace"])
def test_what_the_moments_allow_is_defined(kind, counts):
    geometry = ClassGeometry(moments_of(counts, kind))
    geometry.require_range()
    known = {
        "centred",
        "finite_means",
        "within_traces",
        "within_trace",
        "variance_ratio",
        "pairs",
        "units",
    }
    known |= {"within", "pinv_traces"} if kind in ("class", "pooled") else set()
    known |= {"sketched", "pinv_traces"} if kind == "sketch" else set()
    if kind == "class" or counts[0] == counts[-1]:  # of equal classes every weighting is the same
        known |= {f"{name} by class" for name in known & {"within", "pinv_traces", "sketched"}}
    for name in known:
        assert EVERYTHING[name](geometry) is not None, name
    ClassGeometry(with_means(np.ones((3, 2)))).require_range()  # equal means are in range


@pytest.mark.parametrize(("gap", "apart"), [(2.0**-40, True), (2.0**-52, False)])
def test_means_of_many_rows_are_told_apart_by_the_round_off_of_one(gap, apart):
    """Of 4000 rows of size 1 about zero a mean is off by 16 eps at most, however many there are."""
    rows = np.array([[-1.0], [1.0]])[np.arange(8000) % 2]
    rows[4000:] += gap  # exactly
    moments = cm.ClassMoments.from_batch(rows, np.arange(8000) // 4000, 2)
    assert math.isfinite(cm.measure(moments)["separation"]) == apart
