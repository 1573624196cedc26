"""Callbacks that read the meter's values may stand before it."""

from __future__ import annotations

import csv

import keras
import pytest

from .networks import EAGER, data, frozen, sequential
from .test_faults import fit
from .test_faults import watch as meter_for

X, Y = data(48)


def model_of():
    return frozen(sequential(), run_eagerly=EAGER)


@pytest.mark.parametrize("monitor", ["nc1_pinv/head", "val_nc1_pinv/fc"])
def test_early_stopping_before_the_meter(monitor):
    meter = meter_for()
    stop = keras.callbacks.EarlyStopping(monitor=monitor, mode="min", patience=1)
    history = fit(model_of(), stop, meter, epochs=9, validation_data=(X, Y))
    assert len(history.history["loss"]) == 2  # nothing improves at a learning rate of zero


def test_a_lower_learning_rate_and_a_checkpoint_before_the_meter(tmp_path):
    meter, model = meter_for(probe=(X, Y)), model_of()
    model.optimizer.learning_rate = 1e-6
    lower = keras.callbacks.ReduceLROnPlateau(
        monitor="probe_nc1_pinv/head", mode="min", patience=1, min_delta=1.0, factor=0.5
    )
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5",
        monitor="nc1_pinv/fc",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    fit(model, lower, best, meter, epochs=2)
    assert float(model.optimizer.learning_rate) == pytest.approx(5e-7)
    assert best.best == pytest.approx(
        min(entry.report["fc"]["nc1_pinv"] for entry in meter.reports["train"]), rel=1e-3
    )
    assert (tmp_path / "best.weights.h5").exists()


def test_a_csv_file_before_the_meter_has_its_columns(tmp_path):
    meter = meter_for()
    fit(model_of(), keras.callbacks.CSVLogger(tmp_path / "log.csv"), meter)
    with open(tmp_path / "log.csv") as file:
        assert float(next(csv.DictReader(file))["nc1_pinv/fc"]) > 0


def test_others_keep_their_places_and_are_all_told():
    told, meter = [], meter_for()

    class Note(keras.callbacks.Callback):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def set_model(self, model):
            told.append(self.name)

        def on_epoch_end(self, epoch, logs=None):
            told.append((self.name, "nc1_pinv/fc" in logs))

    stop = keras.callbacks.EarlyStopping(monitor="nc1_pinv/fc", mode="min")
    given = [Note("a"), stop, Note("b"), meter, Note("c")]
    fit(model_of(), *given)
    assert told == ["a", "b", "c", ("a", False), ("b", True), ("c", True)]
    assert given[3] is meter
    del told[:]
    loss = keras.callbacks.EarlyStopping(monitor="loss")  # which the meter has nothing to do with
    fit(model_of(), loss, Note("a"), meter)
    assert told == ["a", ("a", False)]


def test_weights_that_are_swapped_between_are_the_users_to_order():
    stop = keras.callbacks.EarlyStopping(monitor="nc1_pinv/fc", mode="min")
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model = sequential()
    model.compile(
        keras.optimizers.SGD(0.0, use_ema=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=EAGER,
    )
    with pytest.warns() as warned:
        fit(model, stop, swap, meter_for())
    messages = [str(warning.message) for warning in warned]
    assert any(message.startswith("EarlyStopping reads the meter's values") for message in messages)
