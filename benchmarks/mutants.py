"""How many small faults the tests find: a sample of mutants of the code that counts and computes.

Each mutant is one change of one operator, number or condition in a copy of the sources. It dies where a test of
its own package fails. The sample is the same for the same seed and sources; half of a percent is no difference.

Examples
--------
``python benchmarks/mutants.py --count 160 --json mutants.json``
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 1800  # seconds a mutant may take: one that loops for ever dies

# Package: share of the sample, the files, and the tests that must notice.
GROUPS: dict[str, tuple[float, str, list[str]]] = {
    "stats": (0.3, "collapsemeter/stats/*.py", ["tests/stats", "tests/metrics/test_nc1.py"]),
    "metrics": (0.3, "collapsemeter/metrics/*.py", ["tests/metrics", "tests/comparison"]),
    "report": (0.15, "collapsemeter/report/*.py", ["tests/report", "tests/html"]),
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
    "adapters": (
        0.1,
        "adapters/collapsemeter_torch/*.py",
        [
            "tests/collapsemeter_torch/test_torch_meter.py",
            "tests/collapsemeter_torch/test_torch_reduction.py",
            "tests/collapsemeter_torch/test_torch_conformance.py",
            "tests/collapsemeter_torch/test_torch_labels.py",
            "tests/collapsemeter_torch/test_torch_state.py",
            "tests/collapsemeter_torch/test_torch_faults.py",
            "tests/collapsemeter_torch/test_torch_observe.py",
        ],
    ),
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
    chosen = sample(options.count, options.seed)
    print(f"{len(chosen)} mutants, seed {options.seed}", flush=True)
    _check_tests()
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(_tried, chosen))
    survivors = [mutant for mutant, died in zip(chosen, outcomes, strict=True) if not died]
    for group in GROUPS:
        died = [d for m, d in zip(chosen, outcomes, strict=True) if m.group == group]
        print(f"{group:10} {sum(died)} of {len(died)} die")
    print(f"all        {sum(outcomes)} of {len(outcomes)} die: {sum(outcomes) / len(outcomes):.1%}")
    for mutant in survivors:
        print(f"survives: {mutant.file}:{mutant.line}: {mutant.before} -> {mutant.after}")
    if options.json:
        record = {
            "died": sum(outcomes),
            "of": len(outcomes),
            "survivors": list(map(asdict, survivors)),
        }
        options.json.write_text(json.dumps(record, indent=1))


def sample(count: int, seed: int) -> list[Mutant]:
    """Draw mutants at random, for every package its share."""
    generator = random.Random(seed)
    chosen: list[Mutant] = []
    for group, (share, pattern, _) in GROUPS.items():
        sites = [m for path in sorted(ROOT.glob(pattern)) for m in mutants_of(group, path)]
        chosen += generator.sample(sites, min(len(sites), round(share * count)))
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
        case ast.Constant(value=int() | float()):
            return ast.Constant(node.value + 1)
    return None


def _of_types(node: ast.BinOp) -> bool:
    """Whether it is a union of types, or of strings: no arithmetic."""
    sides = [ast.unparse(node.left), ast.unparse(node.right)]
    return isinstance(node.op, ast.BitOr) and any(s == "None" or s[:1].isupper() for s in sides)


def _check_tests() -> None:
    """Stop if a test fails without any mutant: everything would seem to die."""
    with tempfile.TemporaryDirectory() as folder:
        root = _copied(folder)
        for group, (_, _, tests) in GROUPS.items():
            began = time.perf_counter()
            if _fails(root, tests):
                raise SystemExit(f"a test of {group} fails without a mutant")
            print(f"{group:10} passes in {time.perf_counter() - began:.0f} s", flush=True)


def _copied(folder: str) -> Path:
    return Path(shutil.copytree(ROOT, Path(folder) / "mutant", ignore=shutil.ignore_patterns(".*")))


def _tried(mutant: Mutant) -> bool:
    """Whether a test fails on the mutant, in a copy of the sources."""
    with tempfile.TemporaryDirectory() as folder:
        root = _copied(folder)
        path = root / mutant.file
        path.write_text(_mutated(path.read_text(), mutant))
        began = time.perf_counter()
        died = any(_fails(root, tests) for tests in _tests(root, mutant))
        word = "dies" if died else "SURVIVES"
        print(
            f"{word:9} {time.perf_counter() - began:5.0f} s {mutant.file}:{mutant.line}", flush=True
        )
        return died


def _mutated(source: str, mutant: Mutant) -> str:
    lines = source.encode().splitlines(keepends=True)
    (first, begin), (last, end) = mutant.start, mutant.end
    head, tail = lines[first - 1][:begin], lines[last - 1][end:]
    lines[first - 1 : last] = [head + b"(" + mutant.after.encode() + b")" + tail]
    return b"".join(lines).decode()


def _tests(root: Path, mutant: Mutant) -> Iterator[list[str]]:
    """Yield the tests of the file itself, then all of its package."""
    folders = GROUPS[mutant.group][2]
    own = [f"{folder}/test_{Path(mutant.file).stem}.py" for folder in folders]
    nearest = [name for name in own if (root / name).exists()]
    if nearest:
        yield nearest
    yield [name for name in folders if (root / name).exists()]


def _fails(root: Path, tests: list[str]) -> bool:
    paths = os.pathsep.join((str(root), str(root / "adapters")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, timeout=TIMEOUT, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1, 2):
        raise SystemExit(f"pytest ended with {done.returncode}: {done.stdout.decode()[-2000:]}")
    return done.returncode != 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    main()
