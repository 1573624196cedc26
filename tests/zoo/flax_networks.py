"""Networks as the examples of Flax write them, linen and NNX: a new one is one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from ..collapsemeter_flax import networks as small

C = 5
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(10, 16, 16, 3)).astype(np.float32)
ROWS = RNG.normal(size=(10, 8)).astype(np.float32)
IDS = RNG.integers(1, 20, (10, 6)).astype(np.int32)
LENGTHS = RNG.integers(1, 7, (10,)).astype(np.int32)


class Given(NamedTuple):
    """A model and a batch of its inputs."""

    model: Any
    inputs: tuple[np.ndarray, ...]


class DecoderBlock(nn.Module):
    """Of the examples of language models: attention to what came before."""

    @nn.compact
    def __call__(self, x, encoded=None):
        y = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.SelfAttention(2, deterministic=True)(y, mask=mask)
        if encoded is not None:
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(2)(y, encoded)
        y = nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class Gpt(nn.Module):
    """A language model; ``labels`` classes of the last word instead, as GPT-2 classifies sequences."""

    labels: int | None = None

    @nn.compact
    def __call__(self, ids, lengths):
        words = nn.Embed(20, 8, name="wte")
        x = words(ids) + nn.Embed(6, 8, name="wpe")(jnp.arange(ids.shape[1]))
        for number in range(3):
            x = DecoderBlock(name=f"h_{number}")(x)
        x = nn.LayerNorm(name="ln_f")(x)
        if self.labels is None:
            return words.attend(x)
        logits = nn.Dense(self.labels, use_bias=False, name="score")(x)
        return logits[jnp.arange(len(ids)), lengths - 1]


class Wmt(nn.Module):
    """The example of translation: an encoder, a decoder, and one table for words in and out."""

    @nn.compact
    def __call__(self, inputs, targets):
        words = nn.Embed(20, 8, name="shared_embedding")
        x, y = words(inputs), words(targets)
        for number in range(2):
            x = DecoderBlock(name=f"encoderblock_{number}")(x)
        encoded = nn.LayerNorm(name="encoder_norm")(x)
        for number in range(2):
            y = DecoderBlock(name=f"encoderdecoderblock_{number}")(y, encoded)
        y = nn.LayerNorm(name="encoderdecoder_norm")(y)
        return words.attend(y / np.sqrt(y.shape[-1]))


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(16)(y)))
        x = x + jnp.swapaxes(y, 1, 2)
        return x + nn.Dense(x.shape[2])(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


class Mixer(nn.Module):
    """Of google-research's vision transformers."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), name="stem")(x).reshape(len(x), -1, 8)
        for number in range(3):
            x = MixerBlock(name=f"MixerBlock_{number}")(x)
        x = nn.LayerNorm(name="pre_head_layer_norm")(x)
        return nn.Dense(C, name="head")(x.mean(1))


class NnxCnn(nnx.Module):
    """The MNIST example of NNX."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(4, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.025, rngs=rngs)
        self.conv2 = nnx.Conv(4, 8, (3, 3), rngs=rngs)
        self.linear1 = nnx.Linear(128, 16, rngs=rngs)
        self.linear2 = nnx.Linear(16, C, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x))))
        x = nnx.avg_pool(x, (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        return self.linear2(nnx.relu(self.linear1(x.reshape(len(x), -1))))


def networks() -> dict[str, Callable[[], Given]]:
    """Return how to make each network, by its name."""
    whole = np.ones_like(IDS)
    made: dict[str, Callable[[], Given]] = {
        "mnist": lambda: Given(small.Cnn(), (IMAGES,)),
        "imagenet": lambda: Given(small.ResNet(), (IMAGES,)),
        "vit": lambda: Given(small.Vit(), (IMAGES,)),
        "mixer": lambda: Given(Mixer(), (IMAGES,)),
        "bert": lambda: Given(small.Bert(), (IDS, whole)),
        "sst2": lambda: Given(small.Lstm(), (IDS,)),
        "lm1b": lambda: Given(Gpt(), (IDS, LENGTHS)),
        "gpt2": lambda: Given(Gpt(C), (IDS, LENGTHS)),
        "wmt": lambda: Given(Wmt(), (IDS, IDS[:, ::-1].copy())),
        "scanned": lambda: Given(small.Scanned(), (ROWS,)),
        "siamese": lambda: Given(small.Siamese(), (ROWS, ROWS[::-1].copy())),
        "weight_norm": lambda: Given(small.WeightNormed(), (ROWS,)),
        "two_heads": lambda: Given(small.TwoHeads(), (ROWS,)),
        "nnx_mnist": lambda: Given(NnxCnn(nnx.Rngs(0)), (IMAGES,)),
    }
    return {f"flax/{name}": make for name, make in made.items()}
