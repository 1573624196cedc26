"""One set of weights and images in frameworks: ``python one_network.py FOLDER FRAMEWORK...``.

Writes the report of a frozen pass and of a live stream, and the features of every layer, as files. Keras takes one
backend a process, and shares it with what else runs on that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

LAYERS = ("conv1", "conv2", "hidden")
CLASSES, BATCH = 10, 150  # whole batches: a smaller last one would be compiled again
OPTIONS = {"num_classes": CLASSES, "sample_rows": 300, "ignore_index": 9}


def weights() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernels as TensorFlow and JAX have them, (height, width, in, out) and (in, out), and biases."""
    rng = np.random.default_rng(7)
    shapes = {
        "conv1": (3, 3, 1, 8),
        "conv2": (3, 3, 8, 12),
        "hidden": (192, 24),
        "fc": (24, CLASSES),
    }
    return {
        name: (
            (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32),
            (0.1 * rng.normal(size=shape[-1])).astype(np.float32),
        )
        for name, shape in shapes.items()
    }


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8, 1) about centres of their classes, unequal in number, and their labels."""
    rng = np.random.default_rng(8)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), np.arange(30, 130, 10)))
    centres = rng.normal(size=(CLASSES, 8, 8, 1))
    images = centres[labels] + 0.5 * rng.normal(size=(len(labels), 8, 8, 1))
    return images.astype(np.float32), labels.astype(np.int64)


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """The data in order."""
    images, labels = data()
    return [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(images), BATCH)]


def in_torch():
    import torch
    from torch import nn

    from collapsemeter import watch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3)
            self.hidden, self.fc = nn.Linear(192, 24), nn.Linear(24, CLASSES)

        def forward(self, x):
            maps = self.conv2(self.conv1(x).relu()).relu()
            # The others flatten (height, width, channels).
            return self.fc(self.hidden(maps.permute(0, 2, 3, 1).flatten(1)).relu())

    net, seen = Net(), {}
    for name, (kernel, bias) in weights().items():
        order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        getattr(net, name).weight.data = torch.tensor(kernel.transpose(order).copy())
        getattr(net, name).bias.data = torch.tensor(bias)
        seen[name] = []

    def rows(x: np.ndarray) -> torch.Tensor:
        return torch.tensor(x.transpose(0, 3, 1, 2).copy())

    meter = watch(net, layers=LAYERS, head="fc", verbose=False, **OPTIONS)
    frozen = meter.observe([(rows(x), y) for x, y in batches()], progress=False)
    for name in LAYERS:
        getattr(net, name).register_forward_hook(
            lambda module, given, out, name=name: seen[name].append(
                (out.permute(0, 2, 3, 1) if out.ndim == 4 else out).detach().numpy()
            )
        )
    net.fc.register_forward_pre_hook(
        lambda module, given: seen["fc"].append(given[0].detach().numpy())
    )
    for x, y in batches():
        with meter.batch(y):
            net(rows(x))
    return frozen, meter.compute(), {name: np.concatenate(parts) for name, parts in seen.items()}


def in_keras():
    import keras
    from keras import layers

    from collapsemeter import watch

    net = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, name="conv1"),
            layers.ReLU(),
            layers.Conv2D(12, 3, name="conv2"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(24, name="hidden"),
            layers.ReLU(name="features"),
            layers.Dense(CLASSES, name="fc"),
        ]
    )
    for name, pair in weights().items():
        net.get_layer(name).set_weights(pair)
    net.trainable = False
    net.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    images, labels = data()
    meter = watch(net, layers=LAYERS, head="fc", verbose=False, **OPTIONS)
    frozen = meter.observe(net, (images, labels), batch_size=BATCH, progress=False)
    net.fit(images, labels, BATCH, shuffle=False, verbose=0, callbacks=[meter])
    outputs = [net.get_layer(name).output for name in (*LAYERS, "features")]
    given = keras.Model(net.inputs, outputs).predict(images, BATCH, verbose=0)
    features = dict(zip((*LAYERS, "fc"), given, strict=True))
    return frozen, meter.reports["train"][-1].report, features


def in_nnx():
    import jax
    from flax import nnx

    from collapsemeter import watch

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.conv1 = nnx.Conv(1, 8, (3, 3), padding="VALID", rngs=rngs)
            self.conv2 = nnx.Conv(8, 12, (3, 3), padding="VALID", rngs=rngs)
            self.hidden = nnx.Linear(192, 24, rngs=rngs)
            self.fc = nnx.Linear(24, CLASSES, rngs=rngs)

        def __call__(self, x):
            maps = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
            return self.fc(jax.nn.relu(self.hidden(maps.reshape(len(x), -1))))

    net = Net(nnx.Rngs(0))
    for name, (kernel, bias) in weights().items():
        getattr(net, name).kernel[...] = kernel
        getattr(net, name).bias[...] = bias
    meter = watch(net, layers=LAYERS, head="fc", verbose=False, **OPTIONS)
    return _in_flax(meter, lambda x: meter.capture(net, x), (), None)


def in_linen():
    import jax
    from flax import linen

    from collapsemeter import watch

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(8, (3, 3), padding="VALID", name="conv1")(x))
            x = linen.relu(linen.Conv(12, (3, 3), padding="VALID", name="conv2")(x))
            x = linen.relu(linen.Dense(24, name="hidden")(x.reshape(len(x), -1)))
            return linen.Dense(CLASSES, name="fc")(x)

    params = {name: {"kernel": k, "bias": b} for name, (k, b) in weights().items()}
    variables = jax.tree.map(jax.numpy.asarray, {"params": params})
    net = Net()
    meter = watch(net, layers=LAYERS, head="fc", verbose=False, **OPTIONS)
    return _in_flax(meter, lambda x: meter.capture(net, variables, x), (variables,), variables)


def _in_flax(meter, capture, before, variables):
    import jax

    frozen = meter.observe(batches(), variables=variables, progress=False)
    state = meter.init(*before, data()[0][:BATCH])

    @jax.jit
    def step(state, x, y):
        logits, features = capture(x)
        return meter.update(state, features, y, logits=logits), features

    seen = []
    for x, y in batches():
        state, features = step(state, x, y)
        seen.append(features)
    live = meter.report(state, variables)
    return frozen, live, {name: np.concatenate([f[name] for f in seen]) for name in seen[0]}


def main(framework: str, folder: Path) -> None:
    """Run one framework and write what it says."""
    run = {"torch": in_torch, "keras": in_keras, "nnx": in_nnx, "linen": in_linen}[framework]
    frozen, live, features = run()
    folder.mkdir()
    (folder / "reports.json").write_text(
        json.dumps({"frozen": frozen.to_dict(), "live": live.to_dict()})
    )
    np.savez(folder / "features.npz", **features)


if __name__ == "__main__":
    for framework in sys.argv[2:]:
        main(framework, Path(sys.argv[1], framework))
