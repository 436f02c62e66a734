"""Import real logs with one command each, and analyse them.

    python benchmarks/real_logs.py --real DIR [--write docs/import.md]

Every file and folder in DIR except the README is imported with `stablab import auto` into a temporary folder and
analysed. Prints a Markdown table; `--write` inserts it into a page between the lines `<!-- real logs -->` and `<!-- end
-->`. Exits with 1 if an import or an analysis fails for a reason other than missing gradients.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.errors import NoDataError, StabilityLabError
from stabilitylab.importers.registry import import_log
from stabilitylab.importers.write import Imported
from stabilitylab.run.answers import answer_run

BEGIN, END = "<!-- real logs -->", "<!-- end -->"
SAID = ("recording_step", "superseded", "duplicates", "refused_rows", "nonfinite", "clipped", "percent", "no_step")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, metavar="DIR", help="the folder of logs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown page that holds the table")
    given = parser.parse_args()
    rows, failed = [], 0
    for path in sorted(given.real.iterdir()):
        if path.name.lower().startswith(("readme", ".")):
            continue
        with tempfile.TemporaryDirectory() as root:
            try:
                rows += [row(path, made) for made in import_log(Path(root), path)]
            except StabilityLabError as error:
                failed += 1
                rows.append(f"| {path.name} | `stablab import auto {path.name}` | | failed: {error} | |")
    table = "\n".join(["| log | command | rows | notes | result |", "|---|---|---|---|---|", *rows])
    print(table)
    if given.write is not None:
        page = given.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        given.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
    return 1 if failed else 0


def row(path: Path, made: Imported) -> str:
    """A row of the table."""
    name = path.name + (f" ({made.run})" if made.run else "")
    counts = f"{made.format}: {made.rows:,} rows, {_layers(made)}"
    said = "; ".join(note.text for note in made.notes if note.kind in SAID)
    try:
        found = in_words(answer_run(made.path, keep=False).analysis)
    except NoDataError:
        found = f"no gradient norms ({made.scalars} other series): spikes and lag not judged"
    return f"| {name} | `stablab import auto {path.name}` | {counts} | {said} | {found} |"


def _layers(made: Imported) -> str:
    return "no layer" if not made.layers else _count(len(made.layers), "layer")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def in_words(found: RunAnalysis) -> str:
    """The analysis of a run in one line."""
    parts = []
    if found.spikes_unjudged:
        parts.append("spikes not judged: too few values")
    else:
        spikes = found.spikes or ()
        highest = max(spikes, key=lambda spike: spike.z, default=None)
        at = f", the largest at {highest.peak:,} ({highest.ratio:.1f}x)" if highest else ""
        parts.append(f"{_count(len(spikes), 'spike')}{at}")
    for drift in found.drifts or ():
        parts.append(f"drift of {drift.layer} by {drift.factor:.3g}x, {drift.start:,} to {drift.end:,}")
    if found.loss_spikes is not None and found.loss_spikes.spikes:
        parts.append(f"{_count(len(found.loss_spikes.spikes), 'spike')} of the loss")
    if found.dips is not None and found.metric is not None:
        parts.append(f"{_count(len(found.dips), 'dip')} of {found.metric.name}")
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
