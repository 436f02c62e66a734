"""Tokens or images along the top of the charts of a run that counts them, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stabilitylab.report.charts import ITERATION, heatmap, iteration_axis
from stabilitylab.report.html.page import render_report
from stabilitylab.report.paper.figures import render
from stabilitylab.run.series import load_series
from stabilitylab.store.reader import open_run
from stabilitylab.store.writer import LayerRow, RunWriter
from tests.report.pages import report_run
from tests.synthetic import planted_run


def stored(folder: Path, **columns: object) -> Path:
    with RunWriter.create(folder / "r", config={}, meta={}, layers=[LayerRow(0, "a", 0, 1)]) as writer:
        iteration = np.arange(10)
        writer.append("iterations", {"iteration": iteration, "images": columns.get("images", np.full(10, None))})
        for name, values in columns.items():
            if name != "images":
                writer.append("scalars", {"iteration": iteration, "name": [name] * 10, "value": values})
    return folder / "r"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"tokens": 384.0 * np.arange(1, 11)}, "tokens"),
        ({"consumed_samples": 32.0 * np.arange(10)}, "images"),
        ({"images": 256 * np.arange(10)}, "images"),
        ({"tokens": np.full(10, 384.0)}, None),  # per step, not so far
        ({"tokens": np.arange(10.0)[::-1]}, None),
        ({"other": np.arange(10.0)}, None),
    ],
    ids=str,
)
def test_what_a_run_counts(columns: dict[str, np.ndarray], expected: str | None, tmp_path: Path) -> None:
    with open_run(stored(tmp_path, **columns)) as reader:
        found = load_series(reader).consumed
    assert (found and found[0]) == expected
    if found is not None:
        np.testing.assert_array_equal(found[2], next(iter(columns.values())))


def test_the_second_scale_is_in_step_with_the_first(tmp_path: Path) -> None:
    series = replace(planted_run(seed=1).series, consumed=("tokens", np.arange(2000), 5_000 * np.arange(1, 2001)))
    axis = iteration_axis([series])
    assert axis.beside is not None
    title, ticks = axis.beside
    assert title == "tokens"
    assert [label for _, label in ticks] == ["2M", "4M", "6M", "8M", "10M"]
    assert [at for at, _ in ticks] == [2e6 / 5000 - 1, 4e6 / 5000 - 1, 6e6 / 5000 - 1, 8e6 / 5000 - 1, 1999]
    assert iteration_axis([series, series]) == ITERATION
    run = report_run(series)
    assert heatmap(run).x == axis
    page = render_report([run], None)
    assert "10,000,000" in page
    assert page.count('"xaxis2"') >= 3
    assert b"tokens" in render("spikes", [run], None, width="single", form="svg")
    plain = report_run(planted_run(seed=1).series)
    assert '"xaxis2": {' not in render_report([plain], None).split('id="charts"')[1]
    assert b"tokens" not in render("spikes", [plain], None, width="single", form="svg")
