"""Ten families of data that every metric is checked on, and the paper's notation for them."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from hypothesis import settings

import collapsemeter as cm

# The same examples in every run, and no deadline: these machines are shared.
settings.register_profile("tests", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later search for garbage: a third of the time of tracing."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Case:
    """Raw rows with the statistics of Papyan et al. 2020, by brute force in float64."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    C: int
    W: np.ndarray
    b: np.ndarray

    @cached_property
    def moments(self) -> cm.ClassMoments:
        return cm.ClassMoments.from_batch(self.features, self.labels, self.C, scatter="class")

    def measure(self, **options) -> cm.LayerReport:
        head = cm.Head(self.W, self.b)
        decisions = cm.decide(self.moments, self.features, self.labels, head=head)
        return cm.measure(self.moments, head=head, decisions=decisions, **options)

    @cached_property
    def n(self) -> np.ndarray:
        return np.array([(self.labels == c).sum() for c in range(self.C)])

    @cached_property
    def mu(self) -> np.ndarray:
        return np.array([self.features[self.labels == c].mean(axis=0) for c in range(self.C)])

    @cached_property
    def v(self) -> np.ndarray:
        """Mean over the rows of class c of |h - mu_c|^2."""
        rows = [self.features[self.labels == c] - self.mu[c] for c in range(self.C)]
        return np.array([(r**2).sum() / len(r) for r in rows])

    def centre(self, convention: str) -> np.ndarray:
        if cm.PRESETS[convention].center == "class":
            return self.mu.sum(axis=0) / self.C
        return self.features.sum(axis=0) / len(self.features)

    def M(self, convention: str = "papyan2020") -> np.ndarray:
        return self.mu - self.centre(convention)

    def S_W(self, convention: str = "papyan2020") -> np.ndarray:
        by_class = cm.PRESETS[convention].within == "class"
        total = np.zeros((self.features.shape[1],) * 2)
        for h, c in zip(self.features, self.labels, strict=True):
            weight = 1 / (self.C * self.n[c]) if by_class else 1 / len(self.labels)
            total += weight * np.outer(h - self.mu[c], h - self.mu[c])
        return total

    def S_B(self, convention: str = "papyan2020") -> np.ndarray:
        by_class = cm.PRESETS[convention].between == "class"
        total = np.zeros((self.features.shape[1],) * 2)
        for c, row in enumerate(self.M(convention)):
            total += np.outer(row, row) * (1 / self.C if by_class else self.n[c] / self.n.sum())
        return total


def _rows(seed, counts, means, std, activation=lambda h: h):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    noise = rng.normal(size=(len(labels), means.shape[1])) * std
    return activation(means[labels] + noise), labels, rng


def _case(name: str) -> Case:
    rng = np.random.default_rng(sum(map(ord, name)))
    activation, std = (lambda h: h), 0.5
    if name == "balanced":
        counts, means = [20] * 5, rng.normal(size=(5, 12))
    elif name == "near_collapse":
        counts, means, std = [20] * 5, rng.normal(size=(5, 12)), 1e-6
    elif name == "imbalanced":
        counts, means = np.geomspace(403, 7, 10).round().astype(int), rng.normal(size=(10, 16))
    elif name == "more_classes_than_features":
        counts, means = [9] * 12, rng.normal(size=(12, 5))
    elif name == "binary":
        counts, means = [30, 21], rng.normal(size=(2, 7))
    elif name == "relu_with_offset":
        counts, means = [25] * 6, rng.normal(size=(6, 14))
        activation = lambda h: np.maximum(h, 0) + 30.0  # noqa: E731
    elif name == "few_samples":
        counts, means = [4, 3, 5], rng.normal(size=(3, 30))
    elif name == "ill_conditioned":
        left, _ = np.linalg.qr(rng.normal(size=(6, 6)))
        right, _ = np.linalg.qr(rng.normal(size=(10, 6)))
        counts, means = [40] * 6, left @ np.diag(np.geomspace(1, 1e-4, 6)) @ right.T
        std = np.geomspace(1e-1, 1e-5, 10)
    elif name == "zipf_tail":
        counts = np.maximum((300 / np.arange(1, 26) ** 1.8).astype(int), 1)
        assert (counts == 1).sum() > 1
        means = rng.normal(size=(25, 40))
    elif name == "head_with_bias":
        counts, means = [15] * 8, rng.normal(size=(8, 9))
    else:
        raise ValueError(name)
    features, labels, rng = _rows(len(name), counts, means, std, activation)
    W = means - means.mean(axis=0) + 0.2 * rng.normal(size=means.shape)
    b = rng.normal(size=len(means)) * (3.0 if name == "head_with_bias" else 0.1)
    return Case(name, features, labels, len(means), W, b)


CASES = (
    "balanced",
    "near_collapse",
    "imbalanced",
    "more_classes_than_features",
    "binary",
    "relu_with_offset",
    "few_samples",
    "ill_conditioned",
    "zipf_tail",
    "head_with_bias",
)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return _case(request.param)


@pytest.fixture
def make_case():
    return _case


@pytest.fixture(params=list(cm.PRESETS))
def preset(request) -> str:
    return request.param
