"""The top of the report: was it unstable, where did it start, what did it cost, what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from stabilitylab.analysis.results import RunAnalysis, RunSeries
from stabilitylab.analysis.sentences import count
from stabilitylab.comparison.arms import Arm
from stabilitylab.comparison.results import Comparison, Effect
from stabilitylab.report.html.instability import (
    broken,
    collapsed,
    doubtful,
    expected_by_chance,
    spikes_beyond_chance,
    states,
    unstable,
)
from stabilitylab.report.metric import MetricText

Run = tuple[RunSeries, RunAnalysis]


ONE_BY_ONE = 4
"""Up to this many groups get a line each; beyond it, a summary plus outliers. The tables below have the rest."""


def headline(runs: Sequence[Run], comparison: Comparison | None) -> str:
    """The first line of the page."""
    if comparison is None:
        return _headline_of_one(*runs[0])
    metric = MetricText.of_comparison(comparison)
    final = [effect for effect in comparison.effects if effect.metric == metric.final_column]
    if not final:
        return f"{len(runs)} runs side by side"
    sign, higher = (1, "higher") if metric.higher else (-1, "lower")
    best = max(final, key=lambda effect: sign * effect.difference)
    name = "kNN top-1" if metric.metric.name == "knn_top1" else metric.label
    figures = f"{metric.value(best.mitigated_mean)} against {metric.value(best.baseline_mean)} {name}"
    seeds = count(best.num_seeds, "seed")
    seen = _seen_without(runs, comparison)
    if best.ci95 is not None and best.ci95[0] <= 0 <= best.ci95[1]:
        return f"{seen}; no difference shown with {best.mitigation}: {figures} ({seeds})"
    verb = f"ends {higher}" if sign * best.difference > 0 else f"does not end {higher}"
    few = ", too few to say more" if best.ci95 is None else ""
    return f"{seen}; {best.mitigation} {verb}: {figures} ({seeds}{few})"


def _seen_without(runs: Sequence[Run], comparison: Comparison) -> str:
    """Whether the baseline runs were unstable."""
    names = {run.run for run in comparison.runs if run.mitigation == comparison.baseline}
    analyses = [analysis for series, analysis in runs if series.run in names]
    arm = "without a mitigation" if comparison.baseline == "none" else f"with {comparison.baseline}"
    shaky = sum(map(unstable, analyses))
    if not shaky and analyses and all(analysis.spikes_unjudged for analysis in analyses):
        return f"Gradient spikes not judged {arm}: {analyses[0].spikes_reason}"
    lasting = states(analyses)
    if not shaky and doubtful(analyses):
        return f"No spikes or dips beyond chance {arm}, but {', '.join(lasting)}"
    if not shaky:
        return f"No instability beyond chance {arm}" + (f" ({', '.join(lasting)})" if lasting else "")
    how_many = f" in {shaky} of {len(analyses)} runs" if len(analyses) > 1 else ""
    return f"Unstable{how_many} {arm}" + (f" ({', '.join(lasting)})" if lasting else "")


def _headline_of_one(series: RunSeries, analysis: RunAnalysis) -> str:
    if not series.iterations:
        return "Nothing is recorded yet"
    if not any(len(layer.iteration) for layer in series.layers):
        return "No gradients recorded"
    lasting = ", ".join(states([analysis]))
    if not unstable(analysis) and doubtful([analysis]):
        return f"No spikes or dips beyond chance, but {lasting}"
    if not unstable(analysis) and analysis.spikes_unjudged:
        return f"Gradient spikes not judged: {analysis.spikes_reason}" + (f"; {lasting}" if lasting else "")
    if not unstable(analysis):
        return ("No instability beyond chance" if analysis.spikes else "No instability found") + (
            f"; {lasting}" if lasting else ""
        )
    if collapsed(analysis) and analysis.collapse is not None:
        told = f", features collapsed at iteration {analysis.collapse.iteration}"
        return f"Collapsed at iteration {analysis.collapse.iteration}: {_signs([analysis]).replace(told, '')}"
    lag = analysis.lag
    leads = lag is not None and lag.verdict == "first leads" and spikes_beyond_chance([analysis])
    if leads and lag is not None and lag.median_iterations is not None:
        return (
            f"Unstable: it starts in {lag.source} and reaches {lag.target} {lag.median_iterations:g} iterations later"
            + (f"; {lasting}" if lasting else "")
        )
    return f"Unstable: {_signs([analysis])}"


def answers(
    runs: Sequence[Run], mitigations: Sequence[str], arms: Sequence[Arm], comparison: Comparison | None
) -> list[tuple[str, list[str]]]:
    """Questions with their answers: one line per arm, or a summary if there are many arms. An answer states if the data
    is insufficient. ``mitigations``: that of each run, empty for a run that was not trained here."""
    if len(arms) > ONE_BY_ONE:
        return _of_many(runs, mitigations, arms, comparison)
    analyses = [analysis for _, analysis in runs]
    groups = [(f"{arm.label}: " if len(arms) > 1 else "", [analyses[i] for i in arm.members], arm) for arm in arms]
    spiked = any(analysis.spikes for analysis in analyses)
    return [
        ("Was it unstable?", [lead + _how_unstable(members) for lead, members, _ in groups]),
        (
            "Where did it start?",
            [lead + _where(members) for lead, members, _ in groups] if spiked else [_where(analyses)],
        ),
        (
            "What did it cost?",
            [lead + _cost(members, [runs[i][0] for i in arm.members]) for lead, members, arm in groups],
        ),
        ("What helps?", _help(mitigations, comparison)),
    ]


def _of_many(
    runs: Sequence[Run], mitigations: Sequence[str], arms: Sequence[Arm], comparison: Comparison | None
) -> list[tuple[str, list[str]]]:
    analyses = [analysis for _, analysis in runs]
    share = {arm: sum(unstable(analyses[i]) for i in arm.members) / len(arm.members) for arm in arms}
    fewest, most = min(share.values()), max(share.values())
    steady = [
        f"{arm.label} ({round(part * len(arm.members))} of {len(arm.members)})"
        for arm, part in share.items()
        if part == fewest < most
    ]
    least = [f"Fewest with {_listed(steady)}."] if steady else []
    metric = MetricText.of(analyses)
    curves = {arm: _curves([runs[i][0] for i in arm.members], metric) for arm in arms}
    ends = {arm: np.mean([values[-1] for values in group]) for arm, group in curves.items() if group}
    costs = []
    if ends:
        for name, choose in (("best", max), ("worst", min)) if metric.higher else (("best", min), ("worst", max)):
            arm = choose(ends, key=ends.__getitem__)
            members = [runs[i] for i in arm.members]
            costs.append(f"The {name}, {arm.label}: {_cost([a for _, a in members], [s for s, _ in members])}")
    return [
        ("Was it unstable?", [_how_unstable(analyses), *least]),
        ("Where did it start?", [_where(analyses)]),
        ("What did it cost?", costs or [_cost(analyses, [series for series, _ in runs])]),
        ("What helps?", _help(mitigations, comparison)),
    ]


def _listed(names: Sequence[str], most: int = 4) -> str:
    """The first names and the number of further ones."""
    if len(names) > most:
        return ", ".join(names[: most - 1]) + f" and {len(names) - most + 1} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _curves(series: Sequence[RunSeries], metric: MetricText) -> list[np.ndarray]:
    """The values of the judged metric of each run that has any."""
    return [values for values in (metric.values(one) for one in series) if len(values)]


def _how_unstable(analyses: Sequence[RunAnalysis]) -> str:
    if len(analyses) == 1:
        answer = "Yes" if unstable(analyses[0]) else "Unknown" if analyses[0].spikes_unjudged else "No"
        return f"{answer}: {_signs(analyses)}."
    return f"{sum(map(unstable, analyses))} of {len(analyses)} runs: {_signs(analyses)}."


def _signs(analyses: Sequence[RunAnalysis]) -> str:
    """Numbers of spikes, dips and runs with non-finite gradients. Spikes come first only if they exceed chance."""
    nonfinite = sum(map(broken, analyses))
    judged = [a for a in analyses if a.dips is not None]
    dips = MetricText.of(analyses).dips(sum(len(a.dips or ()) for a in judged))
    others = [dips if judged else "dips not judged"]
    others += [f"gradients not finite in {count(nonfinite, 'run')}"] if nonfinite else []
    others += states(analyses)
    if all(analysis.spikes is None or not analysis.layers for analysis in analyses):
        return ", ".join(["no gradients recorded", *others])
    if all(analysis.spikes_unjudged for analysis in analyses):
        return ", ".join([f"spikes not judged ({analyses[0].spikes_reason})", *others])
    spikes = count(sum(spike.kind == "spike" for a in analyses for spike in a.spikes or ()), "spike")
    chance = f"{expected_by_chance(analyses):.2g}"
    if spikes_beyond_chance(analyses) or spikes == "0 spikes":
        return ", ".join([f"{spikes} (by chance: {chance})", *others])
    return f"{', '.join(others)}; {spikes}, not significantly more than the {chance} expected by chance"


def _where(analyses: Sequence[RunAnalysis]) -> str:
    if not any(a.layers for a in analyses):
        return "Unknown: no gradients were recorded."
    if all(a.spikes_unjudged for a in analyses):
        return f"Not judged: {analyses[0].spikes_reason}."
    if not any(a.spikes for a in analyses):
        return "No spikes were detected."
    leaders = Counter(e.leader for a in analyses for e in a.episodes or () if len(e.order) > 1)
    parts = []
    if leaders:
        leader, times = leaders.most_common(1)[0]
        parts.append(f"{leader} leads {times} of {count(leaders.total(), 'episode')} of several layers")
    if len(analyses) == 1:
        lag, spikes = analyses[0].lag, analyses[0].spikes or ()
        if lag is not None and lag.median_iterations is not None and lag.ci95 is not None:
            parts.append(
                f"{lag.source} to {lag.target}: {lag.median_iterations:g} iterations ({lag.ci95[0]:g} to "
                f"{lag.ci95[1]:g}), {lag.verdict}"
            )
        elif not leaders and spikes:
            parts.append(f"the first spike is in {spikes[0].layer} at iteration {spikes[0].onset}")
    else:
        verdicts = Counter(a.lag.verdict for a in analyses if a.lag is not None)
        if verdicts:
            parts.append("first to last layer: " + ", ".join(f"{v} in {n}" for v, n in verdicts.most_common()))
    return _sentence("; ".join(parts)) if parts else "Unknown."


def _cost(analyses: Sequence[RunAnalysis], series: Sequence[RunSeries]) -> str:
    metric = MetricText.of(analyses)
    curves = _curves(series, metric)
    if not curves:
        return "Not judged: no evaluation was recorded."
    share, word = metric.metric.share, "dip" if metric.higher else "rise"
    final = float(np.mean([values[-1] for values in curves]))
    below = float(np.mean([abs(metric.best(values) - values[-1]) for values in curves]))
    mean = "on average " if len(curves) > 1 else ""
    side = "below" if metric.higher else "above"
    name = "" if metric.metric.name == "knn_top1" else f"{metric.label} "
    away = f"{metric.number(below)}{' points' if share else ''} {side} its best" if below else "its best"
    ended = f"{name}ends {mean}at {metric.value(final)}, {away}"
    dips = [dip for analysis in analyses for dip in analysis.dips or ()]
    if not dips:
        return f"No {word}; {ended}."
    deepest = f"{'Deepest dip' if metric.higher else 'Largest rise'} {metric.depth(max(dip.depth for dip in dips))}"
    if not share:
        return f"{deepest}; {ended}."
    lost = 100 * sum(dip.area for dip in dips) / len(analyses)
    return (
        f"{deepest}; {lost:,.0f} points x iterations lost in {word}s{' per run' if len(analyses) > 1 else ''}; {ended}."
    )


def _help(mitigations: Sequence[str], comparison: Comparison | None) -> list[str]:
    if comparison is not None:
        metric = MetricText.of_comparison(comparison)
        final = [effect for effect in comparison.effects if effect.metric == metric.final_column]
        if not final:
            return ["Not tested: no two runs differ only in the mitigation."]
        if len(final) < ONE_BY_ONE:
            return [_effect_in_words(effect, metric) for effect in final]
        sign = -1 if metric.higher else 1
        decided = sorted(
            (e for e in final if e.verdict in ("better", "worse")),
            key=lambda e: sign * e.difference,
        )
        rest: dict[str, list[str]] = {}
        for effect in final:
            if effect not in decided:
                rest.setdefault(effect.verdict, []).append(effect.mitigation)
        return [_effect_in_words(e, metric) for e in decided] + [
            f"{verdict[0].upper()}{verdict[1:]}: {', '.join(names)}." for verdict, names in rest.items()
        ]
    if not mitigations[0]:
        return ["Not tested: repeat the run with one change and the same seed, and compare the two."]
    if mitigations[0] != "none":
        return [f"This run uses {mitigations[0]}; to see its effect, compare it with the same seed without it."]
    return ["Not tested: train with the same seed and a mitigation, such as frozen-patch, and compare the two."]


def _effect_in_words(effect: Effect, metric: MetricText) -> str:
    interval = ""
    if effect.ci95 is not None:
        low, high = (metric.number(end, "+") for end in effect.ci95)
        interval = f" (95% interval {low} to {high})"
    chance = "" if effect.p_holm is None else f", p = {effect.p_holm:.2g}"
    return (
        f"{effect.mitigation}: {metric.difference(effect.difference)}{interval}{chance}, "
        f"{count(effect.num_seeds, 'seed')}: {effect.verdict}."
    )


def _sentence(text: str) -> str:
    # Capitalise plain words only: the name of a layer keeps its case.
    return (text[0].upper() + text[1:] if text.startswith("first ") or text.startswith("the ") else text) + "."
