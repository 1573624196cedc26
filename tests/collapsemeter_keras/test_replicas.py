"""Several devices: a mirrored strategy of TensorFlow, data parallelism of JAX; a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

COMMON = """
import numpy as np, keras
from keras import layers
from collapsemeter import ClassMoments
from collapsemeter_keras import CollapseMeter
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 6)).astype("float32"), np.arange(64) % 4

def net():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh", name="body"), layers.Dense(4, name="fc")])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

def check(model, meter):
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_layer("body").get_weights())
    truth = ClassMoments.from_batch(np.tanh(x @ kernel + bias), y, 4)
    for stream in ("train", "validation"):
        found = meter.moments("fc", stream)
        np.testing.assert_array_equal(found.counts, truth.counts)
        np.testing.assert_allclose(found.means, truth.means, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.scatter, truth.scatter, rtol=0, atol=2e-6 * np.abs(truth.scatter).max())
    assert not meter.reports["train"][-1].report.warnings
"""

MIRRORED = (
    """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
    + COMMON
    + """
for inside in (False, True):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = net()
    meter = CollapseMeter(verbose=False, strict=True)
    def fit():
        model.fit(x, y, batch_size=16, epochs=2, verbose=0, validation_data=(x, y), callbacks=[meter])
    if inside:
        with strategy.scope():
            fit()
    else:
        fit()
    check(model, meter)
# Eight rows of each batch for either replica; with every second one of these only one of them counts.
meter.close()
meter = CollapseMeter(verbose=False, strict=True, every_batch=2, max_rows=24)
fit()
report = meter.reports["train"][-1].report
assert not report.warnings
assert {layer.provenance["rows"] for layer in report.values()} == {24}
assert report.provenance["budget"]["batches_left_out"] == 5
print("same")
"""
)

PARALLEL = (
    COMMON
    + """
import jax
assert jax.device_count() == 4
keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))

class Wait(keras.callbacks.Callback):  # steps that are not waited for dead-lock on few cores
    def on_train_batch_end(self, batch, logs=None):
        jax.block_until_ready(self.model._jax_state)
    on_test_batch_end = on_train_batch_end

model = net()
meter = CollapseMeter(verbose=False, strict=True)
model.fit(x, y, batch_size=16, epochs=2, verbose=0, validation_data=(x, y), callbacks=[Wait(), meter])
check(model, meter)
model, meter = net(), CollapseMeter(verbose=False, strict=True, every_batch=2)
model.fit(x, y, batch_size=16, epochs=1, verbose=0, callbacks=[Wait(), meter])
assert meter.reports["train"][-1].report["fc"].provenance["rows"] == 32
assert not meter.reports["train"][-1].report.warnings
print("same")
"""
)


def test_replicas_count_into_one_place(backend):
    if backend == "torch":
        return  # Keras has no distribution on this backend
    code = MIRRORED if backend == "tensorflow" else PARALLEL
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("same")
