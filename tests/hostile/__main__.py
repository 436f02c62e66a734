"""Run commands on mutated inputs and kill commands, and print the outcomes as two tables.

    python -m tests.hostile [--inputs 3000] [--kills 300] [--seed 0] [--only KIND]

Exits with 1 if there is a fault. CI runs a few hundred of each; the defaults take half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")


def table(title: str, counts: dict[str, Counter[str]], columns: tuple[str, ...]) -> None:
    total: Counter[str] = Counter()
    for row in counts.values():
        total.update(row)
    print(f"{title:<16}" + "".join(f"{name:>{max(len(name) + 2, 9)}}" for name in columns))
    for name, row in [*counts.items(), ("all", total)]:
        print(f"{name:<16}" + "".join(f"{row[column]:>{max(len(column) + 2, 9)}}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="one kind of input, or of command to kill")
    options = parser.parse_args()
    faults = []
    if options.inputs:
        from tests.hostile.fuzz import fuzz

        start = time.monotonic()
        found = fuzz(options.inputs, options.seed, options.only)
        columns = ("inputs", "answered", "refused", "tracebacks", "hangs", "wrong codes", "misreads")
        table("input", found.counts, columns)
        print(f"seed {options.seed}, {time.monotonic() - start:.0f} s\n")
        faults += found.faults
    if options.kills:
        from tests.hostile.kills import kill

        start = time.monotonic()
        killed = kill(options.kills, options.seed, options.only)
        table(
            "killed",
            killed.counts,
            ("kills", "before it ended", "rows lost", "rows doubled", "leftovers", "deleted", "other faults"),
        )
        print(f"seed {options.seed}, {time.monotonic() - start:.0f} s\n")
        faults += killed.faults
    for fault in faults:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
