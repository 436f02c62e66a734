"""Explanation of each episode in plain words: what happened, in which order, at what cost, and what to try next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stabilitylab.analysis.dips import LINK_WINDOW
from stabilitylab.analysis.metrics import depth_text, dip_word, metric_label
from stabilitylab.analysis.results import Dip, Episode, JudgedMetric, RunAnalysis, plain
from stabilitylab.layernames import input_kind

FREEZE, CLIP = "frozen-patch", "clip-global:1.0"
BEFORE = 100
"""A branch that should avoid an episode starts this many iterations before it."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The explanation of one episode. ``start``: its first iteration; ``text``: what happened; ``next``: what to
    try."""

    start: int
    text: str
    next: str

    def to_dict(self) -> dict[str, Any]:
        as_json: dict[str, Any] = plain(asdict(self))
        return as_json


def explain_episodes(
    analysis: RunAnalysis, config: Mapping[str, Any] | None = None, *, ours: bool = True, checkpoints: bool = True
) -> tuple[Explanation, ...]:
    """Explain every episode, in order.

    ``config``: the configuration of the run, for the advice. ``ours``: whether `stablab train` trained the run.
    ``checkpoints``: whether it has checkpoints to branch from.
    """
    episodes = analysis.episodes or ()
    leaders = Counter(episode.leader for episode in episodes)
    seen: Counter[str] = Counter()
    explanations = []
    for number, episode in enumerate(episodes, 1):
        seen[episode.leader] += 1
        dips = _dips_after(episode, analysis)
        parts = [
            f"Episode {number}, iterations {episode.start} to {episode.end}.",
            _rise(episode, analysis.resolution.mostly if analysis.resolution else 1),
            _spread(episode, analysis),
            *(_cost(dip, episode.start, analysis) for dip in dips),
        ]
        if not dips and analysis.dips is not None:
            parts.append(f"No {dip_word(analysis)} followed.")
        if leaders[episode.leader] > 1:
            parts.append(
                f"This is episode {seen[episode.leader]} of {leaders[episode.leader]} that {episode.leader} led."
            )
        explanations.append(
            Explanation(
                episode.start,
                " ".join(filter(None, parts)),
                _advice(episode, analysis, config or {}, ours, checkpoints),
            )
        )
    return tuple(explanations)


def _rise(episode: Episode, step: int) -> str:
    first = f"{episode.leader} spiked first, at {episode.start}"
    if not episode.order_known:
        within = f"within the recording step of {step} iterations" if step > 1 else "at the same iteration"
        first = (
            f"{episode.leader} spiked at {episode.start} and {episode.order[1][0]} {within}: it is unknown which led"
        )
    if not math.isfinite(episode.ratio):
        return f"{first}; the gradient of {episode.peak_layer} was not finite at {episode.peak}."
    size = f"{episode.ratio:.1f} times its usual norm ({episode.z:.0f} noise sd) at {episode.peak}"
    if episode.peak_layer == episode.leader:
        return f"{first}, and reached {size}, the largest rise of any layer."
    return f"{first}; the largest was {episode.peak_layer}, {size}."


def _spread(episode: Episode, analysis: RunAnalysis) -> str:
    if len(episode.order) == 1:
        alarms = analysis.false_alarms
        by_chance = alarms is not None and alarms.mirrored_events > 0 and math.isfinite(episode.ratio)
        return "No other layer took part" + (", so this may be a false alarm." if by_chance else ".")
    followers = episode.order[1:]
    named = [f"{layer} {_after(onset - episode.start)}" for layer, onset in followers[:3]]
    named[0] = named[0].replace(" ", " spiked ", 1)
    last_layer, last = followers[-1]
    rest = len(followers) - 3
    end = f"; {rest} more followed, the last ({last_layer}) {_after(last - episode.start)}" if rest > 0 else ""
    share = f"{len(episode.order)} of {round(len(episode.order) / episode.reach)} trained layers took part"
    return f"{', '.join(named)}{end}; {share}."


def _after(iterations: int) -> str:
    if iterations == 0:
        return "at the same iteration"
    return f"after {iterations} iteration{'' if iterations == 1 else 's'}"


def _cost(dip: Dip, since: int, analysis: RunAnalysis) -> str:
    back = "has not recovered" if dip.recovered is None else f"recovered by {dip.recovered}"
    metric = analysis.metric or JudgedMetric()
    down = metric.goal == "max"
    name, size = metric_label(metric.name), depth_text(dip.depth, metric)
    name = name[0].upper() + name[1:] if name.islower() else name
    if dip.start < since:
        falling, lost = ("falling", "lost") if down else ("rising", "rose by")
        worst = "lowest" if down else "highest"
        return f"{name} was {falling} since {dip.start}; it {lost} {size} ({worst} at {dip.trough}) and {back}."
    verb, worst = ("fell", "lowest") if down else ("rose", "highest")
    when = f"from {dip.start}" if dip.earliest == dip.start else f"between {dip.began_after} and {dip.start}"
    return f"{name} {verb} by {size} {when} ({worst} at {dip.trough}) and {back}."


def _dips_after(episode: Episode, analysis: RunAnalysis) -> list[Dip]:
    """Dips that are linked to a spike of the episode."""
    return [
        dip
        for dip in analysis.dips or ()
        if dip.after_spike is not None and episode.start <= dip.after_spike.onset <= episode.end
        and dip.start <= episode.end + LINK_WINDOW
    ]  # fmt: skip


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the configuration, empty if it is not a mapping: imported runs may have any configuration."""
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _advice(episode: Episode, analysis: RunAnalysis, config: Mapping[str, Any], ours: bool, checkpoints: bool) -> str:
    lower = "lower --base-lr" if ours else "lower the learning rate"
    named = config.get("mitigation")
    done = (named,) if isinstance(named, str) else tuple(map(str, named)) if isinstance(named, (list, tuple)) else ()
    warmup = _section(config, "optim").get("warmup_iterations")

    def branch(mitigation: str) -> str:
        at = max(episode.start - BEFORE, 0)
        if not ours or not checkpoints:
            return ""
        command = f"stablab branch {analysis.run} --at {at} --mitigation {mitigation}"
        return f"; to compare the run with and without it: {command}"

    if not math.isfinite(episode.ratio):
        amp = _section(config, "train").get("amp")
        half = "turn --amp fp16 off first; then " if amp == "fp16" else ""
        return f"{half}{lower} or clip the whole gradient{branch(CLIP)}"
    if isinstance(warmup, int) and 0 < episode.start < warmup:
        return (
            f"this is within the warm-up of {warmup} iterations; "
            f"try a longer one: --set optim.warmup_iterations={2 * warmup}"
        )
    kind = input_kind(episode.leader)
    if kind == "patch projection" and FREEZE not in done:
        return f"freeze the patch projection, the paper's remedy when it spikes first{branch(FREEZE)}"
    if len(episode.order) == 1:
        return "only one layer spiked: check whether it spikes again before changing anything"
    if FREEZE in done:
        return f"the patch projection is frozen and {episode.leader} led, as in the paper at higher rates: {lower}"
    if kind:
        return f"{episode.leader}, the {kind}, led: {lower}, or clip its gradient{branch(CLIP)}"
    has_patches = any(input_kind(name) == "patch projection" for name, _ in analysis.layers)
    instead = ", so freezing the patch projection may not help" if has_patches else ""
    return f"{episode.leader} led{instead}: {lower}, or clip the gradient{branch(CLIP)}"
