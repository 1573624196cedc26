"""What `import collapsemeter` takes beside `import numpy`, in fresh interpreters, in turn.

Each interpreter runs one of the programs and says how long that took; its own start, which is the same
for all, is left out. Neighbours in time are compared, so that both find the machine and its file cache
alike. Names are imported when they are first asked for, NumPy with the first of them: so what the first
measurement needs is timed, too, and all names together. All run from bytecode, as installed packages do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pairwise import Sheet, options, ratio

PROGRAMS = {
    "numpy": "import numpy",
    "collapsemeter": "import collapsemeter",
    "first measurement": "from collapsemeter import ClassMoments, Head, decide, measure",
    "every name": "from collapsemeter import *",
}
TARGETS = {"collapsemeter": "<= 1.3", "first measurement": "<= 1.3"}
TIMED = "from time import {} as t; a = t(); {}; print(t() - a)"


def seconds(program: str, clock: str, bytecode: Path) -> float:
    """Run imports in a new interpreter."""
    # Where writing bytecode is switched off, whatever is not installed would be compiled every time.
    environment = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bytecode)}
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(clock, program)],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | environment,
    )
    return float(done.stdout)


def main() -> None:
    """Print the ratios."""
    chosen = options(__doc__, rounds=21).parse_args()
    sheet = Sheet("Import", chosen)
    names = list(PROGRAMS)
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-1, chosen.rounds):  # the first round fills the caches
            for name in names if number % 2 else names[::-1]:
                taken = seconds(PROGRAMS[name], sheet.clock.__name__, Path(folder))
                if number >= 0:
                    found[name].append(taken)
    times = {name: np.array(each) for name, each in found.items()}
    for name in names[1:]:
        sheet.add(ratio(f"{name} / numpy", times, name, "numpy", TARGETS.get(name, "")))
    sheet.save()


if __name__ == "__main__":
    main()
