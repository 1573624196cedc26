"""What `import collapsemeter` loads, in a fresh process, and how adapters are found."""

from __future__ import annotations

import pickle
import pkgutil
import subprocess
import sys

import pytest

import collapsemeter as cm
from collapsemeter.adapter import watch as plugins

HEAVY = (
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "flax",
    "scipy",
    "rich",
    "matplotlib",
    "sklearn",
    "tensorboardX",
)
CHECK = f"""
import sys
import {{module}}
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(*loaded)
sys.exit(bool(loaded))
"""
USE = """
import numpy as np, sys, collapsemeter as cm
m = cm.ClassMoments.from_batch(np.eye(3), [0, 1, 2], 3)
layer = cm.measure(m, head=cm.Head(np.eye(3)), decisions=cm.decide(m, np.eye(3), [0, 1, 2]))
report = cm.CollapseReport({"x": layer})
report.to_json(); report.table(); report.summary()
"""


# Of the package and NumPy: a module that the standard library or another version of NumPy loads is not ours.
LOADED = """
print(*sorted(n for n in sys.modules if n == "numpy" or n.startswith("collapsemeter.")))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_an_import_loads_nothing_until_a_name_is_asked_for():
    done = run("import sys, collapsemeter" + LOADED)
    assert (done.stdout.split(), done.stderr) == (["collapsemeter.version"], "")


def test_a_measurement_does_not_load_files_and_the_comparison():
    loaded = run(USE + LOADED).stdout.split()
    assert "collapsemeter.metrics.measure" in loaded
    unused = ("collapsemeter.comparison", "collapsemeter.dufm", "collapsemeter.sinks")
    assert not [name for name in loaded if name.startswith(unused)]


def test_the_core_loads_numpy_alone():
    done = run("from collapsemeter import *" + CHECK.format(module="collapsemeter"))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_a_measurement_and_its_table_load_numpy_alone():
    done = run(USE + CHECK.format(module="collapsemeter"))
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_the_check_can_fail(tmp_path):
    """A module that does import one of them is caught: the check above is not vacuous."""
    (tmp_path / "guilty.py").write_text("import rich\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = run(path + CHECK.format(module="guilty"))
    assert (done.returncode, done.stdout.strip()) == (1, "rich")


def test_public_names_exist():
    assert set(cm._HOMES) == set(cm.__all__)
    for name in (*cm.__all__, *cm._PACKAGES):
        assert getattr(cm, name) is not None
        assert name in dir(cm)
    assert pickle.loads(pickle.dumps(cm.measure)) is cm.measure


def test_no_module_hides_a_public_name():
    """`collapsemeter.x` becomes the module x as soon as anything imports that."""
    modules = {module.name for module in pkgutil.iter_modules(cm.__path__)}
    assert not modules & set(cm.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(cm, "nc5")
    with pytest.raises(AttributeError, match="module 'collapsemeter' has no attribute 'nc5'"):
        cm.nc5  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nc5' from 'collapsemeter'"):
        from collapsemeter import nc5  # noqa: F401


def test_an_object_that_no_adapter_watches_is_named():
    with pytest.raises(
        TypeError, match=r"no adapter watches a 'builtins.int'; adapters installed: "
    ):
        cm.watch(42)


def test_an_adapter_is_chosen_by_the_class_of_the_model(monkeypatch):
    class Entry:
        def load(self):
            return lambda model, **options: (model, options)

    class Model:
        __module__ = "some_framework.nn"

    class Mine(Model):
        pass

    monkeypatch.setattr(plugins, "adapters", lambda: {"some_framework": Entry()})
    model = Mine()
    assert cm.watch(model, num_classes=3) == (model, {"num_classes": 3})
    monkeypatch.setattr(plugins, "adapters", dict)
    with pytest.raises(TypeError, match="adapters installed: none"):
        cm.watch(model)
