"""Watch neural collapse in a Keras training: one callback, on TensorFlow, JAX or PyTorch."""

import keras
from sklearn.datasets import load_digits

from collapsemeter_keras import CollapseMeter

keras.utils.set_random_seed(0)
digits = load_digits()
# Whole batches of 64: a smaller last one would be compiled again.
images, labels = (digits.images[:1792] / 16).astype("float32"), digits.target[:1792]
train, held_out = slice(0, 1472), slice(1472, None)

model = keras.Sequential(
    [
        keras.Input((8, 8)),
        keras.layers.Flatten(),
        keras.layers.Dense(128, "relu", name="block1"),
        keras.layers.Dense(64, "relu", name="block2"),
        keras.layers.Dense(10, name="fc"),
    ]
)
model.compile(
    keras.optimizers.AdamW(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
)
meter = CollapseMeter(sinks=["runs/keras/events", "runs/keras/reports.jsonl"])
history = model.fit(
    images[train],
    labels[train],
    batch_size=64,
    epochs=5,
    verbose=0,
    validation_data=(images[held_out], labels[held_out]),
    callbacks=[meter],
)
for epoch, report in meter.reports["train"]:
    print(f"epoch {epoch}\n{report.table()}")
print("validation, nc1_pinv:", [round(v, 3) for v in history.history["val_nc1_pinv/fc"]])
print(meter.observe(model, (images, labels), phase="frozen-train").summary())
