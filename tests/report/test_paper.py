"""Figures and tables for papers: their content; nothing is lost, cut off or shown only by colour."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import cast

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from stabilitylab.comparison.results import Comparison, Effect
from stabilitylab.errors import NoDataError
from stabilitylab.report.paper import FIGURES, WIDTHS
from stabilitylab.report.paper.figures import KINDS, STYLE, render
from stabilitylab.report.paper.numbers import numbers_latex
from stabilitylab.run.analysed import AnalysedRun
from tests.report.pages import compared_runs, comparison_of, odd_runs, planted_episodes, renamed, report_run
from tests.synthetic import planted_run

EVIL = "$x_1^2$ & \\input{/etc/passwd} 100% <b>#1</b>\n~{}"


@pytest.fixture(scope="module")
def one() -> list[AnalysedRun]:
    planted = planted_run(seed=0)
    return [report_run(planted.series, episodes=planted_episodes(planted))]


@pytest.fixture(scope="module")
def many() -> list[AnalysedRun]:
    return compared_runs()


def subject(kind: str, one: list[AnalysedRun], many: list[AnalysedRun]) -> tuple[list[AnalysedRun], Comparison | None]:
    return (many, comparison_of(many)) if kind in ("knn", "compare", "lr-sensitivity") else (one, None)


def drawn(kind: str, runs: list[AnalysedRun], comparison: Comparison | None, width: str = "single") -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = KINDS[kind](runs, comparison, width)
        FigureCanvasAgg(figure).draw()
    return figure


def test_every_kind_that_the_command_offers_is_drawn() -> None:
    assert list(FIGURES) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_pdf_fonts_are_embedded_as_truetype(kind: str, one: list[AnalysedRun], many: list[AnalysedRun]) -> None:
    pdf = render(kind, *subject(kind, one, many), width="single", form="pdf")
    assert len(re.findall(rb"/Type /FontDescriptor\b", pdf)) == len(re.findall(rb"/FontFile2\b", pdf)) > 0
    assert b"/Type3" not in pdf
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", pdf)
    assert box is not None
    assert float(box[1]) == pytest.approx(72 * 3.25)


def test_a_font_that_is_not_embedded_would_be_seen(one: list[AnalysedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STYLE, "pdf.fonttype", 3)
    assert b"/Type3" in render("spikes", one, None, width="single", form="pdf")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_inside_and_large_enough(
    kind: str, width: str, one: list[AnalysedRun], many: list[AnalysedRun]
) -> None:
    figure = drawn(kind, *subject(kind, one, many), width)
    renderer = cast(RendererAgg, FigureCanvasAgg(figure).get_renderer())
    edges = figure.bbox.padded(1)
    seen = 0
    for text in figure.findobj(Text):
        if not isinstance(text, Text) or not text.get_text() or not text.get_visible():
            continue
        extent = text.get_window_extent(renderer)
        # Ticks beyond an axis' limits keep a text that is not drawn.
        if not text.get_in_layout() or extent.width == 0 or _is_hidden_tick(text, figure):
            continue
        assert text.get_fontsize() >= 5.5, text.get_text()
        assert edges.x0 <= extent.x0, text.get_text()
        assert extent.x1 <= edges.x1, text.get_text()
        assert edges.y0 <= extent.y0, text.get_text()
        assert extent.y1 <= edges.y1, text.get_text()
        seen += 1
    assert seen > 5


def _is_hidden_tick(text: Text, figure: Figure) -> bool:
    shown = set()
    known = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                labels = {id(tick.label1), id(tick.label2)}
                known |= labels
                if low <= tick.get_loc() <= high:
                    shown |= labels
    return id(text) in known and id(text) not in shown


@pytest.mark.parametrize("kind", ["knn", "spikes", "lr-sensitivity"])
def test_lines_are_told_apart_without_colour(kind: str, one: list[AnalysedRun], many: list[AnalysedRun]) -> None:
    figure = drawn(kind, *subject(kind, one, many))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    styles = [line.get_linestyle() for line in legend.get_lines()]
    assert len(styles) == len(set(map(str, styles))) >= 2


def test_spikes_stand_where_they_were_planted() -> None:
    planted = planted_run(seed=3)
    figure = drawn("spikes", [report_run(planted.series)], None)
    marks = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "None"]
    for line, layer in zip(marks, ("patch_embed", "predictor"), strict=True):
        peaks = np.asarray(line.get_xdata())
        onsets = planted.onsets[layer]
        assert len(peaks) == len(onsets)
        assert all(0 <= peak - onset < 5 for peak, onset in zip(peaks, onsets, strict=True))


def test_a_mean_curve_is_the_mean_of_its_seeds(many: list[AnalysedRun]) -> None:
    runs = [run for run in many if run.named.base_lr == 0.1]
    figure = drawn("knn", runs, comparison_of(runs))
    thick = [line for line in figure.axes[0].get_lines() if line.get_linewidth() == 1.4]
    for line, mitigation in zip(thick, ("none", "frozen-patch"), strict=True):
        curves = [run.series.evals["knn_top1"].value for run in runs if run.named.mitigation == mitigation]
        assert len(curves) == 3
        np.testing.assert_allclose(np.asarray(line.get_ydata()), 100 * np.mean(curves, axis=0))


@pytest.mark.parametrize("form", ["pdf", "svg", "png"])
def test_the_same_runs_give_the_same_file(form: str, one: list[AnalysedRun]) -> None:
    first, again = (render("lag", one, None, width="double", form=form) for _ in range(2))
    assert first == again
    if form == "svg":
        assert ET.fromstring(first).get("width") == "486pt"
    if form == "png":
        assert Image.open(io.BytesIO(first)).width == 2025


def test_hostile_names_are_drawn_as_text_and_cut_to_one_line(one: list[AnalysedRun]) -> None:
    layer = replace(one[0].series.layers[0], name=EVIL)
    series = replace(renamed(one[0].series, EVIL), layers=(layer, *one[0].series.layers[1:]))
    run = report_run(series)
    figure = drawn("spikes", [run, run], None)
    texts = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert "$x_1^2$ & \\input{/etc/passw\u2026" in texts
    assert not any("\n" in text for text in texts)
    table = numbers_latex("spikes", [run], None)
    assert "\\$x\\_1\\textasciicircum{}2\\$ \\& \\textbackslash{}input\\{/etc/passwd\\} 100\\% " in table
    assert len([line for line in table.splitlines() if line.endswith("\\\\")]) == 2


@pytest.mark.parametrize(
    ("kind", "odd", "message"),
    [
        ("knn", "no kNN", "run grads has no kNN accuracy; train with --set eval.knn_every=10"),
        ("knn", "some NaN", "run some has no kNN accuracy; train with --set eval.knn_every=10"),
        ("spikes", "no gradients", "run curve has no recorded gradients; train with --log-grads"),
        ("heatmap", "frozen", "run frozen has no recorded gradients; train with --log-grads"),
        ("lag", "empty", "run empty has no lag to draw: no layer has a gradient"),
        ("compare", "no gradients", "a comparison needs at least two runs"),
        (
            "lr-sensitivity",
            "no gradients",
            "needs runs with the same metric at two base learning rates",
        ),
    ],
)
def test_what_cannot_be_drawn_says_why(kind: str, odd: str, message: str) -> None:
    with pytest.raises(NoDataError, match=re.escape(message)):
        render(kind, [odd_runs()[odd]], None, width="single", form="pdf")


def test_the_latex_table_of_a_comparison_has_the_intervals() -> None:
    effect = Effect(
        "frozen-patch", "none", "final_knn", 0.85, 0.871, 0.021, (0.004, 0.038), 0.0625, 0.0625, 5, "few", "better"
    )
    table = numbers_latex("compare", [], Comparison((), (effect,), "none"))
    row = (
        "frozen-patch & final kNN top-1 & 85.0 \\% & 87.1 \\% & $+$2.1 & $+$0.4 to $+$3.8 & 0.062 & 5 & better &  \\\\"
    )
    assert row in table
    assert "% frozen-patch: few" in table
    assert table.count("\\begin{tabular}") == table.count("\\end{tabular}") == 1


def test_the_latex_table_of_lags_has_the_planted_lag(one: list[AnalysedRun]) -> None:
    table = numbers_latex("lag", one, None)
    assert "predictor & 4 & 20 & 20 to 20 & 12 \\\\" in table
