"""Mutated inputs of every kind, one command each: it works and tells the truth, or refuses in one line.

A fault is a traceback, a hang, an exit code that is neither 0 nor 2 (or a 2 without its one line), or a misread: an
answer that an independent look at the same input, or the run before it was damaged, contradicts.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.hostile.forked import Outcome, load, run, stablab
from tests.hostile.mutate import any_text, mutate_bytes, mutate_text

ROWS = "select iteration, layer_id, grad_norm from layer_stats order by 1, 2, 3"


@dataclass
class Tally:
    """Counts by kind of input; ``faults`` are lines to read."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, kind: str, seed: int, outcome: Outcome, misread: str) -> None:
        counts = self.counts.setdefault(kind, Counter())
        counts["inputs"] += 1
        refused = outcome.code == 2 and not outcome.traced
        said = [line for line in outcome.err.splitlines() if not line.startswith("stablab: warning: ")]
        fault = ""
        if outcome.hung:
            fault = "hangs"
        elif outcome.traced:
            fault = "tracebacks"
        elif outcome.code not in (0, 2) or (refused and (len(said) != 1 or not said[0].startswith("stablab: "))):
            fault = "wrong codes"
        elif misread:
            fault = "misreads"
        if fault:
            counts[fault] += 1
            last = outcome.err.strip().splitlines()[-1:] or [""]
            self.faults.append(f"{kind} {seed}: {fault}: exit {outcome.code}: {misread or last[0][:300]}")
            print(self.faults[-1], file=sys.stderr, flush=True)
        counts["refused" if refused else "answered"] += not fault


Case = Callable[[random.Random, Path], tuple[Outcome, str]]
"""One input, made and given to a command in an empty folder; what the command did, and how its answer is wrong."""


class Inputs:
    """The inputs before they are mutated, made once in ``base``."""

    def __init__(self, base: Path) -> None:
        self.base = base
        outcome = run(self._make, base, limit=300)
        assert outcome.code == 0, outcome.err
        self.rows = json.loads((base / "rows.json").read_text())
        self.answer = json.loads((base / "answer.json").read_text())

    def _make(self) -> None:
        """In a child: the parent must not start a DuckDB."""
        from PIL import Image

        from stabilitylab.run.answers import answer_run
        from tests.hostile.runs import make_run
        from tests.run.test_answers import write_run

        make_run(self.base / "finished", 400)
        make_run(self.base / "killed", 60, finish=False)
        write_run(self.base / "answered")
        answer_run(self.base / "answered")
        out = run(stablab(["sql", "finished", ROWS, "--format", "csv", "--runs-dir", str(self.base)]), self.base)
        (self.base / "rows.json").write_text(json.dumps(out.out))
        out = run(stablab(["analyze", "answered", "--format", "json", "--runs-dir", str(self.base)]), self.base)
        (self.base / "answer.json").write_text(json.dumps(out.out))
        rng = np.random.default_rng(0)
        for label in ("train/a", "train/b", "val/a", "val/b"):
            (self.base / "images" / label).mkdir(parents=True)
            for i, ending in enumerate(("png", "jpg", "bmp", "webp")):
                Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(
                    self.base / "images" / label / f"{i}.{ending}"
                )

    def kinds(self) -> dict[str, Case]:
        return {
            "config.toml": self.toml, "--set": self.override, "flags": self.flags, "csv": self.csv, "jsonl": self.jsonl,
            "event files": self.events, "databases": self.database, "segments": self.segment,
            "manifests": self.manifest, "checkpoints": self.checkpoint, "kept answers": self.kept, "images": self.image,
        }  # fmt: skip

    # --- what configures -------------------------------------------------------------------------------------------

    def toml(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        text = (
            '[data]\nname = "digits"\n[model]\narch = "vit_nano"\nimg_size = 16\n[train]\niterations = 60\n'
            'batch_size = 32\nseed = 1\n[optim]\nname = "adamw"\nbase_lr = 1e-3\n[record]\nsignals = ["grad_norm"]\n'
        )
        (scratch / "c.toml").write_bytes(mutate_text(text, rng))
        return run(stablab(["train", "--dry-run", "--config", str(scratch / "c.toml")]), scratch), ""

    def override(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        keys = (
            "optim.base_lr",
            "train.iterations",
            "model.arch",
            "train.seed",
            "mitigation",
            "data.name",
            "x",
            "record",
        )
        text = f"{rng.choice(keys)}={rng.choice(('1', '0.1', 'x'))}"
        changed = mutate_text(text, rng).decode("utf-8", "surrogateescape").replace("\x00", "")
        return run(stablab(["train", "--dry-run", "--set", changed]), scratch), ""

    def flags(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        runs = ["--runs-dir", rng.choice([str(self.base), any_text(rng) or "x"])]
        file = str(scratch / "out")
        commands = [
            ["analyze", "finished", rng.choice(("--rule", "--false-alarms", "--min-ratio", "--metric")), any_text(rng)],
            ["analyze", any_text(rng)],
            ["compare", "finished", any_text(rng)],
            ["sql", "finished", any_text(rng)],
            ["sql", "finished", mutate_text(ROWS, rng).decode("utf-8", "surrogateescape").replace("\x00", "")],
            ["export", any_text(rng), "-o", file],
            ["figure", "finished", "--kind", "spikes", "-o", file + any_text(rng).replace("/", "")[:40]],
            ["watch", any_text(rng), "--once"],
            ["train", "--dry-run", rng.choice(("--seed", "--arch", "--data", "--method", "--epochs")), any_text(rng)],
            [any_text(rng), any_text(rng)],
        ]
        return run(stablab([*rng.choice(commands), *runs]), scratch), ""

    # --- what is imported ------------------------------------------------------------------------------------------

    def csv(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        lines = [f"{t},{name},{1 + t / 7 + i:.6f}" for t in range(12) for i, name in enumerate(("stem", "head"))]
        data = mutate_text("iteration,layer,grad_norm\n" + "\n".join(lines) + "\n", rng)
        (scratch / "g.csv").write_bytes(data)
        outcome = run(
            stablab(["import", "csv", "--grads", str(scratch / "g.csv"), "--runs-dir", str(scratch / "r")]), scratch
        )
        return outcome, self._imported(outcome, scratch, lambda: list(_csv_norms(data)), exact=True)

    def jsonl(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        rows = [
            {"_step": t, "grad_norm/stem": 1 + t / 7, "grad_norm/head": 2.5 + t, "loss": 3 - t / 9} for t in range(12)
        ]
        data = mutate_text("".join(json.dumps(row) + "\n" for row in rows), rng)
        (scratch / "h.jsonl").write_bytes(data)
        outcome = _import(scratch, "wandb", str(scratch / "h.jsonl"))
        return outcome, self._imported(outcome, scratch, lambda: list(_json_norms(data)), exact=False)

    def events(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        truth = [(t, f"grad_norm/{name}", np.float32(1 + t / 7 + i)) for t in range(12) for i, name in enumerate("ab")]
        (scratch / "tb").mkdir()
        (scratch / "tb" / "events.out.tfevents.1.host").write_bytes(mutate_bytes(_event_file(truth), rng))
        outcome = run(
            stablab(["import", "tensorboard", str(scratch / "tb"), "--runs-dir", str(scratch / "r")]), scratch
        )
        return outcome, self._imported(outcome, scratch, lambda: [(t, float(v)) for t, _, v in truth], exact=False)

    def _imported(
        self, outcome: Outcome, scratch: Path, norms: Callable[[], list[tuple[int, float]]], *, exact: bool
    ) -> str:
        """How an import contradicts a plain look at the file; ``exact``: it must hold all of it."""
        left = sorted(path.name for path in (scratch / "r").glob("*")) if (scratch / "r").exists() else []
        if outcome.code != 0:
            return f"a refused import left {left}" if left else ""
        if left != ["run_001"]:
            return f"an import left {left}"
        shown = run(stablab(["sql", "run_001", ROWS, "--format", "csv", "--runs-dir", str(scratch / "r")]), scratch)
        if shown.code != 0:
            return f"an imported run cannot be read: {shown.err[-200:]}"
        stored = Counter(
            (int(t), _close(float(v) if v else math.nan)) for t, _, v in list(csv.reader(io.StringIO(shown.out)))[1:]
        )
        given = Counter((t, _close(_as_float32(v))) for t, v in norms())
        wrong = bool(stored - given)
        if exact and given - stored:  # a step that goes back is a restart, and an event says which rows it replaced
            query = ["sql", "run_001", "select kind from events", "--format", "csv", "--runs-dir", str(scratch / "r")]
            wrong = wrong or "superseded" not in run(stablab(query), scratch).out
        return f"stored {stored - given} and lacks {given - stored}" if wrong else ""

    # --- what a run holds ------------------------------------------------------------------------------------------

    def database(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        (scratch / "r" / "finished").mkdir(parents=True)
        file = scratch / "r" / "finished" / "run.duckdb"
        file.write_bytes(mutate_bytes((self.base / "finished" / "run.duckdb").read_bytes(), rng))
        before = file.read_bytes()
        where = ["--runs-dir", str(scratch / "r")]
        commands = [["sql", "finished", ROWS, "--format", "csv"], ["runs"], ["analyze", "finished"]]
        commands += [
            ["export", "finished", "-o", str(scratch / "out")],
            ["report", "finished", "-o", str(scratch / "o.html")],
        ]
        chosen = rng.choice([commands[0], commands[0], *commands])
        outcome = run(stablab([*chosen, *where]), scratch)
        wrong = "other rows" if chosen[0] == "sql" and outcome.code == 0 and outcome.out != self.rows else ""
        return outcome, wrong or ("" if file.read_bytes() == before else "the database was changed")

    def segment(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        return self._killed(
            rng, scratch, rng.choice(sorted((self.base / "killed" / "segments").glob("*.parquet"))).name
        )

    def manifest(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        return self._killed(rng, scratch, rng.choice(("manifest.json", "manifest.json", "start.json")))

    def _killed(self, rng: random.Random, scratch: Path, name: str) -> tuple[Outcome, str]:
        """What is read of a damaged live run is true, and what is lacking is said."""
        run_dir = scratch / "r" / "killed"
        shutil.copytree(self.base / "killed", run_dir)
        file = run_dir / "segments" / name
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        where = ["--runs-dir", str(scratch / "r")]
        outcome = run(stablab(["sql", "killed", ROWS, "--format", "csv", *where]), scratch)
        if outcome.code != 0:
            return outcome, ""
        found = [(int(t), int(i), float(v)) for t, i, v in list(csv.reader(io.StringIO(outcome.out)))[1:]]
        truth = [(t, i, float(np.float32(t + i / 10 + 1))) for t in range(60) for i in range(2)]
        lacking = Counter((t, i, _close(v)) for t, i, v in truth)
        lacking.subtract((t, i, _close(v)) for t, i, v in found)
        if any(count < 0 for count in lacking.values()):
            return outcome, "rows that were never recorded"
        if any(lacking.values()):
            problems = "select value from meta where key = 'problems'"
            said = run(stablab(["sql", "killed", problems, "--format", "csv", *where]), scratch)
            if "damaged" not in said.out and "left out" not in said.out:
                return outcome, "rows are lacking, and nothing says so"
        return outcome, ""

    def checkpoint(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        folder = scratch / "checkpoints"

        def work() -> None:
            import torch

            from stabilitylab.cli import fail
            from stabilitylab.errors import StabilityLabError
            from stabilitylab.train.checkpoint import (
                load_checkpoint,
                make_checkpoint,
                restore_checkpoint,
                save_checkpoint,
            )

            torch.manual_seed(3)
            method = torch.nn.Linear(3, 2)
            optimizer = torch.optim.AdamW(method.parameters())
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            method(torch.ones(3)).sum().backward()
            optimizer.step()
            scratch.joinpath("checkpoints").mkdir()
            file = save_checkpoint(folder, make_checkpoint(20, method, optimizer, scaler), keep=1)
            weights = [p.detach().clone() for p in method.parameters()]
            if rng.random() < 0.3:
                state = torch.load(file, weights_only=True)
                key = rng.choice(sorted(state))
                state[key] = rng.choice((None, 3, "x", [], {}, torch.ones(3), -1, {"a": 1}))
                torch.save(state, file)
            else:
                file.write_bytes(mutate_bytes(file.read_bytes(), rng))
            (folder / "iteration-000080 (copy).pt").write_bytes(b"")
            try:
                restore_checkpoint(load_checkpoint(folder), method, optimizer, scaler)
            except StabilityLabError as error:
                fail(str(error))
            if not all(torch.equal(p, w) for p, w in zip(method.parameters(), weights, strict=True)):
                print("other weights")

        outcome = run(_quietly(work), scratch)
        return outcome, outcome.out.strip()

    def kept(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        shutil.copytree(self.base / "answered", scratch / "r" / "answered")
        (file,) = (scratch / "r" / "answered" / "analysis").glob("*.json")
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))
        outcome = run(stablab(["analyze", "answered", "--format", "json", "--runs-dir", str(scratch / "r")]), scratch)
        return outcome, "" if outcome.out == self.answer else "another answer"

    def image(self, rng: random.Random, scratch: Path) -> tuple[Outcome, str]:
        shutil.copytree(self.base / "images", scratch / "images")
        file = rng.choice(sorted((scratch / "images").glob("*/*/*")))
        file.write_bytes(mutate_bytes(file.read_bytes(), rng))

        def work() -> None:
            from stabilitylab.cli import fail
            from stabilitylab.config import resolve
            from stabilitylab.data.datasets import load_data
            from stabilitylab.errors import StabilityLabError

            try:
                given = {
                    "data": {"name": f"imagefolder:{scratch / 'images'}"},
                    "model": {"img_size": 16, "patch_size": 4},
                }
                data = load_data(resolve(given).data)
                assert len(data.train) + len(data.test) + len(data.left_out) == 16, "images are lost silently"
            except StabilityLabError as error:
                fail(str(error))

        return run(_quietly(work), scratch), ""


def _import(scratch: Path, *arguments: str) -> Outcome:
    return run(stablab(["import", *arguments, "--runs-dir", str(scratch / "r")]), scratch)


def _norms_of(shown: str) -> Iterator[tuple[int, float]]:
    """Iteration and norm of each row of a CSV that `sql` printed."""
    for t, _, value in list(csv.reader(io.StringIO(shown)))[1:]:
        yield int(t), float(value) if value else math.nan


def _quietly(work: Callable[[], None]) -> Callable[[], None]:
    """Warnings as the command line prints them."""

    def wrapped() -> None:
        import sys
        import warnings

        warnings.showwarning = lambda message, *_, **__: print(f"stablab: warning: {message}", file=sys.stderr)
        work()

    return wrapped


def _close(value: float) -> str:
    """A number as far as float32 tells it."""
    return "nan" if math.isnan(value) else f"{value:.5g}"


def _as_float32(value: float) -> float:
    """The nearest float32; a finite number stays finite, and one that is not zero stays so."""
    if not math.isfinite(value) or value == 0:
        return value
    limits = np.finfo(np.float32)
    size = min(max(abs(value), float(limits.smallest_subnormal)), float(limits.max))
    return float(np.float32(math.copysign(size, value)))


def _csv_norms(data: bytes) -> Iterator[tuple[int, float]]:
    """Iteration and norm of each line, read as plainly as can be."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    head = [cell.strip() for cell in rows[0]]
    for row in rows[1:]:
        if any(cell.strip() for cell in row):
            yield int(float(row[head.index("iteration")])), float(row[head.index("grad_norm")])


def _json_norms(data: bytes) -> Iterator[tuple[int, float]]:
    for line in data.decode("utf-8-sig", "replace").replace("\r", "\n").splitlines():
        try:
            row = json.loads(line)
            step = int(float(row["_step"]))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            continue
        for key, value in row.items():
            if "grad" in key and isinstance(value, int | float | str) and not isinstance(value, bool):
                try:
                    yield step, float(value)
                except (ValueError, OverflowError):
                    continue


def _event_file(values: list[tuple[int, str, np.float32]]) -> bytes:
    """TensorBoard's records by hand: length, checksum, protocol buffer, checksum."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    out = b""
    events = [Event(wall_time=1.0, file_version="brain.Event:2")]
    events += [
        Event(wall_time=2.0 + t, step=t, summary=Summary(value=[Summary.Value(tag=tag, simple_value=float(v))]))
        for t, tag, v in values
    ]
    for event in events:
        body = event.SerializeToString()
        head = struct.pack("<Q", len(body))
        out += head + struct.pack("<I", masked_crc32c(head)) + body + struct.pack("<I", masked_crc32c(body))
    return out


def fuzz(inputs: int, seed: int, only: str = "") -> Tally:
    """``inputs`` mutated inputs, spread over the kinds; ``only``: one kind."""
    load()
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="stablab-fuzz-") as folder:
        base = Path(folder) / "base"
        base.mkdir()
        kinds = Inputs(base).kinds()
        kinds = {only: kinds[only]} if only else kinds
        for number in range(inputs):
            kind = list(kinds)[number % len(kinds)]
            scratch = Path(folder) / "case"
            scratch.mkdir()
            outcome, misread = kinds[kind](random.Random(f"{seed}-{number}"), scratch)
            tally.note(kind, number, outcome, misread)
            shutil.rmtree(scratch)
    return tally
