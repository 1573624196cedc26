"""The reviewed rows, and the page that shows them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from .measuring import differences

ROWS = Path(__file__).parent / "reviewed.json"
PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
HEAD = """# The zoo

Networks of other people's libraries, with random weights and small inputs: of timm, torchvision, transformers and Keras,
patterns of the examples of keras.io and Flax, and small ones whose heads are hard to read. `python -m tox run -e zoo` trains each for one
step under a meter, passes it frozen, and holds NC4 against brute force from the network's own scores. The rows below are
reviewed by hand (`tests/zoo/reviewed.json`): layers in the order of the data, the head, the classes, and what the meter
holds. The message at attaching has at most 20 lines of 100 characters in all of them. A new network is one line in
`tests/zoo`; `python -m tox run -e zoo -- --write` writes its row, to be looked at.

| network | layers | head | C | MiB |
|---|---|---|---|---|
"""

# The framework, and the function of its module that returns the networks.
_ZOOS = {
    "torch": ("torch", "networks"),
    "transformers": ("torch", "of_transformers"),
    "small": ("torch", "small"),
    "keras": ("keras", "networks"),
    "keras.io": ("keras", "patterns"),
    "keras-few": ("keras", "few"),
    "flax": ("flax", "networks"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write", action="store_true", help="write the rows, to be reviewed")
    parser.addoption("--zoo", choices=list(_ZOOS), default="torch", help="whose networks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "network" in metafunc.fixturenames:
        framework, networks = _ZOOS[metafunc.config.getoption("zoo")]
        module = importlib.import_module(f".{framework}_networks", __package__)
        found = getattr(module, networks)()
        metafunc.parametrize("network", found.items(), ids=lambda item: item[0])


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Any:
    """What measures a network of the framework that was asked for."""
    framework, _ = _ZOOS[request.config.getoption("zoo")]
    return importlib.import_module(f".{framework}_measuring", __package__).measured


@pytest.fixture(scope="session")
def reviewed(request: pytest.FixtureRequest) -> Any:
    """Hold a row against the reviewed one, or write it."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    write = request.config.getoption("--write")

    def check(name: str, found: dict[str, Any]) -> None:
        if write:  # each at once: a run may be stopped
            rows[name] = found
            ROWS.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
            PAGE.write_text(HEAD + "".join(_line(name, row) for name, row in sorted(rows.items())))
            return
        assert name in rows, (
            f"{name} has no reviewed row: run with --write, and look at it: {found}"
        )
        assert not differences(found, rows[name]), name

    return check


def _line(name: str, row: dict[str, Any]) -> str:
    layers = " ".join(row["layers"])
    return f"| {name} | {layers} | {row['head']} | {row['classes']} | {row['MiB']} |\n"
