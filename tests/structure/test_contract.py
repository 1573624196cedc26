"""The import contract of pyproject.toml holds, can fail, and the house has at most ten floors."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("collapsemeter", "collapsemeter_torch", "collapsemeter_keras", "collapsemeter_flax")
FLOORS = 10
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Copy the packages beside the contract."""
    for name in PACKAGES:
        source = ROOT / name if name == "collapsemeter" else ROOT / "adapters" / name
        shutil.copytree(source, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {LINT}"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contract_holds(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("collapsemeter/stats/moments", "from ..metrics import measure", "layers downwards only"),
        ("collapsemeter/metrics/nc1", "from ..report import criteria", "layers downwards only"),
        ("collapsemeter/report/criteria", "from . import report", "no circle"),
        (
            "collapsemeter_torch/state",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import recorder",
            "no circle",
        ),
        ("collapsemeter_keras/meter", "import collapsemeter_torch", "no adapter imports another"),
        ("collapsemeter/audit/run", "import torch", "the core imports no framework"),
        ("collapsemeter_torch/meter", "import jax", "an adapter imports one framework"),
        ("collapsemeter/stats/moments", "import scipy.linalg", "pure NumPy"),
    ],
)
def test_the_contract_can_fail(tree, module, line, broken):
    path = tree / f"{module}.py"
    path.write_text(path.read_text().replace("\nimport ", f"\n{line}\nimport ", 1))
    done = lint(tree)
    assert done.returncode != 0
    [verdict] = [
        row for row in done.stdout.splitlines() if broken in row and row.endswith("BROKEN")
    ]
    assert broken in verdict


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of every module: one more than the highest that it imports."""
    height: dict[str, int] = {}

    def floor(module: str) -> int:
        if module not in height:
            height[module] = 1 + max(map(floor, imports[module]), default=0)
        return height[module]

    for module in imports:
        floor(module)
    return height


def test_a_floor_is_one_more_than_what_it_stands_on():
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_there_are_at_most_ten_floors(tree, monkeypatch):
    monkeypatch.syspath_prepend(tree)
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imports = {
        module: {
            other
            for other in graph.find_modules_directly_imported_by(module)
            if not module.startswith(f"{other}.")  # the face of a module's own package
        }
        for module in graph.modules
    }
    height = floors(imports)
    highest = max(height.values())
    assert highest <= FLOORS, sorted(m for m, floor in height.items() if floor > FLOORS)
