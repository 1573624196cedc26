"""The page about trust: what it shows is what runs."""

from __future__ import annotations

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "trust.md"


def test_its_example_runs():
    run = doctest.testfile(str(PAGE), module_relative=False)
    assert run.attempted >= 8
    assert run.failed == 0
