"""How many small faults the tests find: a sample of mutants of the code that counts and computes.

Each mutant is one change of one operator, number or condition in a copy of the sources. It dies where a test or
example of its own package fails that runs the changed line in pytest's own process; coverage.py says which do, and the
quickest go first. The sample is the same for the same seed and sources. Of 192 mutants the share is known to three
percent. Keras runs on the backend that KERAS_BACKEND names.

Examples
--------
``python benchmarks/mutants.py --count 192 --record mutants.jsonl``; the same command goes on where it was stopped.
With ``--survivors`` it tries again those of the record that survived, after tests were added.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
# What tests of a mutant may take: one that loops for ever dies, and takes no machine with it. Seconds are the
# processor's, since a busy machine must kill no mutant: so many, and so often what the tests take without a mutant.
SECONDS, TIMES, MEMORY = 60, 10, 12 * 2**30
NO_CONFTEST = 4  # what pytest returns where what the mutant broke is imported before any test

# Package: share of the sample, the files, and the tests that must notice.
GROUPS: dict[str, tuple[float, str, list[str]]] = {
    "stats": (
        0.3,
        "collapsemeter/stats/*.py",
        ["tests/stats", "tests/metrics", "tests/adapter/test_joint_tally.py"],
    ),
    "metrics": (
        0.3,
        "collapsemeter/metrics/*.py",
        ["tests/metrics", "tests/comparison", "tests/report/test_report.py"],
    ),
    "report": (
        0.15,
        "collapsemeter/report/*.py",
        ["tests/report", "tests/html", "tests/sinks/test_prefixes.py"],
    ),
    "audit": (
        0.15,
        "collapsemeter/audit/*.py",
        [
            "tests/audit/test_equality.py",
            "tests/audit/test_layouts.py",
            "tests/audit/test_merge.py",
            "tests/audit/test_inputs.py",
            "tests/audit/test_epochs.py",
            "tests/audit/test_narrow_floats.py",
            "tests/audit/test_audit_command.py",
        ],
    ),
    "torch": (
        0.1,
        "adapters/collapsemeter_torch/*.py",
        [
            "tests/collapsemeter_torch/test_meter.py",
            "tests/collapsemeter_torch/test_reduction.py",
            "tests/collapsemeter_torch/test_conformance.py",
            "tests/collapsemeter_torch/test_labels.py",
            "tests/collapsemeter_torch/test_checkpoint.py",
            "tests/collapsemeter_torch/test_faults.py",
            "tests/collapsemeter_torch/test_observe.py",
            "tests/collapsemeter_torch/test_groups.py",
            "tests/collapsemeter_torch/test_compile.py",
            "tests/collapsemeter_torch/test_dump.py",
            "tests/collapsemeter_torch/test_forward.py",
            "tests/collapsemeter_torch/test_study.py",
            "tests/collapsemeter_torch/test_members.py",
            "tests/collapsemeter_torch/test_budget.py",
        ],
    ),
    "keras": (0.1, "adapters/collapsemeter_keras/*.py", ["tests/collapsemeter_keras"]),
    "flax": (0.1, "adapters/collapsemeter_flax/*.py", ["tests/collapsemeter_flax"]),
}
COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One change: of which file and line, and the expression before and after."""

    group: str
    file: str
    line: int
    before: str
    after: str
    start: tuple[int, int]
    end: tuple[int, int]


def main() -> None:
    options = _parser().parse_args()
    chosen = sample(options.count, options.seed, options.packages)
    print(f"{len(chosen)} mutants, seed {options.seed}", flush=True)
    outcomes = _recorded(options.record)
    if options.survivors:
        outcomes = {mutant: killer for mutant, killer in outcomes.items() if killer}
    missing = [mutant for mutant in chosen if mutant not in outcomes]
    with options.record.open("a") as record, tempfile.TemporaryDirectory() as folder:
        groups = dict.fromkeys(mutant.group for mutant in missing)
        tests = {group: _tests_by_line(group, Path(folder) / group) for group in groups}
        for mutant in missing:
            outcomes[mutant] = _killer(mutant, tests[mutant.group])
            record.write(json.dumps(asdict(mutant) | {"killer": outcomes[mutant]}) + "\n")
            record.flush()
    for group in (*options.packages, "all"):
        killers = [outcomes[m] for m in chosen if group in (m.group, "all")]
        died = sum(map(bool, killers))
        print(f"{group:10} {died} of {len(killers)} die: {died / len(killers):.1%}")
    for mutant in chosen:
        if not outcomes[mutant]:
            print(f"survives: {mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after}")


def _recorded(path: Path) -> dict[Mutant, str]:
    """Return what killed each mutant of a record, "" for a survivor; the last line of a mutant counts."""
    outcomes = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        fields = json.loads(line)
        killer = fields.pop("killer")
        outcomes[Mutant(**fields | {key: tuple(fields[key]) for key in ("start", "end")})] = killer
    return outcomes


def sample(count: int, seed: int, packages: list[str]) -> list[Mutant]:
    """Draw mutants at random, for every package its share."""
    generator = random.Random(seed)
    chosen: list[Mutant] = []
    whole = sum(GROUPS[group][0] for group in packages)
    for group in packages:
        share, pattern, _ = GROUPS[group]
        sites = [m for path in sorted(ROOT.glob(pattern)) for m in mutants_of(group, path)]
        chosen += generator.sample(sites, min(len(sites), round(share / whole * count)))
    return chosen


def mutants_of(group: str, path: Path) -> Iterator[Mutant]:
    """Yield every change of a file that has an entry in the tables; none in messages and annotations."""
    source = path.read_text()
    for node in _expressions(ast.parse(source)):
        changed = _changed(node)
        if changed is not None and node.end_lineno is not None and node.end_col_offset is not None:
            yield Mutant(
                group,
                str(path.relative_to(ROOT)),
                node.lineno,
                ast.unparse(node),
                ast.unparse(changed),
                (node.lineno, node.col_offset),
                (node.end_lineno, node.end_col_offset),
            )


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.Raise) or name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.expr):
                yield child
            yield from _expressions(child)


def _changed(node: ast.expr) -> ast.expr | None:
    match node:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            return ast.Compare(node.left, [COMPARISONS[type(operator)]()], node.comparators)
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _of_types(node):
            return ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
        case ast.BoolOp(op=ast.And()):
            return ast.BoolOp(ast.Or(), node.values)
        case ast.BoolOp(op=ast.Or()):
            return ast.BoolOp(ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            return node.operand
        case ast.IfExp():
            return ast.IfExp(node.test, node.orelse, node.body)
        case ast.Constant(value=bool()):
            return ast.Constant(not node.value)
        case ast.Constant(value=int() | float()) if node.value + 1 != node.value:
            return ast.Constant(node.value + 1)
    return None


def _of_types(node: ast.BinOp) -> bool:
    """Whether it is a union of types, or of strings: no arithmetic."""
    sides = [ast.unparse(node.left), ast.unparse(node.right)]
    return isinstance(node.op, ast.BitOr) and any(s == "None" or s[:1].isupper() for s in sides)


@dataclass(frozen=True)
class Tests:
    """The tests of a package: how long each takes in seconds, and which run a line of a file."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]

    def of(self, mutant: Mutant) -> list[str]:
        """Return the tests that run the mutant's lines, the quickest first; all of them where it is run at import."""
        lines = self.lines.get(mutant.file, {})
        changed = range(mutant.start[0], mutant.end[0] + 1)
        names = {name for line in changed for name in lines.get(line, ())} - {""}
        return sorted(names & self.seconds.keys() or self.seconds, key=self.seconds.__getitem__)


def _tests_by_line(group: str, folder: Path) -> Tests:
    """Run the tests of a package without a mutant; stop if one fails, since everything would seem to die."""
    root = _copied(folder)
    _, pattern, tests = GROUPS[group]
    package = pattern.removesuffix("/*.py").removeprefix("adapters/").replace("/", ".")
    began = time.perf_counter()
    done = _pytest(
        root,
        ["--durations=0", "--durations-min=0", "--cov-context=test", "--cov-report="],
        [f"--cov={package}", "--doctest-modules", "--pyargs", package, *tests],
    )
    output = done.stdout.decode()
    if done.returncode:
        raise SystemExit(f"a test of {group} fails without a mutant:\n{output[-2000:]}")
    seconds: dict[str, float] = {}
    for number, name in re.findall(r"^([\d.]+)s (?:setup|call) +(.+)$", output, re.MULTILINE):
        seconds[name] = seconds.get(name, 0.0) + float(number)
    data = CoverageData(root / ".coverage")
    data.read()
    lines = {
        str(Path(file).relative_to(root)): {
            line: [context.partition("|")[0] for context in contexts]
            for line, contexts in data.contexts_by_lineno(file).items()
        }
        for file in data.measured_files()
    }
    print(f"{group:10} {len(seconds)} pass in {time.perf_counter() - began:.0f} s", flush=True)
    return Tests(seconds, lines)


def _copied(folder: Path) -> Path:
    """Copy the sources; the path is the one that tests see, without a link."""
    return Path(shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*"))).resolve()


def _killer(mutant: Mutant, tests: Tests) -> str:
    """Return the test that fails on the mutant, in a copy of the sources; "" where none does."""
    with tempfile.TemporaryDirectory() as folder:
        root = _copied(Path(folder) / "mutant")
        path = root / mutant.file
        path.write_text(_mutated(path.read_text(), mutant))
        names = tests.of(mutant)
        limit = SECONDS + TIMES * round(sum(map(tests.seconds.__getitem__, names)))
        (root / "names").write_text("\n".join(names))
        began = time.perf_counter()
        killer = _failing(_pytest(root, ["-x", "--doctest-modules", "@names"], [], limit))
        seconds = time.perf_counter() - began
        place = f"{mutant.file}:{mutant.line}, {len(names)} tests"
        print(f"{seconds:5.0f} s {place}: {killer or 'SURVIVES'}", flush=True)
        return killer


def _failing(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what failed in a run of pytest; "" where nothing did."""
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return "time or memory"
    if done.returncode == NO_CONFTEST and b"conftest" not in done.stderr:
        raise SystemExit(f"pytest finds no such tests: {done.stderr.decode()[-2000:]}")
    name = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout.decode(), re.MULTILINE)
    return name[1] if name else "import"


def _mutated(source: str, mutant: Mutant) -> str:
    lines = source.encode().splitlines(keepends=True)
    (first, begin), (last, end) = mutant.start, mutant.end
    head, tail = lines[first - 1][:begin], lines[last - 1][end:]
    lines[first - 1 : last] = [head + b"(" + mutant.after.encode() + b")" + tail]
    return b"".join(lines).decode()


def _pytest(
    root: Path, options: list[str], tests: list[str], seconds: int = 3600
) -> subprocess.CompletedProcess[bytes]:
    paths = os.pathsep.join((str(root), str(root / "adapters")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    environment["COVERAGE_FILE"] = str(root / ".coverage")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))

    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *tests],
        cwd=root,
        env=environment,
        capture_output=True,
        check=False,
        preexec_fn=limit,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=Path("mutants.jsonl"), help="JSON lines")
    parser.add_argument("--packages", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--survivors", action="store_true", help="try those of the record again")
    return parser


if __name__ == "__main__":
    main()
