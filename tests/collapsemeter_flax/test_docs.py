"""The page about Flax and JAX runs as it stands, where its libraries are installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from collapsemeter import CollapseReport

PAGE = (Path(__file__).parents[2] / "docs" / "flax.md").read_text()
OPTIONAL = {"Haiku": "haiku", "Equinox": "equinox"}


def test_the_page() -> None:
    first, *sections = PAGE.split("\n## ")
    names: dict[str, object] = {}
    ran = []
    for section in (first, *sections):
        title = section.partition("\n")[0]
        library = OPTIONAL.get(title)
        if library is not None and find_spec(library) is None:
            continue
        names.pop("measured", None)
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            exec(block, names)
        if measured := names.get("measured"):
            ran.append(title)
            check(measured, title)
    expected = ["BatchNorm", "Dropout", "pmap", "A mesh", "Orbax, and `flax.serialization`"]
    assert ran[: len(expected) + 1] == [*expected, "Plain JAX"]


def check(measured: CollapseReport, title: str) -> None:
    assert measured.provenance["rows"] == 8, title
    assert measured.warnings == (), title
    values = [measured.final[name] for name in ("nc1_pinv", "nc3_self_duality", "nc4_mismatch")]
    assert np.isfinite(values).all(), title
