"""The table of claims: from committed summaries, by a command, to the letter."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from stabilitylab.cli import cli
from stabilitylab.errors import ConfigError
from stabilitylab.studies.overview import draw_overview
from stabilitylab.studies.verdicts import claims_table, find_studies

ROOT = Path(__file__).parents[2]
STUDY = """
title = "frozen"
[grid]
seed = [0, 1, 2]
base_lr = [0.1, 0.2]
mitigation = ["none", "frozen-patch"]

[[claim]]
text = "frozen | ends higher"
paper = "+1.7 points"
metric = "final_knn"
where = { base_lr = 0.2 }
treated = { mitigation = "frozen-patch" }
baseline = { mitigation = "none" }
direction = "higher"
smallest = 0.01
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Studies: one with a planted effect of 5, 6 and 7 points at 0.2 and none at 0.1, one never run."""
    (tmp_path / "studies").mkdir()
    for name in ("frozen", "never"):
        (tmp_path / "studies" / f"{name}.toml").write_text(STUDY)
    (tmp_path / "reports" / "frozen").mkdir(parents=True)
    with (tmp_path / "reports" / "frozen" / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "mitigation", "optim.base_lr", "train.seed", "final_knn", "max_dip_depth"])
        for seed in range(3):
            for lr in (0.1, 0.2):
                for mitigation in ("none", "frozen-patch"):
                    gain = 0.05 + 0.01 * seed if mitigation != "none" and lr == 0.2 else 0.0
                    writer.writerow([f"r{seed}{lr}{mitigation}", mitigation, lr, seed, 0.5 + 0.1 * seed + gain, ""])
    return tmp_path


def test_the_table_says_what_was_planted(place: Path) -> None:
    table = claims_table(find_studies(place / "studies"), place / "reports")
    assert "2 claims, 12 runs: 1 reproduced, 0 contradicted, 0 inconclusive, 0 open, 0 dead, 1 not run." in table
    half = 4.302653 * 1 / 3**0.5  # Student's, n = 3, sd 1 point
    interval = f"[{6 - half:.3g}, {6 + half:.3g}]"
    row = f"frozen \\| ends higher | +1.7 points | final_knn +6 {interval}, n = 3 | 1 | **reproduced** |"
    assert f"| [frozen](frozen/) | {row}" in table
    assert "| never | frozen \\| ends higher | +1.7 points | no value, n = 0 | 1 | **not run** |" in table


@pytest.mark.parametrize(("most", "word"), [(5, "open"), (3, "inconclusive")])
def test_a_claim_is_open_while_a_sequential_study_has_seeds_left(most: int, word: str, place: Path) -> None:
    """Without any difference at 0.1, three seeds decide nothing; the rule then asks for two more, or there are none."""
    undecided = STUDY.replace("where = { base_lr = 0.2 }", "where = { base_lr = 0.1 }")
    rule = f"[sequential]\nfirst = 3\nstep = 2\nmost = {most}\n\n[grid]\n"
    (place / "studies" / "frozen.toml").write_text(re.sub(r"\[grid\]\nseed = .*\n", rule, undecided))
    table = claims_table(find_studies(place / "studies"), place / "reports")
    assert f"n = 3 | 1 | **{word}** |" in table
    assert f"1 {word}, " in table
    assert ("Unfinished studies" in table) == (most > 3)
    if most > 3:
        assert "decide nothing yet: frozen (1 of 1 claims, 3 of 5 seeds)." in table


def test_a_later_study_answers_an_inconclusive_claim_on_new_seeds(place: Path) -> None:
    """The differences of the first study scatter around 1 point; those of the follow-up are 5, 6 and 7 points."""
    studies, reports = place / "studies", place / "reports"
    never = studies / "never.toml"
    first = STUDY.replace("smallest = 0.01", 'smallest = 0.01\nfollow_up = "frozen"')
    (reports / "never").mkdir()
    with (reports / "frozen" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (reports / "never" / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row, value in zip(rows, [0.5, 0.52, 0.5, 0.55, 0.5, 0.52, 0.5, 0.46, 0.5, 0.5, 0.5, 0.53], strict=True):
            writer.writerow({**row, "run": f"n{row['run']}", "final_knn": value})
    never.write_text(first)
    table = claims_table(find_studies(studies), reports)
    assert "| **inconclusive**; on new seeds **reproduced** ([frozen](frozen/)) |" in table
    tally = "1 reproduced, 0 contradicted, 1 inconclusive (1 of them decided on new seeds, 0 undecided), 0 open"
    assert f"2 claims, 24 runs: {tally}, 0 dead, 0 not run." in table
    for follow_up, reason in (
        ("nowhere", "there is no study 'nowhere' beside it"),
        ("never", "no claim of never compares the same groups by best_knn"),
    ):
        wrong = first.replace('"frozen"\n', f'"{follow_up}"\n')
        if follow_up == "never":
            (studies / "frozen.toml").write_text(wrong.replace('"final_knn"', '"best_knn"'))
            never.write_text(STUDY)
        else:
            never.write_text(wrong)
        with pytest.raises(ConfigError, match=reason):
            claims_table(find_studies(studies), reports)


def test_a_dead_group_is_named_and_what_was_learned_comes_first(place: Path) -> None:
    runs = place / "reports" / "frozen" / "runs.csv"
    with runs.open() as file:
        rows = list(csv.DictReader(file))
    with runs.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "dead"])
        writer.writeheader()
        writer.writerows(
            row | {"dead": str(row["optim.base_lr"] == "0.2" and row["mitigation"] == "none")} for row in rows
        )
    (place / "reports" / "findings.md").write_text("## What was learned\n\nRuns die.\n")
    table = claims_table(find_studies(place / "studies"), place / "reports")
    assert "2 claims, 12 runs: 0 reproduced, 0 contradicted, 0 inconclusive, 0 open, 1 dead, 1 not run." in table
    assert "n = 3 | 1 | **dead** |" in table
    assert (
        table.index("# Claims, put to the test") < table.index("Runs die.") < table.index("A claim is **reproduced**")
    )


def test_the_command_writes_checks_and_notices_a_change(place: Path) -> None:
    args = ["claims", str(place / "studies"), "--reports", str(place / "reports")]
    assert CliRunner().invoke(cli, [*args, "--check"]).exit_code == 1
    assert CliRunner().invoke(cli, args).exit_code == 0
    assert CliRunner().invoke(cli, [*args, "--check"]).exit_code == 0
    table = place / "reports" / "README.md"
    table.write_text(table.read_text().replace("reproduced", "contradicted"))
    assert CliRunner().invoke(cli, [*args, "--check"]).exit_code == 1


def test_the_table_in_the_repository_is_what_its_summaries_say() -> None:
    table = claims_table(find_studies(ROOT / "experiments" / "small"), ROOT / "reports")
    assert (ROOT / "reports" / "README.md").read_text(encoding="utf-8") == table


def test_the_overview_draws_spikes_where_no_run_has_a_dip(tmp_path: Path) -> None:
    rows = [
        {"mitigation": name, "train.seed": seed, "final_knn": "0.9", "max_dip_depth": dip, "excess_first_layer": "4.0"}
        for name, dip in (("none", "0.0"), ("frozen-patch", ""))
        for seed in (0, 1)
    ]
    draw_overview(rows, "spikes", tmp_path / "spikes.svg")
    drawn = (tmp_path / "spikes.svg").read_text()
    assert "spikes of the first layer" in drawn
    assert "deepest dip" not in drawn
    draw_overview([*rows, {**rows[0], "max_dip_depth": "0.02"}], "dips", tmp_path / "dips.svg")
    assert "deepest dip (points)" in (tmp_path / "dips.svg").read_text()
    draw_overview([{**row, "excess_first_layer": "-0.1"} for row in rows], "neither", tmp_path / "neither.svg")
    assert (tmp_path / "neither.svg").read_text().count('id="axes_') == 1


def test_the_overview_draws_every_run(place: Path) -> None:
    with (place / "reports" / "frozen" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    draw_overview(rows, "frozen", place / "overview.svg")
    drawn = (place / "overview.svg").read_text()
    assert drawn.count("<use ") >= 12  # a mark a run
    assert "optim.base_lr" in drawn


def test_the_page_sums_up_the_searches(place: Path) -> None:
    """Two settings of one search: one meets all of the objective, one is dead; a second search has one that spikes."""
    base = {"alive": "yes", "iterations": 3000, "knn_untrained": 0.6, "knn_end": 0.9, "first_layer_chance": 0.3}
    settings = {
        "one": [
            base | {"first_layer_spikes": 9, "recovered": 1},
            base | {"alive": "dead", "knn_end": 0.2, "first_layer_spikes": 0, "recovered": 0},
        ],
        "two": [base | {"iterations": 6000, "first_layer_spikes": 30, "recovered": 0}],
    }
    for name, rows in settings.items():
        (place / "reports" / "search" / name).mkdir(parents=True)
        with (place / "reports" / "search" / name / "settings.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    table = claims_table(find_studies(place / "studies"), place / "reports")
    assert "| [one](search/one/README.md) | 2 | 6,000 | 1 | 1 | 1 | 1 | 1 |" in table
    assert "| [two](search/two/README.md) | 1 | 6,000 | 0 | 1 | 1 | 0 | 0 |" in table
    assert "| **all** | 3 | 12,000 | 1 | 2 | 2 | 1 | 1 |" in table
