"""The distribution: four packages from one place, one version, entry points that load."""

import importlib.util
import re
import tomllib
from importlib.metadata import distribution, entry_points, version
from pathlib import Path

import pytest

import collapsemeter

PACKAGES = ["collapsemeter", "collapsemeter_flax", "collapsemeter_keras", "collapsemeter_torch"]
PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_all_four_packages_come_from_one_distribution() -> None:
    spec = [importlib.util.find_spec(name) for name in PACKAGES]
    assert all(found is not None and found.origin is not None for found in spec)
    roots = {Path(found.origin).parents[1] for found in spec if found and found.origin}
    # Installed from a wheel they lie side by side; in a checkout the adapters are on their shelf.
    installed = any("site-packages" in str(root) for root in roots)
    assert len(roots) == 1 if installed else {root.name for root in roots} >= {"adapters"}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_says_that_it_is_typed(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").is_file()


def test_the_version_is_the_same_wherever_it_is_said() -> None:
    declared = tomllib.loads(PROJECT.read_text())["project"]["version"]
    citation = (PROJECT.parent / "CITATION.cff").read_text()
    assert collapsemeter.__version__ == version("collapsemeter") == declared
    assert f"version: {declared}" in citation
    assert f"## {declared}" in (PROJECT.parent / "CHANGELOG.md").read_text()


def test_the_command_and_the_adapters_are_entry_points() -> None:
    (command,) = entry_points(group="console_scripts", name="collapsemeter")
    assert callable(command.load())
    assert {entry.name for entry in entry_points(group="collapsemeter.adapters")} == {
        "torch",
        "keras",
        "flax",
    }


def test_every_extra_is_declared() -> None:
    extras = set(distribution("collapsemeter").metadata.get_all("Provides-Extra") or [])
    frameworks, files = {"torch", "keras", "flax"}, {"audit", "zarr", "hdf5", "dask"}
    trainers = {"lightning", "transformers"}
    assert extras == frameworks | trainers | files | {"tensorboard", "report", "demo", "all"}


def test_install_lines_work_in_a_clone() -> None:
    """The name is on no index: documents install from the folder, with extras that exist."""
    extras = set(distribution("collapsemeter").metadata.get_all("Provides-Extra") or [])
    root = PROJECT.parent
    documents = [root / "README.md", *(root / "docs").glob("*.md"), root / "adapters/README.md"]
    lines = [
        line
        for text in documents
        for line in re.findall(r"pip install [^`\n&#]+", text.read_text())
    ]
    assert len(lines) > 5
    for line in lines:
        named = re.fullmatch(r"pip install '\.\[([\w,]+)\]' *", line)
        assert named or line.strip() == "pip install tox", line
        assert not named or set(named[1].split(",")) <= extras, line
