"""Groups of rows, from which intervals come: those of NumPy in any split, kept in states, absent in older ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from collapsemeter import ClassMoments, LayerReport, measure
from collapsemeter_keras import CollapseMeter
from collapsemeter_keras.waiting import MOST_ROWS

from .networks import CLASSES, data, forward, frozen, sequential

BATCH = 60
X, Y = data(BATCH * (MOST_ROWS // BATCH + 2))


def meter_for(**options) -> CollapseMeter:
    return CollapseMeter(["one"], verbose=False, strict=True, **options)


def assert_same_intervals(layer: LayerReport, model: keras.Model, rows: int = len(Y), **options):
    truth = measure(
        ClassMoments.from_batch(forward(model, X[:rows])["fc"], Y[:rows], CLASSES, **options)
    )
    assert "separation" in truth.intervals
    for name, interval in truth.intervals.items():
        np.testing.assert_allclose(layer.intervals[name], interval, rtol=1e-5)
    for name, estimate in truth.estimates.items():
        np.testing.assert_allclose(layer.estimates[name], estimate, rtol=1e-5)


def test_intervals_are_those_of_numpy_whether_batches_wait_or_not():
    model, meter = frozen(sequential()), meter_for()
    whole = {"validation_data": (X, Y), "validation_batch_size": len(Y) // 2}
    model.fit(X, Y, BATCH, verbose=0, shuffle=False, callbacks=[meter], **whole)
    for stream in ("train", "validation"):
        assert_same_intervals(meter.reports[stream][-1].report["fc"], model)


def test_a_state_without_groups_is_loaded_and_says_so_until_reset():
    model = frozen(sequential())

    def feed(meter: CollapseMeter, start: int = 0) -> None:
        for cut in range(start, start + 3 * BATCH, BATCH):
            model.train_on_batch(X[cut : cut + BATCH], Y[cut : cut + BATCH])

    older = meter_for(groups=0)
    older.set_model(model)
    feed(older)
    assert older.compute()["fc"].no_interval["separation"] == "no_groups"
    state = older.state_dict()
    assert not any("group" in name for name in state)
    older.close()

    meter = meter_for(groups=8)
    meter.set_model(model)
    for _ in range(2):  # what is saved of it again has none either
        with pytest.warns(RuntimeWarning, match=r"saved without groups.*no intervals for one, fc$"):
            meter.load_state_dict(state)
        state = meter.state_dict()
    feed(meter, 3 * BATCH)
    layer = meter.compute()["fc"]
    assert layer.provenance["rows"] == 6 * BATCH
    assert layer.no_interval["separation"] == "no_groups"
    truth = ClassMoments.from_batch(forward(model, X)["fc"][: 6 * BATCH], Y[: 6 * BATCH], CLASSES)
    np.testing.assert_allclose(layer["nc1_cdnv"], measure(truth)["nc1_cdnv"], rtol=1e-5)
    meter.reset()
    feed(meter)
    assert_same_intervals(meter.compute()["fc"], model, 3 * BATCH, groups=8)
