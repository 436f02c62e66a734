"""A comparison as a page, Markdown and LaTeX: the same numbers, each escaped in its own way."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from stabilitylab.comparison.results import Comparison, Effect, LrSensitivity
from stabilitylab.report.comparison import comparison_html, comparison_latex, comparison_markdown, comparison_tables
from tests.report.pages import compared_runs, comparison_of

EVIL = "a|b <script>x</script> `c` [l](javascript:1) $m$\n**d**"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return comparison_of(compared_runs())


def cells(comparison: Comparison) -> list[str]:
    return [cell for _, _, rows, _ in comparison_tables(comparison) for row in rows for cell in row if cell]


def test_every_number_is_in_every_form(comparison: Comparison) -> None:
    assert len(cells(comparison)) > 100
    page, markdown, tex = comparison_html(comparison), comparison_markdown(comparison), comparison_latex(comparison)
    plain = html.unescape(re.sub(r"<[^>]+>", " ", page))
    unescaped = re.sub(r"\\(.)", r"\1", markdown)
    untexed = tex.replace("\\%", "%").replace("\\_", "_").replace("$+$", "+").replace("$-$", "-")
    for cell in cells(comparison):
        assert cell in plain
        assert cell in unescaped
        assert cell in untexed
    for remark in ("3 seeds: no p below 0.05 is possible",):
        assert remark in plain
        assert remark in unescaped
        assert remark in untexed


def test_the_effect_is_written_with_its_interval() -> None:
    effect = Effect(
        "frozen-patch",
        "none",
        "final_knn",
        0.85,
        0.871,
        0.021,
        (0.004, 0.038),
        0.0625,
        0.0625,
        5,
        verdict="better",
        seeds_needed=4,
    )
    comparison = Comparison((), (effect,), "none", ("a note",))
    row = "| frozen-patch | final kNN top-1 | 85.0 % | 87.1 % | +2.1 | +0.4 to +3.8 | 0.062 | 5 | better | 4 |"
    assert row in comparison_markdown(comparison)
    assert "- a note" in comparison_markdown(comparison)
    assert '<td class="num">+0.4 to +3.8</td>' in comparison_html(comparison)


def test_what_the_learning_rate_costs_is_one_number_a_group() -> None:
    row = LrSensitivity("frozen-patch", 0.031, (0.012, 0.05), 5, ((0.1, 0.9), (0.3, 0.8)))
    comparison = Comparison((), (), "none", (), (row,))
    assert "| frozen-patch | 3.1 | 1.2 to 5.0 | 5 |" in comparison_markdown(comparison)


def test_groups_other_than_mitigations_are_named(comparison: Comparison) -> None:
    assert "| method.name | measure |" in comparison_markdown(comparison, "method.name")
    assert "<th>method.name</th>" in comparison_html(comparison, "method.name")


def test_markdown_rows_have_the_columns_of_their_head(comparison: Comparison) -> None:
    evil = replace(comparison, runs=tuple(replace(run, run=EVIL) for run in comparison.runs))
    for block in comparison_markdown(evil).split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) <= 1


def test_hostile_names_are_text(comparison: Comparison) -> None:
    evil = replace(comparison, runs=tuple(replace(run, run=EVIL, mitigation=EVIL) for run in comparison.runs))
    page = comparison_html(evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in comparison_markdown(evil).replace("\\<", "")
    assert "\\$m\\$" in comparison_latex(evil)


def test_nothing_to_compare_still_is_a_document() -> None:
    nothing = Comparison((), (), "none", ("all runs have mitigation 'none': there is nothing to compare",))
    assert "nothing to compare" in comparison_html(nothing)
    assert comparison_markdown(nothing).startswith("- all runs")
    assert comparison_latex(nothing).startswith("% ")
