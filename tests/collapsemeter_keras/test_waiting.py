"""Small batches wait until they make a block, and statistics of validation until there is any."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from collapsemeter import ClassMoments
from collapsemeter.stats.sampling import reservoir_slots
from collapsemeter_keras import CollapseMeter, waiting
from collapsemeter_keras.waiting import MOST_ROWS

from .networks import CLASSES, data, forward, frozen, sequential

SAMPLE = 300
ROWS = 2 * MOST_ROWS + 90
BACKEND = keras.backend.backend()


def meter_for(**options) -> CollapseMeter:
    return CollapseMeter(["one"], verbose=False, strict=True, sample_rows=SAMPLE, **options)


def assert_all_counted(meter: CollapseMeter, model: keras.Model, x, y, stream: str) -> None:
    truth = ClassMoments.from_batch(forward(model, x)["one"], y, CLASSES)
    moments = meter.moments("one", stream)
    np.testing.assert_array_equal(moments.counts, truth.counts)
    np.testing.assert_allclose(moments.means, truth.means, rtol=1e-5, atol=1e-6)
    size = np.abs(truth.scatter).max()
    np.testing.assert_allclose(moments.scatter, truth.scatter, rtol=0, atol=2e-6 * size)
    tally = meter._streams[stream].tally(("one", 0))
    assert tally.ids.tolist() == in_sample(np.arange(len(y)))
    np.testing.assert_array_equal(tally.labels, y[tally.ids])
    np.testing.assert_allclose(
        tally.rows, forward(model, x)["one"][tally.ids], rtol=1e-5, atol=1e-6
    )
    numbers, classes = tally.decided
    np.testing.assert_array_equal(numbers, tally.ids)
    np.testing.assert_array_equal(classes, forward(model, x)["logits"][numbers].argmax(axis=1))


def in_sample(numbers: np.ndarray) -> list[int]:
    """Row numbers in the order of their slots, when rows come one by one."""
    kept = {}
    for number in numbers:
        (slot,) = reservoir_slots(np.array([number]), SAMPLE, seed=0)
        if slot < SAMPLE:
            kept[int(slot)] = int(number)
    return [kept[slot] for slot in sorted(kept)]


@pytest.mark.parametrize("batch", [60, MOST_ROWS // 4, MOST_ROWS // 2])
def test_rows_are_counted_once_whether_their_batches_wait_or_not(batch):
    x, y = data(ROWS)
    model, meter = frozen(sequential()), meter_for()
    options = {"validation_data": data(100, seed=1)} if batch == 60 else {}
    model.fit(x, y, batch, epochs=2, verbose=0, shuffle=False, callbacks=[meter], **options)
    report = meter.reports["train"][-1].report
    assert not report.warnings
    assert report["one"].provenance["rows"] == ROWS
    assert_all_counted(meter, model, x, y, "train")
    if options:
        assert_all_counted(meter, model, *options["validation_data"], "validation")


def test_what_waits_is_saved_and_goes_on():
    x, y = data(ROWS)
    model, meter, resumed = frozen(sequential()), meter_for(), meter_for()
    meter.set_model(model)
    for start in range(0, 120, 60):
        model.train_on_batch(x[start : start + 60], y[start : start + 60])
    state = meter.state_dict()
    meter.close()
    resumed.set_model(model)
    resumed.load_state_dict(state)
    for start in range(120, MOST_ROWS + 120, 60):
        model.train_on_batch(x[start : start + 60], y[start : start + 60])
    rows = slice(0, start + 60)
    resumed.compute()
    assert_all_counted(resumed, model, x[rows], y[rows], "train")


def test_more_rows_that_waited_than_may_wait_now_are_added_when_they_are_loaded(monkeypatch):
    x, y = data(360)
    model, meter, resumed = frozen(sequential()), meter_for(), meter_for()
    meter.set_model(model)
    for start in range(0, 180, 30):
        model.train_on_batch(x[start : start + 30], y[start : start + 30])
    state = meter.state_dict()
    meter.close()
    monkeypatch.setattr(waiting, "MOST_ROWS", 128)
    resumed.set_model(model)
    resumed.load_state_dict(state)
    for start in range(180, 360, 30):
        model.train_on_batch(x[start : start + 30], y[start : start + 30])
    resumed.compute()
    assert_all_counted(resumed, model, x, y, "train")


def test_a_fit_without_validation_data_holds_no_statistics_of_validation():
    x, y = data(96)
    model, meter = frozen(sequential()), meter_for()
    model.fit(x, y, 48, verbose=0, callbacks=[meter])
    train, validation = meter._streams["train"], meter._streams["validation"]
    assert {key[0] for key in train.layers} == {"one", "fc"}
    assert not validation.layers
    assert sum(int(np.prod(variable.shape)) for variable in validation.variables) == 4
    held = [metric for metric in model.metrics if metric in (train, validation)]
    assert held == [train]
    model.fit(x, y, 48, epochs=2, verbose=0, callbacks=[meter], validation_data=(x[:48], y[:48]))
    assert {key[0] for key in validation.layers} == {"one", "fc"}
    assert meter.reports["validation"][-1].report["one"].provenance["rows"] == 48
    # A step that trains carries none of it along.
    assert [metric for metric in model.metrics if metric in (train, validation)] == [train]
    meter.reset()
    model.evaluate(x, y, 48, verbose=0)  # by someone who does not pass the meter
    assert meter.compute("validation")["one"].provenance["rows"] == 96
    meter.close()
    assert not [metric for metric in model.metrics if metric in (train, validation)]


def test_the_share_of_the_products_is_said():
    parts = [keras.layers.Dense(width, "relu", name=f"h{width}") for width in (256, 128)]
    model = keras.Sequential([keras.Input((64,)), *parts, keras.layers.Dense(10, name="fc")])
    meter = CollapseMeter(["h256"], scatter="pooled", verbose=False)
    meter.set_model(model)
    forward_operations = 2 * (64 * 256 + 256 * 128 + 128 * 10)
    share = 2 * (256**2 + 128**2) / (3 * forward_operations)
    every = int(np.ceil(share / 0.05))
    line = (
        f"time: products X'X are {100 * share:.0f} % of a step's operations; every_batch={every} "
    )
    assert line in meter.describe()
    meter.close()
