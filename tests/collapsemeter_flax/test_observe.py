"""One pass with frozen weights, and the meter that bundles it with the live functions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import collapsemeter_flax as cf
from collapsemeter import ClassMoments, Head, decide, measure
from collapsemeter.stats.sums import EPS
from collapsemeter_flax.frozen import Frozen, _counted

ROWS = 90
IMAGES = np.random.default_rng(0).normal(size=(ROWS, 6, 6, 3)).astype(np.float32)
LABELS = np.arange(ROWS) % 4
# Of one shape, so that a step is compiled once; a smaller last batch is the conformance kit's.
BATCHES = [*zip(np.split(IMAGES, 3), np.split(LABELS, 3), strict=True)]
# Sums of n residuals lose at most n eps of their magnitudes; the features themselves come from two
# compiled programs, which may round differently.
TOLERANCE = 4 * ROWS * EPS["float32"]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.conv2 = nnx.Conv(6, 8, (3, 3), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv1(x)))
        return self.fc(self.drop(nnx.relu(self.conv2(x)).mean((1, 2))))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Conv(6, (3, 3), name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.relu(nn.Conv(8, (3, 3), name="conv2")(x)).mean((1, 2))
        return nn.Dense(4, name="fc")(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.fixture(scope="module")
def net() -> Net:
    """With batch statistics that are not those of a new network."""
    model = Net(nnx.Rngs(0))
    model(IMAGES + 1)
    return model


def as_linen(net: Net):
    params = {
        name: {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for name, layer in (("conv1", net.conv1), ("conv2", net.conv2), ("fc", net.fc))
    }
    params["norm"] = {"scale": net.norm.scale[...], "bias": net.norm.bias[...]}
    statistics = {"norm": {"mean": net.norm.mean[...], "var": net.norm.var[...]}}
    return {"params": params, "batch_stats": statistics}


def assert_reports(found, expected, tolerance=TOLERANCE):
    assert list(found) == list(expected)
    for name in expected:
        for metric, value in expected[name].items():
            assert found[name][metric] == pytest.approx(
                value, rel=tolerance, abs=1e-6, nan_ok=True
            ), (
                name,
                metric,
            )


def numpy_report(net: Net):
    frozen = nnx.view(net, deterministic=True, use_running_average=True)
    logits, features = cf.capture(frozen, IMAGES)
    head = Head(np.asarray(net.fc.kernel[...]).T, np.asarray(net.fc.bias[...]))
    layers = {}
    for name, x in features.items():
        rows = np.asarray(x, np.float64)
        rows = rows.mean((1, 2)) if rows.ndim == 4 else rows
        truth = ClassMoments.from_batch(rows, LABELS, 4)
        decisions = decide(truth, rows, LABELS, logits=logits)
        layers[name] = measure(truth, head=head if name == "fc" else None, decisions=decisions)
    return layers


def test_observe_is_what_numpy_says_of_the_captured_features(net):
    before = nnx.split(net)
    report = cf.observe(net, BATCHES, progress=False)
    assert_reports(report, numpy_report(net))
    assert report.phase == "frozen-eval"
    assert report.provenance["rows"] == ROWS
    assert report.skipped["conv1"] == "norm ends what it begins"
    # The model is as it was: modes, batch statistics, random counts.
    graph, state = nnx.split(net)
    assert graph == before[0]
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(before[1]), strict=True):
        assert one is other
    assert not net.drop.deterministic


def test_one_set_of_weights_gives_one_report_in_nnx_and_linen(net):
    expected = cf.observe(net, BATCHES, progress=False)
    # `train=True` is the default of this network: a frozen pass turns it off by itself.
    found = cf.observe(Linen(), BATCHES, variables=as_linen(net), progress=False)
    assert_reports(found, expected, 1e-4)
    for name in expected:
        np.testing.assert_array_equal(
            found[name].per_class["count"], expected[name].per_class["count"]
        )


def test_a_call_of_the_users_overrides_the_evaluation_mode(net):
    variables = as_linen(net)
    frozen = Frozen(Linen(), variables, {"train": True, "mutable": ["batch_stats"]})
    assert frozen.call["train"] is True
    report = cf.observe(
        Linen(),
        BATCHES,
        variables=variables,
        progress=False,
        call={"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(0)}},
    )
    expected = cf.observe(net, BATCHES, progress=False)
    assert report["conv2"]["nc1_pinv"] != pytest.approx(expected["conv2"]["nc1_pinv"], rel=1e-3)


class Tokens(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.mlp = nnx.Linear(8, 8, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, ids, attention_mask=None, *, labels_too=False):
        return {"logits": self.head(nnx.gelu(self.mlp(self.embed(ids))))}


def test_batches_as_dicts_with_tokens_and_ignored_positions():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, (20, 7))
    labels = ids % 3
    mask = np.arange(7) < rng.integers(2, 8, 20)[:, None]
    labels[~mask] = -100
    model = Tokens(nnx.Rngs(0))
    batches = [{"ids": ids, "attention_mask": mask, "labels": labels}]
    report = cf.observe(model, batches, num_classes=3, progress=False)
    assert report.provenance["rows"] == 140
    assert report["head"].provenance["ignored_rows"] == (~mask).sum()
    assert report["head"].provenance["rows"] == mask.sum()
    hidden = np.asarray(nnx.gelu(model.mlp(model.embed(ids))), np.float64)
    truth = ClassMoments.from_batch(hidden.reshape(-1, 8), labels.reshape(-1), 3)
    assert report["head"]["nc1_pinv"] == pytest.approx(measure(truth)["nc1_pinv"], rel=1e-4)
    assert np.isfinite(report["head"]["nc4_agreement"])


def test_a_sequence_that_has_one_label_is_averaged_over_its_positions():
    class Sequence(nnx.Module):
        def __init__(self, rngs):
            self.mixer = nnx.Linear(3, 8, rngs=rngs)
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.head(self.mixer(x.reshape(len(x), -1, 3)).mean(1))

    model = Sequence(nnx.Rngs(0))
    report = cf.observe(model, BATCHES, progress=False)
    assert list(report) == ["mixer", "head"]
    assert report["mixer"]["nc1_pinv"] == pytest.approx(report["head"]["nc1_pinv"], rel=1e-4)
    with pytest.raises(
        ValueError, match=r"reduction={'mixr': ...}: no such layer is watched; watched are mixer"
    ):
        cf.observe(model, BATCHES, progress=False, reduction={"mixr": "mean_last"})


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(5)(x)), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "intermediates": 0}
        stack = nn.scan(Step, variable_axes=axes, split_rngs={"params": True}, length=2)
        x, _ = stack(name="stack")(nn.Dense(5, name="stem")(x.reshape(len(x), -1)), None)
        return nn.Dense(4, name="fc")(x)


def test_a_reduction_of_a_scanned_layer_is_that_of_all_its_calls():
    model = Stack()
    variables = model.init(jax.random.key(0), IMAGES)
    report = cf.observe(
        model, BATCHES, variables=variables, progress=False, reduction={"stack": lambda y: y[0]}
    )
    assert list(report) == ["stem", "stack#0", "stack#1", "fc"]


def test_progress_goes_to_standard_error(net, capsys):
    cf.observe(net, BATCHES)
    assert "observing" in capsys.readouterr().err


def test_arrays_of_other_frameworks_are_read(net):
    class Foreign:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    batches = [(Foreign(x), Foreign(y)) for x, y in BATCHES]
    assert_reports(
        cf.observe(net, batches, progress=False), cf.observe(net, BATCHES, progress=False), 0
    )


def test_a_second_pass_is_not_compiled_again(net):
    meter = cf.watch(net, num_classes=4, verbose=False)
    meter.observe(BATCHES, progress=False)
    compiled = _counted._cache_size()
    meter.observe(BATCHES, progress=False, phase="frozen-train")
    assert _counted._cache_size() == compiled


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "observe got no batch from list: pass (inputs, labels) pairs"),
        (42, {}, "observe got a int: pass an iterable of (inputs, labels) pairs"),
        (
            [(IMAGES, LABELS, 1)],
            {},
            "a int), and each batch is a pair",
        ),
        ([(IMAGES, LABELS + 1)], {}, "label 4 at row 3 is outside 0..3 (num_classes=4)"),
        (BATCHES, {"phase": "live"}, "phase='live': choose 'frozen-eval' or 'frozen-train'"),
        (
            BATCHES,
            {"num_classes": 7},
            "the output holds scores of width 4 and num_classes=7: they must",
        ),
        (
            BATCHES,
            {"scores": None},
            "the model has no scores to count classes by: pass num_classes=",
        ),
        (
            BATCHES,
            {"variables": {}},
            "variables= are those of a linen module: an nnx.Module holds its own",
        ),
    ],
)
def test_what_does_not_work_is_named(net, batches, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        cf.observe(net, batches, progress=False, **options)
    assert message in str(caught.value)


def test_a_linen_model_needs_its_variables():
    with pytest.raises(
        ValueError, match="Linen is a linen module and was given nothing: pass its variables"
    ):
        cf.observe(Linen(), BATCHES, progress=False)


def test_without_a_head_there_is_no_nc3(net):
    report = cf.observe(net, BATCHES, progress=False, head=None)
    assert list(report) == ["norm", "conv2"]
    assert report["conv2"].reason("nc3_cosine") == "no_head"


def test_one_logit_between_two_classes():
    model = nnx.Sequential(
        nnx.Linear(108, 6, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(6, 1, rngs=nnx.Rngs(1))
    )
    batches = [(x.reshape(len(x), -1), y % 2) for x, y in BATCHES]
    report = cf.observe(model, batches, progress=False)
    assert report.provenance["classes"] == 2
    assert 0 <= report.final["nc4_mismatch"] <= 1
    assert np.isfinite(report.final["nc3_self_duality"])


# The meter


def test_the_meter_counts_live_and_says_what_it_watches(net, capsys):
    meter = cf.CollapseMeter(net)
    with pytest.raises(
        ValueError, match=r"the layers are not known before an input: call init\(...\) first"
    ):
        meter.describe()
    state = meter.init(IMAGES[:1])
    printed = capsys.readouterr().out
    assert "collapsemeter watches 4 classes in: norm, conv2, fc (input of the head)" in printed
    frozen = nnx.view(net, deterministic=True, use_running_average=True)
    for x, y in BATCHES:
        logits, features = meter.capture(frozen, x)
        state = meter.update(state, features, y, logits=logits)
    assert_reports(meter.report(state), numpy_report(net))
    assert_reports(
        meter.report(state, net, phase="frozen-eval"), meter.observe(BATCHES, progress=False)
    )
    assert meter.skipped["drop"] == "its output is the input of fc"
    assert capsys.readouterr().out == ""


def test_the_meter_of_a_linen_model_takes_its_variables(net):
    variables = as_linen(net)
    meter = cf.watch(Linen(), layers=["conv*"], num_classes=4, verbose=False, sample_rows=16)
    state = meter.init(variables, IMAGES[:2], train=False)
    assert state.spec.names == ("conv1", "conv2", "fc")
    _, features = meter.capture(Linen(), variables, IMAGES, train=False)
    state = meter.update(state, features, LABELS)
    assert meter.report(state, variables, phase="frozen-eval")["fc"].provenance["nc4_rows"] == 16
    with pytest.raises(
        ValueError, match="the variables hold no parameters of 'fc': pass those of the model"
    ):
        meter.report(state)
    report = meter.observe(BATCHES, variables=variables, progress=False)
    assert report["fc"].provenance["nc4_rows"] == 16


def test_the_meter_starts_from_shapes_of_token_labels():
    model = Tokens(nnx.Rngs(0))
    meter = cf.CollapseMeter(model, num_classes=3, verbose=False)
    ids = np.zeros((2, 7), int)
    state = meter.init(ids, labels=jax.ShapeDtypeStruct((2, 7), "int32"))
    _, features = meter.capture(model, ids)
    assert int(meter.update(state, features, ids).expected[1]) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scatter": "full"}, "scatter='full': choose"),
        ({"num_classes": 1}, "num_classes=1: there must be at least two classes"),
        ({"sample_rows": 0}, "sample_rows=0: keep at least one row"),
    ],
)
def test_a_wrong_option_is_said_when_the_meter_is_made(net, options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 # the text follows
        cf.CollapseMeter(net, **options)
    assert message in str(caught.value)


def test_the_meter_watches_models_of_flax_only():
    with pytest.raises(
        ValueError, match=r"model is a builtins.str: pass an nnx.Module or a linen.Module"
    ):
        cf.CollapseMeter("net")
    meter = cf.CollapseMeter(Net(nnx.Rngs(0)), verbose=False)
    with pytest.raises(ValueError, match="phase='live': choose"):
        meter.observe(BATCHES, phase="live")


def test_a_meter_reports_the_weights_that_it_is_given(net):
    meter = cf.CollapseMeter(net, verbose=False)
    meter.init(IMAGES[:1])
    other = Net(nnx.Rngs(3))
    assert_reports(
        meter.observe(BATCHES, model=other, progress=False),
        cf.observe(other, BATCHES, progress=False),
        0,
    )
    state = meter.update(meter.init(IMAGES[:1]), meter.capture(net, IMAGES)[1], LABELS)
    with pytest.raises(ValueError, match="'fc' is not a module of the model; it has"):
        meter.report(state, nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
