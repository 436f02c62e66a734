"""The page without a browser: its text, its escaping, and that it fetches nothing."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stabilitylab.analysis.results import Dip, FalseAlarms, LayerSeries, RunSeries, Spike
from stabilitylab.report.downsample import heat_rows, min_max
from stabilitylab.report.html.page import render_report
from stabilitylab.report.html.tables import config_differences
from stabilitylab.report.writing import write_atomically
from tests.report.pages import compared_runs, comparison_of, odd_runs, planted_page, report_run
from tests.synthetic import layer_series, noise, plant, planted_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page() -> str:
    return planted_page()


def own_part(page: str) -> str:
    """The page without plotly's own code."""
    return page.split('<script type="text/plain" id="plotly">')[0]


def charts(page: str) -> dict[str, dict[str, object]]:
    found = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    parsed: dict[str, dict[str, object]] = json.loads(found[1])
    return parsed


def test_it_says_what_was_planted(page: str) -> None:
    assert "Lag from patch_embed to predictor: 20 iterations" in page
    assert "first leads" in page
    assert "Unstable without a mitigation; frozen-patch does not end higher" in page
    assert "1 seed: no interval and no p-value" in page
    assert {"knn", "loss", "norms0", "heat0", "lag0", "depth0", "norms1", "heat1"} <= charts(page).keys()


def test_the_first_screen_answers_four_questions(page: str) -> None:
    shown = re.search(r'<dl class="answers">(.*?)</dl>', page, re.DOTALL)
    assert shown is not None
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown[1]))
    assert "Was it unstable? planted: Yes: 36 spikes (by chance: 0.9), 4 accuracy dips." in said
    assert "calm: No: 0 spikes" in said
    assert "patch_embed leads 12 of 12 episodes of several layers; patch_embed to predictor: 20 iterations" in said
    assert "Deepest dip" in said
    assert "What helps? frozen-patch: -0.2 points of final kNN, 1 seed: too few seeds." in said


def first_answer(page: str) -> str:
    found = re.search(r"Was it unstable\?</dt>\s*<dd>(.*?)</dd>", page, re.DOTALL)
    assert found is not None
    return re.sub(r"\s+", " ", found[1]).strip()


@pytest.mark.parametrize(
    ("spikes", "dips", "expected", "said"),
    [
        (1, 0, 1.1, "No: 0 accuracy dips; 1 spike, not significantly more than the 1.1 expected by chance."),
        (1, 2, 1.1, "Yes: 2 accuracy dips; 1 spike, not significantly more than the 1.1 expected by chance."),
        (
            4,
            0,
            1.1,
            "No: 0 accuracy dips; 4 spikes, not significantly more than the 1.1 expected by chance.",
        ),  # Poisson: p = 0.026
        (5, 1, 1.1, "Yes: 5 spikes (by chance: 1.1), 1 accuracy dip."),  # p = 0.0054
        (0, 1, 1.1, "Yes: 0 spikes (by chance: 1.1), 1 accuracy dip."),
    ],
)
def test_spikes_count_as_instability_only_beyond_chance(spikes: int, dips: int, expected: float, said: str) -> None:
    quiet = planted_run(seed=1, count=0, dips=False, layers=("a", "b"))
    run = report_run(quiet.series)
    chance = math.exp(-expected) * sum(expected**k / math.factorial(k) for k in range(spikes))
    found = replace(
        run.analysis,
        spikes=tuple(Spike("a", 400 * i + 300, 400 * i + 300, 400 * i + 301, 3.0, 9.0) for i in range(spikes)),
        dips=tuple(Dip(300 * i + 300, 300 * i + 310, 300 * i + 320, 0.1, 9.0, 1.0) for i in range(dips)),
        false_alarms=FalseAlarms(1, 1.0, expected, 1 - chance),
    )
    page = render_report([replace(run, analysis=found)], None)
    assert first_answer(page) == said
    assert ("No instability" in page) == said.startswith("No")


def test_the_first_screen_stays_short_where_many_arms_are_compared() -> None:
    runs = compared_runs(seeds=2, rates=(0.05, 0.07, 0.1))
    page = render_report(runs, comparison_of(runs))
    shown = re.search(r'<dl class="answers">(.*?)</dl>', page, re.DOTALL)
    assert shown is not None
    said = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown[1]))
    assert "Was it unstable? 2 of 12 runs: 30 spikes" in said
    assert "Unstable in 2 of 6 runs without a mitigation; no difference shown with frozen-patch: " in page
    assert (
        "Fewest with no mitigation, lr 0.05 (0 of 2), no mitigation, lr 0.07 (0 of 2), "
        "frozen-patch, lr 0.05 (0 of 2) and 2 more." in said
    )
    assert said.count("The best, ") == said.count("The worst, ") == 1
    assert len(said) < 900


def test_episodes_are_outlined_and_numbered(page: str) -> None:
    heat: Any = charts(page)["heat0"]
    planted = planted_run(seed=0, layers=("patch_embed", "blocks.0", "predictor"))
    starts, ends = planted.onsets["patch_embed"], planted.onsets["predictor"]
    outlines = [(s["x0"], s["x1"], s["y0"], s["y1"]) for s in heat["layout"]["shapes"]]
    assert outlines == [(a - 1, b + 5, -0.5, 2.5) for a, b in zip(starts, ends, strict=True)]
    assert [label["text"] for label in heat["layout"]["annotations"]] == [str(n) for n in range(1, 13)]
    assert '<td>patch_embed</td><td class="wide">blocks.0 +10, predictor +20</td>' in page


def test_many_spikes_are_all_marked_with_one_line() -> None:
    layer = layer_series(noise(4000, seed=0))
    spikes = tuple(Spike(layer.name, onset, onset, onset, 5.0, 9.0) for onset in range(100, 4000, 10))
    run = report_run(RunSeries("many", 4000, (layer,)))
    run = replace(run, analysis=replace(run.analysis, spikes=spikes))
    shown: Any = charts(render_report([run], None))["heat0"]
    (ticks,) = shown["layout"]["shapes"]
    assert re.findall(r"M(\d+),-0.3L(\d+),0.3", ticks["path"]) == [(str(x), str(x)) for x in range(100, 4000, 10)]


def test_each_episode_is_told_in_words_with_what_to_try_next(page: str) -> None:
    planted = planted_run(seed=0, layers=("patch_embed", "blocks.0", "predictor"))
    for number, (start, end) in enumerate(zip(*list(planted.onsets.values())[::2], strict=True), 1):
        assert f"Episode {number}, iterations {start} to {end + 4}." in page
    assert page.count('<span class="next">') == 12


def test_seeds_of_an_arm_are_drawn_alike_and_arms_are_told_apart_without_colour() -> None:
    runs = compared_runs()
    shown: Any = charts(render_report(runs, comparison_of(runs)))
    lines = [trace for trace in shown["knn"]["data"] if trace["mode"] == "lines"]
    by_arm: dict[str, set[tuple[str, str]]] = {}
    for trace in lines:
        by_arm.setdefault(trace["name"], set()).add((trace["line"]["color"], trace["line"]["dash"]))
    assert by_arm.keys() == {f"{m}, lr {lr}" for m in ("no mitigation", "frozen-patch") for lr in (0.05, 0.1)}
    assert all(len(styles) == 1 for styles in by_arm.values())
    assert len({dash for styles in by_arm.values() for _, dash in styles}) == 4
    assert [trace["showlegend"] for trace in lines].count(True) == 4
    assert sorted(trace["line"]["width"] for trace in lines) == [1.1] * 12 + [2.6] * 4  # seeds; means


def test_the_legend_of_many_groups_keeps_clear_of_the_mode_bar() -> None:
    few, many = (compared_runs(seeds=1, rates=rates) for rates in ((0.1,), (0.05, 0.07, 0.1)))
    above, below = (charts(render_report(r, comparison_of(r)))["knn"]["layout"]["legend"] for r in (few, many))  # type: ignore[index]
    assert (above["yanchor"], above["y"]) == ("bottom", 1.02)
    assert (below["yref"], below["y"], below["yanchor"]) == ("container", 0, "bottom")


def test_sensitivity_to_the_learning_rate_has_every_run_and_the_means() -> None:
    runs = compared_runs()
    page = render_report(runs, comparison_of(runs))
    chart: Any = charts(page)["rates"]
    final = {run.series.run: 100 * run.series.evals["knn_top1"].value[-1] for run in runs}
    dots = [trace for trace in chart["data"] if trace["mode"] == "markers"]
    assert sorted(y for trace in dots for y in trace["y"]) == pytest.approx(sorted(final.values()), abs=1e-3)
    for name, label in (("learned", "no mitigation"), ("frozen-patch", "frozen-patch")):
        means = next(trace for trace in chart["data"] if trace["mode"] == "lines" and trace["name"] == label)
        wanted = [np.mean([final[f"{name}_{lr}_{seed}"] for seed in range(3)]) for lr in (0.05, 0.1)]
        assert means["y"] == pytest.approx(wanted, abs=1e-3)
    assert chart["layout"]["xaxis"]["ticktext"] == ["0.05", "0.1"]
    low, high = (f([final[f"learned_0.1_{seed}"] for seed in range(3)]) for f in (min, max))
    assert f"({low:.1f} to {high:.1f}, n = 3)" in page


def test_more_keys_than_runs_lie_down_and_more_runs_than_keys_stand_up() -> None:
    configs = [(f"run_{n}", {"train": {"seed": n}, "optim": {"base_lr": 0.1, "name": "adamw"}}) for n in range(3)]
    assert config_differences(configs) == (
        ["run", "train.seed"], [("run_0", ["0"]), ("run_1", ["1"]), ("run_2", ["2"])]
    )  # fmt: skip
    assert config_differences(configs[:1]) == (
        ["key", "run_0"], [("train.seed", ["0"]), ("optim.base_lr", ["0.1"]), ("optim.name", ["adamw"])]
    )  # fmt: skip


def test_names_cannot_become_markup() -> None:
    page = own_part(planted_page(name=EVIL, layer=EVIL))
    assert "<img src=x" not in page
    assert "alert(1)</script><img" not in page
    assert "<script>alert" not in page


def test_it_fetches_nothing(page: str) -> None:
    own = own_part(page)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "default-src 'none'" in own


@pytest.mark.parametrize("kind", sorted(odd_runs()))
def test_runs_that_lack_something_still_have_a_page(kind: str) -> None:
    page = render_report([odd_runs()[kind]], None)
    assert "</html>" in page
    charts(page)
    said = re.sub(r"<style>.*?</style>", " ", own_part(page).split('id="charts"')[0], flags=re.DOTALL)
    assert re.findall(r"\bnan\b|\binf\b|\bNone\b", said) == []


def test_a_report_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.html"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("n", [10, 3600, 3601, 100_000])
def test_downsampling_keeps_every_planted_spike_of_one_iteration(n: int) -> None:
    rng = np.random.default_rng(n)
    y = np.exp(noise(n, seed=n))
    spikes = 2 * np.unique(rng.integers(1, n // 2 - 1, min(n // 5, 600)))  # apart by 2 at least: several share a bin
    y[spikes] *= rng.uniform(5, 50, len(spikes))
    x, kept = min_max(np.arange(n), y, bins=1200)
    assert len(x) <= 3600
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(y[x], kept)
    for spike in spikes:
        assert spike in x, f"the spike at {spike} is hidden"
    edges = np.linspace(0, n, 1201).astype(int)
    for start, stop in pairwise(edges):
        if stop > start:
            assert {y[start:stop].max(), y[start:stop].min()} <= set(kept.tolist())


def test_a_heat_map_shows_every_planted_spike() -> None:
    """Against the definition: a cell is the largest log10 of the norm over its running median, in its block."""
    n, columns = 5003, 500
    layers = []
    for depth in range(3):
        x = plant(noise(n, seed=depth, sd=0.1), [100 * k + 7 * depth for k in range(1, 49)], 2.0, width=1)
        layers.append(layer_series(x, f"layer_{depth}", depth))
    edges, cells = heat_rows(tuple(layers), columns)
    assert cells.shape == (3, columns)
    for depth, (layer, row) in enumerate(zip(layers, cells, strict=True)):
        padded = np.pad(np.log10(layer.grad_norm), 100, mode="symmetric")
        relative = [np.log10(layer.grad_norm[i]) - np.median(padded[i : i + 201]) for i in range(n)]
        for column, (start, stop) in enumerate(pairwise(edges)):
            inside = [relative[i] for i in range(n) if start <= i < stop]
            assert row[column] == pytest.approx(max(inside), abs=1e-5)
        for k in range(1, 49):
            column = int(np.searchsorted(edges, 100 * k + 7 * depth, side="right")) - 1
            assert row[column] > 0.7


def test_a_layer_that_begins_late_has_no_cells_before() -> None:
    whole = LayerSeries("whole", 0, np.arange(100), np.ones(100))
    late = LayerSeries("late", 1, np.arange(50, 100), np.ones(50))
    _, cells = heat_rows((whole, late), 10)
    assert np.isnan(cells[1, :5]).all()
    assert not np.isnan(cells[0]).any()
    assert not np.isnan(cells[1, 5:]).any()


def test_a_value_that_is_not_finite_breaks_the_line() -> None:
    y = np.ones(50_000)
    y[777] = np.inf
    x, kept = min_max(np.arange(50_000), y)
    assert 777 in x
    assert not np.isfinite(kept[list(x).index(777)])
