"""The same run in every tool's format gives the same norms, loss and metric."""

from __future__ import annotations

import csv
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from stabilitylab.importers.registry import recognise
from stabilitylab.store.reader import open_run
from tests.importers.planted import LAYERS, LOSS, STEPS, assert_holds, bring, losses_of, planted

NORMS = planted()
ACCURACY = 0.5 + 0.002 * np.arange(STEPS)


def records(layer: str = "grad_norm/{}", loss: str = "train/loss", metric: str = "val/acc") -> list[dict[str, Any]]:
    """One dictionary a step."""
    return [
        {
            **{layer.format(name): float(NORMS[name][t]) for name in LAYERS},
            loss: float(LOSS[t]),
            **({metric: float(ACCURACY[t])} if t % 10 == 9 else {}),
        }
        for t in range(STEPS)
    ]


def points(layer: str = "grad_norm/{}") -> list[tuple[int, str, float]]:
    """(step, name, value), one a value."""
    return [(t, name, value) for t, record in enumerate(records(layer)) for name, value in record.items()]


def write_rows(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def wide(path: Path, step: str, rows: list[dict[str, Any]], steps: range | None = None, **extra: str) -> Path:
    header = list(dict.fromkeys(name for row in rows for name in row))
    steps = steps or range(len(rows))
    body = [[t, *extra.values(), *[row.get(n, "") for n in header]] for t, row in zip(steps, rows, strict=True)]
    return write_rows(path, [step, *extra, *header], body)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def json_list(folder: Path) -> Path:
    path = folder / "records.json"
    path.write_text(json.dumps([{"step": t, **record} for t, record in enumerate(records())], indent=2))
    return path


def json_columns(folder: Path) -> Path:
    rows = [{"step": t, **record} for t, record in enumerate(records())]
    path = folder / "columns.json"
    path.write_text(json.dumps({name: [row.get(name) for row in rows] for name in rows[9]}))
    return path


def wandb_page(folder: Path) -> Path:
    rows = [{f"run-a - {k}{end}": v for k, v in row.items() for end in ("", "__MIN", "__MAX")} for row in records()]
    return wide(folder / "chart.csv", "Step", rows)


def wandb_history(folder: Path) -> Path:
    rows = [{"_step": 7 * t, "trainer/global_step": t, "_runtime": 3.0, **r} for t, r in enumerate(records())]
    return jsonl(folder / "history.jsonl", rows)


def lightning(folder: Path) -> Path:
    rows: list[dict[str, Any]] = []
    for t, record in enumerate(records("grad_2.0_norm/{}", "train_loss_step", "val_acc")):
        accuracy = record.pop("val_acc", None)
        rows.append({"epoch": t // 10, "step": t, **record})
        if accuracy is not None:
            rows.append({"epoch": t // 10, "step": t, "val_acc": accuracy})
    header = list(dict.fromkeys(name for row in rows for name in row))
    body = [[row.get(name, "") for name in header] for row in rows]
    write_rows(folder / "version_0" / "metrics.csv", header, body)
    return folder


def mlflow_folder(folder: Path) -> Path:
    run = folder / "mlruns" / "123" / "abc"
    for t, name, value in points():
        file = run / "metrics" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(f"{1_700_000_000_000 + t} {value!r} {t}\n")
    (run / "meta.yaml").write_text("lifecycle_stage: active\nrun_name: nice\n")
    return folder / "mlruns"


def mlflow_database(folder: Path) -> Path:
    path = folder / "mlflow.db"
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, lifecycle_stage TEXT)")
        con.execute(
            "CREATE TABLE metrics (key TEXT, value FLOAT, timestamp BIGINT, run_uuid TEXT, step BIGINT, is_nan BOOLEAN)"
        )
        con.execute("INSERT INTO runs VALUES ('abc', 'nice', 'active'), ('gone', 'old', 'deleted')")
        con.executemany(
            "INSERT INTO metrics VALUES (?, ?, ?, 'abc', ?, 0)",
            [(name, value, 5 + t, t) for t, name, value in points()],
        )
        con.execute("INSERT INTO metrics VALUES ('grad_norm/norm', 1, 1, 'gone', 0, 0)")
    return path


def trackio(folder: Path) -> Path:
    path = folder / "project.db"
    with sqlite3.connect(path) as con:
        con.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
        )
        rows = [(f"2026-01-01T00:00:{t:02d}", t, json.dumps(record)) for t, record in enumerate(records())]
        con.executemany("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, 'nice', ?, ?)", rows)
    return path


def comet(folder: Path) -> Path:
    entries = [
        {"metricName": name, "metricValue": repr(value), "step": t, "epoch": None, "runContext": None, "timestamp": t}
        for t, name, value in points()
    ]
    path = folder / "metrics.json"
    path.write_text(json.dumps(entries))
    return path


def comet_archive(folder: Path) -> Path:
    messages = [
        {"type": "metric_msg", "payload": {"metric": {"metricName": name, "metricValue": value, "step": t}}}
        for t, name, value in points()
    ]
    path = folder / "offline.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("messages.json", "\n".join(json.dumps(m) for m in [{"type": "other"}, *messages]))
    return path


def neptune(folder: Path) -> Path:
    path = folder / "run" / "part_0.parquet"
    path.parent.mkdir()
    with duckdb.connect() as con:
        con.execute(
            "CREATE TABLE t (project_id TEXT, run_id TEXT, attribute_path TEXT, attribute_type TEXT, "
            "step DECIMAL(18,6), int_value BIGINT, float_value DOUBLE, string_value TEXT)"
        )
        rows = [("p", "RUN-1", name, "float_series", t, None, value, None) for t, name, value in points()]
        con.executemany(
            "INSERT INTO t VALUES (?,?,?,?,?,?,?,?)", [*rows, ("p", "RUN-1", "lr", "float", None, None, 0.1, None)]
        )
        con.execute(f"COPY t TO '{path}' (FORMAT parquet)")
    return folder


def neptune_fetched(folder: Path) -> Path:
    return wide(folder / "fetched.csv", "step", records(), run="RUN-1")


def aim(folder: Path) -> Path:
    rows = [["abc", name, "", t, value, "", 1.0] for t, name, value in points()]
    header = ["run.hash", "metric.name", "metric.context.subset", "step", "value", "epoch", "time"]
    return write_rows(folder / "metrics.csv", header, rows)


def clearml(folder: Path) -> Path:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for t, name, value in points():
        title, _, series = name.partition("/")
        curve = found.setdefault(title, {}).setdefault(series, {"name": series, "x": [], "y": []})
        curve["x"].append(t)
        curve["y"].append(value)
    path = folder / "scalars.json"
    path.write_text(json.dumps(found))
    return path


def parquet(folder: Path) -> Path:
    source = wide(folder / "wide.csv", "step", records())
    duckdb.sql(f"COPY (SELECT * FROM read_csv('{source}')) TO '{folder / 'wide.parquet'}' (FORMAT parquet)")
    return folder / "wide.parquet"


def long_table(folder: Path) -> Path:
    return write_rows(folder / "long.csv", ["step", "name", "value"], [list(point) for point in points()])


def tab_separated(folder: Path) -> Path:
    path = wide(folder / "wide.csv", "step", records())
    target = folder / "wide.tsv"
    target.write_text(path.read_text().replace(",", "\t"))
    return target


FORMATS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "wandb page": ("wandb", wandb_page),
    "wandb history": ("wandb", wandb_history),
    "lightning": ("lightning", lightning),
    "mlflow folder": ("mlflow", mlflow_folder),
    "mlflow database": ("mlflow", mlflow_database),
    "trackio": ("trackio", trackio),
    "comet": ("comet", comet),
    "comet archive": ("comet", comet_archive),
    "neptune": ("neptune", neptune),
    "neptune fetched": ("neptune", neptune_fetched),
    "aim": ("aim", aim),
    "clearml": ("clearml", clearml),
    "wide csv": ("table", lambda folder: wide(folder / "w.csv", "iteration", records())),
    "tsv": ("table", tab_separated),
    "long csv": ("table", long_table),
    "parquet": ("table", parquet),
    "json list": ("jsonl", json_list),
    "json columns": ("jsonl", json_columns),
    "jsonl": (
        "jsonl",
        lambda folder: jsonl(folder / "l.jsonl", [{"iteration": t, **r} for t, r in enumerate(records())]),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_gives_the_same_run(kind: str, tmp_path: Path) -> None:
    format, write = FORMATS[kind]
    (tmp_path / "log").mkdir()
    path = write(tmp_path / "log")
    assert recognise(path).name == format
    made = bring(tmp_path / "runs", path)
    assert_holds(made.path, NORMS)
    with open_run(made.path) as run:
        np.testing.assert_allclose(losses_of(run), LOSS)
        (metric,) = run.evals()
        assert metric in ("val/acc", "val_acc")
        assert run.evals()[metric]["iteration"].tolist() == [9, 19, 29, 39]
        np.testing.assert_allclose(run.evals()[metric]["value"], ACCURACY[9::10])


def test_a_trainers_state(tmp_path: Path) -> None:
    norm = NORMS["norm"].copy()
    norm[12] = np.nan
    history: list[dict[str, Any]] = []
    for t in range(STEPS):
        history.append({"epoch": t / 10, "grad_norm": norm[t], "learning_rate": 1e-4, "loss": LOSS[t], "step": t + 1})
        if t % 10 == 9:
            history.append({"epoch": (t + 1) / 10, "eval_accuracy": ACCURACY[t], "eval_runtime": 3.0, "step": t + 1})
            history.append({"epoch": (t + 1) / 10, "predict_loss": 1.0})
    history.append({"epoch": 4.0, "step": STEPS, "train_loss": 1.5, "train_runtime": 10.0})
    for checkpoint, rows in (
        ("checkpoint-20", history[:24]),
        ("checkpoint-40", history),
        ("checkpoint-9", history[:8]),
    ):
        (tmp_path / "out" / checkpoint).mkdir(parents=True)
        state = {"global_step": int(checkpoint[11:]), "log_history": rows, "logging_steps": 1}
        (tmp_path / "out" / checkpoint / "trainer_state.json").write_text(json.dumps(state))
    file = tmp_path / "out" / "checkpoint-40" / "trainer_state.json"
    lines = jsonl(tmp_path / "history.jsonl", history)
    for path in (file, tmp_path / "out", lines):
        made = bring(tmp_path / "runs", path)
        assert made.iterations == STEPS
        assert_holds(made.path, {"global": norm})
        with open_run(made.path) as run:
            assert [(e.iteration, e.kind) for e in run.events() if e.kind == "nonfinite"] == [(12, "nonfinite")]
            assert list(run.evals()) == ["eval_accuracy"]
            assert run.evals()["eval_accuracy"]["iteration"].tolist() == [10, 20, 30, 40]


def histogram(rng: np.random.Generator, scale: float) -> tuple[dict[str, Any], float]:
    values = rng.normal(0, scale, 500)
    counts, edges = np.histogram(values, 64)
    packed = {"min": float(edges[0]), "size": float(edges[1] - edges[0]), "count": 64}
    return {"_type": "histogram", "values": counts.tolist(), "packedBins": packed}, float(np.linalg.norm(values))


@pytest.mark.parametrize("form", ["jsonl", "csv", "bins"])
def test_wandbs_histograms_give_approximate_norms(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, norms = [], []
    for t in range(30):
        found, norm = histogram(rng, 0.01 * (8 if t == 20 else 1))
        if form == "bins":
            packed = found.pop("packedBins")
            found["bins"] = [packed["min"] + packed["size"] * i for i in range(65)]
        rows.append({"_step": t, "loss": 2.0, "gradients/blocks.0.weight": found})
        norms.append(norm)
    path = wide(tmp_path / "h.csv", "", rows) if form == "csv" else jsonl(tmp_path / "h.jsonl", rows)
    made = bring(tmp_path / "runs", path)
    assert_holds(made.path, {"blocks.0": np.array(norms)}, 0.01)
    assert any(note.kind == "approximate" for note in made.notes)


MEGATRON = (
    " [2026-01-01 00:00:00] iteration {i:8d}/     500 | consumed samples: {s:12d} | elapsed time per iteration (ms): "
    "123.4 | learning rate: 1.500E-04 | global batch size: 512 | lm loss: {loss:.6E} | loss scale: 1.0 | grad norm: "
    "{norm:.3f} | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
)
TEXTS = {
    "megatron": MEGATRON,
    "llm.c": "step {i:4d}/500 | loss {loss:.6f} (+nanz)| norm {norm:.4f} (+nanz)| lr 1.00e-06 | 300.00 ms | 9 tok/s\n",
    "llm.c log": "s:{t} trl:{loss:.6f} lr:0.000001 norm:{norm:.4f}\n",
    "torchtitan": "[rank0]:2026-01-01 00:00:00,0 - root - INFO - step: {t:2d}  loss: {loss:.6f}  "
    "grad_norm: {norm:.4f}  memory: 1.0GiB\n",
    "metric logger": "Epoch: [{e}]  [{p:2d}/10]  eta: 0:00:05  lr: 0.0001  loss: {loss:.6f} (9.0)  "
    "grad_norm: {norm:.4f} (9.9)  time: 0.5\n",
    "swin": "[2026-01-01 00:00:00 swin] (main.py 192): INFO Train: [{e}/300][{p}/10]\teta 0:01 lr 0.0001\t "
    "time 0.1 (0.2)\t"
    "loss {loss:.6f} (6.9)\tgrad_norm {norm:.4f} (1.3)\tmem 1000MB\n",
    "fairseq": '2026-01-01 | INFO | train_inner | {{"epoch": 1, "update": 0.1, "loss": "{loss:.6f}", '
    '"gnorm": "{norm:.4f}", "num_updates": "{t}"}}\n',
    "trainer": "{{'loss': {loss:.6f}, 'grad_norm': {norm:.4f}, 'learning_rate': 1e-4, 'epoch': 0.1}}\n",
    "mmengine": '{{"lr": 0.1, "loss": {loss:.6f}, "grad_norm": {norm:.4f}, "iter": {t}, "step": {t}}}\n',
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_text_logs(kind: str, tmp_path: Path) -> None:
    lines = ["some words of greeting, 2 GPUs\n"] if kind != "mmengine" else []
    for t in range(STEPS):
        values = {
            "t": t,
            "i": t + 1,
            "s": 512 * t,
            "e": t // 10,
            "p": t % 10,
            "loss": LOSS[t],
            "norm": NORMS["norm"][t],
        }
        lines.append(TEXTS[kind].format(**values))
    path = tmp_path / "train.log"
    path.write_text("".join(lines))
    assert recognise(path).name == ("jsonl" if kind == "mmengine" else "text")
    made = bring(tmp_path / "runs", path)
    assert_holds(made.path, {"global": NORMS["norm"]}, 2e-3)
    with open_run(made.path) as run:
        np.testing.assert_allclose(losses_of(run), LOSS, atol=1e-5)


def test_evaluations_in_text_logs(tmp_path: Path) -> None:
    path = tmp_path / "main.log"
    path.write_text(
        "".join(f"s:{t} tel:{t / 100}\n" * (t % 10 == 0) + f"s:{t} trl:3.0 lr:0.1 norm:1.{t}\n" for t in range(30))
    )
    made = bring(tmp_path / "runs", path)
    with open_run(made.path) as run:
        assert run.evals()["val_loss"]["value"].tolist() == [0, 0.1, 0.2]
    path.write_text("".join(
        f"step:{t}/100 train_loss:{3 - t / 100} train_time:5ms\n" + f"step:{t}/100 val_loss:2.{t}\n" * (t % 10 == 0)
        for t in range(30)
    ))  # fmt: skip
    made = bring(tmp_path / "runs", path)
    assert (made.loss, made.metrics, made.layers) == ("train_loss", ("val_loss",), ())
    validations = " validation loss at iteration 20 | lm loss value: 2.5E+00 | lm loss PPL: 1.2E+01 | \n"
    path.write_text("".join(MEGATRON.format(i=t + 1, s=1, loss=2.0, norm=1.0 + t) for t in range(20)) + validations)
    made = bring(tmp_path / "runs", path)
    with open_run(made.path) as run:
        assert {name: (e["iteration"][0], e["value"][0]) for name, e in run.evals().items()} == {
            "validation lm loss": (20, 2.5),
            "validation lm loss PPL": (20, 12.0),
        }


def test_logs_by_epoch(tmp_path: Path) -> None:
    """DINO's and MAE's log.txt."""
    rows = [
        {"train_lr": 1e-4, "train_loss": 2.0, "test_acc1": 60.0 + t, "epoch": t, "n_parameters": 10} for t in range(20)
    ]
    made = bring(tmp_path / "runs", jsonl(tmp_path / "log.txt", rows))
    assert (made.loss, made.metrics) == ("train_loss", ("test_acc1",))
    assert {note.kind for note in made.notes} >= {"axis", "percent", "no_gradients"}
