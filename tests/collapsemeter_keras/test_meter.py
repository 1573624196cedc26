"""What a user asks for and gets: layers, logs, sinks, probes, data in every form, dtypes, masks."""

from __future__ import annotations

import csv
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

from collapsemeter import ClassMoments, Head, decide, measure
from collapsemeter.stats.sampling import reservoir_slots
from collapsemeter_keras import CollapseMeter, watch
from collapsemeter_keras.head import head_of

from .networks import CLASSES, EAGER, NO_XLA, WIDTH, body, data, forward, frozen, parts, sequential
from .test_faults import assert_counted, fit

X, Y = data(48)
BACKEND = keras.backend.backend()


def meter_for(**options) -> CollapseMeter:
    return CollapseMeter(**{"layers": ["one"], "verbose": False, "strict": True, **options})


# Which layers


def residual() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    for number in (1, 2):
        y = layers.Conv2D(4, 3, padding="same", name=f"conv{number}a")(x)
        y = layers.BatchNormalization(name=f"norm{number}")(y)
        y = layers.ReLU(name=f"relu{number}a")(y)
        y = layers.Conv2D(4, 3, padding="same", name=f"conv{number}b")(y)
        x = layers.Add(name=f"add{number}")([x, y])
        x = layers.ReLU(name=f"relu{number}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="drop")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x))


def recurrent() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(11, 6, mask_zero=True, name="embed"),
            layers.Bidirectional(layers.LSTM(4), name="both"),
            layers.Dense(6, "relu", name="hidden"),
            layers.Dense(CLASSES, name="fc"),
        ]
    )


def attention(pooled: bool) -> keras.Model:
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 8, name="embed")(inputs)
    y = layers.MultiHeadAttention(2, 4, name="attend")(x, x)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="add")([x, y]))
    if pooled:
        x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x))


def dictionary() -> keras.Model:
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((3,), name="right")}
    x = layers.Concatenate(name="join")([*inputs.values()])
    x = layers.Dense(8, "relu", name="one", activity_regularizer="l2")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x))


class Tower(keras.Model):
    """Subclassed blocks in a list, over an image."""

    def __init__(self):
        super().__init__()
        self.blocks = [
            keras.Sequential([layers.Conv2D(4, 3), layers.ReLU()], name=f"block{n}") for n in (1, 2)
        ]
        self.pool = layers.GlobalMaxPooling2D(name="pool")
        self.fc = layers.Dense(CLASSES, name="fc")

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x)
        return self.fc(self.pool(x))


RNG = np.random.default_rng(5)
IMAGES = RNG.normal(size=(48, 8, 8, 3)).astype("float32")
WORDS = RNG.integers(1, 11, (48, 5)).astype("int32")
TAGS = RNG.integers(0, CLASSES, (48, 5)).astype("int32")
PAIRS = {"left": X[:, :3], "right": X[:, 3:]}
UPDATED = ("residual",)  # whose training has another forward than its evaluation
NETWORKS = {
    "residual": (residual, IMAGES, Y, ["relu1", "fc"]),
    "recurrent": (recurrent, WORDS, Y, ["both", "fc"]),  # and not `embed`, a sequence
    "attention_pooled": (lambda: attention(True), WORDS, Y, ["fc"]),
    "attention_tokens": (lambda: attention(False), WORDS, TAGS, ["fc"]),
    "dictionary": (dictionary, PAIRS, Y, ["fc"]),
    "tower": (Tower, IMAGES, Y, ["block1", "block2", "fc"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_many_kinds(name):
    make, x, y, due = NETWORKS[name]
    model, seen = frozen(make()), []
    meter = meter_for(layers="auto" if name != "recurrent" else ["both", "hidden"])
    stream, checked = "train", {}
    if name in UPDATED:
        stream, checked = "validation", {"validation_data": (x, y)}
    model.fit(x, y, 16, verbose=0, callbacks=[meter], **checked)
    report = meter.reports[stream][0].report
    assert not report.warnings
    assert set(due) <= set(report), meter.describe()
    assert report.provenance["rows"] == y.size
    head = meter.selection.head_module
    # The features again, by a model that ends where the head begins: or eagerly, layer by layer.
    original = head.call
    head.__dict__["call"] = lambda inputs, **kw: (seen.append(inputs), original(inputs, **kw))[1]
    model(_tensors(x))
    head.__dict__["call"] = original
    rows = ops.convert_to_numpy(ops.stop_gradient(seen[-1])).reshape(y.size, -1)
    truth = ClassMoments.from_batch(rows, y.ravel(), CLASSES)
    found = meter.moments("fc", stream)
    np.testing.assert_array_equal(found.counts, truth.counts)
    size = np.abs(truth.scatter).max()
    np.testing.assert_allclose(found.scatter, truth.scatter, rtol=0, atol=1e-5 * size)
    assert meter.observe(model, (x, y), progress=False)["fc"]["nc1_pinv"] == pytest.approx(
        report["fc"]["nc1_pinv"], rel=1e-4
    )


def _tensors(x):
    return keras.tree.map_structure(ops.convert_to_tensor, x)


def select(model, layers, head="auto", **options):
    """The selection of a meter that is put on a model and taken off."""
    meter = meter_for(layers=layers, head=head, **options)
    meter.set_model(model)
    meter.close()
    return meter.selection


def test_layers_by_pattern_predicate_and_reasons():
    net = residual()
    assert select(net, "conv*b").watched == ["conv1b", "conv2b", "fc"]
    chosen = select(net, lambda name, layer: isinstance(layer, layers.Add), None)
    assert chosen.watched == ["add1", "add2"]
    assert chosen.skipped["stem"] == "not chosen by layers="
    assert select(net, "auto").skipped["drop"] == "its output is the input of fc"
    nested = keras.Sequential([keras.Input((WIDTH,)), body(), layers.Dense(CLASSES, name="fc")])
    assert select(nested, ["body/one"], "fc").watched == ["body/one", "fc"]
    assert select(nested, ["body"], "fc").skipped["body/one"] == "inside body, which is watched"
    with pytest.raises(
        ValueError, match=r"'o\*' matches no module.*'o\*\*' crosses|matches no module"
    ):
        select(nested, "o*")
    assert select(nested, "**one").watched == ["body/one", "fc"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["three"]}, r"'three' matches no module; the model has one, two, fc"),
        (
            {"layers": [], "head": None, "num_classes": 4},
            r"layers=\[\] selects nothing of Sequential",
        ),
        ({"head": "four"}, r"head='four' is not a layer of the model; it has one, two, fc"),
        (
            {"head": "one"},
            r"head 'one' has 12 outputs and the scores have width 4: they must agree",
        ),
        (
            {"head": "fc", "num_classes": 7},
            r"the output holds scores of width 4 and num_classes=7: they must agree",
        ),
        (
            {"scores": "size"},
            r"scores='size': the model returned one tensor, which is the scores",
        ),
        ({"scores": lambda output: 3}, "what scores= returns is a int: scores= must give a tensor"),
        ({"reduction": {"nine": "mean"}}, r"no such layer is watched; watched are one, fc"),
    ],
)
def test_choices_that_do_not_fit_the_model(options, message):
    with pytest.raises(ValueError, match=message):
        meter_for(**options).set_model(sequential())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0: report every epoch"),
        ({"labels": 3}, r"labels=3: pass a key or a callable"),
        ({"log_metrics": ["nc9"]}, "log_metrics='nc9': no metric has that name"),
        ({"sinks": {"test": []}}, "sinks has a stream 'test': choose of train, validation, probe"),
        ({"num_classes": 1}, "num_classes=1: there must be at least two classes"),
        ({"scatter": "full"}, "scatter='full': choose"),
    ],
)
def test_choices_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        CollapseMeter(**options)


def test_a_head_that_has_no_weight_for_each_class():
    net = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(3, 3, name="conv")])
    with pytest.raises(ValueError, match="head='conv' is a Conv2D: name a Dense layer"):
        meter_for(head="conv", layers="auto").set_model(net)


def test_what_is_watched_is_printed(capsys):
    watch(sequential(), layers=["one"]).close()
    printed = capsys.readouterr().out
    assert "collapsemeter watches 4 classes in: one, fc (input of the head)" in printed
    assert "not watched: 1 whose output is the head's input; describe(full=True) lists" in printed


# Epochs, logs and sinks


def test_logs_reach_history_csv_and_early_stopping(tmp_path):
    model = frozen(sequential(), run_eagerly=EAGER)
    meter = meter_for(log_metrics=["nc1_pinv", "nc4_mismatch"])
    stop = keras.callbacks.EarlyStopping(monitor="val_nc1_pinv/fc", mode="min", patience=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, meter, stop, log, epochs=9, validation_data=(X, Y))
    assert len(history.history["loss"]) == 2  # nothing improves at a learning rate of zero
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for stream, prefix in (("train", ""), ("validation", "val_")):
        values = [entry.report["fc"]["nc1_pinv"] for entry in meter.reports[stream]]
        assert history.history[f"{prefix}nc1_pinv/fc"] == values
        assert [float(row[f"{prefix}nc1_pinv/fc"]) for row in rows] == values
        assert f"{prefix}nc4_mismatch/fc" in history.history
        assert f"{prefix}nc2_equinorm/fc" not in history.history


def test_every_second_epoch_with_a_probe():
    model, meter = frozen(sequential()), meter_for(every=2, probe=(X[:20], Y[:20]))
    fit(model, meter, epochs=3, validation_data=(X, Y))
    for stream, phase in (
        ("train", "live"),
        ("validation", "frozen-eval"),
        ("probe", "frozen-train"),
    ):
        assert [entry.epoch for entry in meter.reports[stream]] == [0, 2]
        assert {entry.report.phase for entry in meter.reports[stream]} == {phase}
    assert meter.reports["probe"][0].report.provenance["rows"] == 20


def test_sinks_keep_the_streams_apart(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Board:
        def __init__(self):
            self.tags = []

        def add_scalar(self, tag, value, step):
            self.tags.append((tag, step))

    called, board = [], Board()
    sinks = [
        tmp_path / "events",
        str(tmp_path / "run.jsonl"),
        board,
        lambda step, r: called.append((step, r.phase)),
    ]
    meter = meter_for(sinks=sinks)
    fit(frozen(sequential()), meter, epochs=2, validation_data=(X, Y))
    assert called == [(0, "live"), (0, "frozen-eval"), (1, "live"), (1, "frozen-eval")]
    assert board.tags.count(("nc1_pinv/fc", 0)) == 1
    for stream in ("train", "validation"):
        values = [entry.report["fc"]["nc1_pinv"] for entry in meter.reports[stream]]
        read = EventAccumulator(str(tmp_path / "events" / stream))
        read.Reload()
        scalars = read.Scalars("nc1_pinv/fc")
        assert [scalar.step for scalar in scalars] == [0, 1]
        np.testing.assert_allclose([scalar.value for scalar in scalars], values, rtol=1e-6)
        lines = (tmp_path / f"run.{stream}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1]


def test_sinks_by_stream():
    train, validation = [], []
    meter = meter_for(
        sinks={
            "train": [lambda step, report: train.append(report.phase)],
            "validation": lambda step, report: validation.append(report.phase),
        }
    )
    fit(frozen(sequential(), run_eagerly=EAGER), meter, validation_data=(X, Y))
    assert (train, validation) == (["live"], ["frozen-eval"])


def test_a_sink_that_fails_leaves_training_alone():
    def full(step, report):
        raise OSError("no space left on device")

    meter = meter_for(sinks=[full])
    with pytest.warns(RuntimeWarning, match="no space left on device"):
        history = fit(frozen(sequential(), run_eagerly=EAGER), meter, epochs=2)
    assert len(history.history["nc1_pinv/fc"]) == 2


# Data in every form


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, number):
        return X[16 * number : 16 * number + 16], Y[16 * number : 16 * number + 16]


def _generator():
    for number in range(3):
        yield X[16 * number : 16 * number + 16], Y[16 * number : 16 * number + 16]


def _tf_data():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(17)


def _loader():
    import torch

    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    return torch.utils.data.DataLoader(pairs, batch_size=17)


FORMS = {
    "arrays": lambda: (X, Y),
    "weighted": lambda: (X, Y, np.ones(len(Y))),
    "pydataset": lambda: Batches(workers=1),
    "generator": _generator,
    "list": lambda: [*_generator()],
    "dicts": lambda: [{"inputs": x, "labels": y} for x, y in _generator()],
}
if BACKEND == "tensorflow":
    FORMS["tf_data"] = _tf_data
if BACKEND == "torch":
    FORMS["loader"] = _loader


@pytest.mark.parametrize("form", FORMS)
def test_data_in_every_form(form):
    model = sequential()
    if form == "dicts":
        inputs = keras.Input((WIDTH,), name="inputs")
        model = keras.Model({"inputs": inputs}, model(inputs))
        meter = meter_for(layers="auto")
    else:
        meter = meter_for()
    report = meter.observe(model, FORMS[form](), progress=False)
    assert report.phase == "frozen-eval"
    assert report.provenance["rows"] == len(X)
    if form != "dicts":
        truth = ClassMoments.from_batch(forward(model, X)["fc"], Y, CLASSES)
        weight, bias = parts(model)["fc"].get_weights()
        decided = decide(
            truth, forward(model, X)["fc"], Y, predictions=forward(model, X)["logits"].argmax(1)
        )
        expected = measure(truth, head=Head(weight.T, bias), decisions=decided)
        for metric, value in expected.items():
            # A cosine may be next to nothing.
            assert report["fc"][metric] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), (
                metric
            )
    assert model.train_function is None
    if form not in ("dicts", "list"):
        counted = meter_for()
        frozen(model, run_eagerly=EAGER and form != "tf_data")
        given = FORMS[form]()
        if form == "arrays":
            given = {"x": X, "y": Y}
        elif form == "weighted":
            given = {"x": X, "y": Y, "sample_weight": np.ones(len(Y))}
        elif form == "generator":  # Keras cannot know where it ends
            given = {"x": given, "steps_per_epoch": 3}
        else:
            given = {"x": given}
        model.fit(**given, verbose=0, shuffle=False, callbacks=[counted])
        assert_counted(counted, model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "observe got no batch from list"),
        (3, "observe got a int: pass an iterable"),
        ([X[:4]], "each batch is a pair"),
    ],
)
def test_data_that_is_none(given, message):
    with pytest.raises(ValueError, match=message):
        meter_for().observe(sequential(), given, progress=False)


def test_an_unknown_phase():
    with pytest.raises(ValueError, match="phase='live': choose 'frozen-eval' or 'frozen-train'"):
        meter_for().observe(sequential(), (X, Y), "live")


# Dtypes, weights, masks, two classes, samples


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    inputs = keras.Input((WIDTH,))
    x = layers.Dense(12, "relu", name="one", dtype=policy)(inputs)
    x = layers.Dense(8, "relu", name="two", dtype=policy)(x)
    model = frozen(keras.Model(inputs, layers.Dense(CLASSES, name="fc", dtype="float32")(x)))
    meter = meter_for()
    fit(model, meter)
    report = meter.reports["train"][0].report
    assert report["one"].provenance["feature_dtype"] == policy.removeprefix("mixed_")
    kept = meter._streams["train"].layers["one", 0].sums["scatter"]
    assert keras.backend.standardize_dtype(kept.dtype) == "float32"
    # Features of 8 or 11 bits; sums of them are not rounded again.
    truth = ClassMoments.from_batch(forward(model, X)["one"], Y, CLASSES)
    np.testing.assert_allclose(meter.moments("one").means, truth.means, rtol=0.02, atol=0.02)


def test_a_head_in_float64_keeps_its_digits():
    if BACKEND == "jax":  # which has no float64 unless its user asks for it
        with pytest.warns(UserWarning, match="float64 .*is not available"):
            ops.zeros((1,), dtype="float64")
        return
    net = keras.Sequential(
        [keras.Input((3,), dtype="float64"), layers.Dense(2, name="fc", dtype="float64")]
    )

    weight = np.full((3, 2), 1 / 3)
    net.layers[-1].set_weights([weight, np.zeros(2)])
    assert (head_of(net.layers[-1]).weight == weight.T).all()


@pytest.mark.parametrize("how", ["class_weight", "sample_weight"])
def test_rows_of_weight_zero_are_ignored(how):
    weighted = {"class_weight": {0: 1.0, 1: 2.0, 2: 0.0, 3: 0.5}}
    kept = Y != 2
    if how == "sample_weight":
        kept = np.arange(len(Y)) % 3 > 0
        weighted = {"sample_weight": kept.astype("float32")}
    model, meter = frozen(sequential()), meter_for()
    fit(model, meter, **weighted)
    assert_counted(meter, model, x=X[kept], y=Y[kept])
    assert meter.reports["train"][0].report["fc"].provenance["ignored_rows"] == (~kept).sum()


def test_masked_tokens_are_ignored():
    words = WORDS.copy()
    words[:, 3:] = 0
    net = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(11, 6, mask_zero=True, name="one"),
            layers.Dense(CLASSES, name="fc"),
        ]
    )
    meter = meter_for()
    frozen(net).fit(words, TAGS, 16, verbose=0, callbacks=[meter])
    table = net.layers[0].get_weights()[0]
    truth = ClassMoments.from_batch(
        table[words[:, :3]].reshape(-1, 6), TAGS[:, :3].ravel(), CLASSES
    )
    found = meter.moments("one")
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.means, truth.means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("activation", "column"), [(None, True), ("sigmoid", False)])
def test_two_classes_and_one_score(activation, column):
    net = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            layers.Dense(8, "relu", name="one"),
            layers.Dense(1, activation, name="fc"),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    net.compile(keras.optimizers.SGD(0.0), loss, **NO_XLA)
    labels = Y % 2
    meter = meter_for(layers=[])
    fit(net, meter, y=labels[:, None] if column else labels)
    report = meter.reports["train"][0].report
    assert report["fc"].provenance["classes"] == 2
    hidden = net.layers[0].get_weights()
    rows = np.maximum(X.astype(np.float64) @ hidden[0] + hidden[1], 0)
    weight, bias = net.layers[-1].get_weights()
    truth = ClassMoments.from_batch(rows, labels, 2)
    decided = decide(
        truth, rows, labels, predictions=((rows @ weight + bias)[:, 0] > 0).astype(int)
    )
    expected = measure(
        truth, head=Head.from_single_logit(weight[:, 0], float(bias[0])), decisions=decided
    )
    for metric, value in expected.items():
        assert report["fc"][metric] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), metric


def test_the_sample_is_that_of_every_framework():
    model, meter = frozen(sequential()), meter_for(sample_rows=20, seed=3)
    fit(model, meter)
    numbers, kept = np.arange(len(X)), {}
    for batch in np.split(numbers, 3):
        slots = reservoir_slots(batch, 20, seed=3)
        kept |= {int(slot): int(row) for slot, row in zip(slots, batch, strict=True) if slot < 20}
    tally = meter._streams["train"].tally(("one", 0))
    assert tally.ids.tolist() == [kept[slot] for slot in sorted(kept)]
    np.testing.assert_allclose(
        tally.rows, forward(model, X)["one"][tally.ids], rtol=1e-5, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`:UserWarning")
def test_a_quantized_model():
    model = sequential()
    model.quantize("int8")
    report = meter_for(layers=["one", "two"]).observe(model, (X, Y), progress=False)
    assert [layer.provenance["rows"] for layer in report.values()] == [48, 48, 48]
    # The head's integers times their scale: within a part in 127 of what they were.
    assert np.isfinite(report["fc"]["nc3_self_duality"])


def test_ragged_batches_are_no_reason_to_retrace_for_ever(capfd):
    most = 7 if BACKEND == "tensorflow" else 2  # TensorFlow warns of the sixth graph
    ragged = [(X[:n], Y[:n]) for n in range(1, most + 1)]
    meter = meter_for(layers=[])
    report = meter.observe(sequential(), ragged, progress=False)
    assert report.provenance["rows"] == most * (most + 1) // 2
    assert "retracing" not in capfd.readouterr().err
