"""Processes killed at random points: what was committed is there, once; nothing else is gone, nothing is left over.

A command is run once to the end to learn how long it takes; then again and again, each time with a signal after a
random share of that time. What it left behind is looked at, the same command is given once more, and looked at again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.forked import Outcome, finish, load, run, stablab, start
from tests.hostile.runs import contents

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ROWS = "select iteration, layer_id, grad_norm from layer_stats order by 1, 2"


@dataclass
class Killed:
    """Counts by command; ``faults`` are lines to read."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Victim:
    """A command to kill. ``prepare`` fills an empty folder; ``work`` is what is killed there; ``look`` returns the
    faults it finds, as (kind, line), after the kill and after ``again``, the same work once more."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], Callable[[], None]]
    look: Callable[[Path, Outcome | None], list[tuple[str, str]]]


def kill(kills: int, seed: int, only: str = "") -> Killed:
    """``kills`` kills, spread over the commands; of those that train, one in six."""
    load()
    found = Killed()
    with tempfile.TemporaryDirectory(prefix="stablab-kill-") as folder:
        base = Path(folder) / "base"
        base.mkdir()
        made = run(lambda: _make(base), base, limit=300)
        assert made.code == 0, made.err
        victims = _victims(base)
        light = [name for name in victims if name not in ("study", "branch")]
        order = [*light, *light, *light, "study", *light, *light, *light, "branch"]
        order = [only] if only else order
        lasts: dict[str, float] = {}
        for number in range(kills):
            name = order[number % len(order)]
            _kill(Path(folder), name, victims[name], random.Random(f"{seed}-{number}"), number, lasts, found)
    return found


def _kill(
    folder: Path, name: str, victim: Victim, rng: random.Random, number: int, lasts: dict[str, float], found: Killed
) -> None:
    counts = found.counts.setdefault(name, Counter())
    scratch, place = folder / "scratch", folder / "place"
    scratch.mkdir()

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        victim.prepare(place)

    if name not in lasts:
        fresh()
        begun = time.monotonic()
        whole = finish(start(victim.work(place), scratch), scratch, begun, 120)
        lasts[name] = time.monotonic() - begun
        if whole.code != 0 or victim.look(place, whole):
            found.faults.append(
                f"{name}: without a kill: exit {whole.code}, {victim.look(place, whole)}, {whole.err[-300:]}"
            )
    fresh()
    pid = start(victim.work(place), scratch)
    begun = time.monotonic()
    time.sleep(rng.random() * lasts[name])
    ended, _ = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, rng.choice(SIGNALS))
        outcome = finish(pid, scratch, begun, 60)
        counts["before it ended"] += 1
        if outcome.hung:
            found.faults.append(f"{name} {number}: hangs after a signal")
            counts["other faults"] += 1
    counts["kills"] += 1
    wrong = victim.look(place, None)
    again = finish(start(victim.work(place), scratch), scratch, time.monotonic(), 120)
    if again.traced or again.code not in (0, 2):
        wrong.append(("other faults", f"the same command ends with {again.code}: {again.err[-300:]}"))
    wrong += victim.look(place, again)
    for kind, line in wrong:
        counts[kind] += 1
        found.faults.append(f"{name} {number}: {kind}: {line}")
        print(found.faults[-1], file=sys.stderr, flush=True)
    shutil.rmtree(scratch)


def _make(base: Path) -> None:
    """In a child: the parent must not start a DuckDB."""
    from tests.hostile.runs import make_run
    from tests.run.test_answers import write_run

    make_run(base / "finished", 60)
    make_run(base / "killed", 60, finish=False)
    write_run(base / "planted")


def _victims(base: Path) -> dict[str, Victim]:
    def copy(*names: str) -> Callable[[Path], None]:
        def prepare(place: Path) -> None:
            for name in names:
                shutil.copytree(base / name, place / "runs" / name)
            (place / "runs").mkdir(exist_ok=True)
            (place / "notes.txt").write_text("mine")
            for name in names:
                (place / "runs" / name / "notes.txt").write_text("mine")

        return prepare

    def command(*arguments: str) -> Callable[[Path], Callable[[], None]]:
        return lambda place: _in(place, stablab([*arguments]))

    where = ("--runs-dir", "runs")
    answers = "runs/planted/analysis"
    by_csv = command("import", "csv", "--grads", "g.csv", "--name", "a", *where)
    study = command("study", "study.toml", "-o", "out", *where)
    claims = command("claims", "experiments/small", "--reports", "reports")
    report = command("report", "planted", "-o", "page.html", *where)
    return {
        "record": Victim(copy("finished"), lambda place: _in(place, _record), _look_at_record),
        "merge": Victim(copy("killed"), command("sql", "killed", "select 1", *where), _look_at_merge),
        "resume": Victim(copy("finished"), lambda place: _in(place, _resume), _look_at_resume),
        "analyze": Victim(copy("planted"), command("analyze", "planted", *where), _look_at_files(answers)),
        "report": Victim(copy("planted"), report, _look_at_files(answers, "page.html")),
        "import": Victim(_with_csv, by_csv, _look_at_import),
        "export": Victim(copy("finished"), command("export", "finished", "-o", "out", *where), _look_at_files("out")),
        "study": Victim(_with_study, study, _look_at_study),
        "branch": Victim(_with_parent(base), _branch, _look_at_branch),
        "claims": Victim(_with_claims, claims, _look_at_files("reports/README.md")),
    }


def _in(place: Path, work: Callable[[], None]) -> Callable[[], None]:
    def wrapped() -> None:
        os.chdir(place)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        try:
            work()
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return wrapped


# --- record, merge, resume -----------------------------------------------------------------------------------------


def _committed(file: str, iterations: int) -> None:
    """Tell how far the rows are durable; whole, or as it was."""
    Path(f"{file}.new").write_text(str(iterations))
    Path(f"{file}.new").rename(file)


def _record() -> None:
    import stabilitylab.store.writer as store
    from stabilitylab.store.location import claim_run
    from tests.hostile.runs import LAYERS, fill

    if Path("runs/new").exists():
        return
    with store.RunWriter.create(claim_run("runs", "new"), config={}, meta={}, layers=LAYERS) as writer:
        for part in range(12):
            fill(writer, 5 * part, 5 * part + 5)
            writer.publish(wait=True)
            _committed("committed", 5 * part + 5)


def _resume() -> None:
    import stabilitylab.store.writer as store
    from tests.hostile.runs import fill

    if Path("committed").exists():
        return
    with store.RunWriter.resume(Path("runs/finished"), 40) as writer:
        _committed("committed", 40)
        for part in range(8, 16):
            fill(writer, 5 * part, 5 * part + 5)
            writer.publish(wait=True)
            _committed("committed", 5 * part + 5)


def _rows(place: Path, name: str) -> list[tuple[int, int]] | str:
    """(iteration, layer) of each row, by the command line in a process of its own; or why not."""
    scratch = place.parent / "look"
    scratch.mkdir(exist_ok=True)
    shown = run(stablab(["sql", name, ROWS, "--format", "json", "--runs-dir", str(place / "runs")]), scratch)
    if shown.code != 0:
        return shown.err.strip()
    return [(row["iteration"], row["layer_id"]) for row in json.loads(shown.out)]


def _compare(place: Path, name: str, committed: int, most: int, *, exact: bool) -> list[tuple[str, str]]:
    rows = _rows(place, name)
    if isinstance(rows, str):
        return [("rows lost", rows)] if committed else []
    wrong = []
    last = max((t for t, _ in rows), default=-1) + 1
    if last < committed or last > most or sorted(set(rows)) != [(t, i) for t in range(last) for i in range(2)]:
        wrong.append(("rows lost", f"{committed} iterations were committed, there are {last} in {len(rows)} rows"))
    if len(set(rows)) < len(rows):
        wrong.append(("rows doubled", f"{len(rows) - len(set(rows))} rows twice"))
    left = set(contents(place / "runs" / name)) - {"run.duckdb", "notes.txt", "config.toml"}
    if left:
        wrong.append(("leftovers", f"{sorted(left)}"))
    return wrong


def _notes(place: Path, *more: str) -> list[tuple[str, str]]:
    """What the user put there."""
    gone = [name for name in ("notes.txt", *more) if not (place / name).exists()]
    return [("deleted", f"{gone}")] if gone else []


def _number(file: Path) -> int:
    return int(file.read_text()) if file.exists() else 0


def _look_at_record(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
    wrong = _notes(place, "runs/finished/notes.txt", "runs/finished/run.duckdb")
    return wrong + _compare(place, "new", _number(place / "committed"), 60, exact=False)


def _look_at_merge(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
    if again is None:
        return _notes(place, "runs/killed/notes.txt")
    return _notes(place, "runs/killed/notes.txt") + _compare(place, "killed", 60, 60, exact=True)


def _look_at_resume(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
    committed = max(_number(place / "committed"), 40)
    return _notes(place, "runs/finished/notes.txt") + _compare(place, "finished", committed, 80, exact=False)


# --- files ---------------------------------------------------------------------------------------------------------

_WHOLE: dict[tuple[str, ...], dict[str, str]] = {}


def _look_at_files(*made: str) -> Callable[[Path, Outcome | None], list[tuple[str, str]]]:
    """What a command makes is whole or absent after a kill, and whole after the same command, alone."""

    def look(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
        now = {p: h for p, h in contents(place).items() if not p.endswith("/config.toml")}
        if again is not None and made not in _WHOLE:
            _WHOLE[made] = now
        whole = _WHOLE[made]
        user = {p for p in whole if not p.startswith(made)}
        wrong = [("deleted", path) for path in user if now.get(path) != whole[path]]
        visible = {p for p in now if not any(part.startswith(".") for part in Path(p).parts) and not p.endswith(".tmp")}
        wrong += [("other faults", f"{p} is not whole") for p in visible - user if _is_torn(place / p, p, now, whole)]
        if again is not None and again.code == 0:
            wrong += [("leftovers", path) for path in now.keys() - whole.keys()]
            wrong += [("other faults", f"{path} is lacking") for path in whole.keys() - now.keys()]
        return wrong

    return look


def _is_torn(path: Path, name: str, now: dict[str, str], whole: dict[str, str]) -> bool:
    """Whether a file is a part of what it should be. Databases and answers carry their own checksums and times."""
    if name not in whole:
        return True
    if now[name] == whole[name] or "analysis/" in name:
        return False
    data = path.read_bytes()
    if name.endswith(".parquet"):
        return data[:4] != b"PAR1" or data[-4:] != b"PAR1"
    return not data.rstrip().endswith(b"</html>") if name.endswith(".html") else True


def _with_csv(place: Path) -> None:
    (place / "notes.txt").write_text("mine")
    (place / "runs").mkdir()
    lines = [f"{t},{name},{t + i / 10 + 1}" for t in range(60) for i, name in enumerate(("a", "b"))]
    (place / "g.csv").write_text("iteration,layer,grad_norm\n" + "\n".join(lines) + "\n")


def _look_at_import(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
    wrong = _notes(place, "g.csv")
    names = sorted(path.name for path in (place / "runs").iterdir())
    if "a" in names or again is not None:
        wrong += _compare(place, "a", 60, 60, exact=True)
    if again is not None and names != ["a"]:
        wrong.append(("leftovers", f"{names}"))
    return wrong


def _with_claims(place: Path) -> None:
    root = Path(__file__).parents[2]
    shutil.copytree(root / "experiments", place / "experiments")
    shutil.copytree(root / "reports", place / "reports", ignore=shutil.ignore_patterns("*.html", "*.png", "*.svg"))
    (place / "notes.txt").write_text("mine")


# --- what trains ---------------------------------------------------------------------------------------------------

_TINY = """[base.data]
name = "digits"
[base.model]
arch = "vit_nano"
[base.train]
iterations = 16
batch_size = 32
checkpoint_every = 4
[base.record]
log_grads = true
[grid]
seed = [0, 1]
"""


def _with_study(place: Path) -> None:
    (place / "study.toml").write_text(_TINY)
    (place / "runs").mkdir()
    (place / "notes.txt").write_text("mine")


def _look_at_study(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
    wrong = _notes(place, "study.toml")
    if again is None:
        return wrong
    scratch = place.parent / "look"
    scratch.mkdir(exist_ok=True)
    shown = run(stablab(["runs", "--format", "json", "--runs-dir", str(place / "runs")]), scratch)
    runs = [row for row in json.loads(shown.out) if "-killed-" not in row["run"]]
    if again.code != 0 or [(row["status"], row["iterations"]) for row in runs] != [("finished", 16)] * 2:
        wrong.append(("rows lost", f"exit {again.code}: {runs} {again.err[-300:]}"))
    for row in runs:
        counts = run(
            stablab(["sql", row["run"], "select count(*), count(distinct (iteration, layer_id)) from layer_stats",
                     "--format", "csv", "--runs-dir", str(place / "runs")]), scratch,
        )  # fmt: skip
        total, distinct = counts.out.splitlines()[1].split(",")
        if total != distinct:
            wrong.append(("rows doubled", f"{row['run']}: {total} rows, {distinct} different"))
        left = {p for p in contents(place / "runs" / row["run"]) if p.split("/")[0] == "segments" or p.endswith(".tmp")}
        if left:
            wrong.append(("leftovers", f"{sorted(left)}"))
    return wrong


def _with_parent(base: Path) -> Callable[[Path], None]:
    def prepare(place: Path) -> None:
        parent = base / "trained"
        if not parent.exists():
            scratch = base / "look"
            scratch.mkdir(exist_ok=True)
            sets = ["train.iterations=12", "train.batch_size=32", "train.checkpoint_every=4", "train.checkpoint_keep=9"]
            arguments = ["train", "--log-grads", "--arch", "vit_nano", "--name", "trained", "--runs-dir", str(base)]
            arguments += [x for text in sets for x in ("--set", text)]
            made = run(stablab(arguments), scratch, limit=120)
            assert made.code == 0, made.err
        shutil.copytree(parent, place / "runs" / "trained")
        (place / "notes.txt").write_text("mine")

    return prepare


def _branch(place: Path) -> Callable[[], None]:
    arguments = ["branch", "trained", "--at", "8", "--mitigation", "frozen-patch", "--runs-dir", "runs"]
    return _in(place, stablab(arguments))


def _look_at_branch(place: Path, again: Outcome | None) -> list[tuple[str, str]]:
    wrong = _notes(place, "runs/trained/run.duckdb", "runs/trained/config.toml")
    checkpoints = sorted(path.name for path in (place / "runs" / "trained" / "checkpoints").iterdir())
    if checkpoints != ["iteration-000004.pt", "iteration-000008.pt", "iteration-000012.pt"]:
        wrong.append(("deleted", f"there are {checkpoints}"))
    if again is None:
        return wrong
    if again.code != 0 and "already exists" not in again.err:  # the first call may have ended before the signal
        wrong.append(("other faults", again.err[-300:]))
    for name in ("trained-at8-s0-as-was", "trained-at8-s0-frozen-patch"):
        rows = _rows(place, name)
        if isinstance(rows, str):
            wrong.append(("rows lost", f"{name}: {rows}"))
            continue
        layers = sorted({layer for _, layer in rows})
        ends = {0: 8} if name.endswith("frozen-patch") else {}  # nothing is recorded of a layer that is frozen
        if not layers or sorted(rows) != [(t, layer) for t in range(12) for layer in layers if t < ends.get(layer, 12)]:
            wrong.append(("rows lost", f"{name}: {len(rows)}"))
    return wrong
