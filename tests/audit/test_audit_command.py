"""The command line: what it prints, where, in how many columns, and with which status."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import collapsemeter as cm
from collapsemeter.audit import Options, audit
from collapsemeter.cli import main
from collapsemeter.cli.fail_if import FailureCondition


@pytest.fixture
def acts(data, tmp_path) -> str:
    return data.dump(tmp_path / "acts")


def test_json_is_the_report_and_nothing_else(acts, cli, tmp_path, capsys):
    status, out, err = cli("acts", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads(audit("acts").to_json(matrices=True))
    (tmp_path / "report.json").write_text(out)
    assert main(["show", "report.json"]) == 0
    assert "nc1_pinv" in capsys.readouterr().out
    assert main(["compare", "report.json", "report.json", "--quiet"]) == 0
    assert "(reference layer fc)" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.state"))


def test_what_is_printed_for_people(acts, cli, tmp_path):
    status, out, err = cli("acts", "--out", "new/report.json", "--html", "new/page.html")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    for text in ("conv", "fc", "nc1_pinv", "HTML report: new/page.html", "JSON: new/report.json"):
        assert text in out
    assert "\x1b" not in out
    assert cli("acts", "--json")[1] == (tmp_path / "new/report.json").read_text()
    status, out, err = cli("acts", "--quiet")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    assert out.startswith(
        "400 rows of 6 classes in 4 shards, from 4 files: shard-00000.safetensors, "
    )
    assert "; fc (frozen-eval): NC1 " in out


def test_a_reference(acts, cli, refused):
    status, out, _ = cli("acts", "--dufm", "weight_decay=1e-3", "depth=2")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "\nfc: NC1 partly collapsed: 13 % of the variance is within classes" in out
    for texts, words in (
        (["depth=2"], "--dufm needs weight_decay=NUMBER"),
        (["weight_decay=x"], "--dufm weight_decay=x: 'x' is not a number"),
        (["weight_decay=1e-3", "colour=1"], "--dufm colour=1: choose among depth, weight_decay"),
        (["weight_decay"], "--dufm 'weight_decay': write NAME=VALUE"),
        (["weight_decay=1e-3", "depth=1.5"], "--dufm depth=1.5: '1.5' is not a whole number"),
    ):
        assert words in refused("acts", "--dufm", *texts)
    status, out, err = cli("acts", "--dufm", "weight_decay=-1")
    assert (status, out, err.count("\n")) == (2, "", 1)


FAILS = {
    "fc:nc1_pinv>0": (3, "layer 'fc' has nc1_pinv = 0.2"),
    "nc1_pinv>0": (3, "layer 'fc' has nc1_pinv"),
    "fc:nc1_pinv>1e6": (0, ""),
    "*:nc2_etf_error >= 0": (3, "layer 'conv' has nc2_etf_error"),
    "fc:nc4_mismatch<2": (3, "layer 'fc' has nc4_mismatch"),
    "fc:nc1_pinv<=-1": (0, ""),
    "conv:nc3_self_duality>5": (3, "layer 'conv' has no nc3_self_duality to compare (the layer does not"),
    "x:nc1_pinv>0": (2, "no layer is named 'x'; there are conv, fc"),
    "fc:nc1>0": (2, "no metric is named 'nc1'; there are NC1, NC2, NC3, NC4, nc1_pinv"),
    "fc:nc1_pinv=0": (2, "write LAYER:METRIC>NUMBER, such as"),
    "fc:nc1_pinv>x": (2, "write LAYER:METRIC>NUMBER, such as"),
    "fc:nc1_pinv>nan": (2, "write LAYER:METRIC>NUMBER, such as"),
    "": (2, "write LAYER:METRIC>NUMBER"),
}  # fmt: skip


@pytest.mark.parametrize("text", FAILS)
def test_thresholds(acts, cli, text):
    expected, words = FAILS[text]
    status, out, err = cli("acts", "--quiet", "--fail-if", text)
    assert status == expected
    if expected == 2:
        assert err.count("\n") == 1
        assert err.startswith("collapsemeter: --fail-if")
    if expected == 3:
        assert all(line.startswith("collapsemeter: layer ") for line in err.splitlines())
        assert out.count("\n") == 1
    assert words.split(" (")[0] in err


def test_a_reference_where_nothing_was_measured(data, tmp_path, refused):
    np.savez(tmp_path / "a.npz", fc=data.fc * np.nan, labels=data.labels)
    err = refused("a.npz", "--dufm", "weight_decay=1e-3")
    assert "--dufm: no class was measured, so there is nothing to compare" in err


def test_several_thresholds_and_patterns(acts, cli):
    status, _, err = cli(
        "acts", "--json", "--fail-if", "*:nc1_pinv>0", "--fail-if", "fc:nc4_mismatch>=0",
        "--fail-if", "conv:nc1_pinv>1e9",
    )  # fmt: skip
    assert status == 3
    assert [re.search(r"layer '(\w+)' has (\w+)", line).groups() for line in err.splitlines()] == [
        ("conv", "nc1_pinv"), ("fc", "nc1_pinv"), ("fc", "nc4_mismatch"),
    ]  # fmt: skip


def test_layers_with_colons_and_brackets_have_thresholds():
    actual = FailureCondition.parse("a:b[0]:nc1_pinv > 1e-3")
    assert (actual.layer, actual.metric, actual.sign, actual.limit) == (
        "a:b[0]",
        "nc1_pinv",
        ">",
        1e-3,
    )
    report = cm.CollapseReport({"a:b[0]": cm.LayerReport({"nc1_pinv": 0.25})})
    assert actual.failures(report) == [
        "layer 'a:b[0]' has nc1_pinv = 0.25: --fail-if 'a:b[0]:nc1_pinv > 1e-3'"
    ]
    missing = FailureCondition.parse("nc2_etf_error>1").failures(report)
    assert missing == [
        "layer 'a:b[0]' has no nc2_etf_error to compare (it was not measured): --fail-if "
        "'nc2_etf_error>1'"
    ]


@pytest.mark.parametrize("name", ["audit", "audit map", "audit merge"])
def test_help_fits_the_terminal_and_its_examples_parse(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "examples:" in out
    examples = out[out.index("examples:") :].replace("\\\n", " ")
    calls = re.findall(r"^    collapsemeter (audit .*)$", examples, re.MULTILINE)
    assert calls
    import shlex

    from collapsemeter.cli import _parser

    for call in calls:
        given = shlex.split(call)
        if given[1] in ("map", "merge"):
            given[:2] = [" ".join(given[:2])]
        _parser().parse_args(given)


def test_every_example_of_the_help_runs(data, tmp_path, cli):
    data.file_per_layer(tmp_path)
    data.dump(tmp_path / "acts")
    assert (
        cli("acts/shard-*.safetensors", "--head", "acts/head.safetensors", "--html", "r.html")[0]
        == 0
    )
    status, out, _ = cli(
        "map", "acts/shard-00001.safetensors", "-o", "state", "--num-classes", 6, "--quiet"
    )
    assert (status, out) == (0, "")
    status, out, _ = cli("map", "acts/shard-*", "-o", "state", "--num-classes", 6, "--resume")
    assert status == 0
    assert all(Path(tmp_path, line).exists() for line in out.splitlines())
    merge = ["merge", "state/*.state", "-o", "merged.state", "--head", "acts/head.safetensors"]
    status, out, _ = cli(*merge, "--json")
    assert status == 0
    report = json.loads(out)
    assert report["layers"]["fc"]["metrics"]["nc3_self_duality"] is not None
    assert cli(*merge)[0] == 0
    status, out, _ = cli("acts/shard-*", "--num-classes", 6, "--state", "state", "--resume")
    assert status == 0
    # What an audit leaves there is no obstacle.
    assert cli(*merge, "--quiet", "--fail-if", "nc1_pinv>0")[0] == 3
    assert cli(*merge, "--head-layer", "fc")[0] == 0


def test_one_shard_does_not_tell_the_classes(acts, refused):
    err = refused("map", "acts/shard-00000.safetensors", "-o", "state")
    assert "one shard does not tell how many classes there are in all: pass --num-classes or" in err


WRONG = {
    "jobs": (["--jobs", "0"], "jobs=0: there must be at least one process"),
    "both": (["--jobs", "2", "--dask", "tcp://x"], "jobs=2 and dask='tcp://x': choose one of them"),
    "html": (["--html", "."], ". is a folder: name a file to write"),
    "out": (["--out", "file/report.json"], "file/report.json cannot be written"),
    "json and quiet": (["--json", "--quiet"], "not allowed with argument"),
    "unknown": (["--colour"], "unrecognized arguments: --colour (see collapsemeter audit --help)"),
    "classes": (["--num-classes", "x"], "invalid int value: 'x'"),
    "history": (["--history", "file"], "file"),
    "convention": (["--convention", "x"], "invalid choice: 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(acts, tmp_path, refused, what):
    (tmp_path / "file").write_text("a file")
    arguments, text = WRONG[what]
    assert text in refused("acts", *arguments)
    assert not list(tmp_path.glob("*.state"))


def test_what_fails_late_keeps_what_was_counted(acts, tmp_path, cli, monkeypatch):
    with monkeypatch.context() as patch:  # the disk is full as the report is written
        patch.setattr(
            "collapsemeter.cli.audit.write_atomically",
            lambda path, data: os.write(os.open("/dev/full", os.O_WRONLY), data),
        )
        status, _, err = cli("acts", "--out", "report.json")
    assert status == 2
    assert "No space left on device" in err
    (folder,) = tmp_path.glob("*.state")
    assert f"(what was counted is kept in {folder.name}: use --resume)" in err
    monkeypatch.setattr("collapsemeter.audit.first_pass.map_piece", None)
    monkeypatch.setattr("collapsemeter.audit.second_pass.decide_piece", None)
    assert cli("acts", "--out", "report.json", "--resume")[0] == 0
    assert (tmp_path / "report.json").exists()
    assert not list(tmp_path.glob("*.state"))


def test_nothing_to_resume_is_a_run_from_the_start(acts, cli):
    assert cli("acts", "--json", "--resume")[1] == cli("acts", "--json")[1]


def test_a_reader_that_has_seen_enough(acts, tmp_path, command):
    script = (
        "import sys; from collapsemeter.cli import main\n"
        "sys.stdout.close(); import os; r, w = os.pipe(); os.close(r)\n"
        "sys.stdout = os.fdopen(w, 'w')\n"
        "sys.exit(main(['audit', 'acts', '--json']))"
    )
    done = command(script=script)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert not list(tmp_path.glob("*.state"))


def test_interrupted(acts, tmp_path, refused, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("collapsemeter.audit.second_pass.decide_piece", interrupt)
    err = refused("acts")
    assert "interrupted (what was counted is kept in collapsemeter-" in err
    assert refused("acts", "--state", "S") == "collapsemeter: interrupted\n"
    assert len(list((tmp_path / "S").glob("*.state"))) > 1


def test_not_enough_memory(acts, refused, monkeypatch):
    def fill(*_):
        raise MemoryError("Unable to allocate 1 TiB\nof something")

    monkeypatch.setattr("collapsemeter.audit.first_pass.map_piece", fill)
    assert "there is not enough memory: Unable to allocate 1 TiB\\nof something" in refused("acts")


def on_a_terminal(arguments: list[str], cwd: Path, **environment: str) -> tuple[int, str, str]:
    """Run with standard error on a terminal and standard output in a pipe."""
    leader, follower = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "collapsemeter", "audit", *arguments], cwd=cwd,
        stdout=subprocess.PIPE, stderr=follower, text=True,
        env={**os.environ, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        seen += part
        if not part:
            break
    out, _ = running.communicate(timeout=60)
    os.close(leader)
    return running.returncode, out, seen.decode(errors="replace")


def test_progress_is_for_terminals(acts, tmp_path, command):
    status, out, seen = on_a_terminal(["acts", "--json"], tmp_path)
    assert status == 0
    for words in ("counting", "merging", "deciding", "measuring"):
        assert words in seen
    piped = command("audit", "acts", "--json")
    assert (piped.stderr, piped.stdout) == ("", out)
    status, _, seen = on_a_terminal(["acts", "--quiet"], tmp_path)
    assert (status, seen) == (0, "")
    status, _, seen = on_a_terminal(["acts"], tmp_path, NO_COLOR="1")
    assert "counting" in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", seen)  # no colour


def test_wide_and_long_names_fit_the_terminal(data, tmp_path, cli, save_arrays):
    arrays = {
        f"encoder.layers.{i}.attention.self.output.dense.very.long": data.fc for i in range(3)
    }
    save_arrays(tmp_path / "a.npz", arrays | {"labels": data.labels})
    status, out, _ = cli("a.npz")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80


def test_options_of_the_command_are_those_of_the_function(data, tmp_path, cli):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(400, 3, 2, 2))
    np.savez(
        tmp_path / "a.npz", m=maps, fc=data.fc, y=data.labels, p=data.labels, bad=data.fc * np.nan
    )
    arguments = [
        "a.npz", "--labels", "y", "--predictions", "p", "--layers", "fc", "m", "--reduction", "m=mean",
        "--scatter", "pooled", "--ignore-index", "2", "--nonfinite", "propagate", "--phase",
        "frozen-train", "--nc4", "300", "--seed", "7", "--convention", "zhu2021", "--num-classes", "6",
    ]  # fmt: skip
    status, out, _ = cli(*arguments, "--json")
    assert status == 0
    expected = audit("a.npz", Options(
        labels="y", predictions="p", layers=["fc", "m"], reduction={"m": "mean"}, scatter="pooled",
        ignore_index=2, nonfinite="propagate", phase="frozen-train", nc4=300, seed=7,
        convention="zhu2021", num_classes=6,
    ))  # fmt: skip
    assert json.loads(out) == json.loads(expected.to_json(matrices=True))
    assert list(expected) == ["fc", "m"]
    assert expected.phase == "frozen-train"
    assert expected["fc"].per_class["count"][2] == 0


def test_a_bias_that_cannot_be_read_is_not_left_out(data, acts, tmp_path, refused):
    words = np.array(["a"] * 6, dtype=object)
    np.savez(tmp_path / "head.npz", **{"fc.weight": data.head.weight, "fc.bias": words})
    assert "head.npz: array 'fc.bias' " in refused("acts", "--head", "head.npz")
