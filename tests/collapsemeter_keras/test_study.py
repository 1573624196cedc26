"""What is learnt of a model before its first batch: head, order, layers, threshold, from its graph alone."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
from keras import layers, ops

from collapsemeter import ClassMoments, decide, measure
from collapsemeter_keras import CollapseMeter
from collapsemeter_keras.points import is_composite
from collapsemeter_keras.study import study

from .networks import CLASSES, EAGER, WIDTH, data, frozen
from .test_faults import fit

X, Y = data(48)
BACKEND = keras.backend.backend()
IMAGES = np.random.default_rng(5).normal(size=(48, 8, 8, 3)).astype("float32")
WORDS = np.random.default_rng(6).integers(1, 11, (48, 6)).astype("int32")


def learnt(model, **options):
    """A meter's selection for a model."""
    meter = CollapseMeter(verbose=False, strict=True, **options)
    meter.set_model(model)
    meter.close()
    return meter.selection


def body(inputs):
    x = layers.Dense(12, "relu", name="one")(inputs)
    return layers.Dense(8, "relu", name="two")(x)


def tail(make):
    """A functional network whose scores are made of its features by a function."""
    inputs = keras.Input((WIDTH,))
    return keras.Model(inputs, make(body(inputs)))


def fc(x, units=CLASSES, name="fc", **options):
    return layers.Dense(units, name=name, **options)(x)


class Weight(layers.Layer):
    """A head that is a bare weight."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1], CLASSES))

    def call(self, x):
        return ops.matmul(x, self.weight)


class Cosine(layers.Layer):
    """A head of directions, with its scale and a bias of its own: two tables make no one map."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(CLASSES, shape[-1]))
        self.other = self.add_weight(shape=(CLASSES, shape[-1]))

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.weight + self.other))


class Directions(layers.Layer):
    """Cosines: one table, and no map x W + b."""

    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], CLASSES))

    def call(self, x):
        return ops.matmul(ops.normalize(x), ops.normalize(self.table, axis=0))


class Squared(layers.Dense):
    """A Dense layer whose forward is another one."""

    def call(self, x):
        return -ops.square(super().call(x))


class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x / self.scale


HEADS = {
    "softmax": (lambda x: layers.Softmax()(fc(x)), "fc", ""),
    "activation": (lambda x: fc(x, activation="softmax"), "fc", ""),
    "temperature": (lambda x: ops.log_softmax(fc(x) / 2.5), "fc", ""),
    "dropout": (lambda x: layers.Dropout(0.5)(layers.Identity()(fc(x))), "fc", ""),
    "weight": (lambda x: Weight(name="arc")(x), "arc", ""),
    "reshaped": (
        lambda x: layers.Reshape((CLASSES,))(
            layers.Conv2D(CLASSES, 1, name="conv")(layers.Reshape((1, 1, 8))(x))
        ),
        "conv",
        "",
    ),
    "two heads": (
        lambda x: layers.Average()([fc(x, name="a"), fc(x, name="b")]),
        None,
        "no_single_head",
    ),
    "adjusted": (
        lambda x: fc(x) + np.log([0.1, 0.2, 0.3, 0.4]).astype("float32"),
        None,
        "scores_are_not_the_heads",
    ),
    "negated": (lambda x: -fc(x), None, "scores_are_not_the_heads"),
    "masked": (
        lambda x: ops.where(np.array([True, True, True, False]), fc(x), -1e9),
        None,
        "scores_are_not_the_heads",
    ),
    "two tables": (Cosine(name="cosine"), None, "no_head"),
    "one table of directions": (lambda x: Directions(name="cosine")(x), None, "no_head"),
    "another forward": (lambda x: Squared(CLASSES, name="fc")(x), None, "no_head"),
    "permuted": (lambda x: ops.take(fc(x), [2, 0, 1, 3], axis=1), None, "scores_are_not_the_heads"),
    "normalised": (
        lambda x: layers.BatchNormalization(name="norm")(fc(x)),
        None,
        "no_head",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_layer_that_makes_the_scores(name):
    make, head, no_head = HEADS[name]
    chosen = learnt(tail(make))
    assert (chosen.head, chosen.no_head, chosen.width) == (head, no_head, CLASSES)
    assert chosen.layers[:1] == ("one",)
    assert ("two" in chosen.layers) == (head is None)  # else it is what the head is given
    if name == "softmax":
        assert chosen.skipped["softmax"] == "it comes after the head"


@pytest.mark.parametrize(
    ("make", "threshold"),
    [
        (lambda x: fc(x, 1), 0.0),
        (lambda x: fc(x, 1, activation="sigmoid"), 0.5),
        # As the guide to mixed precision writes it.
        (
            lambda x: layers.Activation("sigmoid", dtype="float32")(fc(x, 1, dtype="mixed_bfloat16")),
            0.5,
        ),
        (lambda x: ops.squeeze(ops.sigmoid(fc(x, 1)), -1), 0.5),
        (lambda x: ops.tanh(fc(x, 1)), 0.0),
        (lambda x: layers.Rescaling(0.5, offset=-3.0)(fc(x, 1)), 0.0),
        (lambda x: 1 - ops.sigmoid(-fc(x, 1)), 0.5),
        (lambda x: layers.Average()([fc(x, 1, "a", activation="sigmoid"), fc(x, 1, "b", activation="sigmoid")]), 0.5),
    ],
    ids=["logit", "activation", "layer", "operation", "hinge", "shift", "complement", "average"],
)  # fmt: skip
def test_one_score_decides_at_the_right_place(make, threshold):
    model, labels = tail(make), Y % 2
    loss = keras.losses.BinaryCrossentropy(from_logits=threshold == 0)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=EAGER)
    meter = CollapseMeter(verbose=False, strict=True)
    model.evaluate(X, labels, verbose=0, callbacks=[meter])
    assert meter.selection.threshold == threshold
    tally = meter._streams["validation"].tally((meter.selection.watched[-1], 0))
    scores = np.asarray(model.predict(X, verbose=0), np.float64).ravel()
    decided = (scores > threshold).astype(int)[tally.ids]
    truth = decide(tally.moments("frozen-eval"), tally.rows, tally.labels, predictions=decided)
    report = meter.compute("validation")
    assert 0 < truth.agree.sum() < len(X)
    assert report.final["nc4_mismatch"] == pytest.approx(1 - truth.agree.sum() / len(X))


# Subclassed models


class HeadFirst(keras.Model):
    """Declares its head first, and what comes first last."""

    def __init__(self, backwards=True):
        super().__init__()
        names = ["fc", "two", "one"] if backwards else ["one", "two", "fc"]
        made = {
            "one": layers.Dense(12, "relu", name="one"),
            "two": layers.Dense(8, "relu", name="two"),
            "fc": layers.Dense(CLASSES, name="fc"),
        }
        for name in names:
            setattr(self, name, made[name])

    def call(self, x):
        return self.fc(self.two(self.one(x) * 2.0) + 0.0)


def test_the_order_of_init_changes_no_digit():
    reports = []
    for backwards in (True, False):
        keras.utils.set_random_seed(1)
        model = frozen(HeadFirst(backwards), run_eagerly=EAGER)
        meter = CollapseMeter(["*"], verbose=False, strict=True, example=X[:2])
        fit(model, meter)
        assert meter.selection.watched == ["one", "two", "fc"]
        reports.append(meter.reports["train"][0].report)
    for layer in reports[0]:
        assert dict(reports[0][layer]) == dict(reports[1][layer])


@pytest.mark.parametrize("how", ["built", "example", "first batch", "observe", "step"])
def test_a_subclassed_model_is_learnt_as_soon_as_its_inputs_are_known(how):
    model = frozen(HeadFirst(), run_eagerly=EAGER)
    meter = CollapseMeter(verbose=False, strict=True, example=X[:2] if how == "example" else None)
    if how == "built":
        model(X[:2])
    meter.set_model(model)
    if how not in ("built", "example"):
        with pytest.raises(ValueError, match="no layers are chosen yet: the meter needs a model"):
            meter.selection  # noqa: B018
        assert "at the first batch, or pass" in meter.describe()
        with pytest.warns(RuntimeWarning, match="no step ran since it began"):
            assert not meter.compute().layers
    if how == "first batch":
        fit(model, meter)
    elif how == "step":
        model.train_on_batch(X, Y)
    elif how == "observe":
        assert meter.observe(model, (X, Y), progress=False).provenance["rows"] == 48
    assert meter.selection.watched == ["one", "two", "fc"]
    if how in ("first batch", "step"):
        assert meter.compute()["fc"].provenance["rows"] == 48


class NoCall(keras.Model):
    """Does all in its steps, as generative models do."""

    def __init__(self):
        super().__init__()
        self.fc = layers.Dense(CLASSES, name="fc")

    def train_step(self, data):
        return {"loss": ops.mean(self.fc(data[0]))}


def test_a_model_without_a_forward_trains_on_unmeasured():
    model, meter = NoCall(), CollapseMeter(verbose=False)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    if BACKEND != "tensorflow":  # where Keras itself wants a forward
        with pytest.raises(Exception, match="NoCall"):
            fit(model, meter)
        return
    with pytest.warns(RuntimeWarning, match="NoCall cannot be run on its inputs .NotImplemented"):
        history = fit(model, meter, epochs=2)
    assert len(history.history["loss"]) == 2
    assert meter.reports["train"] == []
    with pytest.warns(RuntimeWarning, match="was counted: NoCall cannot be run on its inputs"):
        assert not meter.compute().layers


class Block(layers.Layer):
    """A residual block with a branch of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.branch = keras.Sequential([layers.Dense(16, "relu"), layers.Dense(8)])
        self.attend = layers.MultiHeadAttention(2, 4)
        self.norm = layers.LayerNormalization()

    def call(self, x):
        x = self.norm(x + self.attend(x, x))
        return x + self.branch(x)


class Reader(keras.Model):
    """A subclassed text classifier, the last part first."""

    def __init__(self):
        super().__init__()
        self.fc = layers.Dense(CLASSES, name="fc")
        self.blocks = [Block(name=f"block{number}") for number in (1, 2, 3)]
        self.embed = layers.Embedding(11, 8, name="embed")

    def call(self, words, training=False):
        x = self.embed(words)
        for block in self.blocks:
            x = block(x)
        return self.fc(ops.mean(x, axis=1))


def test_blocks_of_a_subclassed_model_are_layers_and_their_parts_are_not():
    chosen = learnt(Reader(), example=WORDS)
    assert chosen.watched == ["block1", "block2", "block3", "fc"]
    assert chosen.skipped["embed"] == "it is an embedding alone"
    inside = {why for name, why in chosen.skipped.items() if name.startswith("block2/")}
    assert inside == {"inside block2, which is watched", "passes its input on"}


class OwnOperations(keras.Model):
    """Calls its backend's functions, which take no symbolic tensors of Keras."""

    def __init__(self):
        super().__init__()
        self.fc = layers.Dense(1, name="fc")
        self.two = layers.Dense(12, name="two")
        self.one = layers.Dense(12, name="one")

    def call(self, x):
        relu, sigmoid = OWN[BACKEND]()
        x = self.one(x)
        return sigmoid(self.fc(x + relu(self.two(x))))


def _tensorflow():
    import tensorflow as tf

    return tf.nn.relu, tf.sigmoid


def _jax():
    import jax

    return jax.nn.relu, jax.nn.sigmoid


def _torch():
    import torch

    return torch.relu, torch.sigmoid


OWN = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}


def test_operations_of_the_backend_are_followed_too():
    chosen = learnt(OwnOperations(), example=X)
    assert (chosen.layers, chosen.head, chosen.threshold) == (("one",), "fc", 0.5)
    assert chosen.skipped["two"].startswith("not all of the signal passes it")


class OwnSigmoid(OwnOperations):
    """Makes a probability by arithmetic of its backend, which cannot be run again by itself."""

    def call(self, x):
        relu, _ = OWN[BACKEND]()
        return 1 / (1 + ops.exp(-relu(self.fc(self.one(x)))))


@pytest.mark.parametrize("from_logits", [False, True])
def test_where_a_score_decides_is_told_by_the_loss_if_by_nothing_else(from_logits):
    model = OwnSigmoid()
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    chosen = learnt(model, example=X)
    assert chosen.threshold == (0.0 if from_logits else 0.5)
    assert "as the loss says" in chosen.note


class Loses(keras.Model):
    """Goes through values, which leave no trace."""

    def __init__(self):
        super().__init__()
        self.one, self.fc = layers.Dense(8, name="one"), layers.Dense(CLASSES, name="fc")

    def call(self, x):
        x = self.one(x)
        return self.fc(ops.zeros((2, 3)))


def test_where_no_path_leads_from_the_inputs_the_order_of_calls_is_told():
    chosen = learnt(Loses(), example=X[:2])
    assert chosen.layers == ("one",)
    assert "order of their calls" in chosen.note


# Which layers


def test_sums_by_operators_are_points_and_branches_are_not():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for number in (1, 2):
        y = layers.LayerNormalization(name=f"norm{number}")(x)
        y = layers.Conv2D(4, 3, padding="same", activation="relu", name=f"conv{number}")(y)
        x = x + y
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, fc(x))
    first, second = (o.name for o in model.operations if not isinstance(o, layers.Layer))
    chosen = learnt(model)
    assert chosen.layers == ("stem", first, second)
    frozen(model, run_eagerly=EAGER)
    meter = CollapseMeter(verbose=False, strict=True)
    model.evaluate(IMAGES, Y, verbose=0, callbacks=[meter])
    report = meter.reports["validation"][0].report
    assert not report.warnings
    # The mean over positions of the last sum is what the head is given.
    assert report[second]["nc1_pinv"] == pytest.approx(report["fc"]["nc1_pinv"], rel=1e-4)


def cells(number=6):
    """Cells that read the two before them, so that no tensor is a cut by itself."""
    inputs = keras.Input((WIDTH,))
    before = last = layers.Dense(8, name="stem")(inputs)
    for cell in range(number):
        left = layers.Add(name=f"left{cell}")([layers.Dense(8)(last), layers.Dense(8)(before)])
        right = layers.Add(name=f"right{cell}")([layers.Dense(8)(last), layers.Dense(8)(before)])
        before, last = last, layers.Concatenate(name=f"cell{cell}")([left, right])
    return keras.Model(inputs, fc(layers.Dense(8, name="end")(last)))


def test_cells_that_read_the_two_before_them_are_layers():
    chosen = learnt(cells())
    assert chosen.layers == ("stem", *(f"cell{number}" for number in range(6)))


def test_wrappers_and_attention_are_one_layer():
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            layers.Embedding(11, 8, name="embed"),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both"),
            layers.TimeDistributed(layers.Dense(6, "relu"), name="each"),
            layers.GlobalAveragePooling1D(name="pool"),
            layers.Dense(5, "relu", name="hidden"),
            layers.Dense(CLASSES, name="fc"),
        ]
    )
    assert learnt(model).watched == ["both", "pool", "fc"]
    assert not any(is_composite(layer) for layer in model.layers)


def test_many_points_are_spread_over_the_depth():
    model = keras.Sequential([keras.Input((WIDTH,))])
    for number in range(30):
        model.add(layers.Dense(5, name=f"layer{number}"))
    model.add(layers.Dense(CLASSES, name="fc"))
    chosen = learnt(model)
    assert (len(chosen.watched), chosen.layers[-1]) == (16, "layer28")
    assert len(learnt(model, max_layers=3).watched) == 3
    meter = CollapseMeter(verbose=False)
    meter.set_model(model)
    assert all(len(line) <= 100 for line in meter.describe().splitlines())
    assert "see max_layers=" in meter.describe(full=True)
    meter.close()
    with pytest.raises(ValueError, match="max_layers=0: watch at least one"):
        CollapseMeter(max_layers=0)


# Several outputs


def two_classifiers(as_dict=True):
    inputs = keras.Input((WIDTH,))
    x = body(inputs)
    outputs = {"b": fc(x, name="hb"), "a": fc(layers.Dense(5, name="own")(x), name="ha")}
    model = keras.Model(inputs, outputs if as_dict else [*outputs.values()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = dict.fromkeys(outputs, loss) if as_dict else [loss, loss]
    model.compile(keras.optimizers.SGD(0.0), losses, run_eagerly=EAGER)
    return model


@pytest.mark.parametrize(
    ("as_dict", "options"),
    [
        (True, {"labels": "a"}),
        (True, {"scores": "a"}),
        (False, {"scores": "ha"}),
        (False, {"scores": 1}),
        (False, {"scores": -1, "labels": lambda x, y: y[1] if isinstance(y, list | tuple) else y}),
    ],
)
def test_the_scores_choose_their_own_head_and_labels(as_dict, options):
    model, other = two_classifiers(as_dict), (Y + 1) % CLASSES
    meter = CollapseMeter(verbose=False, strict=True, **options)
    targets = {"b": other, "a": Y} if as_dict else [other, Y]
    model.evaluate(X, targets, verbose=0, callbacks=[meter])
    assert (meter.selection.head, meter.selection.layers[-1]) == ("ha", "two")
    report = meter.reports["validation"][0].report
    tally = meter._streams["validation"].tally(("ha", 0))
    np.testing.assert_array_equal(tally.labels, Y[tally.ids])
    outputs = model.predict(X, verbose=0)
    decided = (outputs["a"] if as_dict else outputs[1]).argmax(1)[tally.ids]
    truth = decide(tally.moments("frozen-eval"), tally.rows, tally.labels, predictions=decided)
    assert report["ha"]["nc4_mismatch"] == pytest.approx(1 - truth.agree.sum() / len(X))


class ByMode(keras.Model):
    """Gives other scores in training."""

    def __init__(self):
        super().__init__()
        self.one, self.fc = layers.Dense(8, name="one"), layers.Dense(CLASSES, name="fc")

    def call(self, x, training=False):
        scores = self.fc(self.one(x))
        return ops.concatenate([scores, scores], axis=-1) if training else scores


def test_scores_of_another_width_in_a_step_are_not_measured():
    model, meter = frozen(ByMode(), run_eagerly=EAGER), CollapseMeter(verbose=False, example=X)
    with pytest.warns(RuntimeWarning, match="scores of width 8 and there are 4 classes: pass"):
        fit(model, meter, validation_data=(X, Y))
    assert np.isnan(meter.reports["train"][0].report["fc"]["nc1_pinv"])


# Heads that are named, layers that fit no label, names, memory


def test_a_head_with_a_callable_that_takes_its_weight():
    cosine = Cosine(name="cosine")
    model = frozen(tail(cosine), run_eagerly=EAGER)
    for asked in (cosine, "cosine"):
        getter = lambda layer: layer.weight + layer.other  # noqa: E731 # (C, d)
        meter = CollapseMeter(head=(asked, getter), verbose=False, strict=True)
        report = meter.observe(model, (X, Y), progress=False)
        assert report.final.reason("nc3_cosine") is None
        assert list(report)[-1] == "cosine"
        weight = np.asarray(ops.convert_to_numpy(cosine.weight + cosine.other), np.float64)
        np.testing.assert_allclose(meter._attachment.head().weight, weight, rtol=1e-6)
    with pytest.raises(ValueError, match="the Dense is no layer of the model"):
        learnt(model, head=(layers.Dense(3), getter))
    with pytest.raises(ValueError, match="head='cosine' is a Cosine: name a Dense layer, pass a"):
        learnt(model, head="cosine")


def test_a_layer_that_fits_no_label_costs_itself_alone():
    inputs = keras.Input((WIDTH,))
    x = layers.Reshape((2, 3), name="odd")(layers.Dense(WIDTH, name="one")(inputs))
    model = frozen(keras.Model(inputs, fc(layers.Flatten()(x))), run_eagerly=EAGER)
    meter = CollapseMeter(["one", "odd"], verbose=False, strict=True, reduction={"odd": "tokens"})
    with pytest.warns(RuntimeWarning, match="'odd' is not measured: .*pass reduction="):
        report = meter.observe(model, (X, Y), progress=False)
    assert report["odd"].flags == ("unpaired_rows",)
    assert report["one"].provenance["rows"] == report["fc"].provenance["rows"] == 48


def test_the_last_layer_has_a_name_in_the_logs_that_stays():
    model, meter = frozen(tail(lambda x: layers.Dense(CLASSES)(x))), CollapseMeter(verbose=False)
    stop = keras.callbacks.EarlyStopping(monitor="val_nc1_pinv/head", mode="min", patience=1)
    history = fit(model, meter, stop, epochs=5, validation_data=(X, Y)).history
    assert len(history["loss"]) == 2  # nothing improves at a learning rate of zero
    for prefix in ("", "val_"):
        name = f"{prefix}nc1_pinv/{meter.selection.head}"
        assert history[f"{prefix}nc1_pinv/head"] == history[name]


def test_memory_is_a_budget_that_hidden_layers_keep():
    model = frozen(tail(fc), run_eagerly=EAGER)
    meter = CollapseMeter(["one", "two"], memory=0.7, verbose=False, strict=True)
    meter.set_model(model)
    assert "memory: " in meter.describe()
    model.evaluate(X, Y, verbose=0, callbacks=[meter])
    held = {key[0]: part.holding for key, part in meter._streams["validation"].layers.items()}
    assert held["one"].sample_rows < held["fc"].sample_rows
    state = meter.state_dict()
    meter.close()
    resumed = CollapseMeter(["one", "two"], memory=0.7, verbose=False, strict=True)
    resumed.set_model(model)
    resumed.load_state_dict(state)
    resumed.close()
    whole = CollapseMeter(["one", "two"], memory=None, verbose=False, strict=True)
    whole.set_model(model)
    with pytest.raises(
        ValueError, match=r"rows and scatter of layer 'one' .*, this meter 4096 and"
    ):
        whole.load_state_dict(state)
    whole.close()
    with pytest.raises(ValueError, match="memory='much': pass MiB, 'auto' or None"):
        CollapseMeter(memory="much")


def test_scatters_of_ten_classes_are_pooled_where_they_would_cost_ten_products():
    inputs = keras.Input((WIDTH,))
    wide = layers.Dense(64, name="wide")(inputs)
    model = frozen(keras.Model(inputs, fc(wide, units=10)), run_eagerly=EAGER)
    kept = []
    for scatter in ("auto", "class"):
        meter = CollapseMeter(["wide"], scatter=scatter, verbose=False, strict=True)
        meter.set_model(model)
        model.evaluate(X, Y, verbose=0, callbacks=[meter])
        kept.append((meter.moments("wide", "validation").scatter, meter.state_dict()))
        meter.close()
    (mine, _), (of_classes, state) = kept
    assert of_classes.ndim == 3
    assert mine.ndim == (3 if BACKEND == "torch" else 2)
    whole = of_classes.sum(axis=0)
    np.testing.assert_allclose(mine.reshape(-1, 64, 64).sum(axis=0), whole, atol=1e-3)
    # What was saved by a meter that kept the scatter of every class is pooled.
    resumed = CollapseMeter(["wide"], verbose=False, strict=True)
    resumed.set_model(model)
    model.evaluate(X, Y, verbose=0, callbacks=[resumed])
    resumed.load_state_dict(state)
    loaded = resumed.moments("wide", "validation").scatter
    resumed.close()
    np.testing.assert_allclose(loaded.reshape(-1, 64, 64).sum(axis=0), whole, atol=1e-6)


# Without a trace


@pytest.mark.parametrize("make", [Reader, OwnOperations, lambda: tail(Scale())])
def test_a_study_leaves_nothing(make):
    model, x = make(), WORDS if make is Reader else X
    model(x[:2])
    parts = [model, *model._flatten_layers(include_self=False)]

    def state():
        nodes = [(len(part._inbound_nodes), len(part._outbound_nodes)) for part in parts]
        attributes = [sorted(vars(part)) for part in parts]
        weights = [variable.numpy().tobytes() for variable in model.variables]
        seed = keras.src.random.seed_generator.global_seed_generator().state.numpy().tobytes()
        drawn = (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
        name = layers.Add().name
        return nodes, attributes, weights, seed, drawn, name.partition("_")[0]

    before, number = state(), layers.Add().name
    learnt(model)
    after = state()
    assert after == before
    step = [int(name.rpartition("_")[2] or 0) for name in (number, layers.Add().name)]
    assert step[1] - step[0] == 2  # those that were made here, and none of ours


OPERATIONS = {
    "positions": ((5, 8), lambda: layers.Dense(16), 2 * 5 * 8 * 16),
    "strides": ((8, 8, 3), lambda: layers.Conv2D(6, 3, 2, "same"), 2 * 4 * 4 * 9 * 3 * 6),
    "groups": (
        (8, 8, 4),
        lambda: layers.Conv2D(6, 3, padding="same", groups=2),
        2 * 8 * 8 * 9 * 2 * 6,
    ),
    "depthwise": (
        (8, 8, 3),
        lambda: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
        2 * 8 * 8 * 9 * 6,
    ),
    "separable": (
        (8, 8, 3),
        lambda: layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2),
        2 * 8 * 8 * (9 * 6 + 6 * 5),
    ),
    "transposed": ((4, 4, 3), lambda: layers.Conv2DTranspose(5, 2, 2), 2 * 4 * 4 * 4 * 3 * 5),
    "einsum": (
        (5, 8),
        lambda: layers.EinsumDense("abc,cde->abde", (5, 2, 7), bias_axes="de"),
        2 * 5 * 8 * 2 * 7,
    ),
    "lstm": ((5, 8), lambda: layers.LSTM(6), 2 * 5 * 4 * 6 * (8 + 6)),
    "gru": ((5, 8), lambda: layers.GRU(6, return_sequences=True), 2 * 5 * 3 * 6 * (8 + 6)),
    "both ways": (
        (5, 8),
        lambda: layers.Bidirectional(layers.LSTM(6)),
        2 * 2 * 5 * 4 * 6 * (8 + 6),
    ),
    "wrapped": ((5, 8), lambda: layers.TimeDistributed(layers.Dense(6)), 2 * 5 * 8 * 6),
    "no products": ((5, 8), lambda: layers.LayerNormalization(), 0),
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_the_operations_of_a_forward_are_two_for_each_product_of_a_weight(kind):
    shape, make, expected = OPERATIONS[kind]
    inputs = keras.Input(shape)
    features = layers.Flatten()(make()(inputs))
    model = keras.Model(inputs, layers.Dense(10)(features))
    assert study(model).operations == expected + 2 * 10 * features.shape[-1]


def test_the_operations_of_attention_are_those_of_its_four_maps():
    inputs = keras.Input((5, 8))
    features = layers.Flatten()(layers.MultiHeadAttention(2, 4)(inputs, inputs))
    model = keras.Model(inputs, layers.Dense(10)(features))
    assert study(model).operations == 2 * 5 * 4 * 8 * 8 + 2 * 10 * 40


def test_the_operations_of_sequences_of_any_length_are_not_known():
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, layers.Dense(10)(layers.LSTM(6)(inputs)))
    assert study(model).operations == 0


class PositionsFirst(keras.layers.Layer):
    """Gives (T, B, d)."""

    def call(self, x):
        return ops.transpose(x, (1, 0, 2))


class TurnedNetwork(keras.Model):
    """A subclass whose layer has positions before samples."""

    def __init__(self):
        super().__init__()
        self.inner, self.fc = layers.Dense(WIDTH, name="inner"), layers.Dense(3, name="fc")

    def call(self, x):
        return self.fc(ops.mean(self.inner(ops.transpose(x, (1, 0, 2))), axis=0))


def turned_functional():
    inputs = keras.Input((6, 5))
    hidden = layers.Dense(WIDTH, name="inner")(PositionsFirst()(inputs))
    return keras.Model(inputs, layers.Dense(3, name="fc")(ops.mean(hidden, axis=0)))


@pytest.mark.parametrize("make", [turned_functional, TurnedNetwork])
@pytest.mark.parametrize("samples", [6, 4])  # as many as positions, or fewer
def test_positions_first_are_averaged_and_not_the_samples(make, samples):
    x = np.random.default_rng(0).normal(size=(samples, 6, 5)).astype(np.float32)
    y = np.arange(samples) % 3
    model = make()
    model(x)
    meter = CollapseMeter(layers=["inner"], num_classes=3, verbose=False)
    report = meter.observe(model, (x, y), batch_size=samples, progress=False)
    rows = ops.convert_to_numpy(model.get_layer("inner")(x)).mean(1, dtype=np.float64)
    expected = measure(ClassMoments.from_batch(rows, y, 3))["nc1_trace_ratio"]
    for layer in ("inner", "fc"):
        np.testing.assert_allclose(report[layer]["nc1_trace_ratio"], expected, rtol=1e-4)
