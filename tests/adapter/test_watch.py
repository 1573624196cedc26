"""`watch` finds the adapter by the model's class and imports nothing else."""

import subprocess
import sys

import pytest

from collapsemeter import watch

LACKING = """
import sys
sys.modules[{module!r}] = None  # as if it were not installed
import collapsemeter

class Model:
    __module__ = "{root}.models"

try:
    collapsemeter.watch(Model())
except ImportError as error:
    print(error)
"""


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_model_of_no_framework_is_named() -> None:
    with pytest.raises(
        TypeError,
        match=r"no adapter watches a 'builtins.list'; adapters installed: flax, keras, torch",
    ):
        watch([1, 2])


def test_looking_for_an_adapter_imports_no_framework() -> None:
    code = """
import sys, collapsemeter
try:
    collapsemeter.watch(object())
except TypeError:
    pass
print([name for name in ("torch", "tensorflow", "keras", "jax", "flax") if name in sys.modules])
"""
    assert printed(code) == "[]"


@pytest.mark.parametrize("framework", ["torch", "keras", "flax"])
def test_a_missing_framework_names_the_extra(framework: str) -> None:
    said = printed(LACKING.format(module=framework, root=framework))
    assert said.startswith(f"the {framework} adapter needs {framework}")
    assert said.endswith(f"pip install 'collapsemeter[{framework}]'")


def test_an_adapter_that_does_not_load_is_named() -> None:
    said = printed(LACKING.format(module="collapsemeter_torch", root="torch"))
    assert said.startswith("the torch adapter, collapsemeter_torch, cannot be loaded: ")
