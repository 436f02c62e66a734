"""``stablab compare``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli.options import goal, metric, runs_dir
from stabilitylab.errors import ConfigError
from stabilitylab.registry import hint

if TYPE_CHECKING:
    from stabilitylab.comparison.pooled import PooledLag
    from stabilitylab.comparison.results import Comparison, RunSummary
    from stabilitylab.run.answers import Answer

POWER_SEEDS = (3, 5, 8, 10, 15, 20)
POWER_SIZES = (0.5, 1.0, 1.5, 2.0)
_UNNAMED = ("train.seed", "optim.base_lr", "mitigation")
_HARMLESS = ("record.", "analysis.", "train.checkpoint_", "train.keep_before_spikes", "train.micro_batch")
"""Keys that do not change how a run trains."""


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--by", default="mitigation", show_default=True, metavar="KEY",
    help="Group the runs by mitigation, or by a configuration key such as method.name or model.pos_embed.",
)  # fmt: skip
@click.option("--baseline", metavar="VALUE", help="The group to compare with. [default: none, or the first run's]")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "csv", "html", "md", "latex"]), default="text",
    show_default=True, help="html writes a standalone page; latex needs the package booktabs.",
)  # fmt: skip
@metric
@goal
@runs_dir
def command(
    runs: tuple[str, ...],
    by: str,
    baseline: str | None,
    form: str,
    metric: str | None,
    goal: str | None,
    runs_dir: str | None,
) -> None:
    """Compare RUNs by mitigation, paired by seed and learning rate.

    Prints effects with 95% intervals, exact p-values with Holm's correction, and verdicts based on the intervals; the
    sensitivity to the learning rate, if there are several; and the number of seeds needed to show a difference.
    """
    from stabilitylab.comparison.effects import compare_runs
    from stabilitylab.comparison.pooled import by_mitigation

    answers = {run: _answer(run, runs_dir, metric, goal) for run in dict.fromkeys(runs)}
    if len(answers) < 2:
        raise ConfigError("compare needs at least two runs; for one, use stablab analyze")
    summaries = [_grouped(answer, by) for answer in answers.values()]
    groups = list(dict.fromkeys(summary.mitigation for summary in summaries))
    if baseline is None:
        baseline = "none" if by == "mitigation" and "none" in groups else groups[0]
    elif baseline not in groups:
        raise ConfigError(f"--baseline: no run has {by} {baseline!r}; available: {', '.join(groups)}")
    comparison = compare_runs(summaries, baseline, by=by)
    judged = [answer.analysis for answer in answers.values()]
    comparison = replace(comparison, lags=by_mitigation(zip([s.mitigation for s in summaries], judged, strict=True)))
    differences = _other_differences(list(answers.values()), by, effects=bool(comparison.effects))
    comparison = replace(comparison, notes=(*comparison.notes, *differences))
    if form == "json":
        from stabilitylab.analysis.results import SCHEMA_VERSION, plain

        power = [{"effect_size": size, "seeds": n, "power": p} for size, n, p in _power_table()]
        whole = {"schema": SCHEMA_VERSION, "by": by} | comparison.to_dict() | {"power": power}
        click.echo(json.dumps(plain(whole), indent=2, allow_nan=False))
    elif form == "csv":
        _print_csv(comparison)
    elif form in ("html", "md", "latex"):
        from stabilitylab.report import comparison as forms

        write = {"html": forms.comparison_html, "md": forms.comparison_markdown, "latex": forms.comparison_latex}[form]
        click.echo(write(comparison, by), nl=False)
    else:
        _print_text(comparison, by)


def _answer(run: str, runs_dir: str | None, metric: str | None, goal: str | None) -> Answer:
    from stabilitylab.run.answers import answer_run
    from stabilitylab.store.location import find_run, runs_root

    answer = answer_run(find_run(runs_root(runs_dir), run), metric=metric, goal=goal)
    for problem in answer.problems:
        click.echo(f"stablab: warning: {problem}", err=True)
    return answer


def _grouped(answer: Answer, by: str) -> RunSummary:
    """The summary of a run, with its group in place of the mitigation."""
    if by == "mitigation":
        return answer.summary
    flat = _flat(answer.config)
    if by not in flat:
        known = hint(by, sorted(flat)) if flat else "it has no configuration, because stablab train did not train it"
        raise ConfigError(f"--by: run {answer.summary.run} has no configuration key {by!r}; {known}")
    label = f"{flat[by]}"
    if by == "optim.base_lr":  # groups would share no learning rate, so nothing could be paired
        return replace(answer.summary, mitigation=label, base_lr=float("nan"))
    return replace(answer.summary, mitigation=label)


def _other_differences(answers: Sequence[Answer], by: str, effects: bool) -> list[str]:
    flat = [_flat(answer.config) for answer in answers]
    keys = sorted({key for config in flat for key in config if not key.startswith(_HARMLESS)} - {by, *_UNNAMED})
    apart = [key for key in keys if len({str(config.get(key)) for config in flat}) > 1]
    if by != "mitigation" and len({str(config.get("mitigation")) for config in flat}) > 1:
        apart.append("mitigation")
    confounds = ", which confounds the effects" if effects else ""
    return [f"the runs also differ in {', '.join(apart)}{confounds}"] if apart else []


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _power_table() -> list[tuple[float, int, float]]:
    from stabilitylab.comparison.paired import power

    return [(size, n, power(n, size)) for size in POWER_SIZES for n in POWER_SEEDS]


def _print_csv(comparison: Comparison) -> None:
    from stabilitylab.comparison.results import Effect
    from stabilitylab.store.spreadsheet import cell

    names = [field.name for field in fields(Effect) if field.name != "ci95"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*names, "ci95_low", "ci95_high"])
    for effect in comparison.effects:
        values = [getattr(effect, name) for name in names]
        writer.writerow(["" if value is None else cell(value) for value in (*values, *(effect.ci95 or ("", "")))])


def _print_text(comparison: Comparison, by: str) -> None:
    from stabilitylab.cli.terminal import console

    say = console(highlight=False, markup=False, soft_wrap=True).print
    count = len(comparison.runs)
    pairs = "seed" if by == "optim.base_lr" else "seed and base learning rate"
    say(f"{count} runs by {by}, compared with {comparison.baseline}; paired by {pairs}")
    _print_runs(comparison, say)
    for mitigation in dict.fromkeys(effect.mitigation for effect in comparison.effects):
        _print_effects(comparison, mitigation, say)
    if comparison.lr_sensitivity:
        name = "kNN" if comparison.metric == "knn_top1" else comparison.metric
        say(f"\nsensitivity to the learning rate (final {name} lost relative to the best rate, mean over rates)")
        for row in comparison.lr_sensitivity:
            interval = "" if row.ci95 is None else f" (95% interval {row.ci95[0]:.4f} to {row.ci95[1]:.4f})"
            by_lr = ", ".join(f"{value:.3f} at {lr:g}" for lr, value in row.by_lr)
            say(f"  {row.mitigation:<20}{row.mean:.4f}{interval}, {row.num_seeds} seeds: {by_lr}")
    if comparison.lags:
        _print_lags(comparison.lags, say)
    if comparison.effects:
        _print_power(say)
    for note in comparison.notes:
        say(f"note: {note}")


def _print_runs(comparison: Comparison, say: Callable[[str], None]) -> None:
    runs, name = comparison.runs, comparison.metric
    if name != "knn_top1":
        say(f"  judged by {name}: {'higher' if comparison.goal == 'max' else 'lower'} is better")
    head = f"{'final':>8}{'best':>8}{'spikes/10k':>12}{'dip area':>10}"
    wide = max(len("run"), *(len(run.run) for run in runs)) + 2
    group = max(len("group"), *(len(run.mitigation) for run in runs)) + 2
    say(f"\n  {'run':<{wide}}{'group':<{group}}{'seed':>5}{'base lr':>9}{head}")
    for run in runs:
        values = [_number(run.value(f"{which}_{name}"), ".4g") for which in ("final", "best")]
        rest = f"{_number(run.spikes_per_10k, '.2f'):>12}{_number(run.dip_area, '.1f'):>10}"
        flag = "  diverged" if run.diverged else ""
        shown = f"{values[0]:>8}{values[1]:>8}{rest}{flag}"
        say(f"  {run.run:<{wide}}{run.mitigation:<{group}}{run.seed:>5}{_number(run.base_lr, 'g'):>9}{shown}")


def _print_effects(comparison: Comparison, mitigation: str, say: Callable[[str], None]) -> None:
    say(f"\n{mitigation} minus {comparison.baseline}")
    wide = max(16, *(len(effect.metric) + 1 for effect in comparison.effects))
    say(
        f"  {'metric':<{wide}}{'without':>10}{'with':>10}{'difference':>12}  {'95% interval':<22}{'p':>7}{'p Holm':>8}"
        f"{'seeds':>6}  {'verdict':<20}{'needed':>7}"
    )
    warnings: dict[str, list[str]] = {}
    for e in (effect for effect in comparison.effects if effect.mitigation == mitigation):
        interval = "" if e.ci95 is None else f"{e.ci95[0]:+.4g} to {e.ci95[1]:+.4g}"
        needed = "" if e.seeds_needed is None else str(e.seeds_needed)
        say(
            f"  {e.metric:<{wide}}{e.baseline_mean:>10.4g}{e.mitigated_mean:>10.4g}{e.difference:>+12.4g}  "
            f"{interval:<22}{_number(e.p_value, '.3f'):>7}{_number(e.p_holm, '.3f'):>8}{e.num_seeds:>6}  "
            f"{e.verdict:<20}{needed:>7}"
        )
        if e.warning:
            warnings.setdefault(e.warning, []).append(e.metric)
    for warning, metrics in warnings.items():
        say(f"  {', '.join(metrics)}: {warning}")


def _print_lags(lags: Sequence[PooledLag], say: Callable[[str], None]) -> None:
    say("\nlag pooled over the runs of a group (interval by resampling runs)")
    for lag in lags:
        timed = ""
        if lag.median_iterations is not None and lag.ci95 is not None:
            low, high = lag.ci95
            timed = f" {lag.median_iterations:g} iterations (95% interval {low:g} to {high:g}), p = {lag.p_value:.2g};"
        matched = f"{lag.num_matched} matches in {lag.num_runs} of {lag.num_given} runs"
        say(f"  {lag.group}, {lag.source} to {lag.target}: {lag.verdict};{timed} {matched}")


def _print_power(say: Callable[[str], None]) -> None:
    say("\npower: probability that the 95% interval excludes 0, by effect size (sd of the pairs' differences)")
    say(f"  {'size':>6}" + "".join(f"{f'{n} seeds':>10}" for n in POWER_SEEDS))
    for size in POWER_SIZES:
        say(f"  {size:>6g}" + "".join(f"{p:>10.2f}" for s, _, p in _power_table() if s == size))
    say("  'needed' above: number of seeds that show the observed difference with probability 0.80, if it is real")


def _number(value: float | None, form: str) -> str:
    return "" if value is None or value != value else f"{value:{form}}"
