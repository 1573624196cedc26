"""The command line: bad input is one sentence on standard error and exit status 2."""

import subprocess
import sys
from pathlib import Path

import pytest

from collapsemeter import __version__
from collapsemeter.cli import main


def test_the_installed_command_tells_its_version() -> None:
    command = Path(sys.executable).with_name("collapsemeter")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"collapsemeter {__version__}"


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--help"])
    assert stop.value.code == 0
    assert "example: collapsemeter demo --epochs 40" in capsys.readouterr().out


def test_no_epochs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--epochs", "0"]) == 2
    assert capsys.readouterr().err == "collapsemeter: epochs=0: train for at least one\n"


def test_an_unknown_framework_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--framework", "caffe"])
    assert stop.value.code == 2
    assert "invalid choice: 'caffe'" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = Path(sys.executable).with_name("collapsemeter")
    line = (
        f"{command} dufm --classes 2 --depth 2 --weight-decay 1e-3 | true; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
