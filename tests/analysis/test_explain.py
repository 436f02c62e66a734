"""Accounts say what the numbers say, and the advice fits who led."""

from __future__ import annotations

import math
from dataclasses import replace

from stabilitylab.analysis.explain import explain_episodes
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import Dip, Episode, RunAnalysis, SpikeRef
from stabilitylab.cli.branch import command as branch
from tests.synthetic import planted_run

LAYERS = (("patch_embed", 0), ("blocks.0", 1), ("predictor", 2))
WAVE = Episode(
    181, 240, "patch_embed", (("patch_embed", 181), ("blocks.0", 190), ("predictor", 238)), 1.0, "patch_embed", 183,
    21.04, 14.2,
)  # fmt: skip
ALONE = Episode(700, 702, "predictor", (("predictor", 700),), 1 / 3, "predictor", 701, 2.5, 6.1)
DIP = Dip(250, 262, 300, 0.123, 9.0, 4.0, SpikeRef("blocks.0", 190))
FOUND = RunAnalysis("r", 1000, LAYERS, episodes=(WAVE, ALONE, replace(WAVE, start=900)), dips=(DIP,))


def test_the_whole_story_of_a_wave() -> None:
    first, alone, again = explain_episodes(FOUND)
    assert first.text == (
        "Episode 1, iterations 181 to 240. patch_embed spiked first, at 181, and reached 21.0 times its usual norm "
        "(14 noise sd) at 183, the largest rise of any layer. blocks.0 spiked after 9 iterations, predictor "
        "after 57 iterations; 3 of 3 trained layers took part. kNN accuracy fell by 12.3 points from 250 (lowest at "
        "262) and recovered by 300. This is episode 1 of 2 that patch_embed led."
    )
    assert first.next == (
        "freeze the patch projection, the paper's remedy when it spikes first; to compare the run with and without it: "
        "stablab branch r --at 81 --mitigation frozen-patch"
    )
    assert "No other layer took part. No accuracy dip followed." in alone.text
    assert "episode 2 of 2" in again.text


def test_a_fall_that_came_first_is_not_blamed_on_the_episode() -> None:
    early = replace(FOUND, dips=(replace(DIP, start=100),))
    assert "kNN accuracy was falling since 100; it lost 12.3 points" in explain_episodes(early)[0].text


def test_a_layer_can_spike_at_the_same_iteration_as_the_leader() -> None:
    together = replace(WAVE, order=(("patch_embed", 181), ("blocks.0", 181), ("predictor", 182)))
    (account,) = explain_episodes(replace(FOUND, episodes=(together,)))
    assert "blocks.0 spiked at the same iteration, predictor after 1 iteration; 3 of 3" in account.text


def test_the_advice_depends_on_who_led_and_what_was_done() -> None:
    late = replace(WAVE, leader="predictor", order=WAVE.order[::-1], peak_layer="blocks.0")
    broken = replace(WAVE, ratio=math.inf, z=math.inf)

    def advice(episode: Episode, **config: object) -> str:
        (account,) = explain_episodes(replace(FOUND, episodes=(episode,)), config)
        return account.next

    assert "predictor led" in advice(late)
    assert "the largest was blocks.0" in explain_episodes(replace(FOUND, episodes=(late,)))[0].text
    assert "is frozen and predictor led" in advice(late, mitigation=("frozen-patch",))
    assert "warm-up of 300 iterations" in advice(WAVE, optim={"warmup_iterations": 300})
    assert advice(broken, train={"amp": "fp16"}).startswith("turn --amp fp16 off")
    assert advice(broken).startswith("lower --base-lr")
    assert "only one layer spiked" in advice(ALONE)
    assert "was not finite at 183" in explain_episodes(replace(FOUND, episodes=(broken,)))[0].text


def test_the_command_in_the_advice_is_one_that_exists() -> None:
    words = explain_episodes(FOUND)[0].next.split("stablab ")[1].split()
    context = branch.make_context("branch", words[1:])
    assert (words[0], context.params["at"], context.params["mitigation"]) == ("branch", 81, ("frozen-patch",))


def test_every_episode_of_a_planted_run_is_told_with_its_dip() -> None:
    planted = planted_run(seed=2, lag=30)
    found = analyze_run(planted.series)
    accounts = explain_episodes(found)
    assert [a.start for a in accounts] == [e.start for e in found.episodes or ()]
    assert sum("kNN accuracy fell" in a.text for a in accounts) == len(planted.dip_starts)


def test_without_episodes_there_is_nothing_to_tell() -> None:
    assert explain_episodes(RunAnalysis("r", 10, LAYERS)) == ()
    assert "dip" not in explain_episodes(replace(FOUND, dips=None))[0].text
