"""The `__init__` of a package is its table of contents."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    path.parent
    for folder in ("collapsemeter", "adapters")
    for path in sorted((ROOT / folder).rglob("__init__.py"))
    if path.parent != ROOT / "collapsemeter"  # its table is docs/architecture.md
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_names_its_modules(package):
    contents = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    assert modules - set(re.findall(r"\w+", contents)) == set()


def test_the_architecture_names_every_package():
    pages = (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.relative_to(ROOT).as_posix() for path in PACKAGES if path.name != "closed"}
    assert [folder for folder in folders if f"`{folder}/`" not in pages] == []


ADAPTERS = ("torch", "keras", "flax")


def test_like_roles_of_the_adapters_have_like_names():
    """The table of roles is that of the files which two or more adapters have."""
    files: dict[str, set[str]] = {}
    for adapter in ADAPTERS:
        for path in (ROOT / "adapters" / f"collapsemeter_{adapter}").glob("[!_]*.py"):
            files.setdefault(path.name, set()).add(adapter)
    shared = {name: where for name, where in files.items() if len(where) > 1}
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+\.py)` \|[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|$", page, re.M)
    told = {
        name: {adapter for adapter, mark in zip(ADAPTERS, marks, strict=True) if mark.strip()}
        for name, *marks in rows
    }
    assert told == shared
