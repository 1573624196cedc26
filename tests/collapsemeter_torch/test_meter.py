"""The sums on the device against float64 NumPy on the same features, and the loop left as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from collapsemeter import ClassMoments, Head, decide, measure
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.moments import EPS
from collapsemeter.stats.namespace import block_rows
from collapsemeter.stats.sums import Sums
from collapsemeter_torch import CollapseMeter
from collapsemeter_torch.device_sums import DeviceSums
from collapsemeter_torch.namespace import TorchNamespace, products_are_reduced

EPS32 = EPS["float32"]
# Sums of n residuals in float32 lose at most n eps of the sum of their magnitudes; the shift is within
# a standard deviation of the mean, which leaves a factor of a few.
ROWS = 600
SUM_TOLERANCE = 4 * ROWS * EPS32


def features(classes: int, width: int, spread: float, offset: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(ROWS) % classes)
    means = rng.normal(size=(classes, width)) + offset
    rows = means[labels] + spread * rng.normal(size=(ROWS, width))
    # What both sides are given is float32: the rounding of the features is not the sums' error.
    return rows.astype(np.float32), labels


def streamed(rows: np.ndarray, labels: np.ndarray, split: list[int], **options) -> CollapseMeter:
    """A meter on an identity body, so that its layer's features are the rows themselves."""
    classes, width = int(labels.max()) + 1, rows.shape[1]
    net = nn.Sequential(nn.Identity(), nn.Linear(width, classes))
    meter = CollapseMeter(net, layers=["0"], verbose=False, **options)
    for part, y in zip(np.split(rows, split), np.split(labels, split), strict=True):
        with meter.batch(y):
            net(torch.tensor(part))
    return meter


def moments_of(meter: CollapseMeter, layer: str) -> ClassMoments:
    state = meter._recorder.live.layers[layer, 0]
    return ClassMoments.from_sums(state.host_sums(), state.feature_dtype, "live")


@pytest.mark.parametrize("split", [[], [1, 2, 3], [100, 101, 350], list(range(50, ROWS, 50))])
@pytest.mark.parametrize(("classes", "width"), [(10, 16), (120, 8)])
@pytest.mark.parametrize("scatter", ["class", "pooled", "sketch", "trace"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_any_batch_split_gives_the_moments_of_numpy(split, classes, width, scatter, offset):
    rows, labels = features(classes, width, spread=1e-3, offset=offset)
    meter = streamed(rows, labels, split, scatter=scatter, sketch_rows=32, seed=2)
    truth = ClassMoments.from_batch(rows, labels, classes, scatter=scatter, sketch_rows=32, seed=2)
    found = moments_of(meter, "0")
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.traces, truth.traces, rtol=SUM_TOLERANCE)
    np.testing.assert_allclose(found.means, truth.means, rtol=8 * EPS32, atol=8 * EPS32)
    if scatter == "sketch":
        np.testing.assert_array_equal(found.signs, truth.signs)
        size = np.abs(truth.sketch).max()
        np.testing.assert_allclose(found.sketch, truth.sketch, rtol=0, atol=SUM_TOLERANCE * size)
    elif scatter != "trace":
        size = np.abs(truth.scatter).max()
        np.testing.assert_allclose(found.scatter, truth.scatter, rtol=0, atol=SUM_TOLERANCE * size)


def test_under_an_offset_near_collapse_every_metric_is_that_of_numpy():
    # Within-class std 1e-3 of the spread of the means, offset 1e3: an ulp of float32 at 1e3 is 6e-5,
    # which is in the features themselves, so both sides see the same rounded rows.
    rows, labels = features(10, 16, spread=1e-3, offset=1e3)
    meter = streamed(rows, labels, [64, 128, 129, 300])
    report = meter.compute()
    head = Head(
        meter.selection.head_module.weight.detach().double().numpy(),
        meter.selection.head_module.bias.detach().double().numpy(),
    )
    truth = ClassMoments.from_batch(rows, labels, 10)
    logits = meter.selection.head_module(torch.tensor(rows)).argmax(1).numpy()
    expected = measure(truth, head=head, decisions=decide(truth, rows, labels, predictions=logits))
    # The features lie on the grid of float32 at 1e3 (6e-5), their std is 1e-3: differences from the
    # shift are exact but the shift itself is rounded to that grid, and n eps of the sums remain.
    for name in ("nc1_pinv", "nc1_trace_ratio", "nc1_cdnv", "nc1_fuzziness", "nc1_vci"):
        assert report["1"][name] == pytest.approx(expected[name], rel=SUM_TOLERANCE), name
    # The means carry an error of eps * std / sqrt(n) and less: others are functions of the means.
    for name, value in expected.items():
        if not name.startswith("nc1"):
            near = pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True)
            assert report["1"][name] == near, name


def test_float64_features_stay_float64():
    rows, labels = features(10, 16, spread=1e-6, offset=1e2)
    rows = rows.astype(np.float64) + np.random.default_rng(3).normal(size=rows.shape) * 1e-7
    net = nn.Sequential(nn.Identity(), nn.Linear(16, 10)).double()
    meter = CollapseMeter(net, layers=["0"], verbose=False)
    for part, y in zip(np.split(rows, 4), np.split(labels, 4), strict=True):
        with meter.batch(y):
            net(torch.tensor(part))
    truth = ClassMoments.from_batch(rows, labels, 10)
    np.testing.assert_allclose(
        moments_of(meter, "0").scatter, truth.scatter, atol=1e-9 * truth.scatter.max()
    )
    assert meter.compute()["0"].provenance["feature_dtype"] == "float64"


def test_class_sums_of_an_accelerator_are_those_of_the_cpu(monkeypatch):
    """There neither loops over the classes nor looks at values; few classes are summed by a product."""
    rows, labels = torch.randn(50, 6), torch.randint(0, 5, (50,))
    used = torch.arange(50) % 3 > 0

    def all_of(xp):
        residuals = xp.residuals(rows, torch.randn(5, 6, generator=torch.Generator()), labels, used)
        return (
            residuals,
            xp.add_class_sum(torch.ones(5, 6), residuals, labels),
            xp.add_class_sum(torch.ones(5), rows[:, 0], labels),
            xp.add_class_sum(torch.ones(500, 6), residuals, labels),
            xp.add_class_products(torch.ones(5, 6, 6), residuals, labels),
            xp.add_product(torch.ones(6, 6), residuals),
        )

    here = all_of(TorchNamespace(torch.float32))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("collapsemeter_torch.namespace.MANY_ROWS", 10)
    there = all_of(TorchNamespace(torch.float32))
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=50 * EPS32 * float(a.abs().max()))


def test_blocks_of_a_product_are_its_lower_triangle():
    rows = torch.randn(9, 300, dtype=torch.float64)
    found = TorchNamespace(torch.float64).add_product(
        torch.zeros(300, 300, dtype=torch.float64), rows
    )
    torch.testing.assert_close(found.tril(), (rows.T @ rows).tril())
    assert not found[:128, 128:].any()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_blocks_cover_the_lower_triangle_however_many_they_are(most):
    covered = torch.zeros(300, 300)
    for block in block_rows(300, most):
        covered[block, : block.stop] += 1
    assert len(block_rows(300, most)) == most
    assert (covered.tril() == torch.ones(300, 300).tril()).all()


def test_layer_state_keeps_its_memory_when_cleared():
    state = DeviceSums(torch.zeros(2, 3), Settings(2, sample_rows=4))
    before = {name: tensor.data_ptr() for name, tensor in state.tensors().items()}
    state.update(torch.eye(2, 3), torch.tensor([0, 1]), range(2))
    state.clear()
    assert {name: t.data_ptr() for name, t in state.tensors().items()} == before
    assert state.sums.counts.tolist() == [0, 0]
    assert state.sample_ids.tolist() == [-1] * 5
    assert isinstance(state.host_sums(), Sums)


# The user's loop


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(16, 4),
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(8, 4),
    )


def train(make, *, watched: bool, backend: str | None, steps: int = 50, **options):
    torch.manual_seed(0)
    net = make()
    run = torch.compile(net, backend=backend) if backend else net
    meter = CollapseMeter(run, verbose=False, **options) if watched else None
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(steps):
        x, y = torch.randn(16, 12), torch.arange(16) % 4
        if meter is None:
            loss = F.cross_entropy(run(x), y)
        else:
            with meter.batch(y):
                loss = F.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if meter is not None and step % 20 == 19:
            meter.compute()
            meter.reset()
    return net, optimizer, torch.get_rng_state(), meter


def same(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("make", "backend"),
    [
        (mlp, None),
        (cnn, None),
        (mlp, "aot_eager"),
        pytest.param(cnn, "aot_eager", marks=pytest.mark.nightly),
    ],
)
def test_a_watched_loop_gives_bit_identical_weights(make, backend):
    torch.compiler.reset()
    plain, plain_optimizer, plain_rng, _ = train(make, watched=False, backend=backend)
    torch.compiler.reset()
    net, optimizer, rng, meter = train(make, watched=True, backend=backend)
    same(plain.state_dict(), net.state_dict())
    same(plain_optimizer.state_dict(), optimizer.state_dict())
    assert torch.equal(plain_rng, rng)
    assert meter.compute().provenance["rows"] == 160


def test_a_loop_with_every_option_is_bit_identical_too():
    plain, _, rng, _ = train(mlp, watched=False, backend=None)
    net, _, watched_rng, _ = train(
        mlp, watched=True, backend=None, layers="*", exact=True, sample_rows=8
    )
    same(plain.state_dict(), net.state_dict())
    assert torch.equal(rng, watched_rng)


# What is measured


def test_report_is_what_numpy_says_of_the_recorded_features():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, verbose=False)
    x, y = torch.randn(90, 4), torch.arange(90) % 3
    with meter.batch(y):
        logits = net(x)
    report = meter.compute()
    assert list(report) == ["1", "4"]
    head = Head(net[4].weight.detach().double().numpy(), net[4].bias.detach().double().numpy())
    for name, rows, its_head in (("1", net[:2](x), None), ("4", net[:4](x), head)):
        rows = rows.detach().numpy()
        truth = ClassMoments.from_batch(rows, y.numpy(), 3)
        decisions = decide(truth, rows, y.numpy(), predictions=logits.argmax(1).numpy())
        expected = measure(truth, head=its_head, decisions=decisions)
        assert set(report[name]) == set(expected)
        for metric, value in expected.items():
            near = pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True)
            assert report[name][metric] == near, (name, metric)
    assert report.phase == "live"
    assert report.provenance["first_step"] == 0
    assert report.provenance["last_step"] == 0


def test_steps_count_on_over_a_reset():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, verbose=False)
    for _ in range(3):
        with meter.batch(torch.tensor([0, 1, 2])):
            net(torch.randn(3, 4))
    meter.reset()
    with meter.batch(torch.tensor([0, 1, 2])):
        net(torch.randn(3, 4))
    report = meter.compute()
    assert (report.provenance["first_step"], report.provenance["last_step"]) == (3, 3)
    assert report.provenance["rows"] == 3


def test_single_logit_head_is_two_classes():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(torch.arange(20) % 2):
        logits = net(torch.randn(20, 4))
    report = meter.compute()
    assert meter.num_classes == 2
    assert 0 <= report["2"]["nc4_mismatch"] <= 1
    assert np.isfinite(report["2"]["nc3_self_duality"])
    assert logits.shape == (20, 1)


def test_a_headless_model_needs_classes_and_has_no_nc3():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    x = torch.randn(4, 1, 5, 5)
    with pytest.raises(ValueError, match=r"no scores to count classes by: pass num_classes="):
        CollapseMeter(net, example=x, verbose=False)
    meter = CollapseMeter(net, num_classes=2, example=x, verbose=False)
    assert "NC3 is not measured" in meter.describe()
    with meter.batch([0, 1, 0, 1]):
        net(x)
    report = meter.compute()
    assert report["1"].reason("nc3_cosine") == "scores_are_not_the_heads"
    assert report["1"].reason("nc4_mismatch") == "no_logits"


def test_a_layer_the_head_does_not_read_has_no_nc3_and_says_so():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, reduction={"2": lambda x: x[:, :4]}, verbose=False)
    with meter.batch(torch.arange(6) % 3):
        net(torch.randn(6, 4))
    with pytest.warns(
        RuntimeWarning, match="layer '2' is not what the head reads: NC3 is not measured"
    ):
        report = meter.compute()
    assert "nc3_cosine" not in report["2"]


def test_wide_layers_keep_a_sketch_and_say_so():
    net = nn.Sequential(nn.Linear(4, 4100), nn.ReLU(), nn.Linear(4100, 3))
    meter = CollapseMeter(net, verbose=False)
    with meter.batch(torch.arange(600) % 3):  # more rows than buckets
        net(torch.randn(600, 4))
    with pytest.warns(
        RuntimeWarning, match=r"too wide for a scatter \(4100 features\): a sketch of it"
    ):
        report = meter.compute()
    assert report["2"]["nc1_pinv"] > report["2"].standard_errors["nc1_pinv"] > 0
    assert report["2"].reason("nc1_vci") == "only_a_sketch"
    assert report["2"]["nc1_cdnv"] > 0
    state = meter._recorder.live.layers["2", 0].sums
    floats = state.shift, state.sums, state.squares, state.sketch, state.signs
    assert sum(part.numel() for part in floats) == (17 * 3 + 512) * 4100 + 512 * 3 + 16 * 3
    assert meter._recorder.live.layers["2", 0].sample_rows.shape[0] == 4096 // 16 + 1


class Late(nn.Module):
    """A wide block that runs from the second batch on."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow, self.head = nn.Linear(4, 4100), nn.Linear(4, 5), nn.Linear(5, 3)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        if self.runs > 1:
            self.wide(x)
        return self.head(self.narrow(x))


def test_a_wide_layer_that_runs_later_than_others_is_sketched_by_the_same_row_numbers():
    net, xs, y = Late(), torch.randn(3, 6, 4), torch.arange(6) % 3
    meter = CollapseMeter(net, layers=["wide", "narrow"], verbose=False)
    for x in xs:
        with meter.batch(y):
            net(x)
    rows = net.wide(xs[1:].reshape(-1, 4)).detach().numpy()
    truth = ClassMoments.from_batch(rows, y.repeat(2).numpy(), 3, first_row=6)
    found = meter.moments("wide")
    np.testing.assert_array_equal(found.signs, truth.signs)
    size = np.abs(truth.sketch).max()
    np.testing.assert_allclose(found.sketch, truth.sketch, rtol=0, atol=1e-5 * size)


def test_moments_of_two_processes_need_a_seed_each():
    net, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.arange(6) % 3
    found = []
    for seed in (0, 0, 1):
        meter = CollapseMeter(net, scatter="sketch", seed=seed, verbose=False)
        with meter.batch(y):
            net(torch.randn(6, 4))
        found.append(meter.moments("2"))
        meter.close()
    with pytest.raises(ValueError, match=r"both sketches were hashed with seed=0"):
        found[0].merge(found[1])
    assert found[0].merge(found[2]).seeds == {0, 1}


def test_an_explicit_scatter_is_honoured():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    for kind in ("class", "pooled", "sketch", "trace"):
        meter = CollapseMeter(net, scatter=kind, verbose=False)
        with meter.batch(torch.arange(6) % 3):
            net(torch.randn(6, 4))
        assert meter.compute()["2"].provenance["scatter"] == kind
        meter.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scatter": "full"}, "scatter='full': choose 'auto', 'class', 'pooled', 'sketch' or"),
        ({"nonfinite": "drop"}, "nonfinite='drop': choose 'skip', 'raise' or 'propagate'"),
        ({"sample_rows": 0}, "sample_rows=0: keep at least one row"),
        ({"num_classes": 1}, "num_classes=1: there must be at least two classes"),
        (
            {"num_classes": 4, "head": "2"},
            "head '2' has 3 outputs and num_classes=4: they must agree",
        ),
        ({"reduction": "median"}, "reduction='median': choose auto, flatten"),
        ({"reduction": {"2": "median"}}, "reduction='median': choose auto, flatten"),
        (
            {"reduction": {"two": "mean"}},
            "reduction={'two': ...}: no such layer is watched; watched are 2",
        ),
        ({"convention": "mine"}, "mine"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        CollapseMeter(net, example=torch.randn(6, 4), verbose=False, **options)
    assert message in str(caught.value)
    assert not net[2]._forward_pre_hooks


def test_it_prints_what_it_watches_once_it_knows(capsys):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
    meter = CollapseMeter(net)
    assert not capsys.readouterr().out
    assert "watches nothing yet: the first batch, or example=, tells" in meter.describe()
    with meter.batch([0, 1, 2]):
        net(torch.randn(3, 4))
    printed = capsys.readouterr().out
    assert "collapsemeter watches 3 classes in: 3 (input of the head)" in printed
    assert "1 whose output is the head's input" in printed.replace("\n    ", " ")
    full = meter.describe(full=True)
    assert "not 1: its output is the input of 3" in full
    assert "not 2: passes its input on" in full


def test_nonfinite_rows_are_skipped_refused_or_propagated():
    net = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    rows = torch.randn(10, 4)
    rows[3, 1] = float("nan")
    labels = torch.arange(10) % 2
    meters = {
        kind: CollapseMeter(net, nonfinite=kind, verbose=False)
        for kind in ("skip", "raise", "propagate")
    }
    for meter in meters.values():
        with meter.batch(labels):
            net(rows)
    skipped = meters["skip"].compute()["1"]
    assert skipped.provenance["nonfinite_rows"] == 1
    assert skipped.provenance["rows"] == 9
    with pytest.raises(
        ValueError, match="layer '1' gave 1 rows that hold NaN or Inf: pass nonfinite='skip'"
    ):
        meters["raise"].compute()
    assert meters["propagate"].compute()["1"].reason("nc1_pinv") == "nonfinite_statistics"


def test_a_masked_row_that_holds_nan_does_not_poison():
    net = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
    rows, labels = torch.randn(10, 4), torch.arange(10) % 2
    rows[3], labels[3] = float("nan"), -100
    meter = CollapseMeter(net, verbose=False, nonfinite="propagate")
    with meter.batch(labels):
        net(rows)
    report = meter.compute()["1"]
    assert report["nc1_pinv"] > 0
    assert report.provenance["ignored_rows"] == 1


# Faults 15 and 25: dtypes


def test_half_precision_is_widened_before_arithmetic():
    torch.manual_seed(0)
    rows = torch.randn(60, 6) * 300 + 3000  # the square overflows float16
    labels = torch.arange(60) % 3
    for dtype in (torch.float16, torch.bfloat16):
        net = nn.Sequential(nn.Identity(), nn.Linear(6, 3)).to(dtype)
        meter = CollapseMeter(net, layers=["0"], verbose=False)
        with meter.batch(labels):
            net(rows.to(dtype))
        truth = ClassMoments.from_batch(rows.to(dtype).double().numpy(), labels.numpy(), 3)
        found = meter.compute()["0"]
        assert found["nc1_pinv"] == pytest.approx(measure(truth)["nc1_pinv"], rel=SUM_TOLERANCE)
        assert found.provenance["feature_dtype"] == str(dtype).removeprefix("torch.")


def test_autocast_does_not_reach_the_sums():
    rows, labels = features(5, 8, spread=1e-2, offset=0.0)
    net = nn.Sequential(nn.Identity(), nn.Linear(8, 5))
    meter = CollapseMeter(net, layers=["0"], verbose=False)
    with torch.autocast("cpu", dtype=torch.bfloat16), meter.batch(labels):
        net(torch.tensor(rows))
    truth = measure(ClassMoments.from_batch(rows, labels, 5))
    assert meter.compute()["0"]["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=SUM_TOLERANCE)


@pytest.mark.parametrize("count", [200, 5000])
def test_autocast_does_not_reach_the_reduction(count):
    """A reduction of the user's own is part of the measurement, not of the network."""
    rows, labels = features(5, 8, spread=1e-2, offset=0.0)
    more = -(-count // len(rows))
    x, y = torch.tensor(rows).repeat(more, 1), torch.tensor(labels).repeat(more)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    net = nn.Sequential(nn.Identity(), nn.Linear(8, 5))
    meter = CollapseMeter(net, ["0"], reduction={"0": lambda x: x @ turn}, verbose=False)
    with torch.autocast("cpu", dtype=torch.bfloat16), meter.batch(y):
        net(x)
    truth = measure(ClassMoments.from_batch((x @ turn).numpy(), y.numpy(), 5))
    found = meter.compute()["0"]
    assert found.provenance["feature_dtype"] == "float32"
    assert found["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=SUM_TOLERANCE)


@pytest.mark.parametrize("scatter", ["class", "pooled"])
def test_autocast_does_not_reach_the_products_of_a_graph(scatter):
    rows, labels = features(5, 8, spread=1e-2, offset=0.0)
    found = []
    for autocast in (False, True):
        net = nn.Sequential(nn.Identity(), nn.Linear(8, 5))
        torch.compiler.reset()
        compiled = torch.compile(net, backend="aot_eager")
        meter = CollapseMeter(compiled, ["0"], scatter=scatter, verbose=False)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), meter.batch(labels):
            compiled(torch.tensor(rows))
        found.append(meter.compute()["0"]["nc1_pinv"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_the_users_matmul_precision_does_not_touch_the_result_and_stays():
    rows, labels = features(5, 8, spread=1e-3, offset=0.0)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        assert products_are_reduced("cpu")
        for kind in ("class", "pooled"):
            report = streamed(rows, labels, [100, 200], scatter=kind).compute()
            truth = measure(ClassMoments.from_batch(rows, labels, 5))
            assert report["0"]["nc1_pinv"] == pytest.approx(truth["nc1_pinv"], rel=SUM_TOLERANCE)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert not products_are_reduced("cpu")


def test_widened_products_are_those_of_float64():
    rows = torch.randn(40, 5)
    wide = TorchNamespace(torch.float32, widen=True)
    total = wide.add_product(torch.zeros(5, 5), rows)
    torch.testing.assert_close(total, (rows.double().T @ rows.double()).float(), rtol=0, atol=0)


def test_what_is_skipped_is_said():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, example=torch.randn(2, 4), verbose=False)
    assert copy.copy(meter.skipped) == {
        "0": "not the end of a block; name it in layers= to watch it",
        "1": "its output is the input of 2",
    }


def test_a_closed_meter_counts_no_more():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, verbose=False)
    meter.close()
    with pytest.raises(ValueError, match="this meter is closed: make a new CollapseMeter"):
        meter.batch(torch.tensor([0]))


def test_what_is_not_iterable_is_no_data_set():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, verbose=False)
    with pytest.raises(
        ValueError, match=r"observe got a int: pass an iterable of \(inputs, labels\)"
    ):
        meter.observe(42)
    assert net.training


def test_a_wrong_number_of_classes_is_said_before_anything_is_counted():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    meter = CollapseMeter(net, num_classes=10)
    message = r"the output holds scores of width 3 and num_classes=10: they must agree"
    with pytest.raises(ValueError, match=message), meter.batch([0, 1, 2]):
        net(torch.randn(3, 4))
    with pytest.warns(RuntimeWarning, match=message):
        assert not meter.compute()
