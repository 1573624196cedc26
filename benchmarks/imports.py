"""What `import collapsemeter` takes beside `import numpy`, in fresh interpreters, in turn.

Each interpreter imports one of them and says how long that took; its own start, which is the same for
both, is left out. Pairs are neighbours, so that both find the machine and its file cache alike.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from pairwise import Sheet, options, ratio

PROGRAM = "from time import {} as t; a = t(); import {}; print(t() - a)"


def seconds(module: str, clock: str) -> float:
    """Import a module in a new interpreter."""
    command = [sys.executable, "-c", PROGRAM.format(clock, module)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    """Print the ratio."""
    chosen = options(__doc__, rounds=21).parse_args()
    sheet = Sheet("Import", chosen)
    modules = ("numpy", "collapsemeter")
    found: dict[str, list[float]] = {module: [] for module in modules}
    for number in range(-1, chosen.rounds):  # the first round fills the file cache
        for module in modules if number % 2 else modules[::-1]:
            taken = seconds(module, sheet.clock.__name__)
            if number >= 0:
                found[module].append(taken)
    times = {module: np.array(each) for module, each in found.items()}
    sheet.add(ratio("collapsemeter / numpy", times, "collapsemeter", "numpy", "<= 1.3"))
    sheet.save()


if __name__ == "__main__":
    main()
