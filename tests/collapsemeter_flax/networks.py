"""Networks as people write them: the patterns of Flax' own examples, and what makes a head hard to find."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn


class Cnn(nn.Module):
    """The MNIST example."""

    @nn.compact
    def __call__(self, x):
        for width in (4, 6):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(8)(x.reshape((len(x), -1))))
        return nn.Dense(5)(x)


class ResNetBlock(nn.Module):
    filters: int
    conv: Any
    norm: Any
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.norm()(self.conv(self.filters, (3, 3))(y))
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The ImageNet example, whose forward depends on ``train``."""

    stages: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x, train=True):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.relu(norm(name="bn_init")(conv(4, (3, 3), name="conv_init")(x)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                strides = (2, 2) if stage and not block else (1, 1)
                x = ResNetBlock(4 * 2**stage, conv, norm, strides)(x)
        return nn.Dense(5)(x.mean((1, 2)))


class MlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        y = nn.Dropout(0.1)(nn.gelu(nn.Dense(8)(x)), deterministic=deterministic)
        return nn.Dropout(0.1)(nn.Dense(x.shape[-1])(y), deterministic=deterministic)


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic, mask=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(y, y, mask=mask)
        return x + MlpBlock()(nn.LayerNorm()(x), deterministic)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.1)(x, deterministic=not train)
        for number in range(2):
            x = EncoderBlock(name=f"block_{number}")(x, not train)
        return nn.LayerNorm(name="encoder_norm")(x)


class Vit(nn.Module):
    """The vision transformer of google-research."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Conv(8, (4, 4), strides=(4, 4), name="embedding")(x)
        x = x.reshape(len(x), -1, 8)
        token = self.param("cls", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = Encoder(name="Transformer")(x, train=train)
        return nn.Dense(5, name="head")(x[:, 0])


class Bert(nn.Module):
    """Tokens and their mask, which reaches into every block."""

    @nn.compact
    def __call__(self, ids, attention_mask):
        x = nn.Embed(20, 8, name="tokens")(ids)
        x += nn.Embed(ids.shape[1], 8, name="positions")(jnp.arange(ids.shape[1])[None])
        mask = nn.make_attention_mask(attention_mask > 0, attention_mask > 0)
        for number in range(2):
            x = EncoderBlock(name=f"layer_{number}")(x, True, mask)
        return nn.Dense(5, name="head")(jnp.tanh(nn.Dense(8, name="pooler")(x[:, 0])))


class Lstm(nn.Module):
    """The SST-2 example: two directions, one score."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(20, 6, name="tokens")(ids)
        forwards = nn.RNN(nn.LSTMCell(6), name="forwards")(x)
        backwards = nn.RNN(nn.LSTMCell(6), reverse=True, keep_order=True, name="backwards")(x)
        x = jnp.concatenate([forwards, backwards], -1).mean(1)
        return nn.Dense(1, name="head")(nn.relu(nn.Dense(4, name="hidden")(x)))


class Mlp(nn.Module):
    """Two hidden layers, and a tail that is given as a function of the head's output."""

    tail: Any = staticmethod(lambda x: x)
    classes: int = 3

    def setup(self):
        self.fc = nn.Dense(self.classes)  # declared first
        self.last = nn.Dense(7)
        self.first = nn.Dense(6)

    def __call__(self, x):
        x = nn.relu(self.last(nn.relu(self.first(x))))
        return self.tail(self.fc(x))


class TwoHeads(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="body")(x))
        return (nn.Dense(3, name="a")(x) + nn.Dense(3, name="b")(x)) / 2


class Outputs(nn.Module):
    """Two classifiers, both returned."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="body")(x))
        return {"a": nn.Dense(3, name="a")(x), "b": nn.Dense(3, name="b")(x)}


class FunctionalTail(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="hidden")(x))
        return x @ self.param("weight", nn.initializers.normal(), (6, 3))


class Siamese(nn.Module):
    @nn.compact
    def __call__(self, a, b):
        encoder = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(6)], name="encoder")
        difference = jnp.abs(encoder(a) - encoder(b))
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(5, name="mixed")(difference)))


class SqueezeNet(nn.Module):
    """A head of a 1x1 convolution, with pooling after it."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="body")(x))
        return nn.relu(nn.Conv(5, (1, 1), name="final")(x)).mean((1, 2))


class WeightNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6, name="hidden")(x))
        return nn.WeightNorm(nn.Dense(3, name="fc"))(x)


class Cosine(nn.Module):
    """Scores are cosines: no map x W + b gives them."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="hidden")(x)
        return CosineHead(name="cosine")(nn.relu(x))


class CosineHead(nn.Module):
    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.normal(), (3, x.shape[-1]))
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x @ (weight / jnp.linalg.norm(weight, axis=-1, keepdims=True)).T


class Twice(nn.Module):
    """Two modules in turn, called twice each."""

    @nn.compact
    def __call__(self, x):
        a, b = nn.Dense(4, name="a"), nn.Dense(4, name="b")
        for _ in range(2):
            x = nn.relu(b(nn.relu(a(x))))
        return nn.Dense(3, name="fc")(x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(4)(x)), None


class Scanned(nn.Module):
    """A scanned stack of blocks that are computed again in the backward pass."""

    carried: bool = True

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "intermediates": 0} if self.carried else {"params": 0}
        x = nn.Dense(4, name="stem")(x)
        stack = nn.scan(nn.remat(Step), variable_axes=axes, split_rngs={"params": True}, length=3)
        return nn.Dense(3, name="fc")(stack(name="stack")(x, None)[0])


class Auxiliary(nn.Module):
    """What it returns depends on ``train``."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(6, name="hidden")(x))
        scores = nn.Dense(3, name="fc")(x)
        return (scores, nn.Dense(4, name="auxiliary")(x)) if train else scores


class Tagger(nn.Module):
    """A label for each of four positions, behind a layer that has one row for all of them."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8, name="whole")(x))
        x = nn.relu(nn.Dense(5, name="tokens")(x.reshape(len(x), 4, 2)))
        return nn.Dense(3, name="fc")(x)
