"""Conventions: presets by name, and words for what is unknown."""

from __future__ import annotations

import pytest

from collapsemeter import PRESETS, Convention


def test_presets_are_the_papers():
    switches = {
        name: (c.center, c.within, c.between, c.divide_by_classes) for name, c in PRESETS.items()
    }
    assert switches == {
        "papyan2020": ("class", "sample", "class", True),
        "zhu2021": ("sample", "sample", "class", True),
        "he_su2023": ("sample", "class", "class", False),
        "he_su2023_imbalanced": ("sample", "sample", "sample", False),
    }
    assert Convention() == PRESETS["papyan2020"]


def test_names(preset):
    assert Convention.named(preset) is PRESETS[preset]
    assert Convention.named(PRESETS[preset]) is PRESETS[preset]
    assert PRESETS[preset].name == preset
    assert Convention(within="class").name == "custom"


def test_unknown_names_and_switches():
    with pytest.raises(ValueError, match="convention='papyan': choose one of papyan2020, zhu2021"):
        Convention.named("papyan")
    for switch in ("center", "within", "between"):
        with pytest.raises(ValueError, match=f"{switch}='row': choose 'class' or 'sample'"):
            Convention(**{switch: "row"})
