"""The table of all claims, built from the committed summaries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stabilitylab.comparison.claims import Verdict
from stabilitylab.comparison.decisions import LEVEL
from stabilitylab.errors import ConfigError
from stabilitylab.studies.collect import is_open, read_summary, verdicts
from stabilitylab.studies.search import Objective
from stabilitylab.studies.search_table import PER, TABLE, met, read_table
from stabilitylab.studies.study import Study, load_study

_POINTS = ("final_knn", "best_knn", "max_dip_depth")
"""Metrics that are fractions of images, shown in percentage points."""

_WORDS = ("reproduced", "contradicted", "inconclusive", "open", "dead", "not run")

_Judged = tuple[Study, Sequence[object], Sequence[Verdict]]

FINDINGS = "findings.md"
"""A file next to the summaries with the main findings, shown at the top of the page."""

SCOPE = "scope.md"
"""A file next to the summaries with the scope of the studies, shown above the rules."""

_HEAD = """# Claims, put to the test
"""

_RULES = """\
`stablab claims` rebuilds this page from the `runs.csv` files in this folder. The study files state each claim with its
metric, direction and smallest effect of interest.

A claim is **reproduced** if the interval of the difference over seeds is on the claimed side of 0 and reaches the
smallest effect of interest, **contradicted** if the interval excludes such an effect, and otherwise **inconclusive**. A
claim that there is no effect is reproduced if the interval excludes an effect of this size, and contradicted if the
whole interval is at least that large. It is **open** if it is inconclusive but its study was stopped before all seeds
of its sequential rule were used: rerun the same command to continue. A claim is **dead** if more than a fifth of the
runs of a group end below the kNN accuracy of their untrained encoder: training that does not work says nothing about
instability. A claim that stayed inconclusive may have been put to **new seeds** by a later study, which was stated
before its runs and uses none of the earlier ones; its verdict is given beside the first one.
Intervals have a level of 95%, or the stated higher level if seeds were added until the claim was decided. Differences
in accuracy and depth are in points, areas in fractions x iterations. There is no correction for the number of claims.
"""


def find_studies(folder: Path | str) -> list[Study]:
    """The studies in a folder, by name. Raises ConfigError if there is none."""
    files = sorted(Path(folder).glob("*.toml"))
    if not files:
        raise ConfigError(f"no study file (*.toml) in {folder}")
    return [load_study(path, yes=True) for path in files]


def claims_table(studies: Sequence[Study], reports: Path) -> str:
    """The page in Markdown: the findings and the scope (``findings.md`` and ``scope.md`` in ``reports``, if they
    exist), the rules, then every claim of ``studies``, judged from ``reports/<study>/runs.csv``."""
    summaries = [(study, read_summary(reports / study.name)) for study in studies]
    judged = [(study, rows, verdicts(study, rows)) for study, rows in summaries]
    counts = [_word(study, verdict, rows) for study, rows, all_of_it in judged for verdict in all_of_it]
    again = _asked_again(judged)
    told = {"inconclusive": _told_again(list(again.values()), counts.count("inconclusive"))}
    tally = ", ".join(f"{counts.count(kind)} {kind}{told.get(kind, '')}" for kind in _WORDS)
    runs = len({row["run"] for _, rows in summaries for row in rows})
    findings = reports / FINDINGS
    learned = [findings.read_text(encoding="utf-8")] if findings.is_file() else []
    scope = reports / SCOPE
    about = [scope.read_text(encoding="utf-8")] if scope.is_file() else []
    rules = ["## The claims\n", *about, _RULES]
    lines = [_HEAD, *learned, *_searches(reports), *rules, f"{len(counts)} claims, {runs} runs: {tally}.", ""]
    lines += _unfinished(judged)
    lines += [
        "| study | claim | the paper | here: difference [interval], seeds | smallest | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for study, rows, judgements in judged:
        where = f"[{study.name}]({study.name}/)" if rows else study.name
        if 0 < len(rows) < len(study.runs):
            where += f", {len(rows)} of {len(study.runs)} runs"
        for verdict in judgements:
            later = again.get((study.name, verdict.claim.text), "")
            link = f"[{verdict.claim.follow_up}]({verdict.claim.follow_up}/)"
            seen = f"; on new seeds **{later}** ({link})" if later else ""
            lines.append(f"| {where} | {_row(verdict)} | **{_word(study, verdict, rows)}**{seen} |")
            where = ""
    return "\n".join(lines) + "\n"


def _asked_again(judged: Sequence[_Judged]) -> dict[tuple[str, str], str]:
    """What the follow-up study says about each inconclusive claim that names one, by (study, text of the claim).
    Raises ConfigError if there is no such study or if it does not ask the question."""
    by_name = {study.name: (study, rows, judgements) for study, rows, judgements in judged}
    again = {}
    for study, _, judgements in judged:
        for verdict in judgements:
            claim = verdict.claim
            if not claim.follow_up:
                continue
            if claim.follow_up not in by_name:
                raise ConfigError(
                    f"{study.path}: claim {claim.text!r}: there is no study {claim.follow_up!r} beside it"
                )
            later, rows, answers = by_name[claim.follow_up]
            words = [_word(later, answer, rows) for answer in answers if answer.claim.asks_the_same_as(claim)]
            if not words:
                raise ConfigError(
                    f"{study.path}: claim {claim.text!r}: no claim of {claim.follow_up} compares the same groups by "
                    f"{claim.metric}"
                )
            if verdict.verdict == "inconclusive" and not is_open(study, verdict):
                again[study.name, claim.text] = words[0]
    return again


def _told_again(words: Sequence[str], inconclusive: int) -> str:
    """How many inconclusive claims a later study decided, in parentheses; empty if none was asked again."""
    decided = sum(word in ("reproduced", "contradicted") for word in words)
    return f" ({decided} of them decided on new seeds, {inconclusive - decided} undecided)" if words else ""


def _unfinished(judged: Sequence[_Judged]) -> list[str]:
    """A line that names the studies with open claims."""
    parts = []
    for study, _, judgements in judged:
        left = [verdict for verdict in judgements if is_open(study, verdict)]
        if left:
            seeds = " or ".join(map(str, sorted({verdict.num_seeds for verdict in left})))
            parts.append(f"{study.name} ({len(left)} of {len(judgements)} claims, {seeds} of {study.looks[-1]} seeds)")
    return [f"Unfinished studies, whose open claims decide nothing yet: {', '.join(parts)}.", ""] if parts else []


def _searches(reports: Path) -> list[str]:
    """A table of the searches in ``reports/search/``: settings tried and how often each objective was met."""
    tables = {file.parent.name: read_table(file.parent) for file in sorted(reports.glob(f"search/*/{TABLE}"))}
    if not tables:
        return []
    counts: list[tuple[str, list[int]]] = []
    for name, rows in tables.items():
        parts = [met(row, Objective()) for row in rows]
        dead = sum(row["alive"] != "yes" for row in rows)
        each = [sum(part[key] for part in parts) for key in ("accuracy", "first layer", "dips")]
        iterations = sum(int(row["iterations"]) for row in rows)
        counts.append((name, [len(rows), iterations, dead, *each, sum(all(part.values()) for part in parts)]))
    total = [sum(column) for column in zip(*(numbers for _, numbers in counts), strict=True)]
    o = Objective()
    lines = [
        "## The search",
        "",
        f"A regime must end {100 * o.accuracy_gain:g} points above its untrained encoder, spike in its first layer "
        f"at least {o.first_layer_spikes:g} times per {PER:,} iterations beyond chance, and show dips that recover. "
        "Settings drawn at random, and settings that these suggested:",
        "",
        "| search | settings | iterations | dead | accuracy | first layer spikes | dips recover | all three |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, numbers in [*counts, ("all", total)]:
        shown = f"[{name}](search/{name}/README.md)" if name in tables else f"**{name}**"
        lines.append(f"| {shown} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return ["\n".join(lines) + "\n"]


def _word(study: Study, verdict: Verdict, rows: Sequence[object]) -> str:
    """The verdict, "open" if a sequential study has seeds left, or "not run" if a claim has no pair of runs and its
    study is incomplete."""
    if not verdict.num_seeds and len(rows) < len(study.runs):
        return "not run"
    return "open" if is_open(study, verdict) else verdict.verdict


def _row(verdict: Verdict) -> str:
    claim = verdict.claim
    scale = 100 if claim.metric in _POINTS else 1
    seen = "no value"
    if verdict.difference is not None:
        seen = f"{claim.metric} {scale * verdict.difference:+.3g}"
    if verdict.interval is not None:
        seen += f" [{scale * verdict.interval[0]:.3g}, {scale * verdict.interval[1]:.3g}]"
        seen += "" if verdict.level == LEVEL else f" at {100 * verdict.level:.4g}%"
    cells = (
        claim.text,
        claim.paper,
        f"{seen}, n = {verdict.num_seeds}",
        f"{scale * claim.smallest:g}",
    )
    return " | ".join(cell.replace("|", "\\|") for cell in cells)
