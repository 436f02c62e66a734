"""A study: its plan, its runs, what is lost when it is killed, and its summary."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies.collect import read_summary, training, verdicts, write_summary
from stabilitylab.studies.cost import estimate_seconds
from stabilitylab.studies.local import run_jobs
from stabilitylab.studies.restarting import is_complete
from stabilitylab.studies.study import load_study
from tests.synthetic import planted_grads_csv, planted_run

STUDIES = Path(__file__).parents[2] / "experiments"
TINY = """
title = "tiny"
[base.model]
embed_dim = 16
depth = 1
num_heads = 2
[base.method]
hidden_dim = 16
out_dim = 8
[base.optim]
warmup_iterations = 2
[base.train]
iterations = 12
batch_size = 32
device = "cpu"
[base.eval]
knn_every = 4
"""
GRID = """
[grid]
seed = [0, 1]
mitigation = ["none", "frozen-patch"]
"""
CLAIM = """
[[claim]]
text = "frozen is no 50 points better"
metric = "final_knn"
treated = { mitigation = "frozen-patch" }
baseline = { mitigation = "none" }
direction = "not_higher"
smallest = 0.5
"""


GROUPS = '[grid]\nseed = [0, 1, 2]\nmitigation = ["none", "frozen-patch"]\n'


def study_file(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def command(study: Path, *args: str) -> list[str]:
    folder = study.parent
    where = ["--runs-dir", str(folder / "runs"), "-o", str(folder / "out")]
    return [sys.executable, "-m", "stabilitylab", "study", str(study), *where, *args]


def test_the_plan_is_the_product_of_the_grid(tmp_path: Path) -> None:
    text = TINY + '[grid]\nseed = [0, 1]\nbase_lr = [0.1, 0.2, 0.3]\nmitigation = ["none", "frozen-patch + zclip"]\n'
    runs = load_study(study_file(tmp_path, text + 'model.pos_embed = ["none", "sincos"]\n')).runs
    seen = {(r.config.train.seed, r.config.optim.base_lr, r.config.mitigation, r.config.model.pos_embed) for r in runs}
    both = ((), ("frozen-patch", "zclip"))
    assert seen == {(s, lr, m, p) for s in (0, 1) for lr in (0.1, 0.2, 0.3) for m in both for p in ("none", "sincos")}
    assert len({run.name for run in runs}) == 24
    assert all(run.config.record.log_grads and run.config.model.embed_dim == 16 for run in runs)


def test_a_run_is_named_by_its_configuration_so_studies_share_it(tmp_path: Path) -> None:
    first = load_study(study_file(tmp_path, TINY + "[grid]\nseed = [0, 1]\n"))
    other = load_study(study_file(tmp_path, TINY + "[[grid]]\nseed = 1\n[[grid]]\nseed = 1\nbase_lr = [4e-3, 0.1]\n"))
    assert len(other.runs) == 2
    assert other.runs[0].name == first.runs[1].name  # the recipe's own learning rate, spelled out
    assert first.runs[0].name.startswith("mocov3-adamw-lr0.004-b32-s0-")


def test_each_study_in_the_repository_is_sound() -> None:
    files = sorted(STUDIES.glob("*/*.toml"))
    studies = [load_study(path) for path in files if path.parent.name not in ("recipes", "search", "cause")]
    assert len(studies) >= 18
    for study in studies:
        assert study.paper
        assert study.claims
        header = study.path.read_text(encoding="utf-8").splitlines()[:4]
        relative = study.path.relative_to(STUDIES.parent)
        assert header[0].startswith(f"# stablab study {relative}")
        assert [line.split(":")[0] for line in header[1:3]] == ["# Cost", "# The paper"]
        assert header[3] == "# This study has not been run." or header[3].startswith("# Here: ")
        axes = {key for run in study.runs for key in run.axes} | {"mitigation", "train.seed"}
        for claim in study.claims:
            assert {*claim.treated, *claim.baseline, *claim.where} <= axes, claim.text
    paper = {study.name for study in studies if study.path.parent.name == "paper"}
    assert {f"fig{n}" for n in range(1, 7)} == {name[:4] for name in paper if name.startswith("fig")}


@pytest.mark.slow
def test_a_study_killed_in_the_middle_is_finished_by_the_same_command(tmp_path: Path) -> None:
    study = study_file(tmp_path, TINY.replace("iterations = 12", "iterations = 40") + GRID + CLAIM)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(study), env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("1/4 runs"):  # the second is being trained
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    runs = load_study(study).runs
    done = {run.name for run in runs if is_complete(tmp_path / "runs" / run.name)}
    assert 1 <= len(done) < 4
    before = {name: (tmp_path / "runs" / name / "run.duckdb").stat().st_mtime_ns for name in done}
    time.sleep(0.5)  # the orphaned worker notices that it is alone
    again = subprocess.run(command(study), env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"4 runs, {len(done)} finished, {4 - len(done)} to train" in again.stdout
    assert "inconclusive: frozen is no 50 points better (final_knn" in again.stdout  # two seeds
    for run in runs:
        path = tmp_path / "runs" / run.name
        assert is_complete(path)
        with open_run(path) as reader:
            assert reader.num_iterations == 40
            assert reader.verify() == []
        if run.name in before:
            assert (path / "run.duckdb").stat().st_mtime_ns == before[run.name]
    rows = read_summary(tmp_path / "out")
    assert [row["run"] for row in rows] == [run.name for run in runs]
    about = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert about["runs"] == {"finished": 4, "planned": 4}
    assert about["training_hours"] >= 0


def test_the_summary_is_what_the_runs_hold_and_decides_the_claims(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, TINY + GROUPS + CLAIM.replace("not_higher", "higher")))
    with pytest.raises(ConfigError, match=r"study study: no run in .* is finished"):
        write_summary(study, tmp_path, tmp_path / "out")
    told: list[tuple[str, str]] = []
    failures = run_jobs(
        [(r.name, r.config) for r in study.runs[:2]], tmp_path, 2, ended=lambda *what: told.append(what)
    )
    assert failures == {}
    assert sorted(told) == sorted((run.name, "") for run in study.runs[:2])
    write_summary(study, tmp_path, tmp_path / "out")
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["train.seed"], row["mitigation"]) for row in rows] == [
        (run.name, "0", name) for run, name in zip(study.runs[:2], ("none", "frozen-patch"), strict=True)
    ]
    for row in rows:
        with open_run(tmp_path / row["run"]) as reader:
            assert float(row["final_knn"]) == pytest.approx(reader.evals()["knn_top1"]["value"][-1], rel=1e-5)
            assert float(row["best_knn"]) == pytest.approx(reader.evals()["knn_top1"]["value"].max(), rel=1e-5)
        assert row["iterations"] == "12"
    assert [(v.verdict, v.num_seeds) for v in verdicts(study, rows)] == [("inconclusive", 1)]  # one seed of three


def test_the_summary_tells_of_blocks_what_was_planted(tmp_path: Path) -> None:
    """The last layer is the predictor, 20 iterations behind the first; the last block, blocks.1, is 10 behind."""
    study = load_study(study_file(tmp_path, TINY + "[grid]\nseed = 0\n"))
    planted = planted_grads_csv(tmp_path / "grads.csv", lag=20, seed=3)
    where = ["--name", study.runs[0].name, "--runs-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(cli, ["import", "csv", "--grads", str(tmp_path / "grads.csv"), *where])
    assert done.exit_code == 0, done.output
    (row,) = write_summary(study, tmp_path / "runs", tmp_path / "out")
    assert row["spikes_first_layer"] == len(planted.onsets["patch_embed"])
    assert row["spikes_first_block"] == len(planted.onsets["blocks.0"])
    assert abs(float(row["lag_median"]) - 20) <= 1
    assert abs(float(row["lag_last_block"]) - 10) <= 1
    assert row["lag_last_block_matched"] == len(planted.onsets["blocks.1"])
    assert row["knn_untrained"] is row["dead"] is None  # no accuracy was recorded


def test_a_run_that_a_nonfinite_loss_ends_is_dead() -> None:
    """Its only accuracy may be that of the untrained encoder, which is not below itself."""
    series = planted_run(seed=0, dips=False).series
    assert training(series, ended_early=False)["dead"] is False
    assert training(series, ended_early=True)["dead"] is True


def test_the_lag_is_pooled_over_the_runs_of_a_setting(tmp_path: Path) -> None:
    """Three runs of one setting: every row has the same pooled lag, that of the last block, 10 iterations behind."""
    claim = """
[[claim]]
text = "The last block follows"
metric = "pooled_lag"
treated = { mitigation = "none" }
direction = "higher"
smallest = 2
"""
    study = load_study(study_file(tmp_path, TINY + claim + "[grid]\nseed = [0, 1, 2]\n"))
    for seed, run in enumerate(study.runs):
        planted_grads_csv(tmp_path / f"grads{seed}.csv", lag=20, seed=seed)
        where = ["--name", run.name, "--runs-dir", str(tmp_path / "runs")]
        done = CliRunner().invoke(cli, ["import", "csv", "--grads", str(tmp_path / f"grads{seed}.csv"), *where])
        assert done.exit_code == 0, done.output
    write_summary(study, tmp_path / "runs", tmp_path / "out")
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["pooled_lag"] for row in rows}) == 1
    assert abs(float(rows[0]["pooled_lag"]) - 10) <= 1
    assert float(rows[0]["pooled_lag_low"]) <= 10 <= float(rows[0]["pooled_lag_high"])
    assert rows[0]["pooled_lag_runs"] == "3"
    assert [v.verdict for v in verdicts(study, rows)] == ["reproduced"]


SEQUENTIAL = """
[sequential]
first = 3
step = 1
most = 4
[grid]
mitigation = ["none", "frozen-patch"]
"""


@pytest.mark.slow
def test_a_sequential_study_stops_when_its_claims_are_decided(tmp_path: Path) -> None:
    """An effect of 9 points of 1 is excluded at the first look."""
    study = study_file(tmp_path, TINY + SEQUENTIAL + CLAIM.replace("0.5", "9.0"))
    found = subprocess.run(command(study), capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "at most 8 runs, 0 finished, at most 8 to train" in found.stdout
    assert "3 seeds: 1 of 1 claims are decided" in found.stdout
    assert "reproduced: frozen is no 50 points better (final_knn" in found.stdout
    assert "99% [" in found.stdout
    rows = read_summary(tmp_path / "out")
    assert sorted({(row["train.seed"], row["mitigation"]) for row in rows}) == [
        (str(seed), name) for seed in range(3) for name in ("frozen-patch", "none")
    ]
    for row in rows:
        with open_run(tmp_path / "runs" / row["run"]) as reader:
            knn = reader.evals()["knn_top1"]["value"]
        assert float(row["knn_untrained"]) == pytest.approx(knn[0], rel=1e-5)
        assert row["dead"] == str(bool(np.median(knn) < knn[0]))


def test_only_the_arms_of_open_claims_get_more_seeds(tmp_path: Path) -> None:
    text = TINY + SEQUENTIAL.replace('"frozen-patch"', '"frozen-patch", "zclip"') + CLAIM
    study = load_study(study_file(tmp_path, text))
    chosen = [(run.config.train.seed, run.config.mitigation) for run in study.runs_of(study.claims, 2)]
    assert sorted(chosen) == [(0, ()), (0, ("frozen-patch",)), (1, ()), (1, ("frozen-patch",))]
    assert study.runs_of((), 4) == []


def test_whole_seeds_are_trained_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid lists one arm after the other, but half a study must hold both arms of some seeds."""
    trained: list[tuple[int, bool]] = []

    def only_note(jobs: Any, *args: Any) -> dict[str, str]:
        trained.extend((config.train.seed, bool(config.mitigation)) for _, config in jobs)
        return {name: "not trained" for name, _ in jobs}

    monkeypatch.setattr("stabilitylab.studies.local.run_jobs", only_note)
    grid = '[grid]\nmitigation = ["none", "frozen-patch"]\nseed = [3, 1, 2]\n'
    CliRunner().invoke(cli, ["study", str(study_file(tmp_path, TINY + grid)), "--runs-dir", str(tmp_path / "runs")])
    assert trained == [(seed, frozen) for seed in (1, 2, 3) for frozen in (False, True)]


def test_the_looks_end_with_the_most_seeds(tmp_path: Path) -> None:
    text = TINY + '[sequential]\nfirst = 5\nstep = 6\nmost = 20\n[grid]\nmitigation = ["none", "frozen-patch"]\n'
    study = load_study(study_file(tmp_path, text))
    assert study.looks == (5, 11, 17, 20)
    assert len(study.runs) == 40


def test_the_cost_counts_iterations_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilitylab.studies import cost

    probed = []
    monkeypatch.setattr(cost, "_probe", lambda config: probed.append(config) or (2.0, 7.0))
    study = load_study(study_file(tmp_path, TINY + "[grid]\nseed = [0, 1]\nbatch_size = [32, 64]\n"))
    assert estimate_seconds([run.config for run in study.runs]) == 4 * (12 * 2.0 + 4 * 7.0)
    assert len(probed) == 2  # a shape is timed once, whatever its seeds


def test_the_probe_times_a_real_step(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, TINY))
    assert estimate_seconds([study.runs[0].config]) > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids = 3\n", "unknown key 'grids' in a study; did you mean grid?"),
        ("[grid]\nbase_lrs = [1]\n", "unknown key 'base_lrs' in the grid; did you mean base_lr"),
        ("[grid]\nmodel.dept = [1]\n", "unknown key 'model.dept' in the grid; did you mean model.depth"),
        ("[grid]\nseed = []\n", "grid key train.seed has no value"),
        ("[grid]\nbase_lr = [-1]\n", "optim.base_lr = -1"),
        ('[grid]\nmitigation = "frozen-pach"\n', "unknown mitigation 'frozen-pach'; did you mean frozen-patch"),
        ('[grid]\narch = "resnet18"\nmitigation = "frozen-patch"\n', "needs a patch projection, and resnet18 has none"),
        (f"[grid]\nseed = {list(range(300))}\n", "the grid has 300 runs, more than 200; confirm with --yes"),
        ('[[claim]]\ntext = "c"\n', "claim 'c': missing key direction, metric, smallest, treated"),
        ("grid = 3\n", "grid must be a table or several"),
        (GROUPS + CLAIM.replace("final_knn", "final_kn"), "unknown metric 'final_kn'; did you mean final_knn"),
        (GROUPS + CLAIM.replace("frozen-patch", "bn-patch"), "no run of the grid matches {'mitigation': 'bn-patch'}"),
        (GROUPS + CLAIM.replace("{ mitigation =", "{ mitigaton =", 1), "unknown key 'mitigaton' in claim"),
        (GROUPS + CLAIM.replace("0.5", '"0.5"'), "smallest '0.5' is not a positive number"),
        (GROUPS + CLAIM.replace('{ mitigation = "none" }', '"none"'), "baseline must be a table"),
        ("[sequential]\nfirst = 2\n", "sequential needs 3 <= first <= most, not first = 2, most = 20"),
        ("[sequential]\nmost = 4\n", "sequential needs 3 <= first <= most, not first = 5, most = 4"),
        ("[sequential]\nsteps = 4\n", "unknown key 'steps' in sequential; did you mean step"),
        ("[sequential]\nstep = 0\n", "sequential step = 0 is not a positive integer"),
        ("sequential = true\n", "sequential must be a table"),
        ("[sequential]\n[grid]\nseed = [0, 1, 2]\n", "remove seed from the grid"),
    ],
)
def test_a_bad_study_is_refused_before_any_run_starts(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_study(study_file(tmp_path, text))
    assert message in str(refused.value)
    assert "study.toml" in str(refused.value) or "base_lr" in text


def test_an_exploding_grid_needs_a_yes(tmp_path: Path) -> None:
    path = study_file(tmp_path, f"[grid]\nseed = {list(range(201))}\n")
    assert len(load_study(path, yes=True).runs) == 201


@pytest.mark.parametrize("cluster", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_two_runs_through_submitit(cluster: str, tmp_path: Path) -> None:
    """And a third that fails, which says why. ``debug`` runs them in this process, ``local`` in one process each."""
    pytest.importorskip("submitit")
    from stabilitylab.studies.slurm import run_on_cluster

    study = load_study(study_file(tmp_path, TINY + "[[grid]]\nseed = [0, 1]\n[[grid]]\nbatch_size = 5000\n"))
    told: list[tuple[str, str]] = []
    work = [(run.name, run.config) for run in study.runs]
    failures = run_on_cluster(work, tmp_path, {"timeout_min": 5}, lambda *what: told.append(what), cluster=cluster)
    *good, bad = study.runs
    assert list(failures) == [bad.name]
    assert "batch_size 5000 is larger than the data set" in failures[bad.name]
    assert sorted(told) == sorted([(bad.name, failures[bad.name]), *((run.name, "") for run in good)])
    assert all(is_complete(tmp_path / run.name) for run in good)


@pytest.mark.slow
def test_a_preempted_job_is_submitted_again_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import submitit

    from stabilitylab.studies.slurm import run_on_cluster

    jobs: list[submitit.Job[Any]] = []

    def submit(self: submitit.AutoExecutor, *args: Any) -> submitit.Job[Any]:
        jobs.append(submit_job(self, *args))
        return jobs[-1]

    submit_job = submitit.AutoExecutor.submit
    monkeypatch.setattr(submitit.AutoExecutor, "submit", submit)
    (run,) = load_study(
        study_file(tmp_path, TINY.replace("iterations = 12", "iterations = 400") + "[grid]\nseed = [0]\n")
    ).runs
    folder = tmp_path / run.name

    def preempt() -> None:
        while not (jobs and jobs[0].done()):
            if (folder / "segments").exists():
                jobs[0]._process.terminate()  # which passes SIGTERM on to its task, as Slurm does
            time.sleep(0.1)

    thread = threading.Thread(target=preempt, daemon=True)
    thread.start()
    assert run_on_cluster([(run.name, run.config)], tmp_path, {"timeout_min": 5}, cluster="local") == {}
    thread.join(timeout=60)
    assert len(jobs) == 2
    assert is_complete(folder)
    with open_run(folder) as reader:
        events = [event.detail for event in reader.events() if event.kind == "interrupted"]
        assert events == ["SIGTERM"]
        assert reader.query("select max(iteration) from iterations").fetchone() == (399,)


@pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit")
def test_without_slurm_the_refusal_is_one_line(tmp_path: Path) -> None:
    from stabilitylab.studies.slurm import run_on_cluster

    with pytest.raises(ConfigError, match="cannot submit to Slurm from here"):
        run_on_cluster([], tmp_path, {}, cluster="slurm")
