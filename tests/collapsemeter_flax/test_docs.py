"""The page about Flax and JAX runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from collapsemeter import CollapseReport

PAGE = (Path(__file__).parents[2] / "docs" / "flax.md").read_text()


def test_the_page() -> None:
    first, *sections = PAGE.split("\n## ")
    names: dict[str, object] = {}
    ran = []
    for section in (first, *sections):
        title = section.partition("\n")[0]
        names.pop("measured", None)
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(block, names)
        if measured := names.get("measured"):
            ran.append(title)
            check(measured, title)
    flax = ["BatchNorm", "Dropout", "pmap", "A mesh", "Orbax, and `flax.serialization`"]
    assert ran == [*flax, "Plain JAX", "Haiku", "Equinox"]


def check(measured: CollapseReport, title: str) -> None:
    assert measured.provenance["rows"] == 8, title
    assert measured.warnings == (), title
    values = [measured.final[name] for name in ("nc1_pinv", "nc3_self_duality", "nc4_mismatch")]
    assert np.isfinite(values).all(), title
