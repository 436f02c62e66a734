"""A comparison as an HTML page, Markdown or LaTeX: the effects with intervals, then the runs."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from stabilitylab.comparison.results import Comparison, RunSummary
from stabilitylab.report.charts import several_rates
from stabilitylab.report.definitions import definitions
from stabilitylab.report.html.states import pooled_rows
from stabilitylab.report.html.tables import effect_rows, rate_rows, run_rows, run_titles
from stabilitylab.report.metric import MetricText
from stabilitylab.report.paper import latex

_EFFECT_TITLES = ("measure", "without", "with", "difference", "95% interval", "p (Holm)", "seeds", "verdict", "needed")


Table = tuple[str, tuple[str, ...], list[tuple[str, ...]], str]
"""Caption, titles, rows, and one alignment letter per column."""


def comparison_tables(comparison: Comparison, by: str = "mitigation") -> list[Table]:
    """The non-empty tables. ``by`` names what distinguishes the groups."""
    metric = MetricText.of_comparison(comparison)
    effects: list[tuple[str, ...]] = [
        (row["mitigation"], row["metric"], row["baseline"], row["mitigated"], row["difference"], row["interval"],
         row["p"], row["seeds"], row["verdict"], row["needed"])
        for row in effect_rows(comparison)
    ]  # fmt: skip
    runs: list[tuple[str, ...]] = [
        tuple(row.values()) for row in run_rows(comparison.runs, [""] * len(comparison.runs), metric)
    ]
    titles = ("run", by, "base lr", "seed", *run_titles(metric), "status")
    tables: list[Table] = [
        (
            f"Effect of each {by} compared with {comparison.baseline}, over runs paired by seed; needed: seeds for a "
            "power of 0.8 at the observed difference",
            (by, *_EFFECT_TITLES), effects, "llrrrrrrlr",
        ),
        rates_table(comparison.runs, metric),
        losses_table(comparison, by),
        lags_table(comparison, by),
        ("The runs", titles, runs, "llrrrrrrl"),
    ]  # fmt: skip
    return [table for table in tables if table[2]]


def losses_table(comparison: Comparison, by: str = "mitigation") -> Table:
    """Sensitivity to the learning rate as one number per group, with its interval over seeds."""
    metric = MetricText.of_comparison(comparison)
    rows: list[tuple[str, ...]] = [
        (
            row.mitigation,
            metric.number(row.mean),
            f"{metric.number(row.ci95[0])} to {metric.number(row.ci95[1])}" if row.ci95 else "",
            str(row.num_seeds),
        )
        for row in comparison.lr_sensitivity
    ]
    points = ", in points" if metric.metric.share else ""
    caption = f"Final {metric.short} lost relative to the best learning rate{points}, mean over learning rates"
    return caption, (by, "points lost" if points else "lost", "95% interval", "seeds"), rows, "lrrr"


def lags_table(comparison: Comparison, by: str = "mitigation") -> Table:
    """The lag of each group, pooled over its runs."""
    rows: list[tuple[str, ...]] = [
        (row["group"], row["source"], row["target"], row["lag"], row["interval"], row["p"], row["matches"],
         row["verdict"])
        for row in pooled_rows(comparison.lags)
    ]  # fmt: skip
    titles = (by, "from", "to", "median lag", "95% interval", "p", "matched spikes", "verdict")
    return "Lag pooled over the runs of a group, interval by resampling runs", titles, rows, "lllrrrll"


def rates_table(summaries: Sequence[RunSummary], metric: MetricText) -> Table:
    """Final value by mitigation and learning rate; has no rows if there are fewer than two rates."""
    rates, rows = rate_rows(summaries, metric) if several_rates(summaries, metric) else ([], [])
    titles = (f"final {metric.title}", *(f"lr {rate}" for rate in rates))
    caption = "Sensitivity to the base learning rate: mean, lowest and highest seed"
    return caption, titles, [(name, *cells) for name, cells in rows], "l" + "r" * len(rates)


def comparison_markdown(comparison: Comparison, by: str = "mitigation") -> str:
    """Tables in GitHub-flavoured Markdown, followed by the remarks."""
    parts = []
    for caption, titles, rows, align in comparison_tables(comparison, by):
        lines = [
            f"**{_escape(caption)}**",
            "",
            _line(titles),
            "|" + "|".join("---:" if a == "r" else "---" for a in align) + "|",
        ]
        parts.append("\n".join([*lines, *(_line(row) for row in rows)]))
    parts += [f"- {_escape(remark)}" for remark in remarks(comparison)]
    return "\n\n".join(parts) + "\n"


def comparison_latex(comparison: Comparison, by: str = "mitigation") -> str:
    """Floating tables, preceded by the remarks as comments."""
    head = [f"% {' '.join(remark.split())}" for remark in remarks(comparison)]
    head.insert(0, "% \\usepackage{booktabs}")
    tables = [
        latex.table(titles, rows, align=align, caption=caption, label=f"tab:stablab-{number}")
        for number, (caption, titles, rows, align) in enumerate(comparison_tables(comparison, by), 1)
    ]
    return "\n".join([*head, "", *tables])


def comparison_html(comparison: Comparison, by: str = "mitigation") -> str:
    """A complete page without scripts: the tables, the remarks and the definitions of the terms."""
    css = (Path(__file__).parent / "html" / "templates" / "report.css").read_text(encoding="utf-8")
    parts = []
    for caption, titles, rows, align in comparison_tables(comparison, by):
        head = "".join(_cell("th", title, a) for title, a in zip(titles, align, strict=True))
        body = "".join(
            "<tr>" + "".join(_cell("td", cell, a) for cell, a in zip(row, align, strict=True)) + "</tr>\n"
            for row in rows
        )
        name = html.escape(caption)
        parts.append(
            f'<section><h2>{name}</h2>\n<div class="scroll" tabindex="0" role="region" aria-label="{name}">\n'
            f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div></section>\n"
        )
    parts += [f'<p class="note">{html.escape(remark)}</p>\n' for remark in remarks(comparison)]
    words = "".join(
        f"<dt>{html.escape(word)}</dt><dd>{html.escape(meaning)}</dd>\n"
        for word, meaning in definitions(comparison.metric)
        if word in ("effect", "spike", "dip", "kNN top-1")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>StabilityLab: comparison</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f'<p class="brand">StabilityLab</p>\n<h1>{len(comparison.runs)} runs compared</h1>\n{"".join(parts)}'
        f'<section><h2>How each number is defined</h2><dl class="definitions">\n{words}</dl></section>\n'
        "</main>\n</body>\n</html>\n"
    )


def remarks(comparison: Comparison) -> list[str]:
    """The distinct notes and warnings; a warning lists the mitigations that it applies to."""
    warned: dict[str, list[str]] = {}
    for effect in comparison.effects:
        names = warned.setdefault(effect.warning, []) if effect.warning else []
        if effect.mitigation not in names:
            names.append(effect.mitigation)
    return [*(f"{', '.join(names)}: {warning}" for warning, names in warned.items()), *comparison.notes]


def _cell(tag: str, text: str, align: str) -> str:
    kind = ' class="num"' if align == "r" else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escape, cells)) + " |"


def _escape(text: str) -> str:
    """Escape text for a Markdown table cell: no markup, no line break, no column separator."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))
