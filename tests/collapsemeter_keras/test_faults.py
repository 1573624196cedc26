"""What goes wrong in training code: a named error with its cause, and a training that does not notice."""

from __future__ import annotations

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from collapsemeter import ClassMoments
from collapsemeter.adapter.settings import Settings
from collapsemeter.stats.sums import MIXED, UNLABELLED
from collapsemeter_keras import CollapseMeter
from collapsemeter_keras.labels import class_labels
from collapsemeter_keras.operations import COUNT, FULL

from .networks import (
    ARCHITECTURES,
    CLASSES,
    EAGER,
    NO_XLA,
    WIDTH,
    Subclassed,
    data,
    forward,
    frozen,
    sequential,
)

ROWS, BATCH = 48, 16
X, Y = data(ROWS)
BACKEND = keras.backend.backend()


def watch(**options) -> CollapseMeter:
    return CollapseMeter(**{"layers": ["one"], "verbose": False, **options})


def fit(model, *meters, x=X, y=Y, epochs=1, **options):
    return model.fit(
        x, y, BATCH, epochs=epochs, verbose=0, shuffle=False, callbacks=[*meters], **options
    )


def assert_counted(meter, model, stream="train", x=X, y=Y, layer="fc"):
    truth = ClassMoments.from_batch(forward(model, x)[layer], y, CLASSES)
    found = meter.moments(layer, stream)
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.means, truth.means, rtol=1e-5, atol=1e-6)


# A step that does not go through compute_loss


def _forward_only(model, args):
    """A step without a loss; on JAX a step is a function of its state."""
    if BACKEND == "jax":
        state, step_data = args
        model.stateless_call(state[0], state[1], step_data[0])
        return {"loss": ops.zeros(())}, state
    model(args[0][0])
    return {"loss": ops.zeros(())}


class OwnTrainStep(Subclassed):
    def train_step(self, *args):
        return _forward_only(self, args)


class OwnTestStep(Subclassed):
    def test_step(self, *args):
        return _forward_only(self, args)


def test_a_train_step_without_compute_loss_is_named():
    meter = watch()
    with pytest.warns(
        RuntimeWarning, match=r"OwnTrainStep.train_step does not call `self.compute_"
    ):
        history = fit(frozen(OwnTrainStep()), meter)
    report = meter.reports["train"][0].report
    assert {layer.flags for layer in report.values()} == {("never_fired",)}
    assert np.isnan(history.history["nc1_pinv/fc"]).all()
    with pytest.warns(RuntimeWarning, match="no batch of the train stream was counted: OwnTrain"):
        assert np.isnan(meter.compute()["fc"]["nc1_pinv"])


def test_a_test_step_without_compute_loss_is_named_and_training_is_counted():
    meter, model = watch(), frozen(OwnTestStep())
    with pytest.warns(RuntimeWarning, match=r"OwnTestStep.test_step does not call `self.compute_"):
        fit(model, meter, validation_data=(X, Y))
    assert_counted(meter, model)
    assert meter.reports["validation"][0].report["fc"].flags == ("never_fired",)


class OwnMetrics(Subclassed):
    @property
    def metrics(self):
        return [self._loss_tracker]


def test_a_metrics_property_that_leaves_ours_out():
    meter, model = watch(), frozen(OwnMetrics())
    if BACKEND != "jax":  # where a step writes to variables wherever they are
        fit(model, meter)
        assert_counted(meter, model)
        return
    with pytest.warns(RuntimeWarning, match=r"OwnMetrics.metrics leaves out the model's own"):
        fit(model, meter)
    assert meter.reports["train"][0].report["fc"].flags == ("never_fired",)


class NamelessLoss(Subclassed):
    """An override that has no ``training``, as before Keras 3.5."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)


def test_a_compute_loss_without_training():
    meter, model = watch(strict=True), frozen(NamelessLoss())
    fit(model, meter)
    assert_counted(meter, model)


def test_loops_of_train_on_batch():
    meter, model = watch(strict=True), frozen(sequential())
    meter.set_model(model)
    with pytest.warns(RuntimeWarning, match="was counted: no step ran since it began"):
        assert meter.compute()["fc"].flags == ("never_fired",)
    for start in range(0, ROWS, BATCH):
        model.train_on_batch(X[start : start + BATCH], Y[start : start + BATCH])
    assert meter.compute().provenance["rows"] == ROWS
    assert_counted(meter, model)
    model.test_on_batch(X[:7], Y[:7])
    assert meter.compute("validation").provenance["rows"] == 7
    meter.reset()
    model.train_on_batch(X[:9], Y[:9])
    assert_counted(meter, model, x=X[:9], y=Y[:9])


# Layers that run elsewhere, or more than once


def test_layers_inside_a_loop_or_a_wrapper_are_refused():
    net = keras.Sequential(
        [
            keras.Input((5, 3)),
            layers.TimeDistributed(layers.Dense(4, name="each"), name="times"),
            layers.RNN(layers.SimpleRNNCell(4, name="cell"), name="loop"),
            layers.Dense(CLASSES, name="fc"),
        ]
    )
    with pytest.raises(
        ValueError, match="'loop/cell' is the cell of 'loop' and runs inside its loop"
    ):
        watch(layers=["**cell"]).set_model(net)
    with pytest.raises(
        ValueError, match="'times/each' is inside 'times', which runs it over parts"
    ):
        watch(layers=["**each"]).set_model(net)


def test_a_layer_called_twice_is_two_layers():
    inputs = keras.Input((WIDTH,))
    shared = layers.Dense(WIDTH, "relu", name="one")
    outputs = layers.Dense(CLASSES, name="fc")(shared(shared(inputs)))
    model = frozen(keras.Model(inputs, outputs))
    meter = watch(layers=["one"], strict=True)
    fit(model, meter)
    assert list(meter.reports["train"][0].report) == ["one#0", "one#1", "fc"]
    weight, bias = (w.astype(np.float64) for w in shared.get_weights())
    rows = np.asarray(X, np.float64)
    for call in (0, 1):
        rows = np.maximum(rows @ weight + bias, 0.0)
        found = meter.moments("one", call=call)
        truth = ClassMoments.from_batch(rows, Y, CLASSES)
        np.testing.assert_array_equal(found.counts, truth.counts)
        np.testing.assert_allclose(found.means, truth.means, rtol=1e-5, atol=1e-6)


class Remat(keras.Model):
    def __init__(self):
        super().__init__()
        with keras.RematScope(mode="full"):
            self.one = layers.Dense(12, "relu", name="one")
            self.two = layers.Dense(8, "relu", name="two")
        self.fc = layers.Dense(CLASSES, name="fc")

    def call(self, x):
        return self.fc(self.two(self.one(x)))


def test_rematerialised_layers():
    model = frozen(Remat())
    model(X[:1])
    meter = watch(layers=["one", "two"], strict=True)
    fit(model, meter)
    for layer in ("one", "two", "fc"):
        assert_counted(meter, model, layer=layer)


class Branch(Subclassed):
    """Uses a layer's weights directly, so that its call never runs."""

    def call(self, x):
        two = self.two(self.one(x))
        return ops.matmul(two, self.fc.kernel) + self.fc.bias


def test_a_layer_that_is_not_called_is_named():
    model = Branch()
    model.one.build((None, WIDTH)), model.two.build((None, 12)), model.fc.build((None, 8))
    meter = watch(head="fc")
    with pytest.warns(
        RuntimeWarning, match="'fc' saw 0 of 48 label rows.*weights are used directly"
    ):
        fit(frozen(model), meter)
    report = meter.reports["train"][0].report
    assert report["fc"].flags == ("never_fired",)
    assert report["one"].provenance["rows"] == ROWS


# Labels


class LabelsInside(Subclassed):
    def call(self, x):
        return super().call(x["inputs"])

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return ops.mean(
            keras.losses.sparse_categorical_crossentropy(x["labels"], y_pred, from_logits=True)
        )


def test_labels_among_the_inputs():
    given = {"inputs": X, "labels": Y}
    meter, model = watch(labels="labels", strict=True), frozen(LabelsInside())
    model.fit(given, batch_size=BATCH, verbose=0, callbacks=[meter])
    assert_counted(meter, model)
    silent = watch()
    with pytest.warns(RuntimeWarning, match="the step got no y: say where the labels are"):
        frozen(LabelsInside()).fit(given, batch_size=BATCH, verbose=0, callbacks=[silent])
    assert "no y" in silent.degraded["batch"]


def two_outputs(as_dict: bool) -> keras.Model:
    inputs = keras.Input((WIDTH,))
    x = layers.Dense(8, "relu", name="two")(layers.Dense(12, "relu", name="one")(inputs))
    found = {
        "classes": layers.Dense(CLASSES, name="fc")(x),
        "size": layers.Dense(2, name="size")(x),
    }
    model = keras.Model(inputs, found if as_dict else [*found.values()])
    losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True), "mse"]
    losses = dict(zip(found, losses, strict=True)) if as_dict else losses
    model.compile(keras.optimizers.SGD(0.0), losses, **NO_XLA)
    return model


@pytest.mark.parametrize("as_dict", [True, False])
def test_several_outputs(as_dict):
    model, sizes = two_outputs(as_dict), np.zeros((ROWS, 2), "float32")
    targets = {"classes": Y, "size": sizes} if as_dict else [Y, sizes]
    meter = watch(num_classes=CLASSES, strict=True)
    fit(model, meter, y=targets)
    assert_counted(meter, model)


def test_several_outputs_of_which_none_is_the_classifier():
    with pytest.raises(
        ValueError, match="which fits the scores of 3 classes: pass scores=, one of"
    ):
        watch(num_classes=3, head=None).set_model(two_outputs(True))
    with pytest.raises(ValueError, match="of which several may be the scores: pass scores="):
        watch().set_model(two_outputs(True))


@pytest.mark.parametrize("form", ["one_hot", "column", "float", "uint8"])
def test_every_form_of_labels(form):
    given = {
        "one_hot": np.eye(CLASSES, dtype="float32")[Y],
        "column": Y[:, None],
        "float": Y.astype("float32"),
        "uint8": Y.astype("uint8"),
    }[form]
    meter, model = watch(strict=True), frozen(sequential())
    if form == "one_hot":
        model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), **NO_XLA)
        model.optimizer.learning_rate = 0.0
    fit(model, meter, y=given)
    assert_counted(meter, model)


def categorical() -> keras.Model:
    model = sequential()
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(from_logits=True), **NO_XLA
    )
    return model


def test_rows_that_name_no_single_class_are_left_out_and_counted():
    """All zeros are not class 0, several ones not the first, and a mixture not its largest part."""
    given = np.eye(CLASSES, dtype="float32")[Y]
    given[:5], given[7], given[9] = 0, [1, 0, 1, 0], [0.7, 0.1, 0.1, 0.1]
    kept = given.max(axis=1) == 1
    kept[7] = False
    model, meter = categorical(), watch()
    with pytest.warns(
        RuntimeWarning, match="5 because their one-hot label is all zeros and 2 because"
    ):
        fit(model, meter, y=given)
    assert_counted(meter, model, x=X[kept], y=Y[kept])
    found = meter.reports["train"][0].report["fc"]
    assert (found.provenance["unlabelled_rows"], found.provenance["mixed_rows"]) == (5, 2)
    assert found.provenance["nc4_rows"] == kept.sum()


def test_labels_that_are_mostly_mixtures_have_no_number():
    mixed = 0.7 * np.eye(CLASSES, dtype="float32")[Y] + np.float32(0.3 / CLASSES)
    mixed[:10] = np.eye(CLASSES)[Y[:10]]
    model, meter = categorical(), watch()
    with pytest.warns(
        RuntimeWarning, match="38 of 48 labels name several classes or parts of them"
    ):
        fit(model, meter, y=mixed)
    found = meter.reports["train"][0].report["fc"]
    assert found.flags == ("mixed_labels",)
    assert np.isnan(found["nc1_pinv"])


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
def test_float_labels_of_a_binary_loss(shape):
    model = keras.Sequential(
        [keras.Input((WIDTH,)), layers.Dense(8, "relu", name="two"), layers.Dense(1, name="fc")]
    )
    model.compile(
        keras.optimizers.SGD(0.0), keras.losses.BinaryCrossentropy(from_logits=True), **NO_XLA
    )
    meter, y = CollapseMeter(num_classes=2, verbose=False, strict=True), Y % 2
    fit(model, meter, y=y.astype("float32").reshape(shape))
    found = meter.moments("fc")
    weight, bias = (np.asarray(w, np.float64) for w in model.get_layer("two").get_weights())
    rows = np.maximum(X @ weight + bias, 0)
    due = ClassMoments.from_batch(rows, y, 2)
    np.testing.assert_array_equal(found.counts, due.counts)
    np.testing.assert_allclose(found.means, due.means, rtol=1e-5, atol=1e-6)
    frozen_report = meter.observe(model, (X, y.astype("float32").reshape(shape)), progress=False)
    assert frozen_report["fc"].per_class["count"].tolist() == due.counts.tolist()


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int64", [1, 2**32 + 1, -100, 2**32 - 100], [1, 4, -100, 4]),
        ("uint32", [1, 2**32 - 100], [1, 4]),
        ("float32", [1.0, 1.5, -100.0], [1, 4, -100]),
        ("float16", [1.0, 3.0, float("nan")], [1, 3, 4]),
    ],
)
def test_a_label_that_no_cast_may_change(dtype, values, expected):
    if BACKEND == "jax" and dtype == "int64":
        # JAX itself has 32 bits: the label has been wrapped before anyone could look at it.
        assert keras.backend.standardize_dtype(ops.convert_to_tensor(np.int64(1)).dtype) == "int32"
        return
    y = ops.convert_to_tensor(np.array(values, dtype))
    found = class_labels(y, ops.zeros((len(values), CLASSES)), Settings(CLASSES))
    assert ops.convert_to_numpy(found).tolist() == expected


def test_boolean_labels_and_narrow_ones_of_many_classes():
    def found(values, dtype, classes):
        y = ops.convert_to_tensor(np.array(values, dtype))
        scores = ops.zeros((len(values), classes))
        return ops.convert_to_numpy(class_labels(y, scores, Settings(classes))).tolist()

    assert found([True, False], "bool", 2) == [1, 0]
    assert found([[True, False], [False, False]], "bool", 2) == [0, UNLABELLED]
    assert found([[1, 0, 1], [0, 1, 0]], "int64", 3) == [MIXED, 1]
    assert found([0.5, 1.0], "float32", 2) == [MIXED, 1]
    with pytest.raises(ValueError, match="labels have dtype bool"):
        found([True, False], "bool", 3)
    with pytest.raises(ValueError, match="float16 does not tell whole numbers above 2048 apart"):
        found([0, 1], "float16", 5000)


def test_targets_that_do_not_fit_the_scores():
    with pytest.raises(ValueError, match=r"shape \(3, 2, 5\) and the scores \(3, 4\)"):
        class_labels(ops.zeros((3, 2, 5)), ops.zeros((3, CLASSES)), Settings(CLASSES))


# Between and within steps


def test_eager_calls_leave_nothing_behind():
    meter, model = watch(strict=True), frozen(sequential())
    fit(model, meter)
    for _ in range(3):
        model(X)
        model.predict(X, verbose=0)
    assert meter._attachment.instrument.stash.notes == []
    assert_counted(meter, model)


def test_rows_that_hold_nan():
    spoiled = X.copy()
    spoiled[[3, 20]] = np.nan
    kept = np.setdiff1d(np.arange(ROWS), [3, 20])
    net = keras.Sequential(
        [keras.Input((WIDTH,)), layers.Identity(name="one"), layers.Dense(CLASSES, name="fc")]
    )
    net.compile(
        keras.optimizers.SGD(0.0), lambda y, p: ops.mean(ops.zeros_like(p), axis=-1), **NO_XLA
    )
    meter = watch(layers=["one"], strict=True)
    meter.set_model(net)
    net.evaluate(spoiled, Y, BATCH, verbose=0, callbacks=[meter])
    found = meter.moments("one", "validation")
    truth = ClassMoments.from_batch(X[kept], Y[kept], CLASSES)
    np.testing.assert_array_equal(found.counts, truth.counts)
    np.testing.assert_allclose(found.means, truth.means, rtol=1e-6, atol=1e-6)
    assert "nonfinite_rows" in meter.reports["validation"][0].report["one"].flags


def test_live_features_have_dropout_and_a_frozen_pass_has_not():
    net = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            layers.Dense(12, "relu", name="one"),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, name="fc"),
        ]
    )
    meter = watch(layers=["one"], strict=True)
    fit(frozen(net), meter)
    frozen_report = meter.observe(net, (X, Y), progress=False)
    live = meter.reports["train"][0].report
    assert live["fc"]["nc1_trace_ratio"] > 2 * frozen_report["fc"]["nc1_trace_ratio"]
    assert live["one"]["nc1_trace_ratio"] == pytest.approx(
        frozen_report["one"]["nc1_trace_ratio"], rel=1e-4
    )


class EvaluateOther(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(X[:5], Y[:5], verbose=0)


def test_an_evaluate_of_other_data_in_an_epoch_is_not_mixed_in():
    model, meter = frozen(sequential()), watch(strict=True)
    fit(model, EvaluateOther(), meter, epochs=2, validation_data=(X, Y))
    assert [e.report.provenance["rows"] for e in meter.reports["validation"]] == [ROWS, ROWS]
    assert [e.report.provenance["rows"] for e in meter.reports["train"]] == [ROWS, ROWS]


# A failure of ours


def trained(*meters, **options) -> list[np.ndarray]:
    keras.utils.set_random_seed(3)
    model = sequential()
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **NO_XLA,
    )
    fit(model, *meters, epochs=2, **options)
    return [weight.numpy() for weight in model.weights]


@functools.cache
def trained_alone() -> list[np.ndarray]:
    return trained()


def fails(features):
    raise RuntimeError("a reduction of the user's")


def test_a_failure_of_ours_leaves_training_alone():
    meter = watch(layers=["one", "two"], reduction={"one": fails})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = trained(meter)
    told = [str(w.message) for w in caught if "could not measure layer 'one'" in str(w.message)]
    assert len(told) == 1
    assert "training goes on (RuntimeError: a reduction of the user's)" in told[0]
    for a, b in zip(watched, trained_alone(), strict=True):
        np.testing.assert_array_equal(a, b)
    report = meter.reports["train"][-1].report
    assert report["one"].flags == ("degraded",)
    assert report["two"].provenance["rows"] == ROWS
    with pytest.raises(RuntimeError, match="a reduction of the user's"):
        trained(watch(reduction={"one": fails}, strict=True))


def test_a_report_that_fails_leaves_training_alone():
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            stream = meter._streams["train"]
            stream.expected.assign(ops.cast(FULL, COUNT))

    meter = watch(nonfinite="raise")
    if BACKEND == "jax":  # whose counters are of 32 bits: a full one is refused
        with pytest.warns(RuntimeWarning, match="a counter is full: more than 4,294,967,294 rows"):
            watched = trained(Spoil(), meter)
        assert meter.reports["train"] == []
    else:
        with pytest.warns(RuntimeWarning, match="rows"):
            watched = trained(Spoil(), meter)
    for a, b in zip(watched, trained_alone(), strict=True):
        np.testing.assert_array_equal(a, b)


class NeedsValues(Subclassed):
    """Runs on values only."""

    def call(self, x):
        if isinstance(x, keras.KerasTensor):
            raise TypeError("no shapes here")
        return super().call(x)

    def build(self, shape):
        for layer, width in ((self.one, WIDTH), (self.two, 12), (self.fc, 8)):
            layer.build((None, width))
        self.built = True


def test_a_model_that_cannot_run_on_shapes_is_named():
    model, meter = NeedsValues(), watch()
    model.build((None, WIDTH))
    frozen(model)
    if BACKEND != "jax":
        fit(model, meter)
        assert_counted(meter, model)
        return
    # Keras gives JAX tracers where there are no values, so the shapes are found after all.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, meter)
    if "shapes" in meter.degraded:
        assert any("could not be run on shapes alone" in str(w.message) for w in caught)
    else:
        assert_counted(meter, model)


# Meters and models that come and go


class CloseAt(keras.callbacks.Callback):
    def __init__(self, meter, step):
        super().__init__()
        self.meter, self.step = meter, step

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.step:
            self.meter.close()


def test_closing_in_the_midst_of_training():
    meter = watch()
    watched = trained(CloseAt(meter, 1), meter)
    for a, b in zip(watched, trained_alone(), strict=True):
        np.testing.assert_array_equal(a, b)


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


def test_an_interrupted_fit_and_another():
    model, meter = frozen(sequential()), watch(strict=True)
    with pytest.raises(KeyboardInterrupt):
        fit(model, meter, Interrupt())
    model.evaluate(X, Y, BATCH, verbose=0, callbacks=[meter])
    assert len(meter.reports["validation"]) == 1
    fit(model, meter)
    assert_counted(meter, model)


def test_recompiled_models_and_refits():
    model, meter = frozen(sequential()), watch(strict=True)
    fit(model, meter)
    frozen(model)
    fit(model, meter)
    assert_counted(meter, model)
    assert len(meter.reports["train"]) == 2


@pytest.mark.parametrize("first", [0, 1])
def test_two_meters_on_one_model(first):
    model = frozen(ARCHITECTURES["functional"](), run_eagerly=EAGER)
    fit(model)
    before = snapshot(model)
    meters = [watch(strict=True), watch(layers=["two"], strict=True)]
    fit(model, *meters)
    for meter in meters:
        assert_counted(meter, model)
    meters[first].close()
    other = meters[1 - first]
    fit(model, other)
    assert_counted(other, model)
    other.close()
    assert snapshot(model) == before


def snapshot(model):
    return {
        layer.name: sorted(vars(layer).keys() - {"_jax_state"}) for layer in model._flatten_layers()
    } | {"metrics": [metric.name for metric in model._metrics]}


def test_one_meter_on_two_models():
    one, other, meter = frozen(sequential()), frozen(sequential()), watch(strict=True)
    fit(one)
    before = snapshot(one)
    fit(one, meter)
    fit(other, meter)
    assert snapshot(one) == before
    assert_counted(meter, other)


def test_what_the_user_put_on_an_instance_stays():
    model, calls = frozen(sequential(), run_eagerly=EAGER), []
    original = model.compute_loss

    def mine(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    model.__dict__["compute_loss"] = mine
    meter = watch(strict=True)
    fit(model, meter)
    assert len(calls) >= (ROWS // BATCH if EAGER else 1)
    assert_counted(meter, model)
    meter.close()
    assert model.__dict__["compute_loss"] is mine


def test_what_evaluate_returns_stays():
    model = sequential()
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    loss, accuracy = model.evaluate(X, Y, verbose=0, callbacks=[watch(strict=True)])
    assert np.isfinite([loss, accuracy]).all()
