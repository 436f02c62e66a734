"""A search: what is drawn, what a row says, and that nothing is tried twice."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.cli import cli
from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run
from stabilitylab.studies.local import Job
from stabilitylab.studies.restarting import attempt
from stabilitylab.studies.search import Objective, load_search
from stabilitylab.studies.search_table import met, read_table, search_page, what_happened
from tests.studies.test_study import TINY
from tests.synthetic import planted_run

ROOT = Path(__file__).parents[2]
SPACE = """
[space]
shape = [{ "model.depth" = 1 }, { "model.depth" = 2, "train.batch_size" = 16 }]
seed = { integer = [3, 5] }
lr = { log = [0.001, 0.1] }
"data.crop_min" = { uniform = [0.2, 0.4] }
mitigation = ["none", "frozen-patch"]
"""
LEADS = """
[[lead]]
lr = 0.01
seed = [1, 2]
mitigation = ["none", "frozen-patch"]
"""


def search_file(folder: Path, text: str = SPACE + LEADS, settings: int = 3, seed: int = 7) -> Path:
    path = folder / "regimes.toml"
    head = TINY.replace('title = "tiny"', f'title = "Regimes"\nseed = {seed}\n[budget]\nsettings = {settings}')
    path.write_text(head + text, encoding="utf-8")
    return path


def test_a_setting_depends_on_seed_index_and_space_alone(tmp_path: Path) -> None:
    """The same numbers as a plain reading of the file gives, with numpy's generator."""
    settings = load_search(search_file(tmp_path, SPACE, settings=40)).settings
    assert len(settings) == 40
    for index, setting in enumerate(settings):
        rng = np.random.default_rng([7, index])
        depth, batch = ((1, 32), (2, 16))[rng.integers(2)]
        seed = rng.integers(3, 6)
        lr = float(f"{math.exp(rng.uniform(math.log(0.001), math.log(0.1))):.3g}")
        crop = float(f"{rng.uniform(0.2, 0.4):.3g}")
        mitigation = ((), ("frozen-patch",))[rng.integers(2)]
        config = setting.config
        assert (config.model.depth, config.train.batch_size, config.train.seed) == (depth, batch, seed)
        assert config.optim.base_lr == pytest.approx(lr * 256 / batch)
        assert (config.data.crop_min, config.mitigation) == (crop, mitigation)
        assert config.record.log_grads
    fewer = load_search(search_file(tmp_path, SPACE, settings=5)).settings
    assert fewer == settings[:5]
    other = load_search(search_file(tmp_path, SPACE, settings=5, seed=8)).settings
    assert [s.values for s in other] != [s.values for s in fewer]


def test_leads_are_every_combination_and_take_turns_with_drawn_settings(tmp_path: Path) -> None:
    settings = load_search(search_file(tmp_path, settings=10)).settings
    leads = [(s.config.train.seed, s.config.mitigation) for s in settings if s.source == "lead"]
    assert leads == [(1, ()), (1, ("frozen-patch",)), (2, ()), (2, ("frozen-patch",))]
    assert [s.source[0] for s in settings] == list("ldd" * 4 + "dd")
    assert all(s.config.optim.base_lr == pytest.approx(0.01 * 8) for s in settings if s.source == "lead")
    twice = load_search(search_file(tmp_path, SPACE + LEADS + LEADS, settings=0)).settings
    assert len(twice) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPACE.replace("lr = {", "lrr = {"), "unknown key 'lrr' in the space; did you mean lr"),
        (SPACE.replace("0.001, 0.1", "0.1, 0.001"), "space key lr = {'log': [0.1, 0.001]} is neither a list of values"),
        (SPACE.replace("0.001, 0.1", "0, 0.1"), "is neither a list of values nor a range"),
        (SPACE.replace("[3, 5]", "[3, 5.5]"), "space key seed = {'integer': [3, 5.5]}"),
        (SPACE.replace("{ log", "{ logarithmic"), "is neither a list of values nor a range"),
        ("", "the space is empty"),
        (SPACE + '[[lead]]\nmitigation = "frozen-pach"\n', "lead setting 0: unknown mitigation 'frozen-pach'"),
        (SPACE + "[[lead]]\nlr = -1\n", "lead setting 0: optim.base_lr = -8"),
        (SPACE + "[objective]\naccuracy = 1\n", "unknown objective"),
        (SPACE + "[objective]\naccuracy_gain = -0.1\n", "objective accuracy_gain = -0.1 is not a number of at least 0"),
        (SPACE + "[grid]\nseed = 1\n", "unknown key in search"),
    ],
)
def test_a_bad_search_is_refused_before_any_run_starts(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_search(search_file(tmp_path, text))
    assert message in str(refused.value)
    assert "regimes.toml" in str(refused.value)


@pytest.mark.parametrize("budget", ["", "[budget]\nsettings = -1\n", "[budget]\nruns = 3\n", "budget = 3\n"])
def test_a_search_states_its_budget(budget: str, tmp_path: Path) -> None:
    path = tmp_path / "regimes.toml"
    path.write_text(budget + SPACE, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"set the number of settings to draw as \[budget\] settings = 100"):
        load_search(path)


def test_a_row_says_what_was_planted() -> None:
    planted = planted_run(seed=0, n=6000, lag=20, count=24)
    row = what_happened(planted.series, analyze_run(planted.series))
    assert row["iterations"] == 6000
    assert (row["first_layer"], row["first_layer_spikes"]) == ("patch_embed", 24)
    assert 0 < row["first_layer_chance"] <= 3
    assert row["spikes"] == sum(int(part.split()[1]) for part in row["spikes_by_layer"].split("; "))
    lags = dict(part.split(" ", 1) for part in row["lags"].split("; "))
    assert lags["predictor"] == "20 (24)"
    assert row["dips"] == row["recovered"] == len(planted.dip_starts)
    assert row["alive"] == "yes"
    calm = planted_run(seed=1, n=6000, count=0, dips=False)
    quiet = what_happened(calm.series, analyze_run(calm.series))
    assert not any(met(quiet | {"knn_end": quiet["knn_untrained"]}, Objective()).values())


def test_a_run_that_ends_below_its_untrained_encoder_is_dead() -> None:
    """By the median of its last evaluations: a last one that is lucky saves nothing."""
    planted = planted_run(seed=0, dips=False)
    curve = planted.series.evals["knn_top1"]
    start = float(curve.value[0])
    curve.value[-20:] = start - 0.05
    curve.value[-1] = start + 0.2
    row = what_happened(planted.series, analyze_run(planted.series))
    assert (row["alive"], row["knn_end"]) == ("dead", pytest.approx(start - 0.05))
    del planted.series.evals["knn_top1"]
    assert what_happened(planted.series, analyze_run(planted.series))["alive"] == "not judged"


def test_a_run_that_a_nonfinite_loss_ends_is_dead() -> None:
    """However high its accuracy was: the studies judge it so too."""
    planted = planted_run(seed=0, dips=False)
    analysis = analyze_run(planted.series)
    row = what_happened(planted.series, analysis, ended_early=True)
    assert row["alive"] == "dead"
    assert not met(row | {"knn_end": row["knn_untrained"] + 0.2}, Objective())["accuracy"]
    finished = what_happened(planted.series, analysis)
    assert finished["alive"] == "yes"
    assert met(finished | {"knn_end": finished["knn_untrained"] + 0.2}, Objective())["accuracy"]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, ""),
        ({"knn_end": "0.79"}, "accuracy"),
        ({"first_layer_spikes": "20", "first_layer_chance": "12"}, "first layer"),  # (20 - 12) / 2 = 4 per 3,000
        # 6.75 per 3,000 beyond chance, but by chance 25 or more come with p = 0.02
        ({"first_layer_spikes": "25", "first_layer_chance": "16", "iterations": "4000"}, "first layer"),
        ({"recovered": "0"}, "dips"),
    ],
)
def test_the_objective_is_met_part_by_part(change: dict[str, str], missed: str) -> None:
    row = {"knn_untrained": "0.7", "knn_end": "0.81", "first_layer_spikes": "23", "first_layer_chance": "1.5"}
    row |= {"iterations": "6000", "recovered": "1"} | change
    assert [part for part, yes in met(row, Objective()).items() if not yes] == [missed][: bool(missed)]


def run_command(path: Path, *args: str) -> Result:
    where = ["--runs-dir", str(path.parent / "runs"), "-o", str(path.parent / "table")]
    return CliRunner().invoke(cli, ["study", "--search", str(path), *where, *args])


@pytest.mark.slow
def test_a_search_continues_from_its_table(tmp_path: Path) -> None:
    path, folder = search_file(tmp_path, SPACE, settings=2), tmp_path / "table"
    planned = run_command(path, "--dry-run")
    assert planned.output.count("  try  drawn") == 2
    assert not folder.exists()
    first = run_command(path)
    assert first.exit_code == 0, first.output
    rows = read_table(folder)
    settings = load_search(path).settings
    assert [row["run"] for row in rows] == [setting.name for setting in settings]
    for row, setting in zip(rows, settings, strict=True):
        with open_run(tmp_path / "runs" / setting.name) as reader:
            knn = reader.evals()["knn_top1"]["value"]
            assert row["cpu_capability"] == reader.meta["cpu_capability"]
        assert float(row["knn_untrained"]) == pytest.approx(knn[0], rel=1e-3)
        assert float(row["knn_end"]) == pytest.approx(np.median(knn), rel=1e-3)
        assert float(row["lr"]) == pytest.approx(setting.values["lr"])
        assert row["iterations"] == "12"
    shutil.rmtree(tmp_path / "runs")
    search_file(tmp_path, SPACE, settings=3)
    again = run_command(path)
    assert again.exit_code == 0, again.output
    assert "3 settings, 2 in" in again.output
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [load_search(path).settings[2].name]
    assert read_table(folder)[:2] == rows
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# Regimes\n")
    assert "3 of 3 settings tried, 36 iterations" in page


def test_the_series_of_a_lead_are_kept_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained in this process; the test above trains in workers."""

    def run_jobs(jobs: list[Job], root: Path, workers: int, *, ended: Callable[[str, str], None], **_: object) -> None:
        for name, config in jobs:
            ended(name, attempt(config, root, name))

    monkeypatch.setattr("stabilitylab.studies.local.run_jobs", run_jobs)
    lead = "[[lead]]\nlr = 0.01\nseed = 1\n[[lead]]\nlr = 1e30\nseed = 1\n"
    path = search_file(tmp_path, SPACE + lead, settings=0)
    found = run_command(path)
    assert found.exit_code == 0, found.output
    setting, exploding = load_search(path).settings
    ended = {row["run"]: (row["stopped"], row["alive"]) for row in read_table(tmp_path / "table")}
    assert ended == {setting.name: ("", ended[setting.name][1]), exploding.name: ("stopped", "dead")}
    table = duckdb.read_parquet(str(tmp_path / "table" / "series" / f"{setting.name}.parquet")).df()
    assert table["iteration"].tolist() == list(range(13))  # 12 updates, and the evaluation after them
    with open_run(tmp_path / "runs" / setting.name) as reader:
        recorded = reader.layer_series("grad_norm")
        for layer in reader.layers():
            np.testing.assert_array_equal(table[layer.name][:12], recorded[layer.layer_id][1].astype(np.float32))
        curve = reader.evals()["knn_top1"]
        told = table.dropna(subset="knn_top1")
        assert told["iteration"].tolist() == curve["iteration"].tolist()
        np.testing.assert_allclose(told["knn_top1"], curve["value"], rtol=1e-6)
        np.testing.assert_allclose(table["loss"][:12], reader.table("iterations")["loss"], rtol=1e-6)


def test_collect_and_time_that_is_up_train_nothing(tmp_path: Path) -> None:
    path = search_file(tmp_path, SPACE, settings=1)
    for args in (["--collect"], ["--hours", "1e-9"]):
        found = run_command(path, *args)
        assert found.exit_code == 0, found.output
        assert read_table(tmp_path / "table") == []
        assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["study", "--search", "x.toml", "--slurm", "main"], "--search allows only --jobs"),
        (["study", "x.toml", "--hours", "2"], "--hours requires --search"),
    ],
)
def test_options_that_do_not_fit_are_refused(args: list[str], message: str) -> None:
    found = CliRunner().invoke(cli, args)
    assert found.exit_code == 2 or isinstance(found.exception, ConfigError)
    assert message in found.output + str(found.exception)


def test_the_page_in_the_repository_is_what_its_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for file in sorted(Path("experiments/search").glob("*.toml")):
        folder = Path("reports/search") / file.stem
        rows = read_table(folder)
        assert rows
        assert (folder / "README.md").read_text(encoding="utf-8") == search_page(load_search(file), rows)
        with (folder / "settings.csv").open(encoding="utf-8") as table:
            assert len(list(csv.DictReader(table))) == len(rows)
