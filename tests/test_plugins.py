"""`watch` finds the adapter by the model's class and imports nothing else."""

import subprocess
import sys

import pytest

from collapsemeter import watch


def test_a_model_of_no_framework_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"no adapter watches a 'builtins.list'; .* installed: torch"
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
