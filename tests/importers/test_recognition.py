"""``stablab import auto``: its messages, the inputs it refuses, and its options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.options import Metric, Options, parse_metric
from stabilitylab.importers.registry import IMPORTERS, import_log
from stabilitylab.store.reader import open_run
from tests.cli.conftest import Stablab, stablab  # noqa: F401  (a fixture)
from tests.importers.planted import LAYERS, assert_holds, bring, events_of, norms_of, planted


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_the_command_says_what_it_took(tmp_path: Path, stablab: Stablab) -> None:  # noqa: F811
    rows = "".join(f"{t},{1 + t % 3},{3 - t / 100},{0.5 if t % 10 else ''}\n" for t in range(30))
    text(tmp_path / "log.csv", f"step,grad_norm,loss,val_acc\n{rows}")
    said = stablab("import", "auto", "log.csv", "--name", "seen").stdout
    assert said.startswith("log.csv: a CSV, TSV or Parquet table with a step column\nimported as seen\n")
    assert "1 layer (global), 30 rows, 30 iterations" in said
    assert "loss: loss; metrics: val_acc" in said
    assert "note (global): only the total norm (grad_norm) was logged" in said
    assert said.endswith("next: stablab analyze seen\n")
    told = stablab("analyze", "seen", "--lag").stdout
    assert "lag: not judged" in told
    assert "global to global" not in told
    taken = stablab("import", "auto", "log.csv", "--name", "seen", code=2)
    assert "run 'seen' already exists" in taken.stderr
    assert stablab("import", "auto", "absent.csv", code=2).stderr == (
        "stablab: cannot read absent.csv: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "looks", "nearest"),
    [
        ("a.csv", b"x,y\n1,2\n", "a table with the columns x, y", "table"),
        ("a.log", b"step loss norm: hello\nworld\n", "a text file that begins 'step loss norm: hello'", "text"),
        ("trainer_state.json.bin", b"\0\1\2", "a binary file", "huggingface"),
        ("empty", b"", "an empty file", ""),
        ("a.json", b'{"metricName"', "JSON", "comet"),
    ],
)
def test_an_unknown_file_is_refused_with_the_nearest_formats(
    name: str, content: bytes, looks: str, nearest: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if nearest == "comet":
        path.write_bytes(b'{"metric_Name": "runContext"}')
        nearest = ""
    with pytest.raises(LogFormatError) as caught:
        bring(tmp_path / "runs", path)
    message = str(caught.value)
    assert f"{path} is {looks}" in message or (looks == "JSON" and "no step column" in message)
    if "Nearest formats:" in message:
        named = [part.split(":")[0] for part in message.partition("Nearest formats: ")[2].split("; ")]
        assert len(named) == 3
        assert set(named) <= set(IMPORTERS)
        assert nearest in (*named, "")
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(LogFormatError, match="is an empty folder, not a log in a known format"):
        bring(tmp_path / "runs", tmp_path / "logs")


def test_rows_that_cannot_be_read_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    rows = ["0,1,2", "1,2", "", "2,x,3", "3,1,2", "-4,1,2", "5,1,2,7", "6,-1,3", "7,1,2", "8,1"]
    path = text(tmp_path / "log.csv", "\n".join(["step,grad_norm,loss", *rows]))
    made = bring(tmp_path / "runs", path)
    assert norms_of(made.path)["global"][0].tolist() == [0, 3, 7]
    said = events_of(made.path)["refused_rows"]
    assert said[0] == "5 rows were refused, the first (line 3: too few cells)"
    assert said[1].startswith("1 row was refused (grad_norm at step 6: -1 is negative")
    with pytest.raises(LogFormatError, match="line 3: too few cells; not allowed with --strict"):
        bring(tmp_path / "runs", path, Options(strict=True))
    lines = text(tmp_path / "log.jsonl", '{"step": 0, "grad_norm": 1}\n{oops\n{"step": 1, "grad_norm": NaN}\n[1]\n')
    made = bring(tmp_path / "runs", lines)
    assert "2 rows were refused, the first (line 2: not JSON" in events_of(made.path)["refused_rows"][0]
    (tmp_path / "bytes.csv").write_bytes(b"step,grad_norm\n0,1\n1,\xff\n2,3\n3,4\n")
    made = bring(tmp_path / "runs", tmp_path / "bytes.csv")
    assert norms_of(made.path)["global"][1].tolist() == [1, 3, 4]
    assert events_of(made.path)["refused_rows"] == ["1 row was refused (line 3: not UTF-8 text)"]


def test_the_options(tmp_path: Path) -> None:
    rows = "".join(f"{t},{t + 1},{t + 2},{t + 3},{50 + t},{t}\n" for t in range(20))
    path = text(tmp_path / "log.csv", f"tick,l2_a,l2_b,l2_mean,score,cost\n{rows}")
    metrics = (parse_metric("score:percent:max"),)
    options = Options(step="tick", grads="l2_*", loss="cost", metrics=metrics)
    made = bring(tmp_path / "runs", path, options)
    assert made.layers == ("a", "b")
    assert (made.loss, made.metrics) == ("cost", ("score",))
    with open_run(made.path) as run:
        declared = [json.loads(event.detail) for event in run.events() if event.kind == "metric"]
    assert declared == [{"name": "score", "goal": "max", "scale": "percent"}]
    again = bring(tmp_path / "runs", path, Options(step="tick", grads="l2_(?P<layer>[ab])"))
    assert again.layers == ("a", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(grads="weights/*"), "no series of .* is a gradient norm .looked for weights/"),
        (Options(grads="grad/(.+)"), "needs a group named layer"),
        (Options(grads="("), "is not a valid regular expression"),
        (Options(step="tick"), "has no column 'tick' for --step"),
        (Options(loss="cost"), "no series 'cost' for --loss; available:"),
        (Options(metrics=(Metric("acc"),)), "has no series 'acc' for --metric"),
        (Options(pattern="("), "is not a valid regular expression"),
        (Options(pattern="a(?P<step>.)"), "needs the group"),
        (Options(pattern="zz(?P<step>.)(?P<a>.)"), "matches no line"),
    ],
)
def test_options_that_name_what_is_not_there(options: Options, message: str, tmp_path: Path) -> None:
    path = text(tmp_path / "log.csv", "step,grad_norm,loss\n" + "".join(f"{t},1,2\n" for t in range(5)))
    with pytest.raises(LogFormatError, match=message):
        bring(tmp_path / "runs", path, options)
    assert not (tmp_path / "runs").exists()


def test_metrics_are_parsed() -> None:
    assert parse_metric("val/acc") == Metric("val/acc")
    assert parse_metric("a:b:percent") == Metric("a:b", True)
    assert parse_metric("x:min:percent") == Metric("x", True, "min")
    with pytest.raises(LogFormatError, match="contains no name of a series"):
        parse_metric(" :min")


def test_a_pattern_reads_any_text(tmp_path: Path) -> None:
    norms = planted()
    lines = "".join(f"<{t}> {layer} = {norms[layer][t]}\n" for t in range(40) for layer in LAYERS)
    path = text(tmp_path / "odd.txt", f"hello\n{lines}")
    made = bring(tmp_path / "runs", path, Options(pattern=r"<(?P<step>\d+)> (?P<layer>\S+) = (?P<norm>\S+)"))
    assert_holds(made.path, norms)
    path = text(tmp_path / "odd.txt", "".join(f"it {t} gn {t + 1} l {t + 2}\n" for t in range(5)))
    made = bring(tmp_path / "runs", path, Options(pattern=r"it (?P<step>\d+) gn (?P<grad_norm>\d+) l (?P<loss>\d+)"))
    assert_holds(made.path, {"global": np.arange(5) + 1.0})


def test_several_runs_of_a_page_are_a_run_each_and_bucket_maxima_are_kept(tmp_path: Path) -> None:
    header = "Step,a - grad_norm,a - grad_norm__MIN,a - grad_norm__MAX,b - grad_norm"
    path = text(tmp_path / "chart.csv", header + "\n" + "".join(f"{50 * t},2,1,{3 + t},5\n" for t in range(20)))
    first, second = import_log(tmp_path / "runs", path, name="x")
    assert [first.path.name, second.path.name] == ["x-a", "x-b"]
    assert norms_of(first.path)["global"][1].tolist() == [3.0 + t for t in range(20)]
    assert norms_of(second.path)["global"][1].tolist() == [5.0] * 20
    assert {note.kind for note in first.notes} >= {"buckets", "recording_step"}
    with open_run(first.path) as run:
        assert run.meta["rows"] == "bucket"
    assert "buckets" not in {note.kind for note in second.notes}


@pytest.mark.parametrize("axis", ["Relative Time (Process)", "train/loss"])
def test_a_page_with_another_axis_takes_the_runs_own_steps(axis: str, tmp_path: Path) -> None:
    rows = "".join(f"{0.5 + 1.25 * t},{t},{t},{t},{t + 1}\n" for t in range(10))
    path = text(tmp_path / "c.csv", f"{axis},r - _step,r - _step__MIN,r - _step__MAX,r - grad_norm\n{rows}")
    assert_holds(bring(tmp_path / "runs", path).path, {"global": np.arange(10) + 1.0})
    path = text(tmp_path / "c.csv", f"{axis},r - grad_norm\n0.5,1\n1.5,2\n")
    with pytest.raises(LogFormatError, match="is not a step, and there is no column RUN - _step"):
        bring(tmp_path / "runs", path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "text"])
def test_a_restart_in_any_log_leaves_no_seam(form: str, tmp_path: Path) -> None:
    first, second = planted(60)["norm"], planted(56, seed=5)["norm"]
    rows = [(t, first[t]) for t in range(60)] + [(t, second[t]) for t in range(50, 56)]
    lines = {
        "csv": "step,grad_norm\n" + "".join(f"{t},{v}\n" for t, v in rows),
        "jsonl": "".join(json.dumps({"step": t, "grad_norm": v}) + "\n" for t, v in rows),
        "text": "".join(f"step: {t} loss: 1.0 grad_norm: {v}\n" for t, v in rows),
    }
    made = bring(tmp_path / "runs", text(tmp_path / f"log.{form}", lines[form]))
    assert_holds(made.path, {"global": np.r_[first[:50], second[50:]]})
    assert "6 + 4 superseded" in events_of(made.path)["superseded"][0]


def test_repeated_steps_and_rows_out_of_order(tmp_path: Path) -> None:
    early = text(
        tmp_path / "early.csv", "step,grad_norm\n" + "".join(f"{t},{t}\n" for t in (0, 1, 2, 7, 3, 4, 5, 6, 8))
    )
    assert norms_of(bring(tmp_path / "runs", early).path)["global"][1].tolist() == list(range(9))
    steps = [0, 1, 1, 2, 5, 4, 3, 6]
    path = text(tmp_path / "log.csv", "step,grad_norm\n" + "".join(f"{t},{i}\n" for i, t in enumerate(steps)))
    made = bring(tmp_path / "runs", path)
    assert norms_of(made.path)["global"][1].tolist() == [0, 2, 3, 6, 5, 4, 7]
    assert "1 repeated steps were dropped" in events_of(made.path)["duplicates"][0]


def test_what_cannot_be_trusted_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    norm = np.minimum(np.exp(rng.normal(0, 0.5, 300)), 1.0)
    norm[40] = np.nan
    steps = [10 * t for t in range(300) if not 100 <= t < 120]
    rows = "".join(f"{t},{norm[t // 10]},{60 + t / 100}\n" for t in steps)
    made = bring(tmp_path / "runs", text(tmp_path / "log.csv", f"step,grad_norm,val_acc\n{rows}"))
    said = events_of(made.path)
    assert said["recording_step"] == ["a row every 10 iterations: events shorter than 10 iterations cannot be resolved"]
    assert said["gap"] == ["nothing was recorded between iteration 990 and 1200"]
    assert said["nonfinite"] == ["the norm of 1 of 1 layers is NaN or infinite at 400"]
    assert " is 1 in " in said["clipped"][0]
    assert said["percent"] == ["val_acc: in percent, kept as logged"]
