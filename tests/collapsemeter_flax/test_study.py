"""What one abstract forward tells: head, classes, threshold, and the layers in the order of the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import collapsemeter_flax as cf
from collapsemeter import ClassMoments, decide, measure
from collapsemeter_flax.linen_models import variables_for
from collapsemeter_flax.selection import Request, choose

from . import networks

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 8, 3)).astype(np.float32)
ROWS = IMAGES.reshape(6, -1)[:, :8]
IDS = np.arange(24, dtype=np.int32).reshape(6, 4) % 20

NETWORKS = {
    "cnn": (networks.Cnn(), (IMAGES,), "Conv_0 Conv_1 Dense_0 Dense_1"),
    "resnet": (
        networks.ResNet(),
        (IMAGES,),
        "bn_init ResNetBlock_0 ResNetBlock_1 ResNetBlock_2 Dense_0",
    ),
    "vit": (
        networks.Vit(),
        (IMAGES,),
        "embedding Transformer.block_0 Transformer.block_1 Transformer head",
    ),
    "bert": (networks.Bert(), (IDS, np.ones_like(IDS)), "layer_0 layer_1 pooler head"),
    "float mask": (
        networks.Bert(),
        (IDS, np.ones(IDS.shape, np.float32)),
        "layer_0 layer_1 pooler head",
    ),
    "lstm": (networks.Lstm(), (IDS,), "hidden head"),
    "declared first": (networks.Mlp(), (ROWS,), "first last fc"),
    "siamese": (networks.Siamese(), (ROWS, ROWS), "mixed head"),
    "squeezenet": (networks.SqueezeNet(), (IMAGES,), "body final"),
    "weight norm": (networks.WeightNormed(), (ROWS,), "hidden WeightNorm_0"),
    "auxiliary": (networks.Auxiliary(), (ROWS,), "hidden fc"),
    "scanned": (networks.Scanned(), (ROWS,), "stem stack fc"),
    "scan that carries nothing out": (networks.Scanned(carried=False), (ROWS,), "stem fc"),
}


def chosen(model, *args, **request):
    """Choose the layers of a linen model, on shapes alone."""
    variables = variables_for(model, args, {})
    return choose(model, (variables, *args), {}, Request(**request))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_that_a_person_would_name(name):
    model, args, expected = NETWORKS[name]
    choice = chosen(model, *args)
    assert " ".join(choice.watched) == expected
    assert choice.selection.head == choice.watched[-1]


TAILS = {
    "softmax": nn.softmax,
    "log_softmax": nn.log_softmax,
    "temperature": lambda x: x / 0.7,
    "learned temperature": lambda x: x * jnp.exp(x.mean()),
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, axis=-1, keepdims=True),
    "capped": lambda x: 30 * jnp.tanh(x / 30),
    "centred": lambda x: x - x.mean(-1, keepdims=True),
    "dtype and shape": lambda x: x.astype(jnp.bfloat16)[:, None].squeeze(1),
}
OTHER_TAILS = {
    "adjusted": lambda x: x + jnp.log(jnp.array([0.2, 0.3, 0.5])),
    "masked": lambda x: jnp.where(jnp.array([True, False, True]), x, -1e9),
    "turned round": lambda x: -x,
    "squared": lambda x: x**2,
    "of another row": lambda x: x - x[::-1],
    "permuted": lambda x: x[:, jnp.array([2, 0, 1])],
    "gated": lambda x: x * nn.sigmoid(x),
    "one class added": lambda x: x + x[:, :1] * jnp.array([0.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("name", TAILS)
def test_scores_that_keep_the_order_of_a_head_have_it(name):
    assert chosen(networks.Mlp(TAILS[name]), ROWS).selection.head == "fc"


@pytest.mark.parametrize("name", OTHER_TAILS)
def test_scores_that_do_not_have_none_and_the_reason(name):
    selection = chosen(networks.Mlp(OTHER_TAILS[name]), ROWS).selection
    assert (selection.head, selection.no_head) == (None, "scores_are_not_the_heads")
    assert (selection.width, selection.layers) == (3, ("first", "last"))


@pytest.mark.parametrize(
    ("tail", "threshold"),
    [
        (lambda x: x, 0.0),
        (lambda x: x[:, 0], 0.0),
        (nn.sigmoid, 0.5),
        (lambda x: nn.sigmoid(x.squeeze(-1)), 0.5),
        (lambda x: 1 / (1 + jnp.exp(-x)), 0.5),
        (lambda x: jnp.clip(nn.sigmoid(x / 2), 1e-6, 1 - 1e-6), 0.5),
        (lambda x: jnp.log(nn.sigmoid(x)), np.log(0.5)),
        (nn.log_sigmoid, np.log(0.5)),
        (lambda x: 1 - nn.sigmoid(-x), 0.5),
        (lambda x: 2 * nn.sigmoid(x) - 1, 0.0),
        (lambda x: (jnp.tanh(x) + 1) / 2, 0.5),
        (nn.hard_sigmoid, 0.5),
        (lambda x: 0.5 * x - 3, 0.0),
        (lambda x: nn.sigmoid(x) @ jnp.ones((1, 1)), 0.0),
    ],
)
def test_the_threshold_of_one_score_is_where_its_sigmoid_puts_it(tail, threshold):
    selection = chosen(networks.Mlp(tail, classes=1), ROWS).selection
    assert selection.threshold == pytest.approx(threshold)
    assert (selection.width, selection.classes(None)) == (1, 2)


@pytest.mark.parametrize(
    ("model", "reason", "layers"),
    [
        (networks.TwoHeads(), "no_single_head", ("body",)),
        (networks.FunctionalTail(), "no_head", ("hidden",)),
        (networks.Cosine(), "no_head", ("hidden",)),
    ],
)
def test_where_no_one_map_makes_the_scores_the_reason_says_which(model, reason, layers):
    selection = chosen(model, ROWS).selection
    assert (selection.head, selection.no_head, selection.layers) == (None, reason, layers)


def test_of_several_scores_one_is_asked_for_and_its_head_follows():
    with pytest.raises(ValueError, match=r"'a' .*'b' .*pass scores=, one of these keys"):
        chosen(networks.Outputs(), ROWS)
    choice = chosen(networks.Outputs(), ROWS, scores="b")
    assert (choice.watched, choice.selection.place) == (["body", "b"], "output['b']")
    # Layers that are named need no scores.
    assert chosen(networks.Outputs(), ROWS, layers="body", head=None).watched == ["body"]


def test_depth_is_the_order_of_calls_and_repeated_modules_keep_their_numbers():
    model, rows = networks.Twice(), ROWS[:, :4]
    variables = model.init(jax.random.key(0), rows)
    _, features = cf.capture(model, variables, rows)
    assert list(features) == ["a#0", "b#0", "a#1", "b#1", "fc"]
    np.testing.assert_allclose(features["fc"], nn.relu(features["b#1"]), rtol=1e-6)


def test_a_head_by_name_is_a_map_to_the_scores_and_of_another_make_with_its_kernel():
    with pytest.raises(ValueError, match="head='last' gives 7 numbers a row and the scores have 3"):
        chosen(networks.Mlp(), ROWS, head="last")
    model = networks.Cosine()
    variables = model.init(jax.random.key(0), ROWS)
    meter = cf.CollapseMeter(
        model, head=("cosine", lambda weights: weights["weight"].T), verbose=False
    )
    state = meter.init(variables, ROWS)
    scores, features = meter.capture(model, variables, ROWS)
    state = meter.update(state, features, np.arange(6) % 3, logits=scores)
    report = meter.report(state, variables)
    assert list(report) == ["hidden", "cosine"]
    assert report["cosine"]["nc3_cosine"] == pytest.approx(report["cosine"]["nc3_cosine"])


def test_a_weight_normed_head_is_measured_with_the_weight_that_it_uses():
    model = networks.WeightNormed()
    variables = model.init(jax.random.key(0), ROWS)
    choice = choose(model, (variables, ROWS), {}, Request())
    kernel, bias = choice.head_weights(variables)
    scores, features = cf.capture(model, variables, ROWS)
    np.testing.assert_allclose(
        features["WeightNorm_0"] @ kernel + bias, scores, rtol=1e-4, atol=1e-5
    )


def test_a_shuffled_setup_gives_the_same_report_digit_for_digit():
    class Reversed(networks.Mlp):
        def setup(self):
            self.first = nn.Dense(6)
            self.last = nn.Dense(7)
            self.fc = nn.Dense(self.classes)

    variables = networks.Mlp().init(jax.random.key(0), ROWS)
    batches = [(ROWS, np.arange(6) % 3)]
    one, other = (
        cf.observe(model, batches, variables=variables, progress=False)
        for model in (Reversed(), networks.Mlp())
    )
    assert list(one) == list(other) == ["first", "last", "fc"]
    for layer in one:
        assert repr(dict(one[layer])) == repr(dict(other[layer]))


def test_layers_are_thinned_over_the_depth_and_every_other_has_a_reason():
    choice = chosen(networks.ResNet(), IMAGES, max_layers=3)
    assert choice.watched == ["ResNetBlock_0", "ResNetBlock_2", "Dense_0"]
    skipped = choice.selection.skipped
    assert skipped["conv_init"] == "bn_init ends what it begins"
    assert skipped["bn_init"].endswith("see max_layers=")
    assert skipped["ResNetBlock_0.Conv_0"] == "inside ResNetBlock_0, which is watched"
    assert chosen(networks.Bert(), IDS, IDS).selection.skipped["tokens"] == "passes its input on"


def test_an_example_shows_the_layers_at_once_and_leaves_the_model_as_it_is():
    model = nnx.Sequential(
        nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 3, rngs=nnx.Rngs(1))
    )
    before = nnx.graphdef(model)
    meter = cf.CollapseMeter(model, example=ROWS, verbose=False)
    assert meter.selection.watched == ["layers.0", "layers.2"]
    assert nnx.graphdef(model) == before
    linen = cf.CollapseMeter(networks.ResNet(), example=IMAGES, verbose=False)
    assert linen.selection.head == "Dense_0"
    assert "MiB, beside" in linen.describe()
    assert max(map(len, linen.describe().splitlines())) <= 100


@pytest.mark.parametrize(
    ("model", "inputs", "decide_by"),
    [
        (networks.Mlp(nn.sigmoid, classes=1), ROWS, lambda scores: scores[:, 0] > 0.5),
        (networks.Mlp(lambda x: x[::-1]), ROWS, lambda scores: scores.argmax(1)),
        (networks.SqueezeNet(), IMAGES, lambda scores: scores.argmax(1)),
        (networks.Scanned(), ROWS, lambda scores: scores.argmax(1)),
    ],
    ids=["one score behind a sigmoid", "rows in another order", "pooled head", "scanned"],
)
def test_nc4_is_that_of_the_scores_as_the_model_returns_them(model, inputs, decide_by):
    variables = model.init(jax.random.key(0), inputs)
    labels = np.arange(6) % 2
    report = cf.observe(model, [(inputs, labels)], variables=variables, progress=False)
    scores, features = cf.capture(model, variables, inputs)
    classes = report.provenance["classes"]
    assert classes == max(scores.shape[1], 2)
    for name, rows in features.items():
        rows = rows[0] if isinstance(rows, tuple) else rows
        rows = np.asarray(rows, np.float64).reshape(6, -1, rows.shape[-1]).mean(1)
        truth = ClassMoments.from_batch(rows, labels, classes)
        decisions = decide(truth, rows, labels, predictions=np.asarray(decide_by(scores)))
        expected = measure(truth, decisions=decisions)["nc4_mismatch"]
        assert report[name]["nc4_mismatch"] == expected


def test_a_layer_that_no_rule_pairs_with_the_labels_costs_one_layer():
    model = networks.Tagger()
    variables = model.init(jax.random.key(0), ROWS)
    meter = cf.CollapseMeter(model, num_classes=3, verbose=False)
    labels = np.arange(24).reshape(6, 4) % 3
    state = meter.init(variables, ROWS, labels=labels)
    scores, features = meter.capture(model, variables, ROWS)
    assert list(features) == ["tokens", "fc"]
    state = meter.update(state, features, labels, logits=scores)
    with pytest.warns(
        RuntimeWarning, match="layer 'whole' is not measured: gave features of shape"
    ):
        report = meter.report(state, variables)
    assert report["whole"].reason("nc1_pinv") == "unpaired_rows"
    assert np.isfinite(report["fc"]["nc1_pinv"])


class PositionsFirst(nnx.Module):
    """Its layer has positions before samples, (T, B, d)."""

    def __init__(self, rngs):
        self.inner, self.fc = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.inner(jnp.swapaxes(x, 0, 1)).mean(0))


class PositionsFirstLinen(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="fc")(nn.Dense(8, name="inner")(jnp.swapaxes(x, 0, 1)).mean(0))


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("samples", [6, 4])  # as many as positions, or fewer
def test_positions_first_are_averaged_and_not_the_samples(kind, samples):
    x = RNG.normal(size=(samples, 6, 5)).astype(np.float32)
    y = np.arange(samples) % 3
    if kind == "nnx":
        model = PositionsFirst(nnx.Rngs(0))
        before, kernel, bias = (), model.inner.kernel[...], model.inner.bias[...]
    else:
        model = PositionsFirstLinen()
        variables = model.init(jax.random.key(0), x)
        before, inner = (variables,), variables["params"]["inner"]
        kernel, bias = inner["kernel"], inner["bias"]
    meter = cf.CollapseMeter(model, num_classes=3, layers=["inner"], verbose=False)
    state = meter.init(*before, x)
    logits, features = meter.capture(model, *before, x)
    report = meter.report(meter.update(state, features, y, logits=logits), *before)
    rows = np.asarray(x @ kernel + bias, np.float64).mean(1)
    expected = measure(ClassMoments.from_batch(rows, y, 3))["nc1_trace_ratio"]
    for layer in ("inner", "fc"):
        np.testing.assert_allclose(report[layer]["nc1_trace_ratio"], expected, rtol=1e-4)
