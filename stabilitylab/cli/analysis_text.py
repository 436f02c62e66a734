"""Formats an analysis as the text that ``stablab analyze`` prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stabilitylab.analysis.explain import Explanation
    from stabilitylab.analysis.results import RunAnalysis

_SHOWN = 12


def print_text(analysis: RunAnalysis, status: str, explanations: Sequence[Explanation] | None = None) -> None:
    """Print all requested parts; parts that are None are skipped."""
    from stabilitylab.cli.terminal import console

    say = console(highlight=False, markup=False, soft_wrap=True).print
    running = " so far, still running" if status == "running" else ""
    say(f"{analysis.run}: {analysis.iterations} iterations{running}, {len(analysis.layers)} layers")
    if analysis.spikes is not None:
        _print_spikes(analysis, say)
    if analysis.episodes:
        _print_episodes(analysis, say)
    if analysis.lag is not None:
        _print_lag(analysis, say)
    if analysis.metric is not None:
        _print_dips(analysis, say)
    if analysis.drifts:
        _print_drifts(analysis, say)
    if analysis.collapse is not None:
        _print_collapse(analysis, say)
    if analysis.loss_spikes is not None and not analysis.loss_spikes.reason:
        _print_loss_spikes(analysis, say)
    if analysis.early_warning is not None:
        _print_warning(analysis, say)
    if analysis.early_warnings:
        _print_warning_table(analysis, say)
    if explanations is not None:
        say("\nepisodes explained" if explanations else "\nepisodes explained: there are none")
        _print_explanations(explanations, say)
    for note in analysis.notes:
        say(f"note: {note}")


def _print_explanations(explanations: Sequence[Explanation], say: Callable[[str], None]) -> None:
    """The advice is printed once for successive episodes that share it."""
    for place, explanation in enumerate(explanations, 1):
        say(f"  {explanation.text}")
        if place == len(explanations) or explanations[place].next != explanation.next:
            say(f"  next: {explanation.next}\n")


def _print_spikes(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    spikes = analysis.spikes or ()
    rule = analysis.settings.rule if analysis.settings is not None else "stablab"
    if analysis.spikes_unjudged:
        say(f"\nspikes: not judged ({analysis.spikes_reason})")
        return
    say(f"\nspikes: {len(spikes)}" + ("" if rule == "stablab" else f" (rule {rule})"))
    if analysis.false_alarms is not None:
        alarms = analysis.false_alarms
        say(
            f"  false alarms (mirrored series): {alarms.mirrored_events} events, "
            f"{alarms.per_10k_iterations:.2f} per 10,000 iterations and layer"
        )
    if spikes:
        say(f"  {'layer':<14}{'onset':>8}{'peak':>8}{'end':>8}{'ratio':>9}{'z':>8}  kind")
    shown = sorted(spikes, key=lambda s: (-s.z, s.onset))[:_SHOWN]
    for s in sorted(shown, key=lambda s: s.onset):
        say(f"  {s.layer:<14}{s.onset:>8}{s.peak:>8}{s.end:>8}{s.ratio:>8.1f}x{s.z:>8.1f}  {s.nature or s.kind}")
    if len(spikes) > _SHOWN:
        say(f"  the {_SHOWN} largest; all {len(spikes)}: --format csv")


def _print_episodes(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    episodes = analysis.episodes or ()
    say(f"\nepisodes (spikes of several layers that are close in time): {len(episodes)}")
    say(f"  {'start':>8}{'end':>8}  {'leader':<14}{'layers':>7}{'reach':>7}{'largest':>10}  then")
    largest = sorted(episodes, key=lambda e: (-len(e.order), -e.z, e.start))[:_SHOWN]
    for e in sorted(largest, key=lambda e: e.start):
        followers = ", ".join(f"{layer} +{onset - e.start}" for layer, onset in e.order[1:4])
        more = f", {len(e.order) - 4} more" if len(e.order) > 4 else ""
        size = f"{e.ratio:.1f}x"
        say(f"  {e.start:>8}{e.end:>8}  {e.leader:<14}{len(e.order):>7}{e.reach:>7.0%}{size:>10}  {followers}{more}")
    if len(episodes) > _SHOWN:
        say(f"  the {_SHOWN} with the most layers; all {len(episodes)}: --format json")


def _print_lag(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    lag = analysis.lag
    assert lag is not None
    if lag.source == lag.target:
        say(f"\nlag: not judged, {lag.reason}")
        return
    say(f"\nlag from {lag.source} to {lag.target}: {lag.verdict}")
    if lag.median_iterations is not None:
        interval = "" if lag.ci95 is None else f", 95% interval {lag.ci95[0]:g} to {lag.ci95[1]:g}"
        chance = "" if lag.p_value is None else f", p = {lag.p_value:.3g}"
        say(f"  median {lag.median_iterations:g} iterations{interval}{chance}")
    say(f"  {lag.num_matched} of {lag.num_from} spikes matched" + (f": {lag.reason}" if lag.reason else ""))
    if lag.cross is not None:
        cross = lag.cross
        judged = {True: ": agrees", False: ": disagrees", None: ""}[lag.agree]
        say(
            f"  cross-correlation: {cross.lag:g} iterations, 95% interval {cross.ci95[0]:g} to {cross.ci95[1]:g}, "
            f"r = {cross.correlation:.2f}, p = {cross.p_value:.3g}{judged}"
        )
    measured = [row for row in analysis.propagation or () if row.median_lag is not None]
    if measured:
        say(f"  {'layer':<14}{'depth':>6}{'median lag':>12}{'matched':>9}")
        for row in measured:
            say(f"  {row.layer:<14}{row.depth:>6}{row.median_lag:>12g}{row.num_matched:>9}")


def _print_dips(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    from stabilitylab.analysis.metrics import metric_label
    from stabilitylab.analysis.results import JudgedMetric

    metric = analysis.metric or JudgedMetric()
    if analysis.dips is None:
        say("\ndips: not judged")
        return
    dips = analysis.dips
    better = "higher" if metric.goal == "max" else "lower"
    say(f"\n{'dips' if metric.goal == 'max' else 'rises'} of {metric_label(metric.name)}: {len(dips)}")
    if metric.name != "knn_top1":
        reason = "because" if metric.chosen.startswith("no ") else "as"
        why = "" if metric.chosen == "asked for" else f", chosen {reason} {metric.chosen}"
        say(f"  judged by {metric_label(metric.name)} ({better} is better{why}); --metric NAME judges another")
    if dips:
        step = analysis.resolution.eval_step if analysis.resolution is not None else None
        if step is not None and step > 1:
            say(
                f"  evaluated every {step} iterations: a dip may begin up to {step} before its start, and shorter dips "
                "may be missed"
            )
        say(f"  {'start':>8}{'trough':>8}{'recovered':>11}{'depth':>8}{'z':>7}  after spike")
    for dip in dips:
        recovered = "not yet" if dip.recovered is None else str(dip.recovered)
        after = "" if dip.after_spike is None else f"{dip.after_spike.layer} at {dip.after_spike.onset}"
        after += "" if dip.after_spike is None or dip.order_known else " (which came first is not resolvable)"
        say(f"  {dip.start:>8}{dip.trough:>8}{recovered:>11}{dip.depth:>8.3f}{dip.z:>7.1f}  {after}")
    link = analysis.dip_link
    if link is not None and link.num_dips and link.expected_by_chance is not None:
        chance = "" if link.p_value is None else f", p = {link.p_value:.3g}"
        say(
            f"  {link.num_linked} of {link.num_dips} follow a spike; "
            f"{link.expected_by_chance:.1f} expected by chance{chance}"
        )


def _print_drifts(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    from stabilitylab.analysis.sentences import drift_count, factor_text

    drifts = analysis.drifts or ()
    say(f"\ndrift (a norm that changes by a factor of 10 or more over a long period): {drift_count(analysis)}")
    say(f"  {'layer':<14}{'start':>9}{'end':>9}{'from':>10}{'to':>10}{'factor':>10}  decades per 10,000 iterations")
    for d in drifts[:_SHOWN]:
        factor = factor_text(d.factor)
        low, high = d.ci95
        say(
            f"  {d.layer:<14}{d.start:>9}{d.end:>9}{d.before:>10.3g}{d.after:>10.3g}{factor:>10}  "
            f"{d.slope:+.3g} (95% interval {low:+.3g} to {high:+.3g}{'' if d.certain else ': not certain'})"
        )
    if len(drifts) > _SHOWN:
        say(f"  the first {_SHOWN}; all {len(drifts)}: --format json")


def _print_collapse(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    from stabilitylab.analysis.sentences import collapse_words

    collapse = analysis.collapse
    assert collapse is not None
    say(f"\ncollapse: {collapse_words(analysis)}" + (f" ({collapse.reason})" if collapse.reason else ""))


def _print_loss_spikes(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    loss = analysis.loss_spikes
    assert loss is not None
    say(f"\nspikes of the training loss: {len(loss.spikes)}")
    for lag in loss.lags:
        if lag.median_iterations is None or lag.ci95 is None:
            continue
        order = {"first leads": f"the loss leads {lag.target}", "last leads": f"{lag.target} leads the loss"}
        say(
            f"  {order.get(lag.verdict, f'{lag.target}: {lag.verdict}')}: {lag.median_iterations:g} iterations "
            f"({lag.ci95[0]:g} to {lag.ci95[1]:g}), {lag.num_matched} matched, p = {lag.p_value:.3g}"
        )


def _print_warning(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    early = analysis.early_warning
    assert early is not None
    say(f"\nearly warning by {early.signal}: it rose before {early.num_warned} of {early.num_spikes} spikes")
    if early.hit_rate is not None and early.hit_ci95 is not None:
        low, high = early.hit_ci95
        say(
            f"  hit rate {early.hit_rate:.2f} (95% interval {low:.2f} to {high:.2f}); "
            f"{early.hit_rate_by_chance:.2f} expected by chance, p = {early.p_value:.3g}"
        )
        say(
            f"  false alarms: {early.num_false} of {early.num_alarms}, "
            f"{early.false_per_10k:.2f} per 10,000 iterations and layer"
        )
    if early.median_lead is not None:
        interval = "" if early.lead_ci95 is None else f", 95% interval {early.lead_ci95[0]:g} to {early.lead_ci95[1]:g}"
        say(f"  lead: {early.median_lead:g} iterations before the spike{interval}")
    if early.reason:
        say(f"  {early.reason}")


def _print_warning_table(analysis: RunAnalysis, say: Callable[[str], None]) -> None:
    from stabilitylab.analysis.warning_table import best_warning

    rows = [row for row in analysis.early_warnings or () if row.hit_rate is not None]
    best = best_warning(rows)
    if best is None:
        judged = f"{len(rows)} pairs tested" if rows else "too few spikes or alarms to test a pair"
        say(f"\nearly warning by signal and layer: none beyond chance ({judged})")
        return
    say(f"\nearly warning by signal and layer: the best of {len(rows)} pairs is {best.signal} in {best.layer}")
    say(f"  {'signal':<16}{'layer':<14}{'warned':>8}{'chance':>8}{'lead':>6}{'false alarms':>14}{'p (Holm)':>10}")
    for row in sorted(rows, key=lambda row: (row.p_holm or 1.0, row.signal, row.layer))[:_SHOWN]:
        lead = "" if row.median_lead is None else f"{row.median_lead:g}"
        warned, false = f"{row.num_warned}/{row.num_spikes}", f"{row.num_false}/{row.num_alarms}"
        say(
            f"  {row.signal:<16}{row.layer:<14}{warned:>8}{row.hit_rate_by_chance or 0:>8.2f}{lead:>6}{false:>14}"
            f"{row.p_holm if row.p_holm is not None else 1:>10.3g}"
        )
