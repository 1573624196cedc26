"""The page about Keras runs as it stands, each section on its backend."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np

PAGE = (Path(__file__).parents[2] / "docs" / "keras.md").read_text()
SECTIONS = {"tensorflow": "TensorFlow", "torch": "PyTorch", "jax": "JAX"}


def test_the_loop_of_this_backend() -> None:
    first, *sections = PAGE.split("\n## ")
    title = SECTIONS[keras.backend.backend()]
    section = next(part for part in sections if part.startswith(f"{title}\n"))
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", first + section, re.DOTALL):
        exec(block, names)
    report = names["report"]
    assert (report.provenance["rows"], report.provenance["batches"]) == (64, 2)
    assert report.warnings == ()
    for metric in ("nc1_pinv", "nc3_self_duality", "nc4_mismatch"):
        assert np.isfinite(report.final[metric]), metric
